"""Gaps of hidden states and attention scores: by hand, gradients, masks, identity, precision; the map's least squares."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from stillhouse.objectives.latent import hidden_gap, linear_map, score_gap

REAL = torch.tensor([[True, True, True], [True, True, False], [False, False, False]])


def pair(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=draw).to(dtype), torch.randn(*shape, generator=draw).to(dtype)


def test_hidden_gap_by_hand() -> None:
    x, y = pair(3, 3, 4)
    found = hidden_gap(x, y, REAL)
    assert found[0] == pytest.approx(float((x[0] - y[0]).square().mean()))
    assert found[1] == pytest.approx(float((x[1, :2] - y[1, :2]).square().mean()))
    assert found[2] == 0


def test_score_gap_by_hand() -> None:
    x, y = pair(3, 2, 3, 3)
    found = score_gap(x, y, REAL)
    assert found[1] == pytest.approx(float((x[1, :, :2, :2] - y[1, :, :2, :2]).square().mean()))
    more = torch.cat([y, y + 1], 1)  # four heads against two: means over heads
    gap = x[0].mean(0) - more[0].mean(0)
    assert score_gap(x, more, REAL)[0] == pytest.approx(float(gap.square().mean()))


def test_padding_is_never_looked_at() -> None:
    for gap, shape in ((hidden_gap, (3, 3, 4)), (score_gap, (3, 2, 3, 3))):
        x, y = pair(*shape)
        x.requires_grad_()
        spoiled = x.detach().clone()
        spoiled[1, ..., 2, :] = float("nan")
        spoiled[2] = float("inf")
        spoiled.requires_grad_()
        for value in (x, spoiled):
            gap(value, y, REAL).sum().backward()
        torch.testing.assert_close(gap(spoiled, y, REAL), gap(x, y, REAL))
        assert x.grad is not None and torch.equal(x.grad, spoiled.grad)  # type: ignore[arg-type]
        assert (x.grad[2] == 0).all() and x.grad[0].abs().min() > 0


def test_gradients_and_identity() -> None:
    x, y = pair(3, 3, 4, dtype=torch.float64)
    torch.autograd.gradcheck(lambda z: hidden_gap(z, y, REAL), x.requires_grad_())
    a, b = pair(3, 2, 3, 3, dtype=torch.float64)
    torch.autograd.gradcheck(lambda z: score_gap(z, b, REAL), a.requires_grad_())
    assert (hidden_gap(y, y, REAL) == 0).all() and (score_gap(b, b, REAL) == 0).all()
    teacher = y.clone().requires_grad_()
    assert not hidden_gap(y, teacher, REAL).requires_grad


def test_low_precision_large_values_and_nothing_at_all() -> None:
    x, y = pair(3, 3, 4, dtype=torch.bfloat16)
    found = hidden_gap(1000 * x, y, REAL)
    assert found.dtype == torch.float32 and found.isfinite().all()
    torch.testing.assert_close(hidden_gap(x, y, REAL), hidden_gap(x.float(), y.float(), REAL))
    assert hidden_gap(torch.zeros(0, 3, 4), torch.zeros(0, 3, 4), REAL[:0]).shape == (0,)


def test_the_map_is_least_squares() -> None:
    x, y = torch.randn(50, 4), torch.randn(50, 6)
    expected, *_ = np.linalg.lstsq(x.double().numpy(), y.double().numpy(), rcond=None)
    assert np.abs(linear_map(x, y, ridge=0.0).double().numpy() - expected).max() < 1e-5
    p = torch.randn(4, 6)
    torch.testing.assert_close(linear_map(x, x @ p, ridge=0.0), p, rtol=1e-4, atol=1e-4)
    assert linear_map(torch.ones(3, 4), torch.ones(3, 6)).isfinite().all()  # fewer directions than channels
    assert linear_map(x.bfloat16(), y).dtype == torch.bfloat16
