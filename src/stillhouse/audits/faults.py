"""How much of what is wrong with rows did a stage that curates them find, and how much that is right did it keep?

For rows whose faults are known: a pool with injected ones, or one that people have looked through.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..core.report import Finding
from ..core.run import Run
from ..core.stage import Subjects
from ..data.tasks import final_answer, last_number
from ..synth.synthesize import STEPS, made_rows
from ..synth.table import Row, Table
from .significance import bootstrap_mean


@dataclass(frozen=True, kw_only=True)
class Faults:
    """`kept_precision`, `kept_recall` and `kept_f1` of the rows that a stage was given (`start`) and has made; each
    step's.

    A row is good if its column `fault` says one of `good`, if its `answer` ends in the number that its column `right`
    says (where these are given), and if no row before it has the same `key`. The recall is over the keys that can be had:
    those of given rows whose `fault` is good. `hunts` says which faults a step is after: its precision is the share of
    the keys which it loses altogether that have any fault, its recall the share that it loses of those with the faults it
    is after.
    """

    stage: str = "make"
    key: str = "number"  # the column that tells rows apart, and their children keep
    fault: str | None = "fault"  # None: nothing is wrong with the given rows themselves
    good: tuple[str, ...] = ("",)
    hunts: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])  # step -> faults
    answer: str | None = None  # the column with an answer
    right: str | None = None  # the column with the number that is right
    draws: int = 2000

    def __call__(self, run: Run, subjects: Subjects) -> Iterator[Finding]:
        """Findings about the rows as they were given, as they were made, and step by step."""
        tables = _tables(run.path(self.stage) / STEPS)
        given = tables[0][1]
        wanted = {key for row, key in self._keyed(given) if self._sound(row)}
        for subject, rows in (("start", given), (self.stage, made_rows(run, self.stage))):
            yield from self._kept(subject, rows, wanted)
        faults = {key: str(row.get(self.fault, "")) for row, key in self._keyed(given)} if self.fault else {}
        before = {key for _, key in self._keyed(given)}
        for name, table in tables[1:]:
            after = {key for _, key in self._keyed(table)}
            lost = before - after
            yield Finding(name=f"{name}_lost", value=len(lost), subject=self.stage, n=len(before), over="rows")
            hunted = {key for key in before if faults.get(key) in self.hunts.get(name, ())}
            if lost and name in self.hunts:
                yield self._share(f"{name}_precision", self.stage, [faults[key] not in self.good for key in sorted(lost)])
            if hunted:
                yield self._share(f"{name}_recall", self.stage, [key in lost for key in sorted(hunted)])
            before = after

    def _kept(self, subject: str, rows: Iterable[Row], wanted: set[str]) -> Iterator[Finding]:
        seen = set[str]()
        right: list[bool] = []
        for row, key in self._keyed(rows):
            good = self._sound(row) and self._answered(row) and key not in seen
            right.append(good)
            if good:
                seen.add(key)
        precision = sum(right) / len(right) if right else 0.0
        recall = len(seen & wanted) / len(wanted) if wanted else 0.0
        f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        yield self._share("kept_precision", subject, right)
        yield Finding(name="kept_recall", value=recall, subject=subject, better="higher", n=len(wanted), over="rows")
        yield Finding(name="kept_f1", value=f1, subject=subject, better="higher", n=len(right), over="rows")

    def _keyed(self, rows: Iterable[Row]) -> Iterator[tuple[Row, str]]:
        return ((row, str(row.get(self.key))) for row in rows)

    def _sound(self, row: Row) -> bool:
        return self.fault is None or str(row.get(self.fault, "")) in self.good

    def _answered(self, row: Row) -> bool:
        if self.answer is None or self.right is None:
            return True
        said = last_number(final_answer(str(row.get(self.answer) or "")))
        return said is not None and said == last_number(str(row.get(self.right)))

    def _share(self, name: str, subject: str, truths: Sequence[bool]) -> Finding:
        found = bootstrap_mean(torch.tensor(truths or [False], dtype=torch.float64), draws=self.draws, seed=0)
        return Finding(
            name=name, value=found.value, low=found.low, high=found.high, n=len(truths), over="rows", subject=subject,
            better="higher",
        )  # fmt: skip


def _tables(folder: Path) -> list[tuple[str, Table]]:
    """The rows that were given and those of every step, by the steps' names; steps within steps are passed over."""
    marks = sorted(folder.glob("*.json"))
    named = [(str(json.loads(mark.read_text(encoding="utf-8"))["step"]), mark) for mark in marks]
    return [(name, Table(mark.with_suffix(".parquet"))) for name, mark in named if "/" not in name]
