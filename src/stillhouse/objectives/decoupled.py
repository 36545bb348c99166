"""The label apart from the other classes: losses on logits that know which class is right, one value per item.

Student first, teacher second: `[*N, V]` logits in, `[*N]` out, no gradient to the teacher, computed in at least float32
and in log space, so that logits of 1e4 stay finite. The student's logits are a tensor; the teacher's may be `HeadLogits`.
`weight` [*N] multiplies, and an item of weight 0 is not looked at; so is one with a negative label, as in `cross_entropy`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from stillhouse.core.signal import HeadLogits, Logits, TopK

from . import fused
from .divergences import ForwardKL, dense, log_softmax
from .fused import IMPOSSIBLE
from .maps import wide


def target_kd(
    student: Logits, teacher: Logits, labels: Tensor, *, temperature: float = 1.0, weight: Tensor | None = None
) -> Tensor:
    """KL between (p_label, 1 - p_label) of the teacher and of the student, softened; [*N], without T².

    TCKD of Decoupled Knowledge Distillation (Zhao et al. 2022).
    """

    def values(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        return _of_label(student, teacher, labels, temperature)

    return _labelled(values, student, teacher, labels, weight=weight)


def non_target_kd(
    student: Logits, teacher: Logits, labels: Tensor, *, temperature: float = 1.0, weight: Tensor | None = None
) -> Tensor:
    """KL between the distributions over the classes other than the label, softened; [*N], without T². NCKD of that paper."""

    def values(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        return _of_others(student, teacher, labels, temperature)

    return _labelled(values, student, teacher, labels, weight=weight)


def decoupled(
    student: Logits,
    teacher: Logits,
    labels: Tensor,
    *,
    alpha: float | Tensor = 1.0,
    beta: float | Tensor = 8.0,
    temperature: float = 4.0,
    weight: Tensor | None = None,
) -> Tensor:
    """T² (alpha target_kd + beta non_target_kd), [*N]: DKD (Zhao et al. 2022), with the factor T² of its code.

    alpha and beta are numbers, or one per item: alpha = 1 and beta = 1 - p_label (at the temperature) is T² KL(p ‖ q).
    """

    def values(student: Tensor, teacher: Tensor, labels: Tensor, alpha: float | Tensor, beta: float | Tensor) -> Tensor:
        target = _of_label(student, teacher, labels, temperature)
        others = _of_others(student, teacher, labels, temperature)
        return temperature**2 * (alpha * target + beta * others)

    return _labelled(values, student, teacher, labels, alpha, beta, weight=weight)


def normalised(
    student: Logits,
    teacher: Logits,
    labels: Tensor,
    *,
    gamma: float = 1.5,
    temperature: float = 1.0,
    weight: Tensor | None = None,
) -> Tensor:
    """-p_label log q_label - gamma T² sum over the others of p' log q', [*N]: NKD (Yang et al. 2023).

    p' and q' are the softened distributions over the other classes alone; the label's term is taken at temperature 1.
    Cross-entropies, so equal logits do not give 0; the gradient vanishes there in the second term only.
    """

    def values(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        at = labels.unsqueeze(-1)
        target = (log_softmax(teacher).gather(-1, at).exp() * log_softmax(student).gather(-1, at)).squeeze(-1)
        log_q, log_p = (log_softmax(_without(z, labels), temperature) for z in (student, teacher))
        return -target - gamma * temperature**2 * (log_p.exp() * log_q).sum(-1)

    return _labelled(values, student, teacher, labels, weight=weight)


def enhanced_cross_entropy(
    student: Logits,
    teacher: Logits,
    labels: Tensor,
    *,
    power: float = 1.5,
    temperature: float = 1.0,
    weight: Tensor | None = None,
) -> Tensor:
    """-sum_k ((p_k + e_k)^power - e_k) log q_k with e the one-hot label, [*N], without T² (One-for-All, Hao et al. 2023).

    power = 1 is the cross-entropy with the teacher; above 1 the label's part grows and the others shrink.
    """
    if power <= 0:
        raise ValueError(f"power must be above 0, not {power}: 1 is plain soft cross-entropy, 1 to 1.5 is usual")

    def values(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        log_q, p = log_softmax(student, temperature), log_softmax(teacher, temperature).exp()
        right = torch.zeros_like(p).scatter(-1, labels.unsqueeze(-1), 1.0)
        return -(((p + right) ** power - right) * log_q).sum(-1)

    return _labelled(values, student, teacher, labels, weight=weight)


def bernoulli_kl(student: Logits, teacher: Logits, *, temperature: float = 1.0, weight: Tensor | None = None) -> Tensor:
    """sum_k KL(Bernoulli(sigmoid(z_t / T)) ‖ Bernoulli(sigmoid(z_s / T))), [*N], without T².

    Every class is a yes-or-no question of its own, so there is no softmax and a shift of the logits does matter.
    "BinaryKL" of Dual-Head Knowledge Distillation (Yang et al. 2024), whose code multiplies by T².
    """

    def values(student: Tensor, teacher: Tensor) -> Tensor:
        s, t = student / temperature, teacher / temperature
        yes = t.sigmoid() * (logsigmoid(t) - logsigmoid(s))
        return (yes + (-t).sigmoid() * (logsigmoid(-t) - logsigmoid(-s))).sum(-1)

    return dense(values, *written(student, teacher), weight=weight)


def bernoulli_gap(student: Logits, teacher: Logits, *, temperature: float = 2.0, weight: Tensor | None = None) -> Tensor:
    """sum_k KL(Bernoulli(1/2) ‖ Bernoulli(sigmoid((z_s - z_t) / T))), [*N], without T²; 0 only where the logits agree.

    "BinaryKL-Norm" of Dual-Head Knowledge Distillation, whose code multiplies by T² and clamps the sigmoid to [1e-8,
    1 - 1e-8], which stops the gradient there; ours goes on as |z_s - z_t| / 2T.
    """

    def values(student: Tensor, teacher: Tensor) -> Tensor:
        gap = (student - teacher) / temperature
        return (-0.5 * (logsigmoid(gap) + logsigmoid(-gap)) - math.log(2)).sum(-1)

    return dense(values, *written(student, teacher), weight=weight)


def written(student: Logits, teacher: Logits | TopK) -> tuple[Tensor, Tensor]:
    """Both logits as tensors in at least float32, the teacher's without gradient; refuses what has no dense form."""
    if not isinstance(student, Tensor):
        raise TypeError(
            f"this objective needs the student's logits written down as a tensor, not as {type(student).__name__}"
        )
    if isinstance(teacher, TopK):
        raise TypeError(
            "this objective needs the teacher's logits over all classes, not its top k: use a teacher with logits"
        )
    fused.check_classes(student, teacher)
    with torch.no_grad():
        teacher = teacher.dense() if isinstance(teacher, HeadLogits) else teacher.detach()
    return wide(student), wide(teacher)


