"""A trace in steps and thoughts: steps by what separates them, thoughts by the words with which a step turns away.

cut: {use: synth.segment.Segment, column: trace}
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from ..core.run import Run
from ..teachers.text import begins_with
from .asking import check_new, check_pattern
from .rules import having, text_in
from .steps import Silent
from .table import Row

TURNS = ("Wait", "But", "Alternatively", "However", "Hmm", "Hold on")


@dataclass(frozen=True, kw_only=True)
class Thoughts:
    """Where a trace falls into steps, and where a new thought begins.

    A thought is a step and all steps behind it up to the next that opens with one of `turns`, in whatever case. For words
    steps are parted by blank lines; for arithmetic chains (`data.tasks.Chain`) the separator is `;` and the turn `~`.
    """

    separator: str = r"\n[^\S\n]*\n\s*"  # a regular expression
    turns: tuple[str, ...] = TURNS

    def __post_init__(self) -> None:
        check_pattern(self.separator)
        if not self.separator or re.match(self.separator, ""):
            raise ValueError(f"{self.separator!r} separates nothing: it must match something")
        if not all(word.strip() for word in self.turns):
            raise ValueError("a turn is a word or a sign, and not empty")

    def steps(self, text: str) -> list[str]:
        """The steps, each with the separator behind it; put together they are the text. None is empty."""
        steps: list[str] = []
        begin, lead = 0, ""
        for end in [*(found.span() for found in re.finditer(self.separator, text)), (len(text), len(text))]:
            content, piece = text[begin : end[0]], text[begin : end[1]]
            begin = end[1]
            if content.strip():
                steps.append(lead + piece)
                lead = ""
            elif steps:  # one separator behind the other
                steps[-1] += piece
            else:
                lead += piece
        return steps

    def turning(self, step: str) -> bool:
        """Whether a step opens with a turn."""
        return begins_with(self.unled(step), self.turns)

    def switches(self, steps: Sequence[str]) -> list[int]:
        """The numbers of the steps that begin a further thought; the first step begins none."""
        return [number for number, step in enumerate(steps) if number and self.turning(step)]

    def unled(self, text: str) -> str:
        """A text without separators and space in front of it."""
        return re.sub(rf"\A(?:{self.separator}|\s)+", "", text)


@dataclass(frozen=True, kw_only=True)
class Segment(Silent):
    """Every row with how many steps (`into`) and thoughts (INTO_thoughts) its trace has. None is lost."""

    column: str = "trace"
    into: str = "steps"
    thoughts: Thoughts = Thoughts()

    def __post_init__(self) -> None:
        check_new(self.into)

    def __call__(self, rows: Iterable[Row], run: Run) -> Iterator[Row]:
        """All rows, in their order."""
        for row in having(rows, run, self.column):
            steps = self.thoughts.steps(text_in(row, self.column))
            count = len(self.thoughts.switches(steps)) + bool(steps)
            yield {**row, self.into: len(steps), f"{self.into}_thoughts": count}
