"""Demonstrations that change from row to row: a few of a pool, drawn for each, or those most like it.

    show: {use: synth.shown.Shown, count: 3, path: long.jsonl, columns: [question, answer]}          a step
    show: {use: synth.shown.Shown, count: 8, done: solved, choose: nearest, near: question, columns: [question, program]}
    data: {use: synth.shown.Beside, stage: make, ...}          rows to ask about, beside what a stage has made

A prompt goes through them: `{% for each in shown %}{{ each.question }} {{ each.answer }}{% endfor %}`. What `Generate` has
under `demos` comes out of a file and stands as turns of a conversation.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy

from ..core.run import Run, RunError, seed_of
from ..data.tables import content_key, read_rows
from .alike import Alike
from .asking import check_columns, check_new
from .flow import bare
from .rules import having, text_in
from .steps import Silent, check_file
from .synthesize import made_rows
from .table import Row

Choice = Literal["random", "nearest", "farthest"]


@dataclass(frozen=True, kw_only=True)
class Choosing:
    """How demonstrations are chosen."""

    columns: tuple[str, ...]  # of a demonstration that are shown
    count: int = 3
    choose: Choice = "random"
    near: str = ""  # nearest, farthest: the column by whose n-grams rows are alike

    def __post_init__(self) -> None:
        if self.count < 1 or not self.columns:
            raise ValueError("count must be 1 or more, and columns name what is shown of a demonstration")
        if (self.choose == "random") == bool(self.near):
            raise ValueError("nearest and farthest need `near`, the column by which rows are alike, and random does not")

    def stand_ins(self) -> list[dict[str, str]]:
        """As many as are shown, for an estimate."""
        return [dict.fromkeys(self.columns, "word" * 64)] * self.count


class Shelf:
    """A pool in memory, in an order that does not depend on how it came."""

    def __init__(self, spec: Choosing, rows: Iterable[Row], where: str):
        self.spec, self.rows = spec, sorted((bare(row) for row in rows), key=content_key)
        check_columns([*spec.columns, *filter(None, [spec.near])], self.rows, f"a demonstration {where}")
        self.alike = Alike(text_in(row, spec.near) for row in self.rows) if spec.near else None

    def for_(self, row: Row, rng: random.Random) -> list[dict[str, Any]]:
        """What is shown with a row, what is most like it first; never the row itself."""
        fit = (self.rows[number] for number in self._order(row, rng))
        chosen = (each for each in fit if not self._same(each, row))
        return [{name: each.get(name) for name in self.spec.columns} for each in islice(chosen, self.spec.count)]

    def _order(self, row: Row, rng: random.Random) -> list[int]:
        if self.alike is None:
            return rng.sample(range(len(self.rows)), min(len(self.rows), self.spec.count + 1))
        likeness = self.alike.to(text_in(row, self.spec.near))
        return numpy.argsort(likeness if self.spec.choose == "farthest" else -likeness, kind="stable").tolist()

    def _same(self, each: Row, row: Row) -> bool:
        """Whether a demonstration is the row: it says the same in `near`, or in all columns that both have."""
        names = [self.spec.near] if self.spec.near else [name for name in self.spec.columns if name in row]
        return bool(names) and all(each.get(name) == row.get(name) for name in names)


@dataclass(frozen=True, kw_only=True)
class Shown(Choosing, Silent):
    """Every row with demonstrations in `into`, a list of mappings; no row is lost.

    They are `rows` written here, rows of a file (`path`), or those of the rows that come in which have something in column
    `done`: these pass as they are, and the others are shown some of them (none, if there are none). Of the last kind it
    is a barrier, and holds them; the others stream.
    """

    rows: tuple[Mapping[str, Any], ...] = ()
    path: str = ""
    done: str = ""
    into: str = "shown"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_new(self.into)
        if sum(map(bool, (self.rows, self.path, self.done))) != 1:
            raise ValueError("give one of rows, path and done: where demonstrations come from")

    @property
    def files(self) -> list[Path]:
        """The pool, if it is a file."""
        return [Path(self.path)] if self.path else []

    def check(self, run: Run) -> None:
        """RunError if the file is not there."""
        if self.path:
            check_file(self.path)

    def __call__(self, rows: Iterable[Row], run: Run) -> Iterator[Row]:
        """All rows."""
        columns = [name for name in (self.done, self.near) if name]
        table = having(rows, run, *columns) if columns else rows
        if self.done:
            shelf = Shelf(self, (row for row in table if row.get(self.done)), f"of step {run.work.name!r}")
        else:
            shelf = Shelf(self, read_rows(self.path, run) if self.path else self.rows, f"out of {self.path or 'rows'}")
        for row in table:
            if self.done and row.get(self.done):
                yield row
            else:
                yield {**row, self.into: shelf.for_(row, run.work.rng(row["_id"]))}

    def sketch(self, rows: Sequence[Row], run: Run) -> Sequence[Row]:
        """All rows with demonstrations of a common length."""
        return [{**row, self.into: self.stand_ins()} for row in rows]


@dataclass(frozen=True, kw_only=True)
class Beside(Choosing):
    """Rows of `base` with demonstrations in `into`, out of what stage `stage` of this run has made: a stage's `data`."""

    stage: str
    base: Any = None  # a DataSpec with `rows(run)`; None: the recipe's
    limit: int | None = None  # of each split, at most
    into: str = "shown"

    def rows(self, run: Run) -> dict[str, list[Row]]:
        """The splits; while the stage has made nothing, with stand-ins."""
        splits = {name: found[: self.limit] for name, found in (self.base or run.recipe.data).rows(run).items()}
        if run.done(self.stage) is None:
            return {name: [{**row, self.into: self.stand_ins()} for row in found] for name, found in splits.items()}
        shelf = Shelf(self, made_rows(run, self.stage), f"of stage {self.stage!r}")
        if not shelf.rows:
            raise RunError(f"stage {self.stage!r} has made no row to show")

        def told(row: Row) -> Row:
            rng = random.Random(seed_of(run.seed, "shown", content_key(bare(row))))
            return {**row, self.into: shelf.for_(row, rng)}

        return {name: [told(row) for row in found] for name, found in splits.items()}

    def load(self, run: Run) -> Mapping[str, Any]:
        """As the rows' own spec does."""
        return (self.base or run.recipe.data).load(run)
