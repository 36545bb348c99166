"""How far a student's layer is from its teacher's: the numbers themselves, where they are large, how they are distributed.

Student first, teacher second, `[B, ...]` in, `[B]` out: maps [B, C, H, W], tokens [B, N, D] or vectors [B, D]. Channels
are axis 1 of maps and the last axis of anything else. No gradient goes to the teacher; computed in at least float32.
`weight` [B] multiplies, and an item of weight 0 is not looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from .divergences import dense

Form = Literal["l2", "l1", "smooth_l1"]
Normalize = Literal["none", "l2", "layer"]
Attention = Literal["code", "paper"]


def feature_gap(
    mine: Tensor,
    theirs: Tensor,
    *,
    form: Form = "l2",
    normalize: Normalize = "none",
    beta: float = 2.0,
    inside: Tensor | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """The mean over all numbers of an item of (mine - theirs)², of |.|, or of the smooth L1 distance; [B].

    As it stands it is the hint of FitNets (Romero et al. 2015). The shapes must agree: an adapter sees to that.
    normalize: the channels at each position to length 1 ("l2"), or to mean 0 and variance 1 ("layer", LayerNorm without
    affine), both sides. beta: where smooth L1 turns linear. inside: a factor for each number, anything that broadcasts to
    `mine` ([B, 1, H, W], [B, C, 1, 1]); it may be learned. What has factor 0 may be anything: it is taken as 0, before the
    channels are normalized. The mean is still over all numbers.
    """
    if mine.shape != theirs.shape:
        raise ValueError(
            f"the student's features are {[*mine.shape]}, the teacher's {[*theirs.shape]}: adapt one of them first"
        )
    axis = 1 if mine.ndim == 4 else -1
    if inside is not None:
        inside = inside.expand_as(mine)
        mine, theirs = (x.where(inside != 0, 0.0) for x in (mine, theirs))

    def values(mine: Tensor, theirs: Tensor, inside: Tensor | None) -> Tensor:
        gap = _normalized(mine, normalize, axis) - _normalized(theirs, normalize, axis)
        if form == "l2":
            gap = gap.square()
        elif form == "l1":
            gap = gap.abs()
        else:
            gap = F.smooth_l1_loss(gap, torch.zeros_like(gap), beta=beta, reduction="none")
        return (gap if inside is None else inside * gap).flatten(1).mean(1)

    return each_item(values, mine, theirs, inside, weight=weight)


def attention_map(x: Tensor, *, power: float = 2.0) -> Tensor:
    """Where a map [B, C, H, W] is active: mean_c |x_c|^power at each position, scaled to length 1; [B, H W]."""
    return unit(wide(x).abs().pow(power).mean(1).flatten(1))


def attention_gap(
    student: Tensor, teacher: Tensor, *, power: float = 2.0, form: Attention = "code", weight: Tensor | None = None
) -> Tensor:
    """The distance of the two attention maps, [B]: Paying More Attention to Attention (Zagoruyko and Komodakis 2017).

    code: the mean square over positions, as in the authors' code. paper: the distance itself, Eq. 2. Their sizes differ by
    orders of magnitude, so a weight for one is none for the other. Channels may differ; the larger map is pooled first.
    """

    def values(student: Tensor, teacher: Tensor) -> Tensor:
        gap = attention_map(student, power=power) - attention_map(teacher, power=power)
        return gap.square().mean(1) if form == "code" else length(gap).squeeze(1)

    return each_item(values, *same_size(student, teacher), weight=weight)


def selectivity_gap(student: Tensor, teacher: Tensor, *, weight: Tensor | None = None) -> Tensor:
    """The squared MMD between the channels of two maps with the kernel k(a, b) = (a·b)², [B].

    Neuron Selectivity Transfer (Huang and Wang 2017): each channel, scaled to length 1, is a sample of H W numbers. With
    G = A^T A / C [HW, HW] the value is |G_s - G_t|², or by channels |A_s A_s^T|² / C_s² - 2 |A_s A_t^T|² / (C_s C_t) +
    |A_t A_t^T|² / C_t²; whichever is less work is taken. Channels may differ; the larger map is pooled first.
    """

    def values(student: Tensor, teacher: Tensor) -> Tensor:
        a, b = (unit(wide(x).flatten(2)) for x in (student, teacher))  # [n, C, HW]
        (_, c_s, size), c_t = a.shape, b.shape[1]
        if size * (c_s + c_t) <= c_s**2 + c_s * c_t + c_t**2:
            return (a.mT @ a / c_s - b.mT @ b / c_t).square().sum((1, 2))

        def kernel(a: Tensor, b: Tensor) -> Tensor:
            return (a @ b.mT).square().mean((1, 2))

        return kernel(a, a) - 2 * kernel(a, b) + kernel(b, b)

    return each_item(values, *same_size(student, teacher), weight=weight)


def variational_gap(
    mean: Tensor, theirs: Tensor, spread: Tensor, *, eps: float = 1e-5, weight: Tensor | None = None
) -> Tensor:
    """-log N(theirs; mean, v) averaged over the numbers of an item, without the constant log(2 pi) / 2; [B].

    Variational Information Distillation (Ahn et al. 2019, Eq. 5): `mean` is what a regressor makes of the student's layer,
    and every channel of the teacher has a variance of its own, v = log(1 + exp(spread)) + eps, `spread` [C] learned.
    """
    if mean.shape != theirs.shape:
        raise ValueError(
            f"the mean is {[*mean.shape]}, the teacher's features {[*theirs.shape]}: the regressor must match them"
        )

    def values(mean: Tensor, theirs: Tensor) -> Tensor:
        variance = F.softplus(wide(spread)) + eps
        if mean.ndim == 4:
            variance = variance[:, None, None]
        return (0.5 * ((wide(mean) - wide(theirs)).square() / variance + variance.log())).flatten(1).mean(1)

    return each_item(values, mean, theirs, weight=weight)


def spread_for(variance: float, channels: int, *, eps: float = 1e-5) -> Tensor:
    """The `spread` [channels] of `variational_gap` at which every variance is `variance`; its authors begin with 5."""
    if variance <= eps:
        raise ValueError(f"the variance must be above {eps:g}, not {variance:g}")
    excess = variance - eps
    return torch.full((channels,), excess + math.log(-math.expm1(-excess)))


def each_item(values: Callable[..., Tensor], student: Tensor, theirs: Tensor, *others: Any, weight: Tensor | None) -> Tensor:
    """`values(student, theirs, *others)` [B] over the items of weight other than 0, times it; no gradient to `theirs`."""
    if len(student) != len(theirs):
        raise ValueError(f"the student has {len(student)} items, the teacher {len(theirs)}: they must be the same items")
    shape = student.shape[1:]

    def whole(flat: Tensor, *rest: Any) -> Tensor:
        return values(flat.reshape(len(flat), *shape), *rest)

    return dense(whole, student.flatten(1), theirs.detach(), *others, weight=weight)


def unit(x: Tensor, axis: int = -1) -> Tensor:
    """x at length 1 along `axis`, at least in float32. Zeros stay zeros, and the slope there is 1 and not 1e12."""
    x = wide(x)
    norm = length(x, axis)
    return x / norm.where(norm > 0, 1.0)


def length(x: Tensor, axis: int = -1) -> Tensor:
    """The Euclidean length along `axis`, which is kept; its slope at 0 is 0."""
    return cast("Tensor", torch.linalg.vector_norm(x, dim=axis, keepdim=True))  # pyright: ignore[reportUnknownMemberType]


def wide(x: Tensor) -> Tensor:
    """x in at least float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def same_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps [B, C, H, W], the larger averaged down to the height and width of the smaller."""
    if student.ndim != 4 or teacher.ndim != 4:
        raise ValueError(f"this needs maps [B, C, H, W], not {[*student.shape]} and {[*teacher.shape]}")
    size = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
    student, teacher = (x if x.shape[2:] == size else F.adaptive_avg_pool2d(x, size) for x in (student, teacher))
    return student, teacher


def _normalized(x: Tensor, how: Normalize, axis: int) -> Tensor:
    if how == "l2":
        return unit(x, axis)
    if how == "layer":
        x = wide(x).movedim(axis, -1)
        return F.layer_norm(x, x.shape[-1:]).movedim(-1, axis)
    return wide(x)
