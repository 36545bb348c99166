"""Let a teacher write something about every row: an answer, a rationale, a text of that kind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.run import Run
from ..core.signal import Kind
from ..teachers.text import Ask, Decoding, Lost
from .asking import Wording, answered, check_drawn, check_new, check_pattern, gone_through, longest, most_of, seeds_of, taken
from .demos import NAME, Demos
from .flow import bare
from .steps import Need
from .table import Row


@dataclass(frozen=True, kw_only=True)
class Generate:
    """`each` new rows for every row: its columns and, in `into`, what the teacher answered to the prompt about it.

    Lost: a row that lacks a column which the prompt reads, and for every answer that did not come, was empty, was cut off
    at `max_new` tokens, or has no match of `take`, a row with what there was of it. Streams.
    """

    prompt: str  # a template over the row's columns: "Translate: {{ text }}"
    into: str = "answer"
    system: str = ""  # a template too; words that stand before the conversation
    begin: str = ""  # a template too: what the teacher is made to begin its answer with; `into` holds what comes behind it
    each: int = 1  # samples for a row
    demos: Demos | None = None
    take: str | None = None  # a regular expression: its last match (the first group of it) is the answer; None: all of it
    cut: bool = False  # True: answers that were cut off pass too, and `finished` says which did not end
    decoding: Decoding = Decoding()
    teacher: str = "teacher"

    def __post_init__(self) -> None:
        check_new(self.into)
        check_drawn(self.each, self.decoding, "each")
        check_pattern(self.take)

    def __call__(self, rows: Iterable[Row], run: Run) -> Iterator[Row]:
        """The new rows, whose parents are the rows that they are about."""
        work, rows = run.work, gone_through(rows)
        asks_of = conversations(self, rows, run, self.into, self.each)
        for row, answers in answered(work, self.teacher, rows, asks_of):
            for answer in answers:
                if isinstance(answer, Lost):
                    work.lose(row, answer.why)
                    continue
                told, why = read(answer.text, answer.finished or self.cut, self.take)
                if told is None:
                    work.lose({**row, self.into: answer.text}, why, tokens=answer.wrote)
                    continue
                more = {"finished": answer.finished} if self.cut else {}
                truth = {} if answer.truth is None else {"_truth": answer.truth}
                yield work.child(row, **{**bare(row), self.into: told, **more, **truth})

    @property
    def needs(self) -> frozenset[Kind]:
        """Text, and what it is to be held to."""
        return frozenset[Kind]({"text"}) | Ask((), self.decoding, begin=self.begin).wants

    @property
    def files(self) -> list[Path]:
        """The demonstrations."""
        return self.demos.files if self.demos else []

    def estimate(self, rows: Sequence[Row], run: Run) -> Mapping[str, Need]:
        """`each` calls for every row."""
        return {self.teacher: need_of(self, rows, run, self.into, self.each)}

    def sketch(self, rows: Sequence[Row], run: Run) -> Sequence[Row]:
        """`each` for every row, with the longest answer."""
        text = longest(self.decoding)
        return [{**row, self.into: text} for row in rows for _ in range(self.each)]


def read(text: str, finished: bool, take: str | None) -> tuple[str | None, str]:
    """(what an answer says, "") or (None, why it cannot be used)."""
    if not finished:
        return None, "the answer was cut off"
    told = taken(text, take)
    if told is None:
        return None, "the answer is not in the form that was asked for"
    return (told, "") if told else (None, "an empty answer")


def conversations(step: Any, rows: Iterable[Row], run: Run, into: str, each: int) -> Any:
    """What turns a row into the asks about it, for a step with prompt, system, demos and decoding.

    RunError, before anybody is asked, if the prompt or a demonstration cannot be filled in for any row.
    """
    work = run.work
    wording = Wording(step.prompt, step.system, given=(NAME,) if step.demos else ())
    wording.check(rows)
    begun = Wording(getattr(step, "begin", ""))
    begun.check(rows)
    pool = step.demos.pool(wording, into, run) if step.demos else None

    def asks_of(row: Row) -> list[Ask]:
        turns, more = pool.chosen(row, work.rng("demos", row["_id"])) if pool else ((), {})
        words = wording.messages(row, turns, **more)
        begin = begun.messages(row)[0][1]
        return [Ask(words, step.decoding, seed, dict(row), begin) for seed in seeds_of(work, row, each, step.decoding)]

    return asks_of


def need_of(step: Any, rows: Iterable[Row], run: Run, into: str, each: int) -> Need:
    """The most that such a step asks for."""
    wording = Wording(step.prompt, step.system, given=(NAME,) if step.demos else ())
    pool = step.demos.pool(wording, into, run) if step.demos else None
    more: dict[str, Any] = {} if pool is None else {NAME: []}
    extra = None

    def size(row: Row) -> int:
        nonlocal extra
        if extra is None:
            extra = 0 if pool is None else pool.most(row)
        return wording.size(row, **more) + extra

    return most_of(rows, size, each, step.decoding)
