"""How sure a number is: bootstrap intervals of anything that is a function of sums over items.

An item is what is drawn independently: an image, or a document, whose tokens stand or fall together. A mean per token
is a ratio of two sums over documents; drawing documents keeps that right (a cluster bootstrap).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.run import seed_of

FEWEST = 5  # items; drawing fewer again gives an interval that is far too narrow, of no width for one
CELLS = 4_000_000  # numbers held at a time while drawing


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with the bounds of its 95 % percentile interval over `n` items; infinite if those are too few to tell."""

    value: float
    low: float
    high: float
    n: int


def bootstrap(columns: Tensor, statistic: Callable[[Tensor], Tensor], *, draws: int = 2000, seed: int = 0) -> Interval:
    """The interval of `statistic` of the sums of `columns` [n, k] over items.

    `statistic` maps sums [draws, k] to values [draws]. Items are drawn with replacement, in float64; the same seed
    and n draw the same items, whatever the columns hold. Drawing biases a statistic that bends (a calibration error
    grows by it), so the quantiles are moved back by how far the mean of the draws is from the value.
    """
    n = len(columns)
    if n == 0:
        raise ValueError("no items to draw from")
    columns = columns.detach().to("cpu", torch.float64)
    value = float(statistic(columns.sum(0, keepdim=True))[0])
    if n < FEWEST:
        return Interval(value, -math.inf, math.inf, n)
    values = torch.cat([statistic(counts @ columns) for counts in resamples(n, draws, seed)])
    low, high = torch.quantile(values, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    bias = float(values.mean()) - value
    return Interval(value, low - bias, high - bias, n)


def bootstrap_mean(values: Tensor, weights: Tensor | None = None, *, draws: int = 2000, seed: int = 0) -> Interval:
    """The interval of sum(values) / sum(weights) over items [n]; without weights, of the mean.

    `values` are sums over an item's parts (a document's tokens), `weights` how many parts it has.
    """
    weights = torch.ones_like(values) if weights is None else weights
    return bootstrap(torch.stack([values, weights.to(values.dtype)], -1), _ratio, draws=draws, seed=seed)


def paired_bootstrap(
    values_a: Tensor, values_b: Tensor, weights: Tensor | None = None, *, draws: int = 2000, seed: int = 0
) -> Interval:
    """The interval of a's mean minus b's on the same items [n]; `weights` as in `bootstrap_mean`."""
    if values_a.shape != values_b.shape:
        raise ValueError(f"pairs need the same items, not {list(values_a.shape)} and {list(values_b.shape)}")
    return bootstrap_mean(values_a.double() - values_b.double(), weights, draws=draws, seed=seed)


def _ratio(sums: Tensor) -> Tensor:
    return sums[:, 0] / sums[:, 1].clamp(min=torch.finfo(torch.float64).tiny)


def resamples(n: int, draws: int, seed: int) -> Iterator[Tensor]:
    """How often each item is drawn, [some, n] float64, `draws` rows in all."""
    draw = torch.Generator().manual_seed(seed_of("bootstrap", seed, n))
    at_once = max(1, CELLS // n)
    for begin in range(0, draws, at_once):
        rows = min(at_once, draws - begin)
        drawn = torch.randint(n, (rows, n), generator=draw)
        yield torch.zeros(rows, n, dtype=torch.float64).scatter_add_(1, drawn, torch.ones(rows, n, dtype=torch.float64))
