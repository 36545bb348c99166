"""Is a model right, and does it know when it is? Accuracy less calibration error, the trust score of FIRST."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..core.engine import to_device
from ..core.report import Finding
from ..core.run import Run, RunError
from ..core.stage import Subjects
from ..models.call import cast, logits_of, weight_of
from ..objectives.fused import compare
from .significance import bootstrap


def gaps(confidence: Tensor, correct: Tensor, bins: int) -> Tensor:
    """Each item's confidence minus success in the column of its bin, [n, bins] float64; equal-width bins."""
    where = (confidence.double() * bins).long().clamp(max=bins - 1)
    gap = confidence.double() - correct.double()
    return torch.zeros(len(gap), bins, dtype=torch.float64).scatter_(1, where[:, None], gap[:, None])


def calibration_error(confidence: Tensor, correct: Tensor, bins: int = 10) -> float:
    """ECE (Guo et al. 2017, Eq. 3) of items [n]: how far confidence and success are apart in each bin, in the mean."""
    return float(gaps(confidence, correct, bins).sum(0).abs().sum()) / max(len(confidence), 1)


@dataclass(frozen=True, kw_only=True)
class Trust:
    """`trust` (accuracy - ECE) and `ece_answers` over the counted tokens; differences are paired by document.

    Made for answers of one token, such as the letter of a multiple choice, where both are what people mean by them.
    """

    split: str = "test"
    ours: str = "train"
    versus: tuple[str, ...] = ()
    data: Any = None  # DataSpec to judge on (another domain, say); None: the recipe's
    bins: int = 10
    batch: int = 64  # rows at a time
    precision: Literal["float32", "bfloat16"] = "float32"  # of the students while they are judged
    draws: int = 2000

    def __call__(self, run: Run, subjects: Subjects) -> Iterable[Finding]:
        """Findings per subject, then the differences."""
        source = run.sources(self.data)[self.split]
        if len(source) == 0:
            raise RunError(f"the {self.split} split is empty; hold out a larger share (data.{self.split})")
        measured: dict[str, Tensor] = {}
        for name in subjects.names:
            if name == "teacher" and not hasattr(run.teacher, "module"):
                continue  # only what it said was stored
            teaches = name == "teacher"
            module: Any = run.teacher.module if teaches else subjects.load(name)  # type: ignore[attr-defined]
            if not teaches:
                cast(module, getattr(torch, self.precision))
            measured[name] = self._measure(module, source, run)
            yield from self._findings(name, None, measured[name], run)
            del module
        for other in self.versus:
            yield from self._findings(self.ours, other, torch.cat([measured[self.ours], measured[other]], 1), run)

    @torch.no_grad()
    def _measure(self, module: Any, source: Any, run: Run) -> Tensor:
        """Sums over the tokens of each document: how many, how many are right, the gap in each bin."""
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        for begin in range(0, len(source), self.batch):
            batch = to_device(source.batch(range(begin, min(begin + self.batch, len(source))), 0), run.device)
            weight = weight_of(batch)
            found = compare(logits_of(module, batch), None, batch["labels"], weight=weight)
            kept = weight > 0
            parts.append((batch["example"][kept].cpu(), found["confidence"][kept].cpu(), found["correct"][kept].cpu()))
        example, confidence, correct = (torch.cat(column) for column in zip(*parts, strict=True))
        _, document = example.unique(return_inverse=True)
        one = torch.ones(len(document), 1, dtype=torch.float64)
        each = torch.cat([one, correct.double()[:, None], gaps(confidence, correct, self.bins)], 1)
        sums = torch.zeros(int(document.max()) + 1, each.shape[1], dtype=torch.float64)
        return sums.index_add_(0, document, each)

    def _findings(self, subject: str, versus: str | None, columns: Tensor, run: Run) -> Iterable[Finding]:
        for name, statistic, better in (("trust", _trust, "higher"), ("ece_answers", _error, "lower")):
            found = bootstrap(columns, _difference(statistic, versus), draws=self.draws, seed=run.seed)
            yield Finding(
                name=name, subject=subject, versus=versus, value=found.value, low=found.low, high=found.high, n=found.n,
                over="documents", split=self.split, better=better,  # type: ignore[arg-type]
            )  # fmt: skip


def _trust(sums: Tensor) -> Tensor:
    return sums[:, 1] / sums[:, 0] - _error(sums)


def _error(sums: Tensor) -> Tensor:
    return sums[:, 2:].abs().sum(-1) / sums[:, 0]


def _difference(statistic: Any, versus: str | None) -> Any:
    def apart(sums: Tensor) -> Tensor:
        mine, theirs = sums.chunk(2, -1)
        return statistic(mine) - statistic(theirs)

    return statistic if versus is None else apart
