"""Targets that are made from student and teacher together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stillhouse.core.signal import HeadLogits, Logits

from . import fused
from .divergences import dense, log_softmax, shift_
from .fused import Block


def interpolated(
    student: Logits, teacher: Logits, t: float | Tensor, *, temperature: float = 1.0, weight: Tensor | None = None
) -> Tensor:
    """CE(P_t, q) of each item [*N], with the target P_t = softmax((1 - t) sg[z_student] + t z_teacher).

    From TAID (Shing et al. 2025, arXiv 2501.16937): at t = 0 the student is its own target, at t = 1 the teacher is.
    The target is a constant, so the gradient q - P_t is also that of KL(P_t ‖ q); the value exceeds that by P_t's
    entropy. `t` is one number (a 0-dim tensor does not cost a synchronisation).
    """
    if isinstance(student, HeadLogits):
        return fused.apply(Interpolated(t, temperature), student, teacher, weight=weight)[0]

    def values(student: Tensor, teacher: Tensor) -> Tensor:
        log_q = log_softmax(student, temperature)
        own, other = student.detach().to(log_q.dtype), teacher.to(log_q.dtype)
        target = (torch.lerp(own, other, _weight(t, log_q)) / temperature).softmax(-1)
        return -(target * log_q).sum(-1)

    fused.check_classes(student, teacher)
    with torch.no_grad():
        teacher = teacher.dense() if isinstance(teacher, HeadLogits) else teacher.detach()
    return dense(values, student, teacher, weight=weight)


@dataclass(frozen=True)
class Interpolated:
    """The fused rule of `interpolated`."""

    t: float | Tensor
    temperature: float = 1.0
    columns: int = 1

    def __call__(self, block: Block) -> Tensor:
        z, target = block.student, block.dense()
        torch.lerp(z, target, _weight(self.t, z), out=target)
        if self.temperature != 1.0:
            z.div_(self.temperature)
            target.div_(self.temperature)
        shift_(target).exp_()
        target.div_(target.sum(-1, keepdim=True))
        shift_(z)
        chosen = (target * z).sum(-1, keepdim=True)
        mass = z.exp_().sum(-1, keepdim=True)
        if block.grad:
            z.div_(mass).sub_(target)
            if self.temperature != 1.0:
                z.div_(self.temperature)
        return mass.log() - chosen


def _weight(t: float | Tensor, like: Tensor) -> float | Tensor:
    return t.detach().to(like) if isinstance(t, Tensor) else t
