"""Placeholders and the names that stand for them: `PersonX` bears a first name where people, and models, are asked."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ..core.run import Run
from .parse import plain
from .rules import having, text_in
from .steps import Silent
from .table import Row

NAMES = (
    "Alex",
    "Bo",
    "Casey",
    "Dana",
    "Eli",
    "Fran",
    "Gray",
    "Harper",
    "Indy",
    "Jo",
    "Kim",
    "Lee",
    "Max",
    "Noor",
    "Pat",
    "Robin",
)
PLACE = "PersonX"


@dataclass(frozen=True, kw_only=True)
class Readings(Silent):
    """Every row with `lines` lines in `into`: what `column` says, each time with another name for the placeholder.

    With `pairs`, two columns, a line ends in the pairs of a word of the one and a word of the other (of four letters or
    more): a critic that counts words has no other way to know what goes with what. Streams; nothing is lost.
    """

    column: str = "statement"
    lines: int = 5
    pairs: tuple[str, str] | None = None
    names: tuple[str, ...] = NAMES
    into: str = "text"

    def __post_init__(self) -> None:
        if not 1 <= self.lines <= len(self.names):
            raise ValueError(f"lines must be between 1 and the {len(self.names)} names that there are")

    def __call__(self, rows: Iterable[Row], run: Run) -> Iterator[Row]:
        """All rows."""
        for row in having(rows, run, self.column, *(self.pairs or ())):
            said = " ".join(text_in(row, self.column).split())
            names = run.work.rng(row["_id"]).sample(self.names, self.lines)
            pairs = [f"{a}_{b}" for a in self._words(row, 0) for b in self._words(row, 1)]
            yield {**row, self.into: "\n".join(" ".join([named(said, name), *pairs]) for name in names)}

    def _words(self, row: Row, which: int) -> list[str]:
        words = plain(text_in(row, self.pairs[which])).split() if self.pairs else []
        return [word for word in words if len(word) > 3 and word != plain(PLACE)]


def named(text: str, name: str) -> str:
    """A text with a name in place of PersonX."""
    return re.sub(rf"\b{PLACE}\b", name, text)


def unnamed(text: str, name: str) -> str:
    """A text with PersonX in place of a name."""
    return re.sub(rf"\b{re.escape(name)}\b", PLACE, text)
