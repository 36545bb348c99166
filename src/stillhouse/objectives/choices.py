"""A teacher's ranking of the classes as a chain of choices, one value per item.

PLD: A Choice-Theoretic List-Wise Knowledge Distillation. The ranking has the label first and the other classes after it, as
the teacher's logits fall. At every place k the class is drawn by softmax out of those that are left (Plackett 1975, Luce
1959), and place k counts as much as the teacher believes in its class.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stillhouse.core.signal import Logits

from .decoupled import written
from .divergences import dense, log_softmax


def label_first(teacher: Tensor, labels: Tensor) -> Tensor:
    """The classes in the order in which they are chosen, [*N, V]: the label, then the others by falling logits.

    Without a label (negative) it is the teacher's own order. Of equal logits the class with the lower number comes first.
    """
    score = teacher.scatter(-1, labels.clamp(min=0).unsqueeze(-1), torch.inf)
    score = torch.where((labels >= 0).unsqueeze(-1), score, teacher)
    return score.argsort(dim=-1, descending=True, stable=True)


def ranked(
    student: Logits,
    teacher: Logits,
    labels: Tensor,
    *,
    temperature: float = 4.0,
    own_temperature: float = 1.0,
    weight: Tensor | None = None,
) -> Tensor:
    """sum_k a_k [log sum_{l >= k} exp(s_l) - s_k] over the places k of `label_first`, [*N], without T².

    s are the student's logits over `own_temperature` in that order, a = softmax(teacher / temperature) in that order, a
    constant. Every term is 0 or more, the last one is 0. All of a on the label is the cross-entropy; a uniform a is
    `preference.plackett_luce` by the number of classes.
    """

    def values(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        order = label_first(teacher, labels)
        share = log_softmax(teacher, temperature).exp().gather(-1, order)
        s = student.gather(-1, order) / own_temperature
        left = s.flip(-1).logcumsumexp(-1).flip(-1)
        return (share * (left - s)).sum(-1)

    return dense(values, *written(student, teacher), labels, weight=weight)
