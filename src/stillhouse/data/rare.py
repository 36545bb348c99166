"""One class of labelled texts against all others: the setting of a guard, whose one class is rare."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..core.run import Run, RunError, seed_of
from .labelled import Labels, names_of
from .tables import Row, content_key


@dataclass(frozen=True, kw_only=True)
class Rare(Labels):
    """The texts of other labelled data with two labels, `label` and `others`; of the former few may be learned from."""

    base: Any  # a data spec of labelled texts
    label: str  # the class that is told from all others
    others: str = "other"  # what these are called
    keep: int | None = None  # rows of the rare class to learn from, drawn by the run's seed; None: all
    shots: int | None = None  # labelled rows of both classes to learn from; None: all

    def all_rows(self, run: Run) -> dict[str, list[Row]]:
        """The splits; RunError if there is no such class."""
        names = names_of(self.base, run)
        if self.label not in names or self.others == self.label:
            raise RunError(
                f"the rare class (data.label) is one of {', '.join(names)}, not {self.label!r}, and {self.others!r} is none"
            )
        splits = self.base.all_rows(run)
        return {name: [{**row, "label": self._called(row)} for row in rows] for name, rows in splits.items()}

    def rows(self, run: Run) -> dict[str, list[Row]]:
        """The splits; of the training split what may be learned from, in the order of the rows."""
        splits = super().rows(run)
        if self.keep is None:
            return splits
        rare = [row for row in splits["train"] if row["label"] == self.label]
        if len(rare) < self.keep:
            raise RunError(f"{len(rare)} rows to learn from are {self.label!r}, and {self.keep} were asked for (data.keep)")
        rare.sort(key=lambda row: seed_of(run.seed, "rare", content_key(row)))
        kept = {row["text"] for row in rare[: self.keep]}
        splits["train"] = [row for row in splits["train"] if row["label"] != self.label or row["text"] in kept]
        return splits

    def names(self, run: Run) -> tuple[str, ...]:
        """The two classes, in the order of their numbers."""
        return tuple(sorted((self.label, self.others)))

    def _called(self, row: Row) -> str:
        return self.label if row["label"] == self.label else self.others
