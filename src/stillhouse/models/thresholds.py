"""Thresholds that follow a running mean, one for every class: which values are high for what the class is like by now.

    m_t    = running mean of all values
    e_t(y) = running mean of the values of class y
    tau_t(y) = e_t(y) / max_y' e_t(y') * m_t

as FreeMatch sets them from the confidences of what it labels (Wang et al. 2023, arXiv 2205.07246, Equations 5 to 7). The
running means are exponential ones, without their bias towards where they began (Kingma & Ba 2015, Section 3): after one
batch they are that batch's means. A class that has not been seen counts as the mean of all.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ClassThresholds(nn.Module):
    """Running means in float64. `note` collects a step's micro-batches, `advance` moves the means, once a step.

    What is noted is a sum over items, so that it does not depend on how a batch was split.
    """

    means: Tensor  # [classes + 1], the last of all values; still biased towards 0
    updates: Tensor  # [classes + 1], how often each was moved

    def __init__(self, classes: int, momentum: float):
        super().__init__()
        if not 0.0 <= momentum < 1.0:
            raise ValueError(f"the momentum must be at least 0 and below 1, not {momentum}")
        self.momentum = momentum
        self.register_buffer("means", torch.zeros(classes + 1, dtype=torch.float64))
        self.register_buffer("updates", torch.zeros(classes + 1, dtype=torch.float64))
        self.noted: Tensor | None = None  # [2, classes + 1]: sums and counts of the step under way

    @property
    def ready(self) -> bool:
        """Whether a batch has been seen."""
        return bool(self.updates[-1] > 0)

    def thresholds(self) -> Tensor:
        """Of every class, `[classes]` float64; minus infinity as long as no batch has been seen."""
        if not self.ready:
            return torch.full_like(self.means[:-1], -torch.inf)
        plain = self.means / (1 - self.momentum**self.updates).clamp(min=torch.finfo(torch.float64).tiny)
        every = plain[-1]
        each = torch.where(self.updates[:-1] > 0, plain[:-1], every)
        top = each.max()
        return each / top * every if top > 0 else torch.zeros_like(each)

    def passed(self, values: Tensor, classes: Tensor) -> Tensor:
        """Which of the values [B] reach the threshold of their class [B]."""
        return values.double() >= self.thresholds()[classes]

    def note(self, values: Tensor, classes: Tensor) -> None:
        """Remember values [B] of classes [B] for the next `advance`."""
        values = values.detach().double()
        both = torch.stack([values, torch.ones_like(values)])
        found = torch.zeros(2, len(self.means), dtype=torch.float64, device=values.device)
        found[:, :-1].index_add_(1, classes, both)
        found[:, -1] = both.sum(1)
        self.noted = found if self.noted is None else self.noted + found

    @torch.no_grad()
    def advance(self) -> None:
        """Move the means towards those of what was noted; a class without a value stays where it was."""
        if self.noted is None:
            return
        sums, counts = self.noted
        there = counts > 0
        moved = self.momentum * self.means + (1 - self.momentum) * sums / counts.clamp(min=1)
        self.means.copy_(torch.where(there, moved, self.means))
        self.updates.add_(there)
        self.noted = None
