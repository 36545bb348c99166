"""CurioSFT: its loss against loops, where its temperatures come from, and how the past follows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from language import run_of
from stillhouse.core.run import RunError
from stillhouse.core.signal import HeadLogits
from stillhouse.data.toys import Sentences
from stillhouse.methods.classics.supervised import Supervised
from stillhouse.methods.language.curiosft import CurioSFT, heated
from stillhouse.models.call import logits_of, weight_of
from stillhouse.models.toys import TinyLM

SPEC = TinyLM(width=16, depth=1)


def setting(tmp_path: Path, method: Any) -> Any:
    """A run, a state whose student has gone on from its past, and a batch."""
    run = run_of(tmp_path, SPEC, data=Sentences())
    torch.manual_seed(0)
    state = method.setup(SPEC.build(run), run)
    with torch.no_grad():
        for p in state.student.parameters():
            p.add_(0.1 * torch.randn_like(p))
        for p in (*state.student.head.parameters(), *getattr(state, "past", state.student).head.parameters()):
            p.mul_(2.0)  # surer, so that temperatures differ
    return run, state, run.sources()["train"].batch(range(4), 0)


def loss(method: Any, state: Any, batch: Any, run: Any) -> Any:
    (made,) = method.step(state, batch, run)
    return made


@pytest.mark.parametrize("whole", [False, True])
def test_the_loss_against_loops(tmp_path: Path, whole: bool) -> None:
    method = CurioSFT(alpha=0.7, whole=whole, middle=0.5, high=3.0)
    run, state, batch = setting(tmp_path, method)
    made = loss(method, state, batch, run)
    with torch.no_grad():
        z, past = (logits_of(m, batch).dense().double() for m in (state.student, state.past))
    total, seen = 0.0, set()
    for row, place in weight_of(batch).nonzero().tolist():
        label = int(batch["labels"][row, place])
        q, p = z[row, place].log_softmax(-1), past[row, place].log_softmax(-1)
        entropy = -float((p.exp() * p).sum())
        target = entropy + 0.5 / (1 + 2.718281828459045 ** (-2 * (entropy - 0.5)))

        def at(tau: float, logits: torch.Tensor = past[row, place]) -> float:
            r = (logits / tau).log_softmax(-1)
            return -float((r.exp() * r).sum())

        grid = torch.linspace(1.1, 3.0, 4001, dtype=torch.float64)
        tau = min(grid.tolist()[::40], key=lambda t: abs(at(t) - target)) if entropy > 0.03 else 1.1
        near = [t for t in grid.tolist() if abs(t - tau) < 0.05]
        tau = min(near, key=lambda t: abs(at(t) - target)) if entropy > 0.03 else 1.1
        seen.add(round(tau, 2))
        r = (past[row, place] / tau).log_softmax(-1)
        pull = float((r.exp() * (r - q)).sum()) if whole else 0.5 * float(q[label] - r[label]) ** 2
        total += -float(q[label]) + 0.7 * pull
    assert len(seen) > 5  # they do differ
    assert made.loss.item() == pytest.approx(total, rel=2e-3)
    assert float(made.count) == float(weight_of(batch).sum())


def test_without_the_pull_it_is_supervised_learning(tmp_path: Path) -> None:
    for whole in (False, True):
        method = CurioSFT(alpha=0.0, whole=whole)
        run, state, batch = setting(tmp_path, method)
        mine = loss(method, state, batch, run).loss
        (plain,) = Supervised().step(state, batch, run)
        assert mine.item() == pytest.approx(plain.loss.item(), rel=1e-5)
        grads = [torch.autograd.grad(x, list(state.student.parameters())) for x in (mine, plain.loss)]
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_temperature_of_the_sure_and_of_the_hesitating(tmp_path: Path) -> None:
    method = CurioSFT(top=8)
    sure = torch.tensor([[[30.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]]])
    tau, entropy = method.temperatures(sure, torch.ones(1, 1))
    assert tau.item() == pytest.approx(1.1) and entropy.item() < 0.03
    even = torch.zeros(1, 1, 8)
    assert method.temperatures(even, torch.ones(1, 1))[0].item() == pytest.approx(1.5)  # no temperature is enough
    assert replace(method, uniform=1.3).temperatures(even, torch.ones(1, 1))[0].item() == pytest.approx(1.3)


def test_the_past_follows_every_few_steps(tmp_path: Path) -> None:
    method = CurioSFT(every=3, keep=0.25)
    run, state, _ = setting(tmp_path, method)
    student, past = ([p.clone() for p in m.parameters()] for m in (state.student, state.past))
    for run.step in range(3):
        same = all(torch.equal(a, b) for a, b in zip(state.past.parameters(), past, strict=True))
        assert same
        with torch.no_grad():
            method.advance(state, {}, run)
    for now, then, mine in zip(state.past.parameters(), past, student, strict=True):
        torch.testing.assert_close(now, 0.25 * then + 0.75 * mine)
    assert "past" not in state.groups()


def test_heads_that_cannot_be_heated_and_settings_that_make_no_sense() -> None:
    tau = torch.tensor([2.0, 4.0])
    hidden, weight = torch.randn(2, 3), torch.randn(5, 3)
    torch.testing.assert_close(heated(HeadLogits(hidden, weight), tau).dense(), (hidden @ weight.T) / tau[:, None])
    torch.testing.assert_close(heated(hidden, tau), hidden / tau[:, None])
    with pytest.raises(RunError, match="without bias and cap"):
        heated(HeadLogits(hidden, weight, torch.zeros(5)), tau)
    for wrong in ({"low": 0.9}, {"low": 2.0}, {"every": 0}, {"keep": 2.0}):
        with pytest.raises(ValueError, match="temperatures are"):
            CurioSFT(**wrong)
