"""Several rows about the same thing become one, with their texts beside each other.

beside: {use: synth.beside.Beside, group: _from, columns: [solution]}
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from ..core.run import Run
from .asking import check_new
from .flow import bare
from .rules import having, text_in
from .steps import Silent
from .table import Row


@dataclass(frozen=True, kw_only=True)
class Beside(Silent):
    """One new row for all rows that say the same in `group`: `solution_1`, `solution_2`, ... and what they have in
    common.

    `group: _from` brings together what was made of one row. Of the other columns those stay of which all rows of the
    group say the same. The rows' order by `_id` is that of the numbers. A barrier: it holds all rows.
    """

    group: str = "_from"  # the column
    columns: tuple[str, ...] = ("solution",)

    def __post_init__(self) -> None:
        if not self.columns:
            raise ValueError("columns names what is put beside each other")
        check_new(*self.columns)

    def __call__(self, rows: Iterable[Row], run: Run) -> Iterator[Row]:
        """The new rows, whose parents are all rows of their group, in the order of the groups' first rows by `_id`."""
        groups: dict[str, list[Row]] = {}
        for row in sorted(having(rows, run, self.group, *self.columns), key=lambda row: str(row["_id"])):
            groups.setdefault(text_in(row, self.group), []).append(row)
        for group in groups.values():
            first, *others = map(bare, group)
            common = {k: v for k, v in first.items() if all(k in o and o[k] == v for o in others)}
            beside = {
                f"{column}_{number}": row.get(column)
                for column in self.columns
                for number, row in enumerate(group, 1)
                if column in row
            }
            columns = {k: v for k, v in common.items() if k not in self.columns} | beside
            yield run.work.child(*group, **columns)

    def sketch(self, rows: Sequence[Row], run: Run) -> Sequence[Row]:
        """One row a group, as far as groups can be seen by then."""
        if any(self.group not in row for row in rows):
            return rows
        return list({text_in(row, self.group): row for row in rows}.values())
