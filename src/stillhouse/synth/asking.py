"""What a step asks about its rows: prompts over their columns, each row with all its answers, and the most that it costs."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

from ..core.recipe import nearest
from ..core.run import RunError
from ..core.signal import Completion
from ..teachers.text import Ask, Decoding, Lost
from .flow import bare
from .prompts import fill
from .steps import Need, Work
from .table import CHUNK, Piece, Row, Table

GUESS = 256  # tokens of a column that nobody has seen yet
Turns = tuple[tuple[str, str], ...]  # (role, words)


class Unfit(Exception):
    """This row cannot be asked about, and why."""


class Wording:
    """A prompt, and words of the system before it, over the columns of rows; `given`: names that the step adds."""

    def __init__(self, prompt: str, system: str = "", given: Iterable[str] = ()):
        self.prompt, self.system, self.given = prompt, system, frozenset(given)
        self.reads = _names(prompt) | _names(system)
        self.names = self.reads - self.given  # columns
        said = f"{prompt} {system}"
        self.needed = [name for name in sorted(self.names) if not _spared(name, said)]

    def check(self, rows: Iterable[Row]) -> None:
        """RunError for a prompt that cannot be read, and for a column that no row has."""
        check_columns(self.needed, rows, "the prompt")

    def messages(self, row: Row, turns: Turns = (), **more: Any) -> Turns:
        """The conversation about a row, `turns` between the system's words and the prompt; Unfit if that cannot be."""
        facts = {**bare(row), **more}
        lacking = [name for name in self.needed if name not in facts]
        if lacking:
            raise Unfit(f"no {lacking[0]}")
        try:
            system = (("system", fill(self.system, **facts)),) if self.system else ()
            return (*system, *turns, ("user", fill(self.prompt, **facts)))
        except (RunError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            raise Unfit(str(error)) from error

    def size(self, row: Row, **more: Any) -> int:
        """Tokens of that conversation without further turns; columns that are not there yet are guessed."""
        unseen = {name: "word" * GUESS for name in self.names if name not in row}
        try:
            return Ask(self.messages({**row, **unseen}, **more), Decoding()).size
        except Unfit:  # a list or a mapping that is not there yet
            words = sum(-(-len(str(row.get(name, "")).encode()) // 4) for name in self.names)
            return words + GUESS * len(unseen) + Ask((("system", self.system), ("user", self.prompt)), Decoding()).size


def check_columns(names: Iterable[str], rows: Iterable[Row], who: str) -> None:
    """RunError, with the nearest name, if none of the rows has one of these columns; nothing where there are no rows."""
    if isinstance(rows, Table | Piece):
        known = set(rows.columns) if len(rows) else set[str]()
    else:
        known = {name for row in rows for name in row}
    for name in names:
        if known and name not in known:
            plain = sorted(each for each in known if not each.startswith("_"))
            raise RunError(f"{who} reads a column {name!r}, which no row has{nearest(name, plain)}")


def gone_through(rows: Iterable[Row]) -> Table | Sequence[Row]:
    """What can be gone through more than once."""
    return rows if isinstance(rows, Table | Sequence) else list(rows)


def answered(
    work: Work, role: str, rows: Iterable[Row], asks_of: Callable[[Row], Sequence[Ask]]
) -> Iterator[tuple[Row, list[Completion | Lost]]]:
    """Every row with the answers to its asks, in order; a row that is Unfit is lost, in its turn too.

    Holds no more rows than are asked about together, and a chunk of those that are not asked about between them: of more
    in a row, those to be lost are lost at once.
    """
    without: deque[tuple[int, Row, str | None]] = deque()  # (number, row, why it is lost; None: it needs no answer)
    waiting = 0  # asks under way

    def pairs() -> Iterator[tuple[tuple[int, Row, int], Ask]]:
        nonlocal waiting
        for number, row in enumerate(rows):
            why = None
            try:
                asks = asks_of(row)
            except Unfit as error:
                asks, why = (), str(error)
            if asks:
                waiting += len(asks)
                yield from (((number, row, len(asks)), ask) for ask in asks)
            elif why is not None and (not (waiting or without) or len(without) >= CHUNK):
                work.lose(row, why)
            else:
                without.append((number, row, why))

    def before(number: float) -> Iterator[tuple[Row, list[Completion | Lost]]]:
        while without and without[0][0] < number:
            _, row, why = without.popleft()
            if why is None:
                yield row, []
            else:
                work.lose(row, why)

    group: list[Completion | Lost] = []
    for (number, row, count), answer in work.ask(role, pairs()):
        yield from before(number)
        waiting -= 1
        group.append(answer)
        if len(group) == count:
            yield row, group
            group = []
    yield from before(float("inf"))


def most_of(rows: Iterable[Row], size_of: Callable[[Row], int], each: int, decoding: Decoding) -> Need:
    """The most that `each` asks about every row take."""
    sizes = [0, 0]
    for row in rows:
        sizes[0] += 1
        sizes[1] += size_of(row)
    return Need(each * sizes[0], each * sizes[1], each * sizes[0] * decoding.max_new)


def longest(decoding: Decoding) -> str:
    """A text as long as an answer can be, to stand for one in a sketch."""
    return _filler(decoding.max_new)


def check_new(*columns: str) -> None:
    """ValueError for a column that a step cannot write."""
    for name in columns:
        if not name or name.startswith("_"):
            raise ValueError(
                f"a step cannot write the column {name!r}: names that begin with an underscore are the engine's"
            )


def check_pattern(pattern: str | None) -> None:
    """ValueError if that is no regular expression."""
    try:
        re.compile(pattern or "")
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from error


def taken(text: str, pattern: str | None) -> str | None:
    """The text without space around it, or what the last match of a pattern (its first group, if any) says; None: no match.

    A dot matches line breaks too.
    """
    if pattern is None:
        return text.strip()
    found = list(re.finditer(pattern, text, re.DOTALL))
    return (found[-1][1 if found[-1].re.groups else 0] or "").strip() if found else None


def seeds_of(work: Work, row: Row, count: int, decoding: Decoding) -> Iterator[int]:
    """What tells samples about one row apart; 0 where nothing is drawn."""
    return (work.seed(row["_id"], number) if decoding.temperature else 0 for number in range(count))


def check_drawn(count: int, decoding: Decoding, what: str) -> None:
    """ValueError if there are to be several answers to the same words without chance."""
    if count < 1:
        raise ValueError(f"{what} must be 1 or more")
    if count > 1 and not decoding.temperature:
        raise ValueError(f"{what} above 1 needs a decoding temperature above 0: at 0 all answers are the same")


@lru_cache(maxsize=64)
def _names(prompt: str) -> frozenset[str]:
    """What a template takes from outside."""
    from jinja2 import TemplateSyntaxError, meta
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    try:
        environment = ImmutableSandboxedEnvironment()
        return frozenset(meta.find_undeclared_variables(environment.parse(prompt)) - set(environment.globals))
    except TemplateSyntaxError as error:
        raise RunError(f"the prompt's line {error.lineno}: {error.message}") from error


def _spared(name: str, prompt: str) -> bool:
    """Whether a prompt itself says what to do without this name."""
    return bool(re.search(rf"\b{re.escape(name)}\s+is\s+(not\s+)?(un)?defined|\b{re.escape(name)}\s*\|\s*default", prompt))


@lru_cache(maxsize=16)
def _filler(tokens: int) -> str:
    return "word" * tokens
