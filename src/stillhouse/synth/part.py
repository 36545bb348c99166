"""A part of a text in a column of its own: the answer behind the thoughts, the code in a fence.

answer: {use: synth.part.Part, column: answer, pattern: "<answer>(.*?)</answer>", into: external}
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ..core.run import Run
from .asking import check_new, check_pattern, taken
from .rules import having, text_in
from .steps import Silent
from .table import Row


@dataclass(frozen=True, kw_only=True)
class Part(Silent):
    """The rows with what the last match of a regular expression, or its first group, says in `into`. Streams.

    Lost: rows whose column has no match, or one that says nothing. A dot matches line breaks too.
    """

    pattern: str
    column: str = "answer"
    into: str = "part"

    def __post_init__(self) -> None:
        check_new(self.into)
        check_pattern(self.pattern)

    def __call__(self, rows: Iterable[Row], run: Run) -> Iterator[Row]:
        """The rows that have it."""
        for row in having(rows, run, self.column):
            found = taken(text_in(row, self.column), self.pattern)
            if found:
                yield {**row, self.into: found}
            else:
                run.work.lose(row, "there is no such part" if found is None else "the part is empty")
