"""TAID: where the target is, what its gradient is, and that its schedule is the authors'."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from stillhouse.core.engine import Loop, fit
from stillhouse.core.optim import Optim
from stillhouse.methods.classics.gkd import GKD
from stillhouse.methods.language.taid import TAID
from stillhouse.models.call import logits_of
from stillhouse.objectives.divergences import ForwardKL
from toylanguage import gradient, toy, update


def schedule(method: TAID, losses: list[float], horizon: int, folder: Path) -> list[float]:
    """t after each of these losses."""
    run, student, _ = toy(folder)
    run.horizon, state, path = horizon, method.setup(student, run), []
    for run.step, loss in enumerate(losses):
        with torch.no_grad():
            method.advance(state, {"student/interpolated": loss}, run)
        path.append(float(state.t))
    return path


def test_the_first_step_only_remembers_its_loss(tmp_path: Path) -> None:
    run, student, _ = toy(tmp_path)
    method, run.horizon = TAID(), 10
    state = method.setup(student, run)
    assert float(state.t) == 0.4 and math.isnan(float(state.previous))
    with torch.no_grad():
        method.advance(state, {"student/interpolated": 3.0}, run)
    assert (float(state.t), float(state.momentum), float(state.previous)) == (0.4, 0.0, 3.0)
    with torch.no_grad():
        method.advance(state, {}, run)  # a batch without counted tokens
    assert float(state.previous) == 3.0


def test_t_follows_the_equations(tmp_path: Path) -> None:
    losses = [3.0, 2.5, 2.6, 2.0, 1.9]
    alpha, beta = 0.3, 0.9
    found = schedule(TAID(t_start=0.1, alpha=alpha, beta=beta), losses, horizon=1000, folder=tmp_path)
    t, momentum, expected = 0.1, 0.0, [0.1]
    for step in range(1, len(losses)):
        before, now = losses[step - 1 : step + 1]
        momentum = beta * momentum + (1 - beta) * (before - now) / (before + 1e-15)
        leap = alpha / (1 + math.exp(-momentum)) * (1 - t)
        t = min(1.0, max(0.1 + 0.9 * (step + 1) / 1000, t + leap))
        expected.append(t)
    assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("alpha", [5e-4, 0.05, 0.9])
@pytest.mark.parametrize("t_end", [1.0, 0.8])
def test_t_never_falls_nor_lags_behind_the_ramp(tmp_path: Path, alpha: float, t_end: float) -> None:
    draw = torch.Generator().manual_seed(0)
    losses = (1 + 4 * torch.rand(60, generator=draw)).tolist()
    path = schedule(TAID(alpha=alpha, t_end=t_end), losses, horizon=60, folder=tmp_path)
    assert path == sorted(path) and path[-1] == pytest.approx(t_end) and max(path) <= t_end
    for step, t in enumerate(path[1:], 1):
        assert t >= 0.4 + (t_end - 0.4) * (step + 1) / 60 - 1e-12
    ramp = schedule(TAID(adaptive=0.0, t_end=t_end), losses, horizon=60, folder=tmp_path)
    assert ramp[1:] == pytest.approx([0.4 + (t_end - 0.4) * (s + 1) / 60 for s in range(1, 60)])


def test_no_gradient_goes_through_the_target(tmp_path: Path) -> None:
    run, student, batch = toy(tmp_path)
    found = gradient(TAID(t_start=0.3), student, batch, run)
    z, weight = logits_of(student, batch).dense(), batch["weight"]
    z_teacher = run.teacher(batch, TAID.needs).need("logits").dense()

    def by_hand(target: torch.Tensor) -> torch.Tensor:
        loss = (-(target * z.log_softmax(-1)).sum(-1) * weight).sum()
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(student.parameters()), retain_graph=True)])

    torch.testing.assert_close(found, by_hand((0.7 * z.detach() + 0.3 * z_teacher).softmax(-1)), rtol=1e-4, atol=1e-4)
    through = by_hand((0.7 * z + 0.3 * z_teacher).softmax(-1))
    assert (found - through).abs().max() > 0.01 * found.abs().max()
    assert gradient(TAID(t_start=0.0), student, batch, run).abs().max() < 1e-4  # the student is its own target


def test_at_the_end_it_is_forward_kl(tmp_path: Path) -> None:
    run, student, batch = toy(tmp_path)
    ours, kl = (gradient(m, student, batch, run) for m in (TAID(t_start=1.0), GKD(on_policy=0.0, divergence=ForwardKL())))
    torch.testing.assert_close(ours, kl, rtol=1e-4, atol=1e-4)


def test_cross_entropy_takes_the_rest(tmp_path: Path) -> None:
    run, student, batch = toy(tmp_path)
    both, pure = (update(TAID(share=share), student, batch, run) for share in (0.3, 1.0))
    log_q = logits_of(student, batch).dense().log_softmax(-1)
    nll = (-log_q.gather(-1, batch["labels"][..., None])[..., 0] * batch["weight"]).sum()
    assert both.loss.item() == pytest.approx((0.3 * pure.loss + 0.7 * nll).item(), rel=1e-5)
    assert both.logs["interpolated"].item() == pytest.approx(pure.loss.item(), rel=1e-6)  # type: ignore[union-attr]


def test_the_schedule_survives_a_resume_to_the_bit(tmp_path: Path) -> None:
    def loop(folder: str) -> tuple[Any, Any]:
        run, student, _ = toy(tmp_path / folder)
        run.horizon = 8
        method = TAID(alpha=0.2)
        return Loop(method, method.setup(student, run), run, Optim(lr=1e-2)), run.sources()["train"]

    straight, source = loop("straight")
    fit(straight, source, steps=8, size=4, accumulate=2)
    first, _ = loop("first")
    fit(first, source, steps=3, size=4, accumulate=2)
    torch.save(first.state_dict(), tmp_path / "saved.pt")
    second, _ = loop("second")
    second.load_state_dict(torch.load(tmp_path / "saved.pt", weights_only=True))
    fit(second, source, steps=8, size=4, accumulate=2, start=3)
    ends = straight.state.state_dict(), second.state.state_dict()
    assert {"t", "momentum", "previous"} <= ends[0].keys() and 0.4 < float(ends[0]["t"]) <= 1.0
    for name, value in ends[0].items():
        assert torch.equal(value, ends[1][name]), name
