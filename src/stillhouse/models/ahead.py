"""A network as it would be after a step that is not taken: what bilevel training looks at."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..core.signal import Batch
from .call import dense, logits_of


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """Copies of the trainable parameters, at least float32, that gradients can be taken of; the module is not reached."""
    held = {name: p for name, p in module.named_parameters() if p.requires_grad}
    return {n: p.detach().to(torch.promote_types(p.dtype, torch.float32)).requires_grad_() for n, p in held.items()}


def logits_with(module: nn.Module, weights: Mapping[str, Tensor], batch: Batch) -> Tensor:
    """The module's logits [*N, V] with other weights; its buffers (a batch norm's means) stay as they are."""
    held = {f"module.{name}": value for name, value in weights.items()}
    held |= {f"module.{name}": value.clone() for name, value in module.named_buffers()}
    with twice():
        return dense(functional_call(_Asked(module), held, (batch,)))


def stepped(weights: Mapping[str, Tensor], loss: Tensor, rate: float) -> dict[str, Tensor]:
    """The weights after one step of plain gradient descent; what the loss depends on stays in the graph."""
    with twice():
        slopes = torch.autograd.grad(loss, list(weights.values()), create_graph=True, allow_unused=True)
    return {n: w if g is None else w - rate * g for (n, w), g in zip(weights.items(), slopes, strict=True)}


@contextmanager
def twice():
    """Attention in a form that has second derivatives."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


class _Asked(nn.Module):
    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, batch: Batch) -> Tensor:
        return dense(logits_of(self.module, batch))
