"""Sharpness-aware minimisation: the gradient taken a step uphill."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..core.signal import Batch
from .call import dense, logits_of


class _Called(nn.Module):
    """`logits_of` as a module's forward, so that it can be called with other parameters."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, batch: Batch) -> Tensor:
        return dense(logits_of(self.module, batch))


def uphill(module: nn.Module, batch: Batch, loss: Callable[[Tensor], Tensor], radius: float) -> Tensor:
    """The logits [B, C] of the module at w + radius g / ‖g‖, g the gradient of `loss(logits)` at its parameters w.

    The gradient of a loss of these logits is that of Foret et al. (2020, arXiv 2010.01412, Eq. 2 and 3), who leave out
    the second derivative; it arrives at w. One pass forwards and back more. The batch is a micro-batch: each climbs its
    own hill. Running means of batch norms see both passes.
    """
    called = _Called(module)
    weights = {name: p for name, p in called.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(loss(called(batch)), list(weights.values()), allow_unused=True)
    slopes = [torch.zeros_like(p) if g is None else g for p, g in zip(weights.values(), gradients, strict=True)]
    norms = [torch.linalg.vector_norm(g, dtype=torch.promote_types(g.dtype, torch.float32)) for g in slopes]
    norm = torch.stack(norms).norm().clamp(min=1e-12)
    moved = {name: p + radius * (g / norm).to(p.dtype) for (name, p), g in zip(weights.items(), slopes, strict=True)}
    return functional_call(called, moved, (batch,))
