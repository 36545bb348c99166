"""What a row does not have and others do: negatives for questions of the kind "which of these are there?"."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..core.run import Run
from .asking import check_new
from .rules import having
from .steps import Silent
from .table import Row


@dataclass(frozen=True, kw_only=True)
class Absent(Silent):
    """Every row with `count` values, in `into`, that other rows have in a list column and this one has not; none twice.

    By `frequency` a value is drawn as often as rows have it, to the power `power`; `uniform`: all alike; `none`: no value at
    all, with an empty list. A row gets fewer where there are not so many. Rows pass whatever they have; none is lost. A
    barrier: it goes through the rows twice and remembers a number for each value, not the rows.
    """

    column: str = "types"  # of lists
    by: Literal["frequency", "uniform", "none"] = "frequency"
    count: int = 3
    power: float = 1.0
    into: str = "absent"

    def __post_init__(self) -> None:
        check_new(self.into)
        if self.count < 0:
            raise ValueError("count must be 0 or more")

    def __call__(self, rows: Iterable[Row], run: Run) -> Iterator[Row]:
        """All rows."""
        table = having(rows, run, self.column)
        counts = Counter(value for row in table for value in sorted(set(listed(row.get(self.column)))))
        weights = {name: n**self.power if self.by == "frequency" else 1.0 for name, n in sorted(counts.items())}
        for row in table:
            here = set(listed(row.get(self.column)))
            others = {name: weight for name, weight in weights.items() if name not in here}
            drawn = [] if self.by == "none" else without_replacement(others, self.count, run.work.rng(row["_id"]))
            yield {**row, self.into: drawn}

    def sketch(self, rows: Sequence[Row], run: Run) -> Sequence[Row]:
        """As many."""
        return [{**row, self.into: ["word"] * (self.count if self.by != "none" else 0)} for row in rows]


def listed(value: Any) -> list[str]:
    """A cell as a list of texts; nothing is an empty one, and a text one of itself."""
    if value is None:
        return []
    return [value] if isinstance(value, str) else [str(each) for each in value]


def without_replacement(weights: dict[str, float], count: int, rng: Any) -> list[str]:
    """`count` different names, one after the other with chances as their weights: the first by `log(u) / w`.

    Efraimidis and Spirakis 2006; the same as drawing, taking the drawn one out, and drawing again.
    """
    keys = {name: math.log(rng.random() or 5e-324) / weight for name, weight in sorted(weights.items()) if weight > 0}
    return sorted(keys, key=lambda name: -keys[name])[:count]
