"""Knowledge Distillation from A Stronger Teacher (Huang et al. 2022, "DIST"): match correlations instead of values.

    L = beta T² inter_class + gamma T² intra_class

Pearson's correlation is blind to shift and scale, so a student may be less sure than its teacher as long as it prefers
alike. Student first, teacher second: `[*N, V]` logits in, `[*N]` out, no gradient to the teacher, at least in float32. T² is
the method's to write. `weight` [*N] multiplies; an item of weight 0 is not looked at, in the columns neither.

With the authors' eps of 1e-8 a student whose probabilities are all alike has a gradient thousands of times the usual one:
give it a head that does not begin at zero, or clip.
"""

from __future__ import annotations

from torch import Tensor

from stillhouse.core.signal import Logits

from .decoupled import written
from .divergences import dense, log_softmax
from .maps import length

EPS = 1e-8  # added to the product of the norms, as in the authors' code


def inter_class(
    student: Logits, teacher: Logits, *, temperature: float = 1.0, eps: float = EPS, weight: Tensor | None = None
) -> Tensor:
    """1 - the correlation of an item's two softened distributions over the classes, [*N], between 0 and 2."""

    def values(student: Tensor, teacher: Tensor) -> Tensor:
        q, p = (log_softmax(z, temperature).exp() for z in (student, teacher))
        return 1 - _shares(q, p, -1, eps).sum(-1)

    return dense(values, *written(student, teacher), weight=weight)


def intra_class(
    student: Logits, teacher: Logits, *, temperature: float = 1.0, eps: float = EPS, weight: Tensor | None = None
) -> Tensor:
    """1 - what each item adds to the correlation of a class's column over all items, [*N].

    A correlation is a sum over items: item i has 1 - N mean_k a_ik b_ik / (|a_k| |b_k| + eps), with a and b the centred
    columns. So the mean over the N items (of weight other than 0) is the paper's 1 - mean_k correlation. It compares items.
    One item alone has no spread, and the value 1.
    """

    def values(student: Tensor, teacher: Tensor) -> Tensor:
        q, p = (log_softmax(z, temperature).exp().flatten(0, -2) for z in (student, teacher))
        each = 1 - len(q) * _shares(q, p, 0, eps).mean(-1)
        return each.reshape(student.shape[:-1])

    return dense(values, *written(student, teacher), weight=weight)


def _shares(a: Tensor, b: Tensor, axis: int, eps: float) -> Tensor:
    """What each number adds to the correlation of `a` and `b` along `axis`: they sum to it."""
    a, b = (x - x.mean(axis, keepdim=True) for x in (a, b))
    return a * b / (length(a, axis) * length(b, axis) + eps)
