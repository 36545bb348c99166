"""What share of the rows that a stage was given has come out of it, and after how many tries?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from ..core.report import Figure, Finding
from ..core.run import Run
from ..core.stage import Subjects
from ..synth.synthesize import account_of, made_rows
from .significance import bootstrap_mean


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """`coverage`: the share of the given rows that came out with something in column `done`; a lost row is one without.

    With `tries` also the curve of it over the number of tries that the rows took, by that column. Several stages are
    compared side by side.
    """

    stages: tuple[str, ...] = ("make",)
    done: str = "solved"
    tries: str = ""
    draws: int = 2000

    def __call__(self, run: Run, subjects: Subjects) -> Iterator[Finding | Figure]:
        """A finding for each stage, and with `tries` a figure."""
        series: dict[str, list[tuple[float, float]]] = {}
        for stage in self.stages:
            given = account_of(run, stage)["steps"][0]["made"]
            took = [int(row.get(self.tries) or 0) for row in made_rows(run, stage) if row.get(self.done)]
            yield self._share(stage, took, given)
            if self.tries and took:
                series[stage] = [(n, sum(t <= n for t in took) / given) for n in range(1, max(took) + 1)]
        if series:
            yield Figure(title="Rows solved by the number of tries", x="tries", y="share of the given rows", series=series)

    def _share(self, stage: str, took: Sequence[int], given: int) -> Finding:
        values = torch.zeros(given, dtype=torch.float64)
        values[: len(took)] = 1.0
        found = bootstrap_mean(values, draws=self.draws, seed=0)
        return Finding(
            name="coverage", value=found.value, low=found.low, high=found.high, n=given, over="rows", subject=stage,
            better="higher",
        )  # fmt: skip
