"""Ask any module for logits, whatever its forward looks like.

A batch is a mapping. `inputs` is what the module is called with: a tensor (`module(inputs)`) or a mapping
(`module(**inputs)`). `labels` [*N] are class ids, `weight` [*N] says how much each item counts (absent: one each).
In language batches `labels[b, t]` is the token that follows `inputs["tokens"][b, t]`, so logits need no shift.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..core.signal import Batch, HeadLogits, Logits


def logits_of(module: nn.Module, batch: Batch) -> Logits:
    """The module's logits for the batch, `[*N, V]`: a tensor, or `HeadLogits` from a language model."""
    inputs = batch["inputs"]
    output: Any = module(**inputs) if isinstance(inputs, Mapping) else module(inputs)
    return pick_logits(output, type(module).__name__)


def pick_logits(output: Any, owner: str = "the module") -> Logits:
    """The logits in whatever a module returned: a tensor, an object or mapping with `logits`, or the first tensor."""
    if isinstance(output, (Tensor, HeadLogits)):
        return output
    found = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if found is None and isinstance(output, (tuple, list)):
        found = next((part for part in output if isinstance(part, Tensor)), None)
    if not isinstance(found, (Tensor, HeadLogits)):
        raise TypeError(f"{owner} returned {type(output).__name__} without logits; return a tensor or a field `logits`")
    return found


def dense(logits: Logits) -> Tensor:
    """Logits as a tensor, whatever the head hands back."""
    return logits if isinstance(logits, Tensor) else logits.dense()


def cast(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Convert the parameters in place, not the buffers: rotary frequencies would be ruined. Returns the module."""
    for param in module.parameters():
        param.data = param.data.to(dtype)
    return module


def weights_hash(module: nn.Module) -> str:
    """One SHA-256 over the names, types and values of all weights and buffers that are saved."""
    total = hashlib.sha256()
    for name, value in module.state_dict().items():
        total.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        total.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def weight_of(batch: Batch) -> Tensor:
    """How much each item counts, `[*N]` float32; ones if the batch does not say."""
    weight = batch.get("weight")
    return torch.ones_like(batch["labels"], dtype=torch.float32) if weight is None else weight.float()
