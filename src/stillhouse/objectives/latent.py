"""How far apart two networks are inside: hidden states and attention scores of a layer, one value per sequence.

Student first, teacher second, and no gradient goes to the teacher. `real` [B, T] says which positions are no padding;
what stands at the others, NaN too, touches neither value nor gradient. A sequence without a real token has value 0.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor


def hidden_gap(student: Tensor, teacher: Tensor, real: Tensor) -> Tensor:
    """Mean squared difference of hidden states `[B, T, d]` over real tokens and channels, `[B]`."""
    return _mean_square(student, teacher, real.unsqueeze(-1))


def score_gap(student: Tensor, teacher: Tensor, real: Tensor) -> Tensor:
    """Mean squared difference of attention scores `[B, heads, T, T]` over heads and pairs of real tokens, `[B]`.

    Where the numbers of heads differ, the means over heads are compared.
    """
    if student.shape[1] != teacher.shape[1]:
        student, teacher = student.mean(1, keepdim=True), teacher.mean(1, keepdim=True)
    return _mean_square(student, teacher, (real.unsqueeze(-1) & real.unsqueeze(-2)).unsqueeze(1))


def linear_map(student: Tensor, teacher: Tensor, ridge: float = 1e-4) -> Tensor:
    """The matrix P `[d_s, d_t]` that takes rows `[n, d_s]` nearest to rows `[n, d_t]`, in the student's type.

    Least squares with a ridge of `ridge` times the mean square of the student's channels: min |H_s P - H_t|^2.
    """
    x, y = student.detach().double(), teacher.detach().double()
    gram = x.T @ x
    gram += ridge * gram.diagonal().mean().clamp(min=1e-12) * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    solved = cast("Tensor", torch.linalg.solve(gram, x.T @ y))  # pyright: ignore[reportUnknownMemberType]
    return solved.to(student.dtype)


def _mean_square(student: Tensor, teacher: Tensor, real: Tensor) -> Tensor:
    """Over all axes but the first, where `real`, which broadcasts to them, is on; at least float32."""
    wide = torch.promote_types(student.dtype, torch.float32)
    on = real.expand_as(student)
    gap = student.to(wide).where(on, 0.0) - teacher.detach().to(wide).where(on, 0.0)
    return gap.square().flatten(1).sum(1) / on.flatten(1).sum(1).clamp(min=1)
