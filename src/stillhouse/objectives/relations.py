"""How items, channels or positions relate to each other, in the student as in the teacher; one value per item.

Student first, teacher second; widths may differ, as only relations are compared. Vectors [B, D] (anything else is made
one per item unless it says otherwise) in, `[B]` out: row i of a relation between items belongs to item i, divided so that
the mean over items is the paper's loss. No gradient goes to the teacher; computed in at least float32. `weight` [B]
multiplies, and an item of weight 0 is not looked at: the others are compared as if it were not there. Items that
coincide have finite gradients.
"""

from __future__ import annotations

import math
from typing import Literal, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportUnknownVariableType]

from .divergences import ForwardKL, log_softmax
from .maps import each_item, length, unit, wide

Relation = Literal["sample_gram", "channel_gram", "cosine", "spatial_self", "attn_rel"]
Metric = Literal["mse", "kl"]
ANGLES = 2**25  # how many angles are held at once; of more, some vertices at a time, and again for the backward pass


def relation_matrix(x: Tensor, kind: Relation) -> Tensor:
    """Who is like whom, at least in float32.

    sample_gram: products of the items, each row at length 1; [B, ...] to [B, B].
    cosine: cosines of the items; [B, ...] to [B, B].
    channel_gram: products of the channels over positions, each row at length 1; [B, C, H, W] or [B, N, C] to [B, C, C].
    spatial_self: cosines of the positions; [B, C, H, W] to [B, HW, HW], or tokens [B, N, D] to [B, N, N].
    attn_rel: x x^T / sqrt(d) before any softmax (MiniLMv2); [..., N, d] to [..., N, N], heads being an axis in front.
    """
    x = wide(x)
    if kind in ("sample_gram", "cosine"):
        x = x.flatten(1)
        return unit(x @ x.T) if kind == "sample_gram" else unit(x) @ unit(x).T
    if kind == "attn_rel":
        return x @ x.mT / x.shape[-1] ** 0.5
    if x.ndim not in (3, 4):
        raise ValueError(f"{kind} needs maps [B, C, H, W] or tokens [B, N, D], not {[*x.shape]}")
    tokens = x.flatten(2).mT if x.ndim == 4 else x  # [B, N, C]
    if kind == "channel_gram":
        return unit(tokens.mT @ tokens)
    return unit(tokens) @ unit(tokens).mT


def relation_loss(
    student: Tensor, teacher: Tensor, kind: Relation, *, metric: Metric = "mse", weight: Tensor | None = None
) -> Tensor:
    """The distance of the two relation matrices, one value per item, [B].

    mse: the mean square difference of an item's row (of its whole matrix for relations within an item). kl: the mean over
    rows of KL(softmax(R_t) ‖ softmax(R_s)). With "sample_gram" and "mse" it is Similarity-Preserving KD (Tung and Mori 2019,
    Eq. 4); with "channel_gram" inter-channel correlation, up to a factor.
    """

    def values(student: Tensor, teacher: Tensor) -> Tensor:
        r_s, r_t = relation_matrix(student, kind), relation_matrix(teacher, kind)
        if r_s.shape != r_t.shape:
            raise ValueError(
                f"{kind}: the student's relations are {[*r_s.shape]}, the teacher's {[*r_t.shape]}; pool or adapt first"
            )
        if metric == "mse":
            return (r_s - r_t).square().flatten(1).mean(1)
        rows = ForwardKL().term(log_rows(r_s), log_rows(r_t)).sum(-1)
        return rows if rows.ndim == 1 else rows.flatten(1).mean(1)

    return each_item(values, student, teacher, weight=weight)


def neighbour_gap(student: Tensor, teacher: Tensor, *, eps: float = 1e-7, weight: Tensor | None = None) -> Tensor:
    """PKT (Passalis and Tefas 2018): KL between whom an item has for neighbours there and here; [B].

    p_ij is (1 + cos) / 2 scaled to sum to 1 over j, and item i has mean_j p_ij log((p_ij + eps) / (q_ij + eps)): the eps
    (at the norms, too) is that of the authors' code, and so is the mean over the B² pairs, where the paper has a sum.
    """

    def chances(x: Tensor) -> Tensor:
        x = wide(x).flatten(1)
        norm = length(x)
        x = x / (norm.where(norm > 0, 1.0) + eps)  # zeros stay zeros, with a slope of 1 and not 1 / eps
        near = (x @ x.T + 1) / 2
        return near / near.sum(1, keepdim=True)

    def values(student: Tensor, teacher: Tensor) -> Tensor:
        q, p = chances(student), chances(teacher)
        return (p * ((p + eps) / (q + eps)).log()).mean(1)

    return each_item(values, student, teacher, weight=weight)


