"""Samplers on a Gaussian, whose flow is known in closed form, and their orders of accuracy."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from stillhouse.models.diffusion import VP, Cosine, Flow, Karras, Schedule, normal
from stillhouse.models.samplers import Sampler, ddim, grid, heun, restart
from stillhouse.teachers.score import Exact

MEAN, DEVIATION = torch.tensor([[0.7, -0.4]], dtype=torch.float64), 0.6
Z = torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
SCHEDULES = [VP(), Cosine(), Karras(), Flow()]
schedules = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)


def exact(schedule: Schedule) -> torch.Tensor:
    """The flow of N(m, d^2): (x_t - alpha m) / deviation(x_t) stays as it is. From sigma(1) z at t = 1 to t = 0."""
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    a, s = schedule.alpha(one), schedule.sigma(one)
    unit = (s * Z - a * MEAN) / ((a * DEVIATION) ** 2 + s**2).sqrt()
    a, s = schedule.alpha(zero), schedule.sigma(zero)
    return a * MEAN + unit * ((a * DEVIATION) ** 2 + s**2).sqrt()


def error(schedule: Schedule, rule: Any, steps: int) -> float:
    made = Sampler(rule=rule, steps=steps)(Exact(MEAN, DEVIATION, schedule).x0, schedule, Z)
    return float((made - exact(schedule)).abs().max())


@schedules
@pytest.mark.parametrize("rule", ["ddim", "heun"])
def test_many_steps_follow_the_flow_of_a_gaussian(schedule: Schedule, rule: Any):
    assert error(schedule, rule, 400) < 0.02
    assert error(schedule, rule, 400) < 0.6 * error(schedule, rule, 100)


@schedules
def test_heun_is_the_better_rule(schedule: Schedule):
    assert error(schedule, "heun", 40) < error(schedule, "ddim", 80)


def test_any_step_is_exact_where_everything_is_one_point():
    """A distribution without width: x0 is known at once, and every sampler ends there."""
    for schedule in SCHEDULES:
        for rule in ("ddim", "heun", "restart"):
            made = Sampler(rule=rule, steps=3)(lambda x, t: MEAN.expand_as(x), schedule, Z)
            assert torch.allclose(made, MEAN.expand_as(Z), atol=1e-9)


def test_for_a_flow_ddim_is_euler_and_heun_is_heun():
    schedule = Flow()
    teacher = Exact(MEAN, DEVIATION, schedule)

    def velocity(x: torch.Tensor, t: float) -> torch.Tensor:
        at = torch.full((len(x),), t, dtype=x.dtype)
        return schedule.flow(x, teacher.x0(x, at), at)

    times = grid(5)
    x = Z.clone()
    for t, s in zip(times[:-2], times[1:-1], strict=True):
        x = x + (s - t) * velocity(x, t)
    last = torch.full((50,), times[-2], dtype=x.dtype)
    assert torch.allclose(ddim(teacher.x0, schedule, Z, times), teacher.x0(x, last), atol=1e-9)
    x = Z.clone()
    for t, s in zip(times[:-2], times[1:-1], strict=True):
        first = velocity(x, t)
        x = x + (s - t) / 2 * (first + velocity(x + (s - t) * first, s))
    assert torch.allclose(heun(teacher.x0, schedule, Z, times), teacher.x0(x, last), atol=1e-9)


def test_for_edm_heun_is_algorithm_1_of_karras():
    schedule, teacher = Karras(), Exact(MEAN, DEVIATION, Karras())
    times = grid(6)
    x, sigmas = schedule.sigma_max * Z, [float(schedule.sigma(torch.tensor([t], dtype=torch.float64))) for t in times]

    def slope(x: torch.Tensor, i: int) -> torch.Tensor:
        return (x - teacher.x0(x, torch.full((50,), times[i], dtype=x.dtype))) / sigmas[i]

    for i in range(5):
        step, first = sigmas[i + 1] - sigmas[i], slope(x, i)
        x = x + step / 2 * (first + slope(x + step * first, i + 1))
    end = teacher.x0(x, torch.full((50,), times[5], dtype=x.dtype))
    assert torch.allclose(heun(teacher.x0, schedule, schedule.sigma_max * Z, times), end, rtol=1e-9)


def test_restart_draws_a_gaussian_from_a_gaussian():
    """Denoising wholly shrinks: after many restarts the mean is right, whatever the start."""
    keys = torch.arange(4000)
    z = normal(keys, 1, 2).double()
    made = Sampler(rule="restart", steps=4)(Exact(MEAN, DEVIATION, VP()).x0, VP(), z, keys)
    assert torch.allclose(made.mean(0), MEAN[0], atol=0.05)
    again = restart(lambda x, t: x, VP(), z, grid(1), lambda number: z)
    assert torch.equal(again, z)


def test_evaluations():
    assert [Sampler(rule=r, steps=4).evaluations for r in ("ddim", "heun", "restart")] == [4, 7, 4]
    with pytest.raises(ValueError, match="at least one step"):
        Sampler(steps=0)
