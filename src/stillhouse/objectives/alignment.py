"""Two losses on one network: how far their gradients oppose each other, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def opposed(kept: Tensor, bent: Tensor, parameters: Iterable[nn.Parameter]) -> tuple[Tensor, Tensor]:
    """(c, cosine) of the gradients g of `kept` and h of `bent` over all the parameters; 0-dim tensors, no graph.

    c = <g, h> / |g|² where that is below 0, else 0: h - c g is what is left of h when what opposes g is taken away, and
    g + (h - c g) is the gradient of (1 - c) kept + bent. Only h is bent, unlike in PCGrad (Yu et al. 2020,
    arXiv 2001.06782). A parameter that one of the losses does not reach counts as 0 there; so does a loss without a
    gradient. The graph of both losses is kept.
    """
    held = [p for p in parameters if p.requires_grad]
    first, second = (_gradient(loss, held) for loss in (kept, bent))
    dot, square = torch.zeros((), device=kept.device), torch.zeros((), device=kept.device)
    other = torch.zeros((), device=kept.device)
    for a, b in zip(first, second, strict=True):
        square = square if a is None else square + a.float().square().sum()
        other = other if b is None else other + b.float().square().sum()
        dot = dot if a is None or b is None else dot + (a.float() * b.float()).sum()
    c = torch.where(square > 0, dot.clamp(max=0) / square.clamp(min=1e-30), 0.0)
    return c, dot / (square.sqrt() * other.sqrt()).clamp(min=1e-30)


def _gradient(loss: Tensor, parameters: list[nn.Parameter]) -> tuple[Tensor | None, ...]:
    if not loss.requires_grad:
        return (None,) * len(parameters)
    return torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