def _labelled(
    values: Callable[..., Tensor], student: Logits, teacher: Logits, labels: Tensor, *others: Any, weight: Tensor | None
) -> Tensor:
    """`dense`, without the items whose label is negative."""
    counted = labels >= 0
    weight = counted if weight is None else weight * counted
    return dense(values, *written(student, teacher), labels.clamp(min=0), *others, weight=weight)


def _of_label(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> Tensor:
    log_q, log_p = (_right_and_wrong(z / temperature, labels) for z in (student, teacher))
    return ForwardKL().term(log_q, log_p).sum(-1)


def _of_others(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> Tensor:
    log_q, log_p = (log_softmax(_without(z, labels), temperature) for z in (student, teacher))
    return ForwardKL().term(log_q, log_p).sum(-1)


def _without(logits: Tensor, labels: Tensor) -> Tensor:
    """The logits with the label's ruled out."""
    return logits.scatter(-1, labels.unsqueeze(-1), IMPOSSIBLE)


def _right_and_wrong(z: Tensor, labels: Tensor) -> Tensor:
    """log p_label and log(1 - p_label), [*N, 2]."""
    wrong = _without(z, labels).logsumexp(-1, keepdim=True)
    return log_softmax(torch.cat([z.gather(-1, labels.unsqueeze(-1)), wrong], -1))
