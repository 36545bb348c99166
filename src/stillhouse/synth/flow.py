"""Steps that consist of other steps, and steps that are a function of the user's: what a plan is put together from.

Rows flow through a plan's steps in a line. `Branch` parts them by a column, `Rounds` sends those that are not done round
again, `Grow` lets what was made be what the next round begins with, `Apply`, `Gather` and `Join` change rows one by one,
by groups, and by what another file says of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

from ..core.run import Run, RunError
from ..core.signal import Kind
from ..data import own
from ..data.tables import read_rows
from .steps import Need, Silent, check_file
from .table import Row, Table

Steps = Mapping[str, Any]  # name -> Step, in order
NOTHING = frozenset[Kind]()


@dataclass(frozen=True, kw_only=True)
class Branch:
    """Rows go the way that a column says; they come out way by way, in the order of the ways."""

    on: str  # the column
    ways: Mapping[str, Steps]  # what the column says, as text -> steps
    others: bool = True  # rows that no way is for: do they pass as they are, or are they lost?
    needs: ClassVar[frozenset[Kind]] = NOTHING

    def __call__(self, rows: Iterable[Row], run: Run) -> Iterator[Row]:
        """Every row after the steps of its way."""
        work, table = run.work, _table(rows)
        for way, steps in self.ways.items():
            yield from work.inside(way, steps, (row for row in table if self._way(row) == way))
        for row in table:
            if self._way(row) not in self.ways:
                if self.others:
                    yield row
                else:
                    work.lose(row, f"no way for this {self.on}")

    def _way(self, row: Row) -> str:
        return str(row.get(self.on))

    @property
    def parts(self) -> Mapping[str, Steps]:
        """The steps within, by way."""
        return self.ways

    def estimate(self, rows: Sequence[Row], run: Run) -> Mapping[str, Need]:
        """What all ways ask for, if each row goes the way that it would go now."""
        return _added(estimated(steps, some, run)[0] for steps, some in self._parted(rows))

    def sketch(self, rows: Sequence[Row], run: Run) -> Sequence[Row]:
        """What comes out of all ways."""
        rest = [row for row in rows if self._way(row) not in self.ways] if self.others else []
        return [*chain.from_iterable(estimated(steps, some, run)[1] for steps, some in self._parted(rows)), *rest]

    def _parted(self, rows: Sequence[Row]) -> Iterator[tuple[Steps, list[Row]]]:
        for way, steps in self.ways.items():
            yield steps, [row for row in rows if self._way(row) == way]


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """Steps again and again, each time for the rows that are not done yet: those whose column `until` says nothing."""

    steps: Steps
    until: str  # the column that a row which is done has, and which is not empty, zero or false
    rounds: int = 3
    keep: bool = False  # rows that are not done after all rounds: do they pass, or are they lost?
    needs: ClassVar[frozenset[Kind]] = NOTHING

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError("rounds must be 1 or more")

    def __call__(self, rows: Iterable[Row], run: Run) -> Iterator[Row]:
        """The rows that are done, by round, then what is left."""
        work, going = run.work, _table(rows)
        for number in range(1, self.rounds + 1):
            yield from (row for row in going if row.get(self.until))
            if all(row.get(self.until) for row in going):
                return
            going = work.inside(str(number), self.steps, (row for row in going if not row.get(self.until)))
        for row in going:
            if row.get(self.until) or self.keep:
                yield row
            else:
                work.lose(row, f"no {self.until} after {self.rounds} rounds")

    @property
    def parts(self) -> Mapping[str, Steps]:
        """The steps within."""
        return {"each round": self.steps}

    def estimate(self, rows: Sequence[Row], run: Run) -> Mapping[str, Need]:
        """All rounds for all rows: the most that it can be."""
        return _added([estimated(self.steps, rows, run)[0]] * self.rounds)

    def sketch(self, rows: Sequence[Row], run: Run) -> Sequence[Row]:
        """One round."""
        return estimated(self.steps, rows, run)[1]


@dataclass(frozen=True, kw_only=True)
class Grow:
    """A pool that grows: in every round the steps get the whole pool, and what they yield beside it joins it."""

    steps: Steps
    to: int  # rows; it ends there
    rounds: int = 10  # or here
    needs: ClassVar[frozenset[Kind]] = NOTHING

    def __post_init__(self) -> None:
        if self.to < 1 or self.rounds < 1:
            raise ValueError("to and rounds must be 1 or more")

    def __call__(self, rows: Iterable[Row], run: Run) -> Iterator[Row]:
        """The pool; the first rows are those that were given."""
        pool: list[Row] = list(rows)
        names = {row["_id"] for row in pool}
        for number in range(1, self.rounds + 1):
            if len(pool) >= self.to:
                break
            made = run.work.inside(str(number), self.steps, pool)
            new = [row for row in made if row["_id"] not in names][: self.to - len(pool)]
            if not new:
                break
            names |= {row["_id"] for row in new}
            pool += new
        return iter(pool)

    @property
    def parts(self) -> Mapping[str, Steps]:
        """The steps within."""
        return {"each round": self.steps}

    def estimate(self, rows: Sequence[Row], run: Run) -> Mapping[str, Need]:
        """All rounds with a full pool: the most that it can be."""
        return _added([estimated(self.steps, self._full(rows), run)[0]] * self.rounds)

    def sketch(self, rows: Sequence[Row], run: Run) -> Sequence[Row]:
        """A full pool."""
        return self._full(rows)

    def _full(self, rows: Sequence[Row]) -> list[Row]:
        some = list(rows)
        return [some[i % len(some)] for i in range(max(self.to, len(some)))] if some else []


@dataclass(frozen=True, kw_only=True)
class Apply(Silent):
    """A function of yours for every row: the row changed, `null` to lose it, a text to lose it for that reason, or a list
    of new rows in its place. It runs in a process of its own, and rows must be what JSON can say."""

    function: str  # FILE.py:NAME
    seconds: float = 10.0  # for one row
    row_by_row: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_function(self.function)

    def check(self, run: Run) -> None:
        """RunError if the function's file is not there."""
        check_file(self.function.rpartition(":")[0])

    def __call__(self, rows: Iterable[Row], run: Run) -> Iterator[Row]:
        """What the function makes of every row; one at which it fails is lost with what it said."""
        work = run.work
        for row in rows:
            try:
                found = own.asked(self.function, [bare(row)], self.seconds)
            except own.Failed as error:
                work.lose(row, f"{self.function} {error}")
                continue
            if isinstance(found, Mapping):
                yield {**{name: value for name, value in row.items() if name.startswith("_")}, **found}
            elif isinstance(found, list) and all(isinstance(each, Mapping) for each in found):
                yield from (work.child(row, **each) for each in found)
            elif found is None or isinstance(found, str):
                work.lose(row, found or f"{self.function} gave nothing")
            else:
                raise RunError(f"{self.function} must give a row, a list of rows, a reason or None, not {found!r}")

    @property
    def files(self) -> list[Path]:
        """What its rows depend on beside its settings."""
        return [Path(self.function.rpartition(":")[0])]