def distance_gap(student: Tensor, teacher: Tensor, *, weight: Tensor | None = None) -> Tensor:
    """Relational KD by distances (Park et al. 2019, Eq. 6): smooth L1 between |x_i - x_j|, each over its mean; [B].

    Item i has the mean over all j, itself included, as in the authors' code; its mean distance is over the pairs i != j.
    """

    def distances(x: Tensor) -> Tensor:
        x = wide(x).flatten(1)
        # Not by products, which cancel; and torch takes the slope at distance 0 as 0.
        d = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
        mean = d.sum() / max(len(x) * (len(x) - 1), 1)
        return d / mean.where(mean > 0, 1.0)

    def values(student: Tensor, teacher: Tensor) -> Tensor:
        return F.smooth_l1_loss(distances(student), distances(teacher), reduction="none").mean(1)

    return each_item(values, student, teacher, weight=weight)


def angle_gap(student: Tensor, teacher: Tensor, *, weight: Tensor | None = None) -> Tensor:
    """Relational KD by angles (Park et al. 2019, Eq. 8): smooth L1 between cos(x_j - x_i, x_k - x_i); [B].

    Item i is the vertex, and has the mean over all j and k, itself included (0), as in the authors' code. These are B³
    angles: above `ANGLES` they are taken some vertices at a time, and again for the backward pass, and memory stops growing.
    """

    def angles(x: Tensor, vertices: slice) -> Tensor:
        e = unit(x - x[vertices].unsqueeze(1))  # [v, B, D]
        return e @ e.mT

    def gaps(student: Tensor, teacher: Tensor, vertices: slice) -> Tensor:
        with torch.no_grad():
            theirs = angles(teacher, vertices)
        return F.smooth_l1_loss(angles(student, vertices), theirs, reduction="none").mean((1, 2))

    def values(student: Tensor, teacher: Tensor) -> Tensor:
        student, teacher = (wide(x).flatten(1) for x in (student, teacher))
        n = len(student)
        some = max(ANGLES // max(n * max(n, student.shape[1], teacher.shape[1]), 1), 1)
        if some >= n:
            return gaps(student, teacher, slice(None))

        def again(start: int) -> Tensor:
            part = slice(start, start + some)
            return cast("Tensor", checkpoint(gaps, student, teacher, part, use_reentrant=False, preserve_rng_state=False))

        return torch.cat([again(start) for start in range(0, n, some)])

    return each_item(values, student, teacher, weight=weight)


def congruence_gap(
    student: Tensor, teacher: Tensor, *, gamma: float = 0.4, order: int = 2, weight: Tensor | None = None
) -> Tensor:
    """Correlation Congruence (Peng et al. 2019): mean_j (k(s_i, s_j) - k(t_i, t_j))², [B].

    k is the Gaussian kernel exp(-gamma |x - y|²) of vectors at length 1 in its Taylor expansion up to `order`,
    e^(-2 gamma) sum_p (2 gamma)^p / p! (x·y)^p. The formula and its defaults are from memory of the paper; that vectors are
    scaled to length 1 is ours.
    """

    def kernel(x: Tensor) -> Tensor:
        x = unit(wide(x).flatten(1))
        cosine = x @ x.T
        powers = [(2 * gamma) ** p / math.factorial(p) * cosine**p for p in range(order + 1)]
        return math.exp(-2 * gamma) * torch.stack(powers).sum(0)

    def values(student: Tensor, teacher: Tensor) -> Tensor:
        return (kernel(student) - kernel(teacher)).square().mean(1)

    return each_item(values, student, teacher, weight=weight)


def error_products(student: Tensor, teacher: Tensor, *, weight: Tensor | None = None) -> Tensor:
    """|s_i - t_i|·|s_(i+1) - t_(i+1)| averaged over the B - 1 neighbours of a batch, [B]: "CC" in RepDistiller.

    It depends on the order of the batch and is no correlation; kept to repeat that code's numbers. Of each product its
    two items have half, times B / (B - 1). One item alone has 0. Widths must agree.
    """

    def values(student: Tensor, teacher: Tensor) -> Tensor:
        error = (wide(student) - wide(teacher)).flatten(1).abs()
        product = (error[:-1] * error[1:]).sum(1)
        n = len(error)
        halves = F.pad(product, (0, 1)) + F.pad(product, (1, 0)) if n > 1 else 0.0 * error.sum(1)
        return halves * (n / max(2 * (n - 1), 1))

    return each_item(values, student, teacher, weight=weight)


def log_rows(scores: Tensor) -> Tensor:
    """Log-probabilities over the last axis; of no items, which have no columns either, there are none."""
    return log_softmax(scores) if scores.numel() else scores
