"""Logits on a scale of their own: each row less its mean, divided by its standard deviation over the classes.

Logit Standardization in Knowledge Distillation (Sun et al. 2024): Z(z) = (z - mean z) / (std z + eps), the standard
deviation with V - 1 below the line, and not detached: the student need not copy the teacher's range. As a softmax
forgets the mean, softmax(Z(z)) is softmax(z / std z), the temperature of MIX-KD (Choi et al. 2022), with eps = 0, T = 1.
"""

from __future__ import annotations

from torch import Tensor

from stillhouse.core.signal import Logits

from .decoupled import written
from .divergences import ForwardKL, dense, log_softmax
from .maps import length, wide


def standardise(logits: Tensor, *, eps: float = 1e-7) -> Tensor:
    """(z - mean) / (std + eps) over the classes, [*N, V], at least in float32.

    A row of zeros stays one and keeps a slope of 1, so that a student may begin with a head of zeros.
    """
    if logits.shape[-1] < 2:
        raise ValueError("one class has no standard deviation: standardised logits need at least two")
    z = wide(logits)
    centred = z - z.mean(-1, keepdim=True)
    deviation = length(centred) / (z.shape[-1] - 1) ** 0.5
    return centred / (deviation.where(deviation > 0, 1.0) + eps)


def standardised_kl(
    student: Logits,
    teacher: Logits,
    *,
    temperature: float = 1.0,
    eps: float = 1e-7,
    weight: Tensor | None = None,
) -> Tensor:
    """KL(softmax(Z(z_t) / T) ‖ softmax(Z(z_s) / T)) of each item, [*N], without T² (the paper's code multiplies by it).

    `weight` [*N] multiplies, and an item of weight 0 is not looked at. The teacher's logits may be `HeadLogits`.
    """

    def values(student: Tensor, teacher: Tensor) -> Tensor:
        mine, theirs = (log_softmax(standardise(z, eps=eps), temperature) for z in (student, teacher))
        return ForwardKL().term(mine, theirs).sum(-1)

    return dense(values, *written(student, teacher), weight=weight)
