"""How good are the labels of the rows that a stage has made, and how many came of what was asked for?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..core.report import Figure, Finding
from ..core.run import Run
from ..core.stage import Subjects
from ..synth.synthesize import account_of, made_rows
from .significance import bootstrap_mean


@dataclass(frozen=True, kw_only=True)
class MadeLabels:
    """Findings about the stage itself: rows made, labels changed, and, where the teacher's script knows it, labels right."""

    stage: str = "make"
    asked: str = "asked"  # the column with the label that a text was asked for, if it was labelled again
    share: str = "share"  # the column with the share of that label that was asked for, in per cent
    draws: int = 2000

    def __call__(self, run: Run, subjects: Subjects) -> Iterator[Finding | Figure]:
        """Counts and shares with their intervals over rows, and the share of right labels by what was asked for."""
        rows, account = made_rows(run, self.stage), account_of(run, self.stage)
        yield Finding(name="rows_made", value=len(rows), subject=self.stage, n=len(rows))
        lost = sum(sum(step["lost"].values()) for step in account["steps"])
        yield Finding(name="rows_lost", value=lost, subject=self.stage, better="lower")
        for role, paid in account["teachers"].items():
            note = f"teacher {role}: {paid['tokens']:,.0f} tokens, {paid['money']:,.2f} in money, {paid['borrowed']:,} kept"
            yield Finding(name="teacher_calls", value=paid["calls"], subject=self.stage, better="lower", note=note)
        again = [row for row in rows if row.get(self.asked)]
        if again:
            yield self._share("labels_changed", [row["label"] != row[self.asked] for row in again])
        known = [row for row in rows if row.get("_truth")]
        if not known:
            return
        columns = {"label": "as it is", **({self.asked: "as asked for"} if again else {})}
        for column, what in columns.items():
            some = [row for row in known if column == "label" or row.get(column)]  # rows that were given were not asked for
            right = [row[column] == row["_truth"] for row in some]
            name = "label_precision" if column == "label" else "asked_label_precision"
            yield self._share(name, right)
            points = _by_share(some, right, self.share)
            if len(points) > 1:
                yield Figure(
                    title="Right labels by the share that was asked for", x="share of the first class, %",
                    y="labels that are right", series={what: points},
                )  # fmt: skip

    def _share(self, name: str, truths: Sequence[bool]) -> Finding:
        found = bootstrap_mean(torch.tensor(truths, dtype=torch.float64), draws=self.draws, seed=0)
        return Finding(
            name=name, value=found.value, low=found.low, high=found.high, n=found.n, over="rows", subject=self.stage,
            better="neither" if name == "labels_changed" else "higher",
        )  # fmt: skip


def _by_share(rows: Sequence[Mapping[str, Any]], right: Sequence[bool], column: str) -> list[tuple[float, float]]:
    found: dict[float, list[bool]] = {}
    for row, true in zip(rows, right, strict=True):
        if row.get(column) is not None:
            found.setdefault(float(row[column]), []).append(true)
    return [(share, sum(each) / len(each)) for share, each in sorted(found.items()) if len(each) >= 5]
