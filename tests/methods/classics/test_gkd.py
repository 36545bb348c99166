"""GKD: which answers are learned from, and that its loss is the divergence it names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from stillhouse.core.engine import Loop, fit
from stillhouse.core.optim import Optim
from stillhouse.core.run import seed_of
from stillhouse.data.tokens import prompts_of
from stillhouse.methods.classics import gkd
from stillhouse.methods.classics.gkd import GKD
from stillhouse.methods.language.taid import TAID
from stillhouse.models.call import logits_of
from stillhouse.models.generate import Sampling, rollout
from stillhouse.objectives.divergences import JSD, ForwardKL, ReverseKL
from toylanguage import gradient, toy, update


def brute(run: Any, student: Any, batch: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """log q and log p of every position, labels and mask; dense."""
    log_q = logits_of(student, batch).dense().double().log_softmax(-1)
    log_p = run.teacher(batch, frozenset({"logits"})).need("logits").dense().double().log_softmax(-1)
    return log_q, log_p.detach(), batch["labels"], batch["weight"].double()


def test_off_policy_forward_kl_is_word_level_distillation(tmp_path: Path) -> None:
    run, student, batch = toy(tmp_path)
    made = update(GKD(on_policy=0.0, divergence=ForwardKL()), student, batch, run)
    log_q, log_p, _, weight = brute(run, student, batch)
    expected = ((log_p.exp() * (log_p - log_q)).sum(-1) * weight).sum()
    assert made.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert float(made.count) == float(weight.sum())


def test_labels_are_mixed_in(tmp_path: Path) -> None:
    run, student, batch = toy(tmp_path)
    made = update(GKD(on_policy=0.0, divergence=ReverseKL(), labels=0.25), student, batch, run)
    log_q, log_p, labels, weight = brute(run, student, batch)
    matched = ((log_q.exp() * (log_q - log_p)).sum(-1) * weight).sum()
    nll = (-log_q.gather(-1, labels[..., None])[..., 0] * weight).sum()
    assert made.loss.item() == pytest.approx((0.75 * matched + 0.25 * nll).item(), rel=1e-5)
    assert float(made.logs["divergence"]) == pytest.approx(matched.item(), rel=1e-5)
    assert float(made.logs["nll"]) == pytest.approx(nll.item(), rel=1e-5)


def test_temperature_divides_both_sides(tmp_path: Path) -> None:
    run, student, batch = toy(tmp_path)
    made = update(GKD(on_policy=0.0, divergence=ForwardKL(), temperature=2.0), student, batch, run)
    q = (logits_of(student, batch).dense().double() / 2).log_softmax(-1)
    p = (run.teacher(batch, frozenset({"logits"})).need("logits").dense().double() / 2).log_softmax(-1)
    expected = ((p.exp() * (p - q)).sum(-1) * batch["weight"]).sum()
    assert made.loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(("beta", "limit"), [(0.0, ForwardKL()), (1.0, ReverseKL())])
def test_the_ends_of_the_jsd_are_the_kls(tmp_path: Path, beta: float, limit: Any) -> None:
    run, student, batch = toy(tmp_path)
    a, b = (gradient(GKD(on_policy=0.0, divergence=d), student, batch, run) for d in (JSD(beta=beta), limit))
    assert torch.equal(a, b) and a.abs().max() > 0


def test_on_policy_learns_from_the_students_own_answers(tmp_path: Path) -> None:
    run, student, batch = toy(tmp_path)
    sampling = Sampling(max_new=9)
    made = update(GKD(on_policy=1.0, sampling=sampling, labels=0.5), student, batch, run)
    own = rollout(student, batch, sampling, seed=seed_of(run.seed, "rollout", run.step))
    assert prompts_of(own) == prompts_of(batch)
    assert float(made.count) == float(own["weight"].sum()) > 0
    expected = JSD()(logits_of(student, own), run.teacher(own, GKD.needs).need("logits"), weight=own["weight"]).sum()
    assert made.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert "nll" not in made.logs  # the data's tokens are no labels for other words


def test_lambda_is_the_share_of_on_policy_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, student, batch = toy(tmp_path)
    asked: list[int] = []
    monkeypatch.setattr(gkd, "rollout", lambda student, batch, *a, **k: asked.append(run.step) or batch)
    method = GKD(on_policy=0.3)
    for step in range(200):
        run.step = step
        update(method, student, source_row(run), run)
        first = list(asked)
        update(method, student, source_row(run, 1), run)  # another micro-batch of the step decides alike
        assert (asked.count(step) == 2) == (step in first)
    assert 35 < len(set(asked)) < 90
    for share, expected in ((0.0, 0), (1.0, 20)):
        asked.clear()
        for run.step in range(20):
            update(GKD(on_policy=share), student, source_row(run), run)
        assert len(asked) == expected


def source_row(run: Any, row: int = 0) -> Any:
    return run.sources()["train"].batch([row], 0)


@pytest.mark.parametrize(
    "method",
    [
        GKD(on_policy=0.0),
        GKD(on_policy=0.0, divergence=ForwardKL(), labels=0.3),
        GKD(on_policy=1.0, sampling=Sampling(max_new=6)),
        TAID(share=0.5),
    ],
)
def test_splitting_a_batch_changes_nothing(tmp_path: Path, method: Any) -> None:
    ends: list[dict[str, torch.Tensor]] = []
    for accumulate in (1, 6):
        run, student, _ = toy(tmp_path / str(accumulate))
        run.horizon = 4
        loop = Loop(method, method.setup(student, run), run, Optim(lr=1e-2))
        fit(loop, run.sources()["train"], steps=4, size=6, accumulate=accumulate)
        ends.append(loop.state.state_dict())
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], rtol=1e-4, atol=1e-5, equal_nan=True)