@dataclass(frozen=True, kw_only=True)
class Gather(Silent):
    """A function of yours for all rows that say the same in a column: a list of rows to one row or several new ones."""

    function: str  # FILE.py:NAME
    by: str  # the column
    seconds: float = 60.0  # for one group

    def __post_init__(self) -> None:
        check_function(self.function)

    def check(self, run: Run) -> None:
        """RunError if the function's file is not there."""
        check_file(self.function.rpartition(":")[0])

    def __call__(self, rows: Iterable[Row], run: Run) -> Iterator[Row]:
        """New rows, whose parents are all rows of their group; a group whose function fails is lost."""
        groups: dict[str, list[Row]] = {}
        for row in rows:
            groups.setdefault(str(row.get(self.by)), []).append(row)
        for name in sorted(groups):
            group = sorted(groups[name], key=lambda row: str(row["_id"]))
            try:
                found = own.asked(self.function, [[bare(row) for row in group]], self.seconds)
            except own.Failed as error:
                for row in group:
                    run.work.lose(row, f"{self.function} {error}")
                continue
            for each in [found] if isinstance(found, Mapping) else found:
                yield run.work.child(*group, **each)

    @property
    def files(self) -> list[Path]:
        """What its rows depend on beside its settings."""
        return [Path(self.function.rpartition(":")[0])]

    def sketch(self, rows: Sequence[Row], run: Run) -> Sequence[Row]:
        """One row a group."""
        return list({str(row.get(self.by)): row for row in rows}.values())


@dataclass(frozen=True, kw_only=True)
class Join(Silent):
    """Further columns out of a file, by what one column says; names that a row has already stay as they are."""

    path: str  # .jsonl, .csv, .parquet, ...
    on: str
    missing: bool = False  # rows of which the file says nothing: do they pass, or are they lost?
    row_by_row: ClassVar[bool] = True

    def check(self, run: Run) -> None:
        """RunError if the file is not there."""
        check_file(self.path)

    def __call__(self, rows: Iterable[Row], run: Run) -> Iterator[Row]:
        """Every row with what the file says of it."""
        known = dict[str, Row]()
        for row in read_rows(self.path, run):
            if str(row.get(self.on)) in known:
                raise RunError(f"{self.path} says {str(row.get(self.on))!r} twice in column {self.on!r}; it must be once")
            known[str(row.get(self.on))] = row
        for row in rows:
            found = known.get(str(row.get(self.on)))
            if found is not None:
                yield {**found, **row}
            elif self.missing:
                yield row
            else:
                run.work.lose(row, f"{Path(self.path).name} says nothing of this {self.on}")


def check_function(function: str) -> None:
    """ValueError if that is not FILE.py:NAME."""
    file, _, name = function.rpartition(":")
    if not file or not name.isidentifier():
        raise ValueError(f"a function is FILE.py:NAME, not {function!r}")


def bare(row: Row) -> dict[str, Any]:
    """A row without what is the engine's."""
    return {name: value for name, value in row.items() if not name.startswith("_")}


def estimated(steps: Steps, rows: Sequence[Row], run: Run) -> tuple[dict[str, Need], Sequence[Row]]:
    """What steps, one after the other, will ask of whom, and rows like those that they will make."""
    needs: dict[str, Need] = {}
    for step in steps.values():
        needs = _added([needs, step.estimate(rows, run)])
        rows = step.sketch(rows, run)
    return needs, rows


def _added(all_: Iterable[Mapping[str, Need]]) -> dict[str, Need]:
    total: dict[str, Need] = {}
    for needs in all_:
        for role, need in needs.items():
            total[role] = total.get(role, Need(0, 0, 0)) + need
    return total


def _table(rows: Iterable[Row]) -> Table | list[Row]:
    """What can be gone through several times."""
    return rows if isinstance(rows, Table) else list(rows)
