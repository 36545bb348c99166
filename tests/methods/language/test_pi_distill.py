"""Pi-Distill: each objective against loops over drawn tokens, which reading is trained, and the world of tool calls."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from language import run_of
from stillhouse.core.run import RunError
from stillhouse.data.calls import Calls
from stillhouse.data.tasks import Chain, Hinted
from stillhouse.data.toys import Sentences
from stillhouse.methods.language.pi_distill import PiDistill
from stillhouse.models.call import logits_of
from stillhouse.models.generate import Sampling, answered, generate
from stillhouse.models.toys import TinyLM

SPEC = TinyLM(width=16, depth=1)
TASKS = Chain(ops=(1,), base=2, style="answer", train=4, valid=2, test=2)
SAMPLING = Sampling(max_new=4, temperature=0.8)


def setting(tmp_path: Path, data: Any = TASKS) -> Any:
    run = run_of(tmp_path, SPEC, data=data)
    torch.manual_seed(0)
    return run, SPEC.build(run), run.sources()["train"].batch(range(3), 0)


def rewarded(run: Any) -> None:
    """Rewards that tell answers apart although nobody solves anything: their lengths."""
    object.__setattr__(TASKS, "verify_all", lambda run, split, examples, answers: [len(set(a)) / 10 for a in answers])


@pytest.fixture(autouse=True)
def _restore() -> Any:
    yield
    if "verify_all" in vars(TASKS):
        object.__delattr__(TASKS, "verify_all")


def readings(run: Any, student: Any, batch: Any, method: PiDistill) -> Any:
    """(log-probabilities of each answer's tokens bare, with help, advantages) by one forward pass for each answer."""
    from stillhouse.core.run import seed_of
    from stillhouse.data.tokens import prompts_of

    prompts, hints = prompts_of(batch), TASKS.hinted(run, "train")
    keys = [(e, n) for e in range(3) for n in range(method.group)]
    asked = [hints[e] if method.answers == "helped" else prompts[e] for e, _ in keys]
    seed = seed_of(run.seed, "rollout", run.step)
    wrote = generate(student, asked, method.sampling, seed=seed, keys=keys, ends=TASKS.ends(run))
    found = []
    for (e, _), answer in zip(keys, wrote, strict=True):
        pair = []
        for prompt in (prompts[e], hints[e]):
            text = answered([prompt], [answer])
            z = logits_of(student, text).dense() / method.sampling.temperature  # type: ignore[union-attr]
            logp = z.log_softmax(-1).gather(-1, text["labels"].clamp(min=0)[..., None]).squeeze(-1)
            pair.append(logp[text["weight"] > 0])
        found.append(pair)
    rewards = torch.tensor([len(set(a)) / 10 for a in wrote]).view(3, -1)
    std = rewards.std(-1, keepdim=True)
    return found, ((rewards - rewards.mean(-1, keepdim=True)) / (std + 1e-4)).flatten()


@pytest.mark.parametrize(
    "method",
    [
        PiDistill(share=0.5, beta=0.3, group=3, sampling=SAMPLING),
        PiDistill(share=0.0, beta=0.3, group=3, sampling=SAMPLING),
        PiDistill(share=1.0, beta=0.3, group=3, sampling=SAMPLING),
        PiDistill(answers="own", beta=0.3, group=3, sampling=SAMPLING),
    ],
)
def test_value_and_gradient_against_loops(tmp_path: Path, method: PiDistill) -> None:
    run, student, batch = setting(tmp_path)
    rewarded(run)
    (made,) = method.step(method.setup(student, run), batch, run)
    found, advantages = readings(run, student, batch, method)
    assert advantages.abs().max() > 0
    total = torch.zeros(())
    for (q, t), a in zip(found, advantages, strict=True):
        q0, t0 = q.detach(), t.detach()

        def clip(ratio: torch.Tensor, a: torch.Tensor = a) -> torch.Tensor:
            return -torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a)

        if method.answers == "own":
            values = clip((q - q0).exp()) + 0.3 * ((t0 - q).exp() - (t0 - q) - 1)
        else:
            teacher = clip((t - t0).exp()) + 0.3 * ((q0 - t).exp() - (q0 - t) - 1)
            follower = clip((q - t0).exp()) + 0.3 * (t0 - q)
            values = method.share * teacher + (1 - method.share) * follower
        total = total + values.mean()
    assert float(made.count) == 9
    assert made.loss.item() == pytest.approx(total.item(), rel=1e-4, abs=1e-5)
    parameters = list(student.parameters())
    for mine, other in zip(*(torch.autograd.grad(x, parameters) for x in (made.loss, total)), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-5)


def test_help_that_helps_nothing_leaves_no_divergence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shown nothing, both readings are one: only the verifier's reward is left, whatever the share."""
    run, student, batch = setting(tmp_path)
    rewarded(run)
    monkeypatch.setattr(Chain, "hinted", lambda self, run, split: self.prompts(run)[split])
    losses = []
    for share, beta in ((0.0, 0.0), (0.5, 5.0), (1.0, 5.0)):
        method = PiDistill(share=share, beta=beta, group=3, sampling=SAMPLING)
        (made,) = method.step(method.setup(student, run), batch, run)
        losses.append(made.loss.item())
        assert made.logs["helped_minus_bare"].item() == pytest.approx(0.0, abs=1e-5)
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-4)


def test_what_it_wants(tmp_path: Path) -> None:
    for wrong in ({"share": 1.5}, {"beta": -1.0}, {"group": 1}):
        with pytest.raises(ValueError, match="share is between"):
            PiDistill(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="temperature 0"):
        PiDistill(sampling=Sampling(temperature=0.0))
    run, student, _ = setting(tmp_path, Sentences())
    with pytest.raises(RunError, match="no verifier"):
        PiDistill().setup(student, run)


def test_a_world_of_calls(tmp_path: Path) -> None:
    data = Calls(calls=2, letters=6, train=8, valid=3, test=3)
    run = run_of(tmp_path, SPEC, data=data)
    tasks = [task for rows in run.sources().values() for task in rows.tasks]
    assert len({task.question for task in tasks}) == 14 and all(len(task.answer) == 4 for task in tasks)
    meaning: dict[str, set[str]] = {}
    for task in tasks:
        for place, letter in enumerate(task.question[:2]):
            meaning.setdefault(letter, set()).add(task.answer[2 * place : 2 * place + 2])
    assert all(len(calls) == 1 for calls in meaning.values())  # a letter means one call
    assert len({next(iter(calls)) for calls in meaning.values()}) == len(meaning)
    coder, first = data.coder(run), run.sources()["train"].tasks[0]
    assert data.hinted(run, "train")[0] == coder.prompt(f"{first.question[:2]}~{first.answer}=")
    right = coder.answer("", first.answer)
    assert data.verify(run, "train", 0, right) == 1.0 and data.verify(run, "train", 0, right[1:]) == 0.0
    assert replace(data, train=4, skip=4).tasks(run)["train"] == data.tasks(run)["train"][4:]
    with pytest.raises(RunError, match="only 36 such tasks"):
        replace(data, train=50).tasks(run)
    assert math.isclose(len(Hinted(base=data, plain=False).load(run)["train"].rows), 8)
