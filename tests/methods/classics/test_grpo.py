"""GRPO: rewards and groups, the loss of several steps on one batch of answers, and that it learns from rewards alone."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from chains import splits_alike
from language import run_of
from stillhouse.core.engine import Loop, fit
from stillhouse.core.optim import Optim
from stillhouse.core.run import RunError, seed_of
from stillhouse.data.tasks import Chain
from stillhouse.data.toys import Sentences
from stillhouse.methods.classics.grpo import GRPO
from stillhouse.methods.groups import drawn
from stillhouse.models.generate import Sampling, generate
from stillhouse.models.toys import TinyLM
from toylanguage import gradient, update

torch.set_num_threads(1)
TASKS = Chain(ops=(1,), base=2, style="answer", train=6, valid=1, test=1)
SAMPLING = Sampling(temperature=1.4, max_new=5)
SPEC = TinyLM(width=16, depth=1)


def toy(folder: Path, rows: int = 4) -> tuple[Any, Any, Any]:
    """A student that has seen a few answers, so that some of its own are right."""
    from stillhouse.methods.classics.supervised import Supervised

    run = run_of(folder, SPEC, data=TASKS)
    torch.manual_seed(0)
    student = SPEC.build(run)
    run.horizon = 25
    fit(Loop(Supervised(), Supervised().setup(student, run), run, Optim(lr=1e-2)), run.sources()["train"], steps=25, size=6)
    run.step = 0
    return run, student, run.sources()["train"].batch(range(rows), 0)


def answers_of(run: Any, student: Any, rows: int, group: int, sampling: Sampling) -> list[list[tuple[Any, Any, float]]]:
    """(prompt, answer, reward) of every answer, drawn one at a time."""
    seed = seed_of(run.seed, "rollout", run.step)
    found = []
    for i, prompt in enumerate(TASKS.prompts(run)["train"][:rows]):
        each = []
        for g in range(group):
            (answer,) = generate(student, [prompt], sampling, seed=seed, keys=[(i, g)], ends=frozenset({0}))
            each.append((prompt, answer, TASKS.verify(run, "train", i, answer)))
        found.append(each)
    return found


def logps(student: Any, prompt: list[int], answer: list[int], temperature: float) -> torch.Tensor:
    z = student(torch.tensor([[*prompt, *answer]])).dense()[0, len(prompt) - 1 : -1].double() / temperature
    return z.log_softmax(-1).gather(-1, torch.tensor(answer)[:, None])[:, 0]


def brute(groups: Any, student: Any, method: GRPO, old: Any, reference: Any) -> tuple[torch.Tensor, float]:
    """(sum, count) of the loss, a token at a time; `old` and `reference` are modules, or None for the student's own."""
    total, count = torch.zeros((), dtype=torch.float64), 0.0
    temperature = method.sampling.temperature
    for group in groups:
        rewards = torch.tensor([reward for *_, reward in group], dtype=torch.float64)
        for prompt, answer, reward in group:
            a = float(reward - rewards.mean())
            if method.norm == "std":
                a /= float(rewards.std()) + 1e-4
            if method.norm == "leave_one_out":
                a *= len(group) / (len(group) - 1)
            now = logps(student, prompt, answer, temperature)
            then = (now if old is None else logps(old, prompt, answer, temperature)).detach()
            part = torch.zeros((), dtype=torch.float64)
            for t in range(len(answer)):
                r = (now[t] - then[t]).exp()
                part = part - torch.minimum(r * a, r.clamp(1 - method.low, 1 + method.high) * a)
                if method.kl:
                    d = logps(reference, prompt, answer, temperature)[t].detach() - now[t]
                    part = part + method.kl * (d.exp() - d - 1)
            per_answer = method.average == "answer"
            total, count = total + part / (len(answer) if per_answer else 1), count + (1 if per_answer else len(answer))
    return total, count


@pytest.mark.parametrize("norm", ["std", "none", "leave_one_out"])
@pytest.mark.parametrize("average", ["answer", "token"])
def test_the_first_step_on_fresh_answers(tmp_path: Path, norm: Any, average: Any) -> None:
    run, student, batch = toy(tmp_path)
    method = GRPO(group=6, kl=0.0, norm=norm, average=average, sampling=SAMPLING)
    groups = answers_of(run, student, 4, 6, SAMPLING)
    rewards = [[reward for *_, reward in group] for group in groups]
    assert any(0 < sum(group) < 6 for group in rewards)  # else this test could not fail
    made = update(method, student, batch, run)
    expected, count = brute(groups, student, method, None, None)
    assert float(made.count) == count and made.loss.item() == pytest.approx(expected.item(), abs=1e-4)
    slopes = torch.autograd.grad(expected, list(student.parameters()))
    for mine, theirs in zip(torch.autograd.grad(made.loss, list(student.parameters())), slopes, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)
        assert theirs.abs().max() > 0
    flat = sum(rewards, [])
    assert made.logs["reward"] / count == pytest.approx(sum(flat) / 24) == pytest.approx(made.logs["solved"] / count)
    mixed = sum(0 < sum(group) < 6 for group in rewards) / 4
    assert made.logs["mixed_groups"] / count == pytest.approx(mixed)
    lengths = [len(answer) for group in groups for _, answer, _ in group]
    assert made.logs["answer_tokens"] / count == pytest.approx(sum(lengths) / 24)


