"""From values per item to sums: the only place where objectives are reduced.

Engines divide by counts (see `core.method.Update`), so a method wants `masked_sum` and a count. A value under the
mask may be anything, NaN and infinity too: it touches neither the sum nor the gradient. An empty mask sums to 0.
Masks are boolean or {0, 1}; weights are any finite numbers, and weight 0 means masked.
"""

from __future__ import annotations

import torch
from torch import Tensor


def masked_sum(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """The sum over all items of `values` [*N] where `mask` [*N] is on; a 0-dim tensor."""
    return _kept(values, mask).sum()


def weighted_sum(values: Tensor, weight: Tensor) -> Tensor:
    """sum weight * values over all items, a 0-dim tensor; for values that were not weighted where they were made."""
    return (_kept(values, weight != 0) * weight).sum()


def masked_mean(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """The mean over the items under the mask; 0 if there are none. For logs and evaluation, not for `Update.loss`."""
    return masked_sum(values, mask) / count(values, mask).clamp(min=1)


def count(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """How many items are under the mask, a 0-dim int64 tensor: the `count` of an Update."""
    if mask is None:
        return torch.tensor(values.numel(), device=values.device)
    return (mask != 0).expand(values.shape).sum()


def per_sequence(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Sums over the last item axis: token values [*B, T] to sequence values [*B] (a sequence's log-probability)."""
    return _kept(values, mask).sum(-1)


def per_sequence_mean(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Means over the tokens under the mask, [*B, T] to [*B]: every sequence counts the same however long it is."""
    lengths = values.shape[-1] if mask is None else (mask != 0).expand(values.shape).sum(-1).clamp(min=1)
    return per_sequence(values, mask) / lengths


def _kept(values: Tensor, mask: Tensor | None) -> Tensor:
    """Zero outside the mask. `where`, because 0 * NaN is NaN, in the gradient as well."""
    return values if mask is None else values.where(mask != 0, 0.0)
