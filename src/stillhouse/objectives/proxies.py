"""What networks say about themselves before they are trained, and how well that ranks them.

Zero-cost proxies (one labelled batch, one backward pass, no training) are numbers about one network, or about a student
beside its teacher. Nothing here is a loss.
"""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor

from .maps import unit, wide
from .relations import relation_loss

Semantic = Literal["channels", "classes"]


def semantic_gap(student: Tensor, teacher: Tensor, by: Semantic) -> Tensor:
    """How differently the classes draw on two last layers, by the gradients of their weights [K, d]; one value a class, [K].

    channels: class k has the outer product of its row with itself, [d, d], every row of that at length 1; the value is the
    squared distance of the two, over d (DisWOT, Dong et al. 2023). Both must have d columns. It is computed without the
    outer product: row i is the unit vector g / |g| with the sign of g_i.
    classes: the products of the classes' rows, [K, K], every row at length 1; the mean square difference of row k. The
    widths may differ. It is ours.
    """
    if by == "classes":
        return relation_loss(student, teacher, "sample_gram")
    if student.shape != teacher.shape:
        raise ValueError(
            f"the student's last layer is {[*student.shape]} and the teacher's {[*teacher.shape]}: of unequal widths the"
            ' classes can be compared (semantic="classes"), not the channels'
        )
    s, t = wide(student), wide(teacher)
    cosine = (unit(s) * unit(t)).sum(-1)
    there = s.sign().abs().mean(-1) + t.sign().abs().mean(-1)  # a row of zeros has no direction
    return there - 2 * cosine * (s.sign() * t.sign()).mean(-1)


def code_products(active: Tensor) -> Tensor:
    """On how many units of a layer two items agree, [B, B]: `active` [B, ...] says which units are on for an item."""
    codes = active.flatten(1).double()
    return codes @ codes.T + (1 - codes) @ (1 - codes).T


def log_volume(agreement: Tensor) -> float:
    """log |det| of the agreement over all units [B, B] (Mellor et al. 2020, arXiv 2006.04647): the more unlike the items are
    to the network, the larger. -inf if two items are the same to it."""
    found = torch.linalg.slogdet(agreement)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return float(cast("Tensor", found.logabsdet))  # pyright: ignore[reportUnknownMemberType]


def kendall(x: Tensor, y: Tensor) -> float:
    """Kendall's tau-b of two rankings [n], from -1 to 1: pairs in the same order minus pairs in the other, over
    sqrt(pairs without a tie in x · pairs without one in y). nan if all of x or of y are tied."""
    a, b = ((v[:, None] > v).double() - (v[:, None] < v).double() for v in (x, y))  # infinite values are compared, too
    return float((a * b).sum() / (a.abs().sum() * b.abs().sum()).sqrt())
