"""Temperatures that differ from item to item: solved for an entropy, and log-probabilities at them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stillhouse.core.signal import Logits

from . import fused
from .divergences import entropy
from .fused import Block
from .ranking import likeliest, logits_at


@torch.no_grad()
def for_entropy(logits: Tensor, target: Tensor, low: float, high: float, rounds: int = 20) -> Tensor:
    """tau [*N] with H(softmax(logits / tau)) = target [*N], for logits [*N, V]; `low` or `high` where none within does.

    The entropy rises with the temperature, so halving the interval `rounds` times finds it to (high - low) / 2^rounds.
    """
    below, above = torch.full_like(target, low), torch.full_like(target, high)
    for _ in range(rounds):
        middle = (below + above) / 2
        cold = entropy(logits / middle.unsqueeze(-1)) < target
        below, above = torch.where(cold, middle, below), torch.where(cold, above, middle)
    found = ((below + above) / 2).masked_fill(entropy(logits / low) >= target, low)
    return found.masked_fill(entropy(logits / high) <= target, high)


@torch.no_grad()
def top_logits(logits: Logits, k: int, *, weight: Tensor | None = None) -> Tensor:
    """The k largest logits of each item, [*N, k], in order; without gradient."""
    return logits_at(logits, likeliest(logits, k, weight=weight))


@torch.no_grad()
def logp_at(logits: Logits, labels: Tensor, tau: Tensor, *, weight: Tensor | None = None) -> Tensor:
    """log softmax(logits / tau)[label] of each item, [*N], without gradient; 0 where the label is negative."""
    counted = (labels >= 0) if weight is None else (labels >= 0) & (weight != 0)
    return fused.survey(_TemperedLogp(), logits, weight=counted, labels=labels, tau=tau).squeeze(-1)


@dataclass(frozen=True)
class _TemperedLogp:
    columns: int = 1

    def __call__(self, block: Block) -> Tensor:
        log_q = block.student.div_(block.items["tau"].to(block.student.dtype).unsqueeze(-1)).log_softmax(-1)
        return log_q.gather(-1, block.items["labels"].unsqueeze(-1))
