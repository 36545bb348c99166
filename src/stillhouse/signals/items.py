"""A signal's items taken out of a batch, and put back into one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..core.signal import HeadLogits, Signal, TopK
from .keys import Places


def take(signal: Signal, places: Places) -> Signal:
    """The signal of the items that have a place, with one item axis; text, one answer list per key, as it is."""
    rows, axes = places.rows, len(places.shape)
    return _each(signal, lambda x: x.flatten(0, axes - 1)[rows.to(x.device)])


def put(signal: Signal, places: Places, device: torch.device) -> Signal:
    """The inverse: items on the batch's axes. Where nothing was kept stands NaN, so that using it cannot go unseen."""
    rows, total = places.rows.to(device), 1
    for size in places.shape:
        total *= size
    whole = len(rows) == total and bool((places.rows == torch.arange(total)).all())

    def spread(x: Tensor) -> Tensor:
        x = x.to(device)
        if not whole:
            empty = x.new_full((total, *x.shape[1:]), torch.nan if x.is_floating_point() else 0)
            x = empty.index_copy_(0, rows, x)
        return x.reshape(*places.shape, *x.shape[1:])

    return _each(signal, spread)


def _each(signal: Signal, change: Callable[[Tensor], Tensor]) -> Signal:
    """The signal with `change` applied to every tensor that has item axes."""

    def logits(x: Any) -> Any:
        return replace(x, hidden=change(x.hidden)) if isinstance(x, HeadLogits) else change(x)

    def top(x: TopK) -> TopK:
        return replace(x, values=change(x.values), index=change(x.index), rest=change(x.rest))

    return Signal(
        logits=None if signal.logits is None else logits(signal.logits),
        topk=None if signal.topk is None else top(signal.topk),
        features=None if signal.features is None else {k: change(v) for k, v in signal.features.items()},
        text=signal.text,
        score=None if signal.score is None else change(signal.score),
        reward=None if signal.reward is None else change(signal.reward),
    )
