"""What the tests beside this file hold every objective to, and the inputs of the golden values.

An objective is `f(student, *others, weight=None)`, one value per item; all inputs have the item axis first.

The golden values were computed once by the authors' or another project's code (named in each test) on inputs that need
no random numbers: `inp(shape, k, scale)` holds scale * sin(k (i + 1)), float64, in C order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

Objective = Callable[..., Tensor]
HOSTILE = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def inp(shape: tuple[int, ...], k: float, scale: float = 1.0) -> Tensor:
    count = torch.arange(1, math.prod(shape) + 1, dtype=torch.float64)
    return (scale * torch.sin(k * count)).reshape(shape)


S, T = inp((8, 100), 0.7310, 3), inp((8, 100), 1.2345, 3)  # logits
LABELS = (7 * torch.arange(8) + 3) % 100
FS, FT = inp((8, 16, 8, 8), 0.311), inp((8, 32, 8, 8), 0.517)  # maps
ES, ET = inp((8, 64), 0.919), inp((8, 64), 1.013)  # vectors


def golden(found: Tensor, expected: float) -> None:
    """The mean over items is the reference's value."""
    assert found.shape == (8,)
    assert float(found.mean()) == pytest.approx(expected, rel=1e-9, abs=0)


def normal(*shape: int, scale: float = 1.0, dtype: torch.dtype = torch.float64) -> Tensor:
    return (torch.randn(*shape, dtype=torch.float64) * scale).to(dtype)


def gradient(f: Objective, student: Tensor, *others: Any, **options: Any) -> Tensor:
    student = student.detach().clone().requires_grad_()
    return torch.autograd.grad(f(student, *others, **options).sum(), student)[0]


def right_gradient(f: Objective, student: Tensor, *others: Any) -> None:
    student = student.detach().clone().requires_grad_()
    weight = torch.linspace(0.5, 2.0, len(student), dtype=torch.float64)
    assert gradcheck(lambda s: f(s, *others), (student,))
    assert gradcheck(lambda s: f(s, *others, weight=weight), (student,))


def teacher_is_constant(f: Objective, student: Tensor, teacher: Tensor, *others: Any) -> None:
    student, teacher = (x.detach().clone().requires_grad_() for x in (student, teacher))
    by_student, by_teacher = torch.autograd.grad(f(student, teacher, *others).sum(), (student, teacher), allow_unused=True)
    assert by_teacher is None and float(by_student.abs().max()) > 0


def mask_is_subset(f: Objective, *inputs: Any) -> None:
    """Items of weight 0 leave no trace, whatever they hold; the others are worth their weight."""
    n = len(inputs[0])
    weight = torch.tensor([1.0, 0.0, 2.0, 0.5, 0.0, 1.0] * n)[:n]
    rows = weight.nonzero().squeeze(1)
    dirty = [x.clone() for x in inputs]
    for x in dirty:
        x[weight == 0] = math.nan if x.is_floating_point() else x[0].clone()
    found, slope = f(*dirty, weight=weight), gradient(f, *dirty, weight=weight)
    some = [x[rows] for x in inputs]
    kept = weight[rows].to(found.dtype)
    assert torch.equal(found[weight == 0], torch.zeros(n - len(rows), dtype=found.dtype))
    assert torch.allclose(found[rows], f(*some) * kept.reshape(-1, *[1] * (found.ndim - 1)), rtol=1e-12)
    assert float(slope[weight == 0].abs().max()) == 0
    expected = gradient(lambda *x: f(*x) * kept, *some)
    assert torch.allclose(slope[rows], expected, rtol=1e-10, atol=1e-14)
    nothing = f(*dirty, weight=torch.zeros(n))
    assert torch.equal(nothing, torch.zeros_like(nothing))


def any_size(f: Objective, *inputs: Any) -> None:
    """No item and one item have values and gradients."""
    for n in (0, 1):
        some = [x[:n] for x in inputs]
        found = f(*some)
        assert found.shape == (n,) and bool(found.isfinite().all())
        assert bool(gradient(f, *some).isfinite().all())


def finite(f: Objective, *inputs: Any) -> Tensor:
    """Values and gradients are finite, and the values at least in float32."""
    found = f(*inputs)
    assert found.dtype in (torch.float32, torch.float64)
    assert bool(found.isfinite().all()), found
    slope = gradient(f, *inputs)
    assert slope.dtype == inputs[0].dtype and bool(slope.isfinite().all())
    return slope
