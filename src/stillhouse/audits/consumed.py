"""How much of the data did a stage that chooses what it learns from really learn from, and how much of that was wrong?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..core.report import Finding
from ..core.run import Run
from ..core.stage import Subjects

EVENT = "consumed"  # of a stage: rows, of, examples, and wrong and known where the truth is known


@dataclass(frozen=True, kw_only=True)
class Consumed:
    """Findings about stages that say at their end what they chose; the others are passed over."""

    stages: tuple[str, ...] = ("train",)

    def __call__(self, run: Run, subjects: Subjects) -> Iterator[Finding]:
        """Rows ever learned from, their share, gradient examples, and the wrong labels among those and among all rows."""
        told = {e["stage"]: e for e in run.read("events.jsonl") if e["event"] == EVENT}
        for stage in self.stages:
            facts = told.get(stage)
            if facts is None:
                continue
            rows, of, examples = facts["rows"], facts["of"], facts["examples"]
            yield Finding(name="rows_used", value=rows, subject=stage, better="lower", n=of, over="rows")
            yield Finding(name="rows_used_share", value=rows / of, subject=stage, better="lower", n=of, over="rows")
            yield Finding(name="gradient_examples", value=examples, subject=stage, n=of, over="rows")
            for name in ("wrong_labels_learned", "wrong_labels_of_all"):
                if facts.get(name) is not None:
                    yield Finding(name=name, value=facts[name], subject=stage, better="lower")
