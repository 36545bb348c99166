"""Tasks of several kinds side by side: rows that know their domain, each with the verifier of its own kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..core.run import Run
from ..core.signal import Batch
from .tasks import SPLITS, Task, TaskRows, Tasks


@dataclass(frozen=True)
class MixedRows(TaskRows):
    """Rows of one task each, whose batches name the `domain` [B] of every row."""

    names: tuple[str, ...] = ()
    domains: tuple[int, ...] = ()

    def batch(self, items: Sequence[int], epoch: int) -> Batch:
        """As of `Packed`, with `domain` [B], numbers of `names`."""
        return {**super().batch(items, epoch), "domain": torch.tensor([self.domains[i] for i in items])}


@dataclass(frozen=True, kw_only=True)
class Mixed(Tasks):
    """The tasks of all `parts`, kind after kind. They share one vocabulary."""

    parts: Mapping[str, Any]  # name -> tasks

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("give at least one kind of tasks: parts={name: tasks}")

    @property
    def length(self) -> int:  # type: ignore[override]
        """The longest that a part allows."""
        return max(part.length for part in self.parts.values())

    @property
    def classes(self) -> int | None:  # type: ignore[override]
        """As the first part has."""
        return next(iter(self.parts.values())).classes

    def coder(self, run: Run) -> Any:
        """That of the first part."""
        return next(iter(self.parts.values())).coder(run)

    def tasks(self, run: Run) -> dict[str, list[Task]]:
        """The parts' own, each with the name of its part beside its entry."""
        made = {name: part.tasks(run) for name, part in self.parts.items()}
        return {
            split: [replace(task, entry=(name, task.entry)) for name, tasks in made.items() for task in tasks[split]]
            for split in SPLITS
        }

    def load(self, run: Run) -> Mapping[str, MixedRows]:
        """The splits."""
        names = tuple(self.parts)
        return {
            split: MixedRows(
                rows.rows, rows.length, rows.classes, rows.tasks, rows.hinted, names,
                tuple(names.index(task.entry[0]) for task in rows.tasks),
            )
            for split, rows in super().load(run).items()
        }  # fmt: skip

    def hint(self, task: Task) -> str:
        """As the task's own kind hints."""
        return self.parts[task.entry[0]].hint(replace(task, entry=task.entry[1]))

    def score(self, task: Task, text: str) -> float:
        """As the task's own kind scores."""
        return self.parts[task.entry[0]].score(replace(task, entry=task.entry[1]), text)
