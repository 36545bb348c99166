"""Quotas: one row for every combination of what rows are to be about, grounded in the rows that are there."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ..core.run import Run, RunError
from ..core.signal import Kind
from .asking import gone_through
from .flow import bare
from .steps import Need
from .table import Row


@dataclass(frozen=True, kw_only=True)
class Grid:
    """New rows with a column for every axis: for each combination of their values as many as its quota says.

    A quota is `each` times the numbers beside the combination's values. `per_row`: that many for each row that comes in,
    beside its columns; streams. Else that many in all, each grounded in `shown` of the rows: one lends its columns,
    several stand in the column `seeds`, none leaves the axes alone. Rows are drawn in turns, so that all are used before
    one is used again; that is a barrier, which holds the names of all rows and those that were drawn. Nothing is lost; the
    rows that came in do not come out.
    """

    axes: Mapping[str, Any]  # column -> its values: a list, or value -> how many of it for one of the others
    each: int = 1
    per_row: bool = False
    shown: int = 1
    needs: ClassVar[frozenset[Kind]] = frozenset()

    def __post_init__(self) -> None:
        if self.each < 1 or self.shown < 0:
            raise ValueError("each must be 1 or more, and shown 0 or more")
        if not self.axes:
            raise ValueError("give at least one axis, such as {topic: [sport, music]}")
        for name, values in self.axes.items():
            if isinstance(values, str) or not isinstance(values, Mapping | Sequence) or not values:
                raise ValueError(f"the axis {name!r} is a list of values, or value: how many")
            if name.startswith("_") or name == "seeds":
                raise ValueError(f"an axis cannot be called {name!r}")
            counts = list(values.values()) if isinstance(values, Mapping) else [1]
            if not all(isinstance(count, int) and count >= 0 for count in counts) or not any(counts):
                raise ValueError(f"the numbers of the axis {name!r} must be 0 or more, and one of them above 0")
            if not isinstance(values, Mapping) and len({repr(value) for value in values}) < len(values):
                raise ValueError(f"the axis {name!r} names a value twice; give it a number: value: 2")

    def cells(self) -> Iterator[tuple[dict[str, Any], int]]:
        """Every combination with its quota, the first axis changing slowest."""
        pairs = [list(v.items()) if isinstance(v, Mapping) else [(each, 1) for each in v] for v in self.axes.values()]
        for found in itertools.product(*pairs):
            quota = self.each
            for _, count in found:
                quota *= count
            if quota:
                yield dict(zip(self.axes, (value for value, _ in found), strict=True)), quota

    def __call__(self, rows: Iterable[Row], run: Run) -> Iterator[Row]:
        """Rows whose parents are those that they are grounded in."""
        work = run.work
        if self.per_row:
            for row in rows:
                self._apart(row)
                for cell, quota in self.cells():
                    for _ in range(quota):
                        yield work.child(row, **bare(row), **cell)
            return
        rows = gone_through(rows)
        names = sorted(str(row["_id"]) for row in rows)
        if self.shown and not names:
            return
        if len(names) < self.shown:
            raise RunError(f"rows grounded in {self.shown} rows each need as many, and there are {len(names)}; lower shown")
        work.rng("order").shuffle(names)
        turns = itertools.cycle(names)
        drawn = [(cell, [next(turns) for _ in range(self.shown)]) for cell, quota in self.cells() for _ in range(quota)]
        wanted = {name for _, chosen in drawn for name in chosen}
        known = {str(row["_id"]): row for row in rows if str(row["_id"]) in wanted}
        for cell, chosen in drawn:
            seeds = [known[name] for name in chosen]
            for row in seeds:
                self._apart(row)
            more: dict[str, Any] = bare(seeds[0]) if len(seeds) == 1 else {}
            if len(seeds) > 1:
                more = {"seeds": [bare(row) for row in seeds]}
            yield work.child(*seeds, **more, **cell)

    def _apart(self, row: Row) -> None:
        """RunError if an axis would write over a column."""
        for name in self.axes:
            if name in row and (self.per_row or self.shown == 1):
                raise RunError(f"the rows have a column {name!r} already; call the axis something else")

    def estimate(self, rows: Sequence[Row], run: Run) -> Mapping[str, Need]:
        """It asks nobody."""
        return {}

    def sketch(self, rows: Sequence[Row], run: Run) -> Sequence[Row]:
        """As many, grounded in the rows with most to say."""
        if self.per_row:
            return [{**row, **cell} for row in rows for cell, quota in self.cells() for _ in range(quota)]
        some = sorted(rows, key=lambda row: len(str(bare(row))), reverse=True)[: self.shown]
        more: dict[str, Any] = bare(some[0]) if len(some) == 1 else {}
        if len(some) > 1:
            more = {"seeds": [bare(row) for row in some]}
        return [{**more, **cell} for cell, quota in self.cells() for _ in range(quota)]
