"""How good a student is on held-out data while it trains: what `Train.judge` asks to keep the best step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from ..core.engine import to_device
from ..core.run import Run, RunError
from ..models.call import dense, logits_of, weight_of
from ..objectives.divergences import cross_entropy


@dataclass(frozen=True, kw_only=True)
class Validation:
    """The share of right classes, or minus the mean cross-entropy, over all labelled items of a split."""

    quantity: Literal["accuracy", "loss"] = "loss"
    split: str = "valid"
    batch: int = 256  # items at a time
    data: Any = None  # DataSpec; None: the recipe's

    @torch.no_grad()
    def __call__(self, student: nn.Module, run: Run) -> float:
        """Larger is better."""
        source = run.sources(self.data)[self.split]
        total, count = 0.0, 0.0
        for begin in range(0, len(source), self.batch):
            batch = to_device(source.batch(range(begin, min(begin + self.batch, len(source))), 0), run.device)
            labels, logits = batch["labels"], logits_of(student, batch)
            weight = weight_of(batch) * (labels >= 0)
            if self.quantity == "loss":
                value = -cross_entropy(logits, labels, weight=weight)
            else:
                value = (dense(logits).argmax(-1) == labels) * weight
            total, count = total + float(value.sum()), count + float(weight.sum())
        if not count:
            raise RunError(f"the {self.split} split holds no labelled item to choose the best step by")
        return total / count
