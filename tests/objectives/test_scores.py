"""The denoising loss and its weights as other quantities' errors; the matching gradient against closed forms."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from stillhouse.models.diffusion import VP, Flow, Karras, Schedule
from stillhouse.objectives.scores import denoising, denoising_weight, follow, matching_gradient
from stillhouse.teachers.score import Exact

DRAW = torch.Generator().manual_seed(0)
X0, EPS, GUESS = (torch.randn(6, 3, dtype=torch.float64, generator=DRAW) for _ in range(3))
T = torch.linspace(0.1, 0.9, 6, dtype=torch.float64)
SCHEDULES = [VP(), Karras(), Flow()]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("kind", ["eps", "v", "flow"])
def test_a_weight_makes_it_the_error_of_that_quantity(schedule: Schedule, kind: Any):
    x_t = schedule.add_noise(X0, EPS, T)
    alpha, sigma = schedule.parts(X0, T)
    said, true = (getattr(schedule, kind)(x_t, x0, T) for x0 in (GUESS, X0))
    loss = denoising(GUESS, X0, denoising_weight(kind, alpha, sigma))
    assert torch.allclose(loss, (said - true).square().mean(1), rtol=1e-9)


def test_the_other_weights():
    alpha, sigma = torch.tensor([1.0, 0.6]), torch.tensor([0.1, 0.8])
    assert denoising_weight("x0", alpha, sigma).tolist() == [1, 1]
    assert denoising_weight("edm", alpha, sigma, deviation=0.5).tolist() == pytest.approx([104, 4.5625])  # snr + 1 / 0.5²
    assert denoising_weight("min_snr", alpha, sigma).tolist() == pytest.approx([5, 0.5625])


def test_a_perfect_guess_costs_nothing_and_an_empty_batch_has_no_items():
    assert float(denoising(X0, X0, 3.0).abs().max()) == 0
    assert denoising(X0[:0], X0[:0]).shape == (0,)
    none = torch.ones(0, 1)
    assert matching_gradient(X0[:0], X0[:0], X0[:0], alpha=none, sigma=none).shape == (0, 3)


@pytest.mark.parametrize("weight", ["error", "alpha_error", "kl"])
def test_no_gradient_where_fake_is_real(weight: Any):
    alpha, sigma = VP().parts(X0, T)
    assert float(matching_gradient(X0, GUESS, GUESS, alpha=alpha, sigma=sigma, weight=weight).abs().max()) == 0
    same = matching_gradient(X0, X0, X0, alpha=alpha, sigma=sigma, weight=weight)  # and nothing is divided by 0
    assert float(same.abs().max()) == 0


def test_it_is_that_of_the_authors():
    """tianweiy/DMD2, main/edm/edm_guidance.py: grad = (p_real - p_fake) / mean |p_real|, as gradient of 0.5 mse."""
    x, real, fake = (torch.randn(4, 1, 3, 3, dtype=torch.float64, generator=DRAW) for _ in range(3))
    x.requires_grad_()
    p_real, p_fake = x.detach() - real, x.detach() - fake
    grad = (p_real - p_fake) / p_real.abs().mean(dim=[1, 2, 3], keepdim=True)
    expected = torch.autograd.grad(0.5 * torch.nn.functional.mse_loss(x, (x - grad).detach()), x)[0]
    ones = torch.ones(4, 1, 1, 1, dtype=torch.float64)
    ours = follow(x, matching_gradient(x, fake, real, alpha=ones, sigma=ones)).sum() / 4
    assert torch.allclose(torch.autograd.grad(ours, x)[0], expected, rtol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_it_is_the_gradient_of_the_kl_of_two_gaussians(schedule: Schedule):
    """KL(N(a, s²) || N(b, s²)) after noising is alpha² |a - b|² / 2 (alpha² s² + sigma²); its gradient by a is known."""
    a = torch.tensor([[0.5, -1.0]], dtype=torch.float64)
    b, s = torch.tensor([[1.5, 0.3]], dtype=torch.float64), 0.7
    t = torch.full((2000,), 0.4, dtype=torch.float64)
    x = a + s * torch.randn(2000, 2, dtype=torch.float64, generator=DRAW)
    x_t = schedule.add_noise(x, torch.randn(2000, 2, dtype=torch.float64, generator=DRAW), t)
    fake, real = (Exact(m, s, schedule).x0(x_t, t) for m in (a, b))
    alpha, sigma = schedule.parts(x, t)
    gradient = matching_gradient(x, fake, real, alpha=alpha, sigma=sigma, weight="kl")
    centre = a.clone().requires_grad_()
    al, si = alpha[0, 0], sigma[0, 0]
    kl = (al * (centre - b)).square().sum() / (2 * ((al * s) ** 2 + si**2))
    expected = torch.autograd.grad(kl, centre)[0]
    assert torch.allclose(gradient, expected.expand_as(gradient), rtol=1e-9)  # at every point, for equal widths


def test_it_is_the_gradient_of_the_kl_for_widths_too():
    """One dimension, N(0, a²) against N(0, b²): averaged over x = a z it is dKL/da."""
    a, b, schedule = 0.5, 1.2, VP()
    z, e = (torch.randn(400_000, 1, dtype=torch.float64, generator=DRAW) for _ in range(2))
    t = torch.full((len(z),), 0.3, dtype=torch.float64)
    x_t = schedule.add_noise(a * z, e, t)
    zero = torch.zeros(1, 1, dtype=torch.float64)
    fake, real = (Exact(zero, w, schedule).x0(x_t, t) for w in (a, b))
    alpha, sigma = schedule.parts(z, t)
    gradient = (matching_gradient(a * z, fake, real, alpha=alpha, sigma=sigma, weight="kl") * z).mean()
    width = torch.tensor(a, dtype=torch.float64, requires_grad=True)
    al, si = alpha[0, 0], sigma[0, 0]
    ratio = ((al * width) ** 2 + si**2) / ((al * b) ** 2 + si**2)
    expected = torch.autograd.grad(0.5 * (ratio - 1 - ratio.log()), width)[0]
    assert float(gradient) == pytest.approx(float(expected), rel=0.02)


def test_the_three_weights_are_multiples_of_one_gradient():
    schedule = VP()
    alpha, sigma = schedule.parts(X0, T)
    fake, real = GUESS, EPS
    error, alpha_error, kl = (
        matching_gradient(X0, fake, real, alpha=alpha, sigma=sigma, weight=w) for w in ("error", "alpha_error", "kl")
    )
    assert torch.allclose(alpha_error, alpha * error)
    x_t = schedule.add_noise(X0, EPS, T)
    gap = alpha * (schedule.score(x_t, fake, T) - schedule.score(x_t, real, T))
    assert torch.allclose(kl, gap)
    w = sigma**2 / alpha / (real - X0).abs().mean(1, keepdim=True)  # Eq. 8
    assert torch.allclose(alpha_error, w * gap)


def test_gradients_in_double():
    guess = GUESS.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda g: denoising(g, X0, 2.0), (guess,))
    made = X0.clone().requires_grad_()
    pull = torch.randn(6, 3, dtype=torch.float64, generator=DRAW)
    found = torch.autograd.grad(follow(made, pull).sum(), made)[0]
    assert torch.allclose(found, pull / 3)  # it is a gradient by construction, not of its own value
    assert torch.allclose(follow(made, pull), 0.5 * pull.square().mean(1))


def test_half_precision_and_large_values_stay_finite():
    x = torch.full((2, 3), 1e4, dtype=torch.bfloat16)
    one = torch.ones(2, 1, dtype=torch.bfloat16)
    for weight in ("error", "alpha_error", "kl"):
        found = matching_gradient(x, x + 256, x - 256, alpha=one, sigma=one, weight=weight)
        assert bool(found.isfinite().all())
