"""Go on from the middle: what a module computes later if one of its layers had computed something else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..core.run import RunError
from ..core.signal import Batch
from .taps import as_map, tapped


def resumed(module: nn.Module, batch: Batch, at: str, change: Callable[[Tensor], Tensor], until: str) -> Tensor:
    """What tap `until` sees when tap `at` gives `change(what it computes)` instead, [B, ...].

    Gradients reach what `change` gave through the layers in between. The layers before `at` run as well, so that any module
    will do. RunError if `until` does not depend on `at`.
    """
    owner, _, side = at.partition(":")
    part = module.get_submodule(owner)
    given: list[Tensor] = []

    def other(value: Any) -> Any:
        if isinstance(value, Tensor):
            given.append(change(value))
            return given[-1]
        if isinstance(value, tuple) and value and isinstance(value[0], Tensor):
            return (other(value[0]), *value[1:])
        raise RunError(f"{at!r} gives {type(value).__name__}, which cannot be changed: name a layer that gives a tensor")

    if side == "in":
        hook = part.register_forward_pre_hook(lambda _, args: other(args))
    else:
        hook = part.register_forward_hook(lambda _, args, output: other(output))
    try:
        found = tapped(module, batch, [until])[1][until]
    finally:
        hook.remove()
    if not given or (given[-1].requires_grad and not found.requires_grad):
        raise RunError(f"what {until!r} computes does not depend on {at!r}: name the earlier layer first")
    return found


def like(made: Tensor, own: Tensor) -> Tensor:
    """A map [B, C, H, W] in the form of `own`, as `taps.as_map` reads it: the tokens in front of its square stay its own."""
    if own.ndim == 4:
        return made
    if own.ndim == 2:
        return made.flatten(1)
    count = as_map(own)[0, 0].numel()
    return torch.cat([own[:, : own.shape[1] - count], made.flatten(2).transpose(1, 2)], 1)
