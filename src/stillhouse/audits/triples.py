"""How many triples has a stage made, how different are they, and, where a script knows, how many are true?"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..core.report import Finding
from ..core.run import Run
from ..core.stage import Subjects
from ..data.triples import question_of
from ..synth.synthesize import STEPS, made_rows
from ..synth.table import Table
from .significance import bootstrap_mean


@dataclass(frozen=True, kw_only=True)
class MadeTriples:
    """Quantity and diversity of what `stage` made: triples, heads, tails that differ, and words.

    Where a script knows the truth: how many triples hold, and of every step that lets some pass, how many of those that it
    kept hold (`filter_precision`) and how many of those that hold it kept (`filter_recall`). `heard` is a stage in which
    the teacher wrote tails to the heads of the same split: they are judged as the student's are, as `solved` of `teacher`.
    """

    stage: str = "make"
    heard: str | None = None
    split: str = "test"
    draws: int = 2000

    def __call__(self, run: Run, subjects: Subjects) -> Iterator[Finding]:
        """The findings about the stage, and about the teacher."""
        rows = [row for row in made_rows(run, self.stage) if row.get("tail")]
        tails = [str(row["tail"]) for row in rows]
        numbers: dict[str, float] = {
            "triples": len(rows), "triple_heads": len({row["head"] for row in rows}), "triple_tails": len(set(tails)),
            "triple_words": len({word for row in rows for word in f"{row['head']} {row['tail']}".casefold().split()}),
        }  # fmt: skip
        for name, value in numbers.items():
            yield Finding(name=name, value=value, subject=self.stage, better="higher", n=len(rows))
        known = [bool(row["_truth"]) for row in rows if row.get("_truth") is not None]
        if known:
            yield self._share("triples_hold", known, self.stage)
            yield from self._filters(run)
        if self.heard is not None:
            yield from self._teacher(run)

    def _filters(self, run: Run) -> Iterator[Finding]:
        for mark in sorted((run.path(self.stage) / STEPS).glob("*.json")):
            told = json.loads(mark.read_text(encoding="utf-8"))
            lost = [each["row"].get("_truth") for each in Table(mark.with_suffix(".lost.parquet"))]
            kept = [row.get("_truth") for row in Table(mark.with_suffix(".parquet"))]
            kept, lost = [bool(t) for t in kept if t is not None], [bool(t) for t in lost if t is not None]
            if kept and lost and told["given"] == len(kept) + len(lost):  # else it makes rows, and is no filter
                yield self._share("filter_precision", kept, f"{self.stage}, {told['step']}")
                yield self._share("filter_recall", [True] * sum(kept) + [False] * sum(lost), f"{self.stage}, {told['step']}")

    def _teacher(self, run: Run) -> Iterator[Finding]:
        """By question, as students are judged: several tails to one count as a share."""
        data: Any = run.recipe.data
        tasks = {task.question: task for task in data.tasks(run)[self.split]}
        found: dict[str, list[float]] = {}
        for row in made_rows(run, str(self.heard)):
            question = question_of(row["head"], row["relation"])
            if question in tasks:
                found.setdefault(question, []).append(data.score(tasks[question], row["tail"]))
        if found:
            yield self._share("solved", [sum(each) / len(each) for each in found.values()], "teacher", self.split)

    def _share(self, name: str, values: Sequence[float], subject: str, split: str = "") -> Finding:
        found = bootstrap_mean(torch.tensor(values, dtype=torch.float64), draws=self.draws, seed=0)
        return Finding(
            name=name, value=found.value, low=found.low, high=found.high, n=found.n, subject=subject, split=split,
            over="tasks" if name == "solved" else "triples", better="higher",
        )  # fmt: skip
