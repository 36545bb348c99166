"""How well does each model find a rare class? Accuracy says little where saying "no" is nearly always right.

The area under precision and recall is the average precision, sum_k (R_k - R_{k-1}) P_k over the thresholds k from the
strictest on, equal scores sharing one; F1 is at the threshold 0.5.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.engine import to_device
from ..core.report import Finding
from ..core.run import Run, RunError
from ..core.stage import Subjects
from ..models.call import dense, logits_of
from .significance import FEWEST, resamples


@dataclass(frozen=True, kw_only=True)
class RareClass:
    """`auprc` and `f1` of every subject with their intervals over texts, and the last subject's paired differences."""

    label: str  # the class
    split: str = "test"
    batch: int = 256
    draws: int = 1000  # of the bootstrap

    def __call__(self, run: Run, subjects: Subjects) -> Iterator[Finding]:
        """The findings; RunError if the split holds no text of the class, or no other."""
        source: Any = run.sources()[self.split]
        names = getattr(source, "names", ())
        if self.label not in names:
            raise RunError(f"the audit is about the class {self.label!r}, and the data's classes are {', '.join(names)}")
        rare = source.labels == names.index(self.label)
        if not 0 < int(rare.sum()) < len(rare):
            raise RunError(
                f"{int(rare.sum())} of {len(rare)} texts in the {self.split} split are {self.label!r}: nothing to find"
            )
        scores = {name: self._scores(subjects.load(name), source, names.index(self.label), run) for name in subjects.names}
        kinds: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"auprc": average_precision, "f1": f1}
        for quantity, value_of in kinds.items():
            drawn = {name: self._drawn(value_of, score, rare) for name, score in scores.items()}
            for name, (value, values) in drawn.items():
                yield self._finding(quantity, name, None, value, values, len(rare))
            judged = list(drawn)[-1]
            for name, (value, values) in drawn.items():
                if name != judged:
                    own, others = drawn[judged]
                    yield self._finding(quantity, judged, name, own - value, others - values, len(rare))

    def _scores(self, module: Any, source: Any, number: int, run: Run) -> Tensor:
        """[N] the probability of the class, float64."""
        found: list[Tensor] = []
        with torch.no_grad():
            for begin in range(0, len(source), self.batch):
                batch = to_device(source.batch(range(begin, min(begin + self.batch, len(source))), 0), run.device)
                found.append(dense(logits_of(module, batch)).double().softmax(-1)[:, number].cpu())
        return torch.cat(found)

    def _drawn(
        self, value_of: Callable[[Tensor, Tensor, Tensor], Tensor], scores: Tensor, rare: Tensor
    ) -> tuple[float, Tensor]:
        """The value, and values of texts drawn again, the same ones for every subject."""
        value = float(value_of(scores, rare, torch.ones(1, len(rare), dtype=torch.float64))[0])
        return value, torch.cat([value_of(scores, rare, counts) for counts in resamples(len(rare), self.draws, 0)])

    def _finding(self, quantity: str, subject: str, versus: str | None, value: float, values: Tensor, n: int) -> Finding:
        known = values[values.isfinite()]
        low, high = torch.quantile(known, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        bounds = {"low": low, "high": high} if n >= FEWEST else {}
        return Finding(
            name=quantity, value=value, subject=subject, better="higher", n=n, over="items", versus=versus, split=self.split,
            **bounds,
        )  # fmt: skip


def average_precision(scores: Tensor, rare: Tensor, counts: Tensor) -> Tensor:
    """The area under precision and recall [draws] of scores [N] and which are of the class [N], each counted `counts`
    [draws, N] times; nan where none of the class was drawn."""
    order = scores.argsort(descending=True, stable=True)
    ordered, counts = scores[order], counts[:, order]
    hits = counts * rare[order]
    last = torch.searchsorted(-ordered, -ordered, right=True) - 1  # where the texts with an equal score end
    found, all_ = hits.cumsum(-1)[:, last], counts.cumsum(-1)[:, last]
    return (hits * found / all_.clamp(min=1)).sum(-1) / hits.sum(-1)


def f1(scores: Tensor, rare: Tensor, counts: Tensor) -> Tensor:
    """Twice the hits over the hits and all that is of the class or taken for it [draws]; 0 where nothing is either."""
    taken = scores > 0.5
    hits = (counts * (taken & rare)).sum(-1)
    either = (counts * taken).sum(-1) + (counts * rare).sum(-1)
    return 2 * hits / either.clamp(min=1)
