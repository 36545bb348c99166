"""A few classes of each item: which are the likeliest, and their logits, without writing down all of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stillhouse.core.signal import HeadLogits, Logits

from . import fused
from .fused import Block


def likeliest(logits: Logits, k: int, *, weight: Tensor | None = None) -> Tensor:
    """The ids of the k likeliest classes of each item, [*N, k], the likeliest first; 0 where `weight` is 0.

    All classes if there are fewer than k.
    """
    rule = Likeliest(min(k, logits.shape[-1]))
    return fused.survey(rule, logits, weight=weight).long()


@dataclass(frozen=True)
class Likeliest:
    """The rule of `likeliest`. Ids travel as floats, which are exact up to 2^24."""

    columns: int

    def __call__(self, block: Block) -> Tensor:
        return block.student.topk(self.columns, -1).indices.to(block.student.dtype)


def logits_at(logits: Logits, ids: Tensor) -> Tensor:
    """The logits of some classes of each item, [*N, k] for ids [*N, k], differentiable, at least in float32."""
    if not isinstance(logits, HeadLogits):
        return _float(logits.gather(-1, ids))
    rows = torch.nn.functional.embedding(ids, logits.weight)  # [*N, k, d]
    found = (_float(rows) @ _float(logits.hidden).unsqueeze(-1)).squeeze(-1)
    if logits.bias is not None:
        found = found + logits.bias[ids].to(found.dtype)
    found = found * logits.scale
    return found if logits.softcap is None else logits.softcap * torch.tanh(found / logits.softcap)


def _float(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
