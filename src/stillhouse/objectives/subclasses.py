"""Subclasses that nobody labelled, made out of a teacher's features: inside each class along its main directions, or by
its clusters, and what a student with an output for each of them should say.

Subclass s of class c has the number c S + s.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

linalg: Any = torch.linalg  # untyped in part
ROUNDS = 50  # of k-means, at most


def beyond(weight: Tensor) -> Tensor:
    """[D, D], the projection of features onto what a linear head [C, D] does not see."""
    weight = weight.double()
    found: tuple[Tensor, Tensor, Tensor] = linalg.svd(weight, full_matrices=False)
    _, sizes, rows = found
    rows = rows[sizes > sizes.max() * 1e-6]
    return torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device) - rows.T @ rows


def directions(
    features: Tensor, labels: Tensor, classes: int, count: int, *, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """(means [C, D], maps [C, D, S]) in float64: `(h - mean) @ map` are S coordinates of equal spread inside a class.

    The coordinates are those along the class's S principal directions, turned by one random rotation, which is the same
    for every class, and divided by their deviations. features [n, D], labels [n]. A class of too few items, or one that
    spreads along fewer directions, has zeros in place of what is missing; one without items has nothing but zeros.
    """
    x, width = features.double(), features.shape[1]
    turn: Tensor = linalg.qr(torch.randn(count, count, generator=generator, dtype=torch.float64))[0]
    means, maps = x.new_zeros(classes, width), x.new_zeros(classes, width, count)
    for label in range(classes):
        own = x[labels == label]
        if len(own) < 2:
            means[label] = own.sum(0)
            continue
        means[label] = own.mean(0)
        found: tuple[Tensor, Tensor, Tensor] = linalg.svd(own - means[label], full_matrices=False)
        _, sizes, axes = found
        kept = axes[:count] * (sizes[:count, None] > sizes.max() * 1e-6)
        turned = kept.T @ turn[: len(kept)].to(x)
        spread = ((own - means[label]) @ turned).std(0, correction=0)
        maps[label] = turned / spread.where(spread > 0, 1.0)
    return means, maps


def along(features: Tensor, means: Tensor, maps: Tensor, sharpness: float = 1.0) -> Tensor:
    """log r(s | c, x) [B, C, S]: the softmax of a class's coordinates of x, divided by `sharpness`."""
    off = features.to(means.dtype).unsqueeze(1) - means
    return (torch.einsum("bcd,cds->bcs", off, maps) / sharpness).log_softmax(-1)


def centres(features: Tensor, labels: Tensor, classes: int, count: int, *, generator: torch.Generator) -> Tensor:
    """[C, S, D] float64: the centres of each class's S clusters (Lloyd's k-means from random items, run until it rests).

    A class of fewer items has centres at infinity, which are nobody's nearest.
    """
    x = features.double()
    found = x.new_full((classes, count, x.shape[1]), torch.inf)
    for label in range(classes):
        own = x[labels == label]
        first = torch.randperm(len(own), generator=generator)[:count]
        middles = own[first.to(x.device)]
        for _ in range(ROUNDS if len(middles) else 0):
            nearest = torch.cdist(own, middles).argmin(1)
            shares = torch.nn.functional.one_hot(nearest, len(middles)).to(x.dtype)
            held = shares.sum(0).unsqueeze(1)
            moved = ((shares.T @ own) / held.clamp(min=1)).where(held > 0, middles)
            if torch.equal(moved, middles):
                break
            middles = moved
        found[label, : len(middles)] = middles
    return found


def nearest(features: Tensor, middles: Tensor) -> Tensor:
    """log r(s | c, x) [B, C, S]: 0 for the class's nearest centre, -inf for the others."""
    far = (features.to(middles.dtype)[:, None, None] - middles).square().sum(-1)
    own = far.nan_to_num(nan=torch.inf).argmin(-1)
    return torch.nn.functional.one_hot(own, middles.shape[1]).to(middles.dtype).log()


def subclasses(logits: Tensor, within: Tensor, temperature: float = 1.0) -> Tensor:
    """log P(c, s | x) = log p(c | x) + log r(s | c, x), [B, C S]; p is the softmax of `logits` [B, C] / temperature."""
    log_p = (logits.to(within.dtype) / temperature).log_softmax(-1)
    return (log_p.unsqueeze(-1) + within).flatten(1)
