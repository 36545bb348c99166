"""DPO: its loss and gradient against loops, where it begins, what its reference is and stays."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from language import run_of
from preferences import STUDENT, gradient, pairs, scores, toy
from stillhouse.core.engine import Loop, fit
from stillhouse.core.optim import Optim
from stillhouse.core.recipe import Recipe
from stillhouse.core.run import RunError
from stillhouse.core.stage import Train, execute
from stillhouse.data.toys import Sentences
from stillhouse.methods.classics.dpo import DPO


def begun(folder: Path, beta: float = 0.3) -> tuple[Any, Any, Any, Any, Any]:
    """(run, method, state, batch, the reference's scores), the student moved away from where it began."""
    run, student, batch = toy(folder)
    method = DPO(beta=beta)
    state = method.setup(student, run)
    reference = scores(student, mean=False)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return run, method, state, batch, reference


def test_the_loss_is_the_papers(tmp_path: Path):
    run, method, state, batch, (rw, rl) = begun(tmp_path)
    (made,) = method.step(state, batch, run)
    w, lo = scores(state.student, mean=False)
    z = 0.3 * ((w - rw.detach()) - (lo - rl.detach()))
    expected = -torch.log(1 / (1 + torch.exp(-z))).sum()
    assert made.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert made.count == 4
    torch.testing.assert_close(gradient(made.loss, state.student), gradient(expected, state.student), rtol=1e-4, atol=1e-5)
    assert float(made.logs["chosen_reward"]) == pytest.approx(0.3 * float((w - rw).detach().sum()), rel=1e-4)
    assert float(made.logs["preferred"]) == int((z > 0).sum())


def test_it_begins_at_log_two_with_half_beta_of_the_difference(tmp_path: Path):
    run, student, batch = toy(tmp_path)
    method = DPO(beta=0.3)
    (made,) = method.step(method.setup(student, run), batch, run)
    assert made.loss.item() == pytest.approx(4 * math.log(2), rel=1e-6)
    w, lo = scores(student, mean=False)
    torch.testing.assert_close(gradient(made.loss, student), gradient(-0.15 * (w - lo).sum(), student), rtol=1e-4, atol=1e-4)


def test_the_reference_never_moves(tmp_path: Path):
    run, student, _ = toy(tmp_path)
    run.horizon = 5
    method = DPO()
    state = method.setup(student, run)
    before = {name: value.clone() for name, value in state.reference.state_dict().items()}
    loop = Loop(method, state, run, Optim(lr=1e-2))
    logs: list[dict[str, float]] = []
    fit(loop, pairs(), steps=5, size=4, on_step=lambda step, found: logs.append(found))
    assert set(state.groups()) == {"student"}
    assert all(torch.equal(value, before[name]) for name, value in state.reference.state_dict().items())
    assert any(not torch.equal(value, before[name]) for name, value in state.student.state_dict().items())
    assert logs[0]["student/loss"] == pytest.approx(math.log(2)) and logs[-1]["student/loss"] < 0.6
    assert logs[-1]["student/preferred"] == 1.0


def test_in_bfloat16_it_begins_at_log_two_too(tmp_path: Path):
    """The reference is rounded as the student is; in float32 it would be a third model."""
    stage = Train(method=DPO(beta=5.0), steps=3, batch=4, optim=Optim(lr=1e-3), precision="bfloat16", data=Fixed())
    run = run_of(tmp_path, None)
    execute(Recipe(id="x", student=STUDENT, data=Sentences(), stages={"train": stage}), run)
    losses = [line["student/loss"] for line in run.read("metrics.jsonl")]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6) and losses[2] < losses[0]


class Fixed:
    """The four pairs as data."""

    def load(self, run: Any) -> Any:
        return {"train": pairs()}


def test_what_cannot_be_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="beta must be above 0"):
        DPO(beta=0.0)
    run, student, _ = toy(tmp_path)
    text = Sentences().load(run)["train"].batch([0, 1], 0)
    with pytest.raises(RunError, match="learns from pairs"):
        next(DPO().step(DPO().setup(student, run), text, run))


@pytest.mark.parametrize("accumulate", [2, 4])
def test_splitting_a_batch_changes_nothing(tmp_path: Path, accumulate: int):
    ends: list[dict[str, torch.Tensor]] = []
    for parts in (1, accumulate):
        run, student, _ = toy(tmp_path / str(parts))
        run.horizon = 3
        loop = Loop(DPO(beta=1.0), DPO(beta=1.0).setup(student, run), run, Optim(name="sgd", lr=1e-2))
        fit(loop, pairs(), steps=3, size=4, accumulate=parts)
        ends.append(loop.state.student.state_dict())
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], rtol=1e-4, atol=1e-6)
