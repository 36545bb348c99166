"""Weights of classes that are not equally common."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def effective(counts: Tensor, beta: float = 0.9999) -> Tensor:
    """[C] (1 - beta) / (1 - beta^n) by class sizes n [C], made to add up to C (Cui et al. 2019, arXiv 1901.05555, Eq. 4).

    beta = 0 weighs all classes alike, beta towards 1 by 1 / n. A class without items has weight 0, and does not count in
    the sum.
    """
    if not 0.0 <= beta < 1.0:
        raise ValueError(f"beta must be at least 0 and below 1, not {beta}")
    n, held = counts.double(), counts > 0
    log = math.log(beta) if beta else -math.inf
    weights = (1 / -torch.expm1(n.clamp(min=1) * log)).where(held, 0.0)
    return weights * held.sum() / weights.sum()


def thirds(counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The classes in three parts by size, the largest first: head, middle and tail; of a remainder the tail gets
    least."""
    order = counts.argsort(descending=True, stable=True)
    head, middle, tail = torch.tensor_split(order, 3)
    return head, middle, tail
