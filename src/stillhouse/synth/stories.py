"""Chains of arithmetic told as stories, and read back: questions in words about which everything is known.

`3+4*2=` of Ada's pebbles in Bergen becomes "Ada had 3 pebbles in Bergen. Then 4 more were found. ..." in one of six
styles. Two tellings of one story share its names and numbers and little else; two stories in one style share all but
these.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy

from ..core.run import Run
from .dedup import Hashed, Vectors, vectors_of
from .rules import having, text_in
from .steps import Silent
from .table import Row

NAMES = (
    "Ada Bruno Chidi Dora Emil Freya Gustav Hanna Ingrid Jonas Klara Lars Mirela Nuno Olga Pavel Quentin Rosa Sven Tilda Ugo"
    " Vera Wanda Yusuf Zora"
).split()
THINGS = (
    "pebbles candles buttons feathers walnuts lanterns ribbons marbles teapots acorns kites spoons violets thimbles"
    " postcards anchors crayons melons lockets trumpets biscuits hammers saddles tulips magnets"
).split()
PLACES = (
    "Bergen Lisbon Kyoto Nairobi Quito Dresden Havana Tromso Cusco Malmo Odessa Perth Riga Salta Tunis Utrecht Vilnius"
    " Warsaw Yerevan Zagreb Accra Bristol Cordoba Dakar Essen"
).split()


@dataclass(frozen=True)
class Style:
    """How a story begins, what becomes of each operator, and what is asked."""

    opening: str
    plus: str
    minus: str
    times: str
    closing: str


STYLES = (
    Style(
        "{name} had {first} {thing} in {place}.", "Then {n} more were found.", "Then {n} were lost.",
        "Then each of them became {n}.", "How many {thing} did {name} have in the end, modulo {base}?",
    ),
    Style(
        "In {place} stands a box that belongs to {name}, with {first} {thing} inside.", "A friend puts in {n}.",
        "A thief takes out {n}.", "A wizard makes {n} of every one.",
        "Give the number of {thing} that are left, modulo {base}.",
    ),
    Style(
        "Take the number {first}, which is how many {thing} came with {name} to {place};", "add {n};", "subtract {n};",
        "multiply by {n};", "what is the result modulo {base}?",
    ),
    Style(
        "A ledger from {place} gives {first} for the {thing} of {name},", "a gain of {n},", "a debt of {n},",
        "a factor of {n},", "so what remains after division by {base}?",
    ),
    Style(
        "{name} counts {thing} at {place}, {first} to begin with,", "{n} extra,", "{n} fewer,", "{n} times as many,",
        "and wants the remainder of the total on division by {base}.",
    ),
    Style(
        "Of the {thing} that {name} keeps near {place} we know this: {first} at dawn,", "plus {n} later,",
        "minus {n} later,", "times {n} later,", "and nothing else. Find their number at dusk modulo {base}.",
    ),
)  # fmt: skip
SIGNS = {"+": "plus", "-": "minus", "*": "times"}


def _expression() -> re.Pattern[str]:
    """Every way to tell an operator; a group for each of the signs in every style."""
    ways: list[str] = []
    for number, style in enumerate(STYLES):
        for word in SIGNS.values():
            ways.append(re.escape(getattr(style, word)).replace(re.escape("{n}"), rf"(?P<{word}{number}>\d+)"))
    return re.compile("|".join(ways))


TELLING = _expression()


@dataclass(frozen=True)
class Story:
    """One question and who it is about."""

    chain: str  # 3+4*2=
    name: str
    thing: str
    place: str

    def told(self, style: int, base: int) -> str:
        """In words."""
        how = STYLES[style]
        first, *parts = re.findall(r"[+*-]?\d+", self.chain)
        about = {"first": first, "name": self.name, "thing": self.thing, "place": self.place, "base": base}
        steps = [getattr(how, SIGNS[part[0]]).format(n=part[1:]) for part in parts]
        return " ".join([how.opening.format(**about), *steps, how.closing.format(**about)])

    def answer(self, number: int | str) -> str:
        """`7 pebbles`."""
        return f"{number} {self.thing}"


def chain_in(text: str) -> str | None:
    """The chain that a story tells; None if it tells none."""
    first = re.search(r"\d+", text)
    steps = [(match.lastgroup or "", match[match.lastgroup or 0]) for match in TELLING.finditer(text)]
    if first is None or not steps:
        return None
    signs = {word: sign for sign, word in SIGNS.items()}
    return first[0] + "".join(f"{signs[way.rstrip('0123456789')]}{n}" for way, n in steps) + "="


def about_in(text: str) -> frozenset[str]:
    """Whom and what a story is about."""
    return frozenset(re.findall(r"\w+", text)) & frozenset([*NAMES, *THINGS, *PLACES])


def same_story(one: str, other: str) -> bool:
    """Whether two texts tell the same: the same chain about the same."""
    return chain_in(one) == chain_in(other) and about_in(one) == about_in(other)


def stories(chains: Iterable[str], draw: random.Random) -> Iterator[Story]:
    """Each chain about another name, thing and place."""
    seen: set[tuple[str, str, str]] = set()
    for chain in chains:
        about = (draw.choice(NAMES), draw.choice(THINGS), draw.choice(PLACES))
        while about in seen:
            about = (draw.choice(NAMES), draw.choice(THINGS), draw.choice(PLACES))
        seen.add(about)
        yield Story(chain, *about)


def tagged(solution: str) -> str:
    """`3+4=7;7*2=4#4` as `<think>3+4=7; 7*2=4</think> <answer>4</answer>`."""
    steps, _, result = solution.partition("#")
    return f"<think>{steps.replace(';', '; ')}</think> <answer>{result}</answer>"


@dataclass(frozen=True, kw_only=True)
class Gist:
    """Vectors of what stories are about and, `blur` as long, of how they say it: what stands in for a sentence encoder.

    A sentence encoder puts two tellings of one story near each other; counts of words do not, and make two stories in one
    style near. This one knows the names and reads the numbers.
    """

    blur: float = 0.5

    def __call__(self, texts: Sequence[str], run: Run) -> Vectors:
        """`[N, 2048]`."""
        about = [" ".join([*sorted(about_in(text)), *re.findall(r"[+*-]?\d+", chain_in(text) or "")]) for text in texts]
        parts = [vectors_of(found, Hashed(), run) for found in (about, texts)]
        return numpy.concatenate([parts[0], self.blur * parts[1]], axis=1)


@dataclass(frozen=True, kw_only=True)
class Compact(Silent):
    """The rows, with a tagged response as what a student of `data.tasks.Chain` writes; lost: a row without a response.

    Whatever is wrong with the tags, they are left out, and where `<answer>` stood comes `#`.
    """

    column: str = "response"
    into: str = "solution"

    def __call__(self, rows: Iterable[Row], run: Run) -> Iterator[Row]:
        """The rows, with the other form."""
        for row in having(rows, run, self.column):
            text = re.sub(r"</?\w+>|\s", "", text_in(row, self.column).replace("<answer>", "#"))
            if text:
                yield {**row, self.into: text}
            else:
                run.work.lose(row, f"no {self.column}")
