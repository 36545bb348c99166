"""Demonstrations for a prompt: which rows of a file stand before the row that is asked about."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy

from ..core.run import Run, RunError
from ..data.tables import read_rows
from .alike import Alike
from .asking import Turns, Unfit, Wording, check_columns
from .flow import bare
from .table import Row

NAME = "demos"  # under which a prompt can show them itself


@dataclass(frozen=True, kw_only=True)
class Demos:
    """Rows of a file as examples of what is wanted. A row is never shown itself as its own demonstration.

    If the prompt uses the name `demos`, it is handed these rows and says how they are shown. Else each is a turn of the
    conversation: the prompt filled in with the demonstration's columns, and its answer.
    """

    path: str  # .jsonl, .csv, .parquet, ...
    count: int = 4
    choose: Literal["fixed", "random", "nearest"] = "fixed"  # the first of the file; drawn for each row; most like the row
    near: str = ""  # nearest: the column by whose n-grams
    answer: str = ""  # the column with the answer; empty: the one that the step writes

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError("count must be 1 or more; leave demos out for none")
        if (self.choose == "nearest") != bool(self.near):
            raise ValueError("nearest needs `near`, the column by which rows are alike, and nothing else does")

    @property
    def files(self) -> list[Path]:
        """The pool."""
        return [Path(self.path)]

    def pool(self, wording: Wording, into: str, run: Run) -> Pool:
        """The demonstrations, read; RunError if they lack a column."""
        return Pool(self, wording, self.answer or into, read_rows(self.path, run))


class Pool:
    """Demonstrations ready to be chosen from. They are held in memory."""

    def __init__(self, spec: Demos, wording: Wording, answer: str, rows: Sequence[Row]):
        self.spec, self.wording, self.answer = spec, wording, answer
        self.rows = [bare(row) for row in rows]
        self.shown = NAME in wording.reads  # by the prompt itself
        read = [] if self.shown else [*wording.needed, answer]
        check_columns([*read, *([spec.near] if spec.near else [])], self.rows, f"a demonstration out of {spec.path}")
        self.alike = Alike(str(row.get(spec.near, "")) for row in self.rows) if spec.near else None
        self.turns: list[Turns] = [] if self.shown else [self._turns(number) for number in range(len(self.rows))]

    def chosen(self, row: Row, rng: random.Random) -> tuple[Turns, Mapping[str, Any]]:
        """(turns, what the prompt is handed) for one row."""
        numbers = self._numbers(row, rng)
        if self.shown:
            return (), {NAME: [self.rows[number] for number in numbers]}
        return tuple(turn for number in numbers for turn in self.turns[number]), {}

    def _numbers(self, row: Row, rng: random.Random) -> list[int]:
        count = self.spec.count
        if self.spec.choose == "random":
            drawn = rng.sample(range(len(self.rows)), min(count + 1, len(self.rows)))
            return [number for number in drawn if not self._same(number, row)][:count] or self._others(row, count)
        if self.alike is None:
            return self._others(row, count)
        if self.spec.near not in row:
            raise Unfit(f"no {self.spec.near}")
        order = numpy.argsort(-self.alike.to(str(row[self.spec.near])), kind="stable").tolist()
        nearest = [number for number in order if not self._same(number, row)][:count]
        return nearest[::-1]  # the most alike stands next to the question

    def _others(self, row: Row, count: int) -> list[int]:
        return list(islice((number for number in range(len(self.rows)) if not self._same(number, row)), count))

    def _same(self, number: int, row: Row) -> bool:
        """Whether a demonstration is the row itself: it says the same in all columns that the prompt reads."""
        demo = self.rows[number]
        names = [name for name in self.wording.names if name in demo and name != self.answer]
        if self.shown:
            names = [name for name in demo if name != self.answer and name in row]
        return bool(names) and all(demo[name] == row.get(name) for name in names)

    def _turns(self, number: int) -> Turns:
        row = self.rows[number]
        try:
            if self.answer not in row:
                raise Unfit(f"no {self.answer}")
            return (self.wording.messages(row)[-1], ("assistant", str(row[self.answer])))
        except Unfit as error:
            raise RunError(f"row {number + 1} of {self.spec.path} cannot be a demonstration: {error}") from error

    def most(self, row: Row) -> int:
        """Tokens that demonstrations add to a conversation like the one about this row, at most."""
        if not self.shown:
            sizes = [sum(-(-len(words.encode()) // 4) + 4 for _, words in turns) for turns in self.turns]
        else:
            base = self.wording.size(row, **{NAME: []})
            sizes = [self.wording.size(row, **{NAME: [demo]}) - base + 1 for demo in self.rows]
        return sum(sorted(sizes)[-self.spec.count :])