def test_further_steps_on_the_same_answers(tmp_path: Path) -> None:
    run, student, batch = toy(tmp_path)
    method = GRPO(group=6, inner=3, kl=0.1, low=0.1, high=0.3, sampling=SAMPLING)
    before = copy.deepcopy(student)
    groups = answers_of(run, student, 4, 6, SAMPLING)
    state = method.setup(student, run)
    assert not any(p.requires_grad for p in state.reference.parameters()) and set(state.groups()) == {"student"}
    clips = 0
    updates = 0
    for made in method.step(state, batch, run):
        updates += 1
        expected, count = brute(groups, student, method, before, before)
        assert float(made.count) == count and made.loss.item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-4)
        slopes = torch.autograd.grad(made.loss, list(student.parameters()))
        for mine, theirs in zip(slopes, torch.autograd.grad(expected, list(student.parameters())), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)
        with torch.no_grad():
            for p, slope in zip(student.parameters(), slopes, strict=True):
                p.sub_(0.01 * slope)
            for prompt, answer, _ in sum(groups, []):
                ratio = (logps(student, prompt, answer, 1.4) - logps(before, prompt, answer, 1.4)).exp()
                clips += int(((ratio < 0.9) | (ratio > 1.3)).sum())
    assert updates == 3 and clips > 0


def test_groups_that_agree_teach_nothing(tmp_path: Path) -> None:
    run, student, batch = toy(tmp_path)
    certain = Sampling(top_p=1e-9, max_new=5)  # always the likeliest token
    assert not gradient(GRPO(group=3, kl=0.0, sampling=certain), student, batch, run).any()


def test_the_answers_of_a_group_differ_and_do_not_depend_on_the_others(tmp_path: Path) -> None:
    run, student, batch = toy(tmp_path)
    whole, rewards = drawn(student, batch, run, SAMPLING, 6)
    rows = whole["inputs"]["tokens"].tolist()
    assert len({tuple(row) for row in rows[:6]}) > 1 and rewards.shape == (4, 6)
    part, some = drawn(student, run.sources()["train"].batch([2], 0), run, SAMPLING, 6)
    width = part["labels"].shape[1]
    assert torch.equal(whole["labels"][12:18, :width] * (part["weight"] > 0), part["labels"] * (part["weight"] > 0))
    assert torch.equal(rewards[2:3], some)
    run.step = 1
    assert drawn(student, batch, run, SAMPLING, 6)[0]["inputs"]["tokens"].tolist() != rows


@pytest.mark.parametrize(
    "method", [GRPO(group=4, sampling=SAMPLING), GRPO(group=4, inner=2, kl=0.1, average="token", sampling=SAMPLING)]
)
def test_splitting_a_batch_changes_nothing(tmp_path: Path, method: GRPO) -> None:
    splits_alike(tmp_path, method, toy)


def test_rewards_alone_teach(tmp_path: Path) -> None:
    run, student, _ = toy(tmp_path)
    method = GRPO(group=8, sampling=Sampling(max_new=4, batch=512))
    seen: list[float] = []
    run.horizon = 100
    loop = Loop(method, method.setup(student, run), run, Optim(lr=1e-2))
    fit(loop, run.sources()["train"], steps=100, size=6, on_step=lambda step, logs: seen.append(logs["student/reward"]))
    assert sum(seen[-8:]) / 8 > sum(seen[:4]) / 4 + 0.25


def test_what_it_refuses(tmp_path: Path) -> None:
    for wrong in ({"group": 1}, {"inner": 0}):
        with pytest.raises(ValueError, match="at least two answers"):
            GRPO(**wrong)
    with pytest.raises(ValueError, match="at temperature 0 all answers"):
        GRPO(sampling=Sampling(temperature=0.0))
    run = run_of(tmp_path, SPEC, data=Sentences())
    with pytest.raises(RunError, match="Sentences has no verifier"):
        GRPO().setup(SPEC.build(run), run)
