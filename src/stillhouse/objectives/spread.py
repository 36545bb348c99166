"""A whole distribution out of the top k that was kept of it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stillhouse.core.signal import TopK


def spread(top: TopK, classes: int) -> Tensor:
    """Log-probabilities [*N, V] of all classes: the k kept ones as they are, the rest's mass evenly on the others."""
    k = top.index.shape[-1]
    if k > classes or (top.classes is not None and top.classes != classes):
        raise ValueError(f"the top {k} is of {top.classes or 'more'} classes, not of {classes}")
    share = top.rest - math.log(classes - k) if k < classes else top.rest
    even = share.unsqueeze(-1).expand(*top.rest.shape, classes)
    return even.scatter(-1, top.index, top.values)


def likeliest(logits: Tensor, k: int) -> TopK:
    """The k likeliest classes of logits [*N, V], at most all of them, and the log of the others' mass."""
    log_p = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    k = min(k, log_p.shape[-1])
    values, index = log_p.topk(k, dim=-1)
    others = log_p.scatter(-1, index, -torch.inf)
    return TopK(values, index, others.logsumexp(-1), classes=log_p.shape[-1])
