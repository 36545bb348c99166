"""MiniLLM: its two gradients against loops written from the equations, its returns, its importance weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.core.engine import Loop, fit
from stillhouse.core.optim import Optim
from stillhouse.core.run import seed_of
from stillhouse.methods.classics.minillm import MiniLLM, log_share, returns_to_go
from stillhouse.models.call import logits_of
from stillhouse.models.generate import Sampling, rollout
from stillhouse.objectives.divergences import ReverseKL
from toylanguage import gradient, toy, update

SAMPLING = Sampling(max_new=7)
ONCE: dict[str, Any] = {"inner": 1, "pretraining": 0.0, "sampling": SAMPLING}


@given(st.lists(st.lists(st.floats(-5, 5), min_size=1, max_size=6), min_size=1, max_size=4), st.integers(0, 3))
def test_returns_are_means_of_what_comes_after(rewards: list[list[float]], prompt: int) -> None:
    width = prompt + max(map(len, rewards)) + 1
    table, weight = torch.zeros(len(rewards), width, dtype=torch.float64), torch.zeros(len(rewards), width)
    for r, row in enumerate(rewards):
        table[r, prompt : prompt + len(row)] = torch.tensor(row, dtype=torch.float64)
        weight[r, prompt : prompt + len(row)] = 1.0
    found = returns_to_go(table, weight)
    for r, row in enumerate(rewards):
        for t in range(len(row)):
            after = row[t + 1 :]
            expected = sum(after) / len(after) if after else 0.0
            assert float(found[r, prompt + t]) == pytest.approx(expected, abs=1e-6)


def own_answers(run: Any, student: Any, batch: Any, mix: float) -> Any:
    seed = seed_of(run.seed, "rollout", run.step)
    return rollout(student, batch, SAMPLING, seed=seed, mix=(run.teacher.module, mix) if mix else None)


def log_probabilities(run: Any, student: Any, answers: Any) -> tuple[torch.Tensor, torch.Tensor]:
    log_q = logits_of(student, answers).dense().double().log_softmax(-1)
    log_p = run.teacher(answers, MiniLLM.needs).need("logits").dense().double().log_softmax(-1)
    return log_q, log_p.detach()


def test_without_the_teachers_share_the_single_step_term_is_reverse_kl(tmp_path: Path) -> None:
    run, student, batch = toy(tmp_path)
    made = update(MiniLLM(mix=0.0, **ONCE), student, batch, run)
    answers = own_answers(run, student, batch, 0.0)
    teacher = run.teacher(answers, MiniLLM.needs).need("logits")
    expected = ReverseKL()(logits_of(student, answers), teacher, weight=answers["weight"]).sum()
    assert made.logs["single"].item() == pytest.approx(expected.item(), rel=1e-5)  # type: ignore[union-attr]
    assert float(made.count) == float(answers["weight"].sum())


@pytest.mark.parametrize("mix", [0.0, 0.2, 0.7])
def test_the_gradient_is_that_of_the_equations(tmp_path: Path, mix: float) -> None:
    """Eq. 6, 7 and 9 as loops over answers and tokens; at the first inner step q_now is q_old."""
    run, student, batch = toy(tmp_path, rows=1)
    found = gradient(MiniLLM(mix=mix, clip=0.2, **ONCE), student, batch, run)
    answers = own_answers(run, student, batch, mix)
    log_q, log_p = log_probabilities(run, student, answers)
    loss = torch.zeros((), dtype=torch.float64)
    for r in range(len(log_q)):
        places = (answers["weight"][r] > 0).nonzero().flatten().tolist()
        chosen = [int(answers["labels"][r, t]) for t in places]
        q = [log_q[r, t, y] for t, y in zip(places, chosen, strict=True)]
        p = [log_p[r, t, y].item() for t, y in zip(places, chosen, strict=True)]
        for i, t in enumerate(places):
            behind = math.exp(q[i].item()) / (mix * math.exp(p[i]) + (1 - mix) * math.exp(q[i].item()))
            loss = loss + behind * (log_q[r, t].exp() * (log_q[r, t] - log_p[r, t])).sum()
            later = [p[k] - q[k].item() for k in range(i + 1, len(places))]
            if later:
                reward = sum(later) / len(later)
                ratio = behind * (q[i] - q[i].detach()).exp()
                loss = loss - torch.minimum(ratio * reward, ratio.clamp(0.8, 1.2) * reward)
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(student.parameters()))])
    torch.testing.assert_close(found, expected.to(found.dtype), rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    assert expected.abs().max() > 0


def test_the_datas_own_answers_are_added(tmp_path: Path) -> None:
    run, student, batch = toy(tmp_path)
    settings = ONCE | {"pretraining": 0.5}
    both, alone = (update(MiniLLM(**s), student, batch, run) for s in (settings, ONCE))
    log_q = logits_of(student, batch).dense().log_softmax(-1)
    nll = (-log_q.gather(-1, batch["labels"][..., None])[..., 0] * batch["weight"]).sum()
    assert both.loss.item() == pytest.approx((alone.loss + 0.5 * nll).item(), rel=1e-4)


def test_a_rollout_serves_several_gradient_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, student, _ = toy(tmp_path)
    drawn: list[int] = []
    from stillhouse.methods.classics import minillm

    monkeypatch.setattr(minillm, "rollout", lambda *a, **k: drawn.append(1) or rollout(*a, **k))
    method = MiniLLM(inner=3, sampling=SAMPLING)
    loop = Loop(method, method.setup(student, run), run, Optim(lr=1e-2, schedule="constant"))
    moved: list[torch.Tensor] = []
    step = loop.groups["student"].step
    monkeypatch.setattr(
        loop.groups["student"], "step",
        lambda *a: (step(*a), moved.append(student.head.weight.detach().clone()))[0],
    )  # fmt: skip
    fit(loop, run.sources()["train"], steps=1, size=4, accumulate=2)
    assert len(drawn) == 2  # once a micro-batch
    assert len(moved) == 3 and not torch.equal(moved[0], moved[1]) and not torch.equal(moved[1], moved[2])


def test_nothing_of_the_teacher_in_the_mixture() -> None:
    assert log_share(0.0) == -1e30 and log_share(0.5) == pytest.approx(math.log(0.5))
