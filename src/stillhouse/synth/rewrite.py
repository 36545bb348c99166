"""Let a teacher rewrite one column of every row, and check that what must stay has stayed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ..core.run import Run
from ..core.signal import Kind
from ..teachers.text import Ask, Decoding, Lost
from .asking import Unfit, answered, check_columns, check_new, check_pattern, gone_through, longest
from .demos import Demos
from .generate import conversations, need_of, read
from .steps import Need
from .table import Row


@dataclass(frozen=True, kw_only=True)
class Rewrite:
    """The rows, each with `column` as the teacher rewrote it: shorter, clearer, repaired, in another form.

    Lost: a row without the column or one that the prompt reads; a row whose answer did not come, was empty or cut off at
    `max_new` tokens, or has no match of `take`; and a row whose rewriting lost or changed what had to stay. The rewriting
    stays with the lost row as `rewritten`. Streams.
    """

    column: str  # the one that is rewritten
    prompt: str  # a template over the row's columns: "Say it in fewer words: {{ answer }}"
    keep: Sequence[str] = ()  # columns whose text the new text must hold, as a word or words of its own
    same: Sequence[str] = ()  # regular expressions that must find the same things in the new text as in the old
    was: str = ""  # the column for the text as it was; empty: it is not kept in the row
    system: str = ""  # a template too; words that stand before the conversation
    demos: Demos | None = None  # with `answer`: the column of their rewritten text
    take: str | None = None  # a regular expression: its last match (the first group of it) is the new text; None: all of it
    decoding: Decoding = Decoding(temperature=0.0)
    teacher: str = "teacher"
    needs: ClassVar[frozenset[Kind]] = frozenset({"text"})

    def __post_init__(self) -> None:
        check_new(self.column, self.was or self.column)
        for pattern in (self.take, *self.same):
            check_pattern(pattern)
        if self.column in self.keep:
            raise ValueError(f"{self.column!r} is rewritten and cannot be kept; `same` says what of it must stay")
        if self.demos and self.demos.answer in ("", self.column):
            raise ValueError("demonstrations of rewriting need `answer`, the column with their rewritten text")

    def __call__(self, rows: Iterable[Row], run: Run) -> Iterator[Row]:
        """The rows in their order, rewritten."""
        work, rows = run.work, gone_through(rows)
        check_columns([self.column, *self.keep], rows, "the rewriting")
        asks_of = conversations(self, rows, run, self.column, 1)

        def fit(row: Row) -> list[Ask]:
            for name in (self.column, *self.keep):
                if name not in row:
                    raise Unfit(f"no {name}")
            return asks_of(row)

        for row, (answer,) in answered(work, self.teacher, rows, fit):
            if isinstance(answer, Lost):
                work.lose(row, answer.why)
                continue
            told, why = read(answer.text, answer.finished, self.take)
            why = why or self._changed(row, told or "")
            if told is None or why:
                work.lose({**row, "rewritten": answer.text}, why, tokens=answer.wrote)
                continue
            yield {**row, **({self.was: row[self.column]} if self.was else {}), self.column: told}

    def _changed(self, row: Row, new: str) -> str:
        """What had to stay and did not; empty if all of it did."""
        for name in self.keep:
            if not holds(new, str(row[name])):
                return f"the rewriting lost what {name} says"
        for pattern in self.same:
            if _found(pattern, str(row[self.column])) != _found(pattern, new):
                return f"the rewriting changed what {pattern!r} finds"
        return ""

    @property
    def files(self) -> list[Path]:
        """The demonstrations."""
        return self.demos.files if self.demos else []

    def estimate(self, rows: Sequence[Row], run: Run) -> Mapping[str, Need]:
        """One call for every row."""
        return {self.teacher: need_of(self, rows, run, self.column, 1)}

    def sketch(self, rows: Sequence[Row], run: Run) -> Sequence[Row]:
        """All of them, with the longest text."""
        text = longest(self.decoding)
        return [{**row, **({self.was: row.get(self.column, text)} if self.was else {}), self.column: text} for row in rows]


def holds(text: str, part: str) -> bool:
    """Whether a text holds another between the edges of words; `12` is not in `112`, `3.12`, `12.5` or `x = -12`."""
    words = " ".join(part.split())
    if not words:
        return True
    before = r"(?<!\w)(?<!\d[.,])" if words[0].isalnum() or words[0] == "_" else ""
    before += r"(?<!^-)(?<![\s=(:,]-)" if words[0].isdigit() else ""
    after = r"(?!\w)(?![.,]\d)" if words[-1].isalnum() or words[-1] == "_" else ""
    return re.search(before + re.escape(words) + after, " ".join(text.split())) is not None


def _found(pattern: str, text: str) -> set[str]:
    return {" ".join(match[0].split()) for match in re.finditer(pattern, text, re.DOTALL)}
