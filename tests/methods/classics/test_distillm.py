"""DistiLLM: when own answers serve, when new ones are drawn, and that the buffer belongs to the state."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from language import run_of
from stillhouse.core.engine import Loop, fit
from stillhouse.core.optim import Optim
from stillhouse.core.run import RunError
from stillhouse.data.toys import Clusters
from stillhouse.methods.classics.distillm import DistiLLM, _chance  # type: ignore[reportPrivateUsage]
from stillhouse.methods.classics.gkd import GKD
from stillhouse.models.call import logits_of
from stillhouse.models.generate import Sampling
from stillhouse.models.toys import MLP
from stillhouse.objectives.divergences import ForwardKL, SkewKL, SkewReverseKL
from toylanguage import STUDENT, gradient, toy, update

SAMPLING = Sampling(max_new=6)
OWN = DistiLLM(start=1.0, rise=0.0, fade=0.0, capacity=8, fresh=4, rows=2, sampling=SAMPLING)
PLAIN = DistiLLM(start=0.0, rise=0.0, sampling=SAMPLING)


def loop_of(folder: Path, method: DistiLLM, horizon: int = 6) -> tuple[Any, Loop]:
    run, student, _ = toy(folder)
    run.source, run.horizon = run.sources()["train"], horizon
    return run, Loop(method, method.setup(student, run), run, Optim(name="sgd", lr=0.5, momentum=0.0))


def ready(folder: Path) -> tuple[Any, Any, Any]:
    run, student, batch = toy(folder)
    run.source, run.horizon = run.sources()["train"], 10
    return run, student, batch


@pytest.mark.parametrize("skewed", ["forward", "reverse"])
def test_the_loss_is_the_skewed_divergence(tmp_path: Path, skewed: str) -> None:
    run, student, batch = ready(tmp_path)
    divergence = SkewKL(alpha=0.1) if skewed == "forward" else SkewReverseKL(alpha=0.1)
    made = update(replace(PLAIN, divergence=divergence), student, batch, run)
    with torch.no_grad():
        q = logits_of(student, batch).dense().double().softmax(-1)
        p = logits_of(run.teacher.module, batch).dense().double().softmax(-1)
        a, b = (p, q) if skewed == "forward" else (q, p)
        expected = (a * (a / (0.1 * a + 0.9 * b)).log()).sum(-1) * batch["weight"]
    assert float(made.loss.detach()) == pytest.approx(float(expected.sum()), rel=1e-5)
    assert float(made.count) == float(batch["weight"].sum())


def test_without_own_answers_it_is_word_level_distillation(tmp_path: Path) -> None:
    run, student, batch = ready(tmp_path)
    for of in (ForwardKL(), SkewReverseKL()):
        mine = gradient(replace(PLAIN, divergence=of), student, batch, run)
        assert torch.equal(mine, gradient(GKD(on_policy=0.0, divergence=of), student, batch, run))
    assert not PLAIN.asks_about_own and OWN.asks_about_own and DistiLLM().asks_about_own
    assert set(PLAIN.setup(student, run).state_dict()) == {f"student.{name}" for name in student.state_dict()}


@pytest.mark.parametrize("of", [SkewKL(alpha=0.0), SkewReverseKL(alpha=0.0)])
def test_alpha_zero_is_the_plain_divergence(of: Any) -> None:
    from stillhouse.objectives.divergences import ReverseKL

    s, t = torch.randn(2, 5, 7, dtype=torch.float64)
    torch.testing.assert_close(of(s, t), (ForwardKL() if isinstance(of, SkewKL) else ReverseKL())(s, t))


@pytest.mark.parametrize("of", [SkewKL(alpha=0.1), SkewReverseKL(alpha=0.1)])
def test_skewed_divergences_and_their_gradients_are_bounded(of: Any) -> None:
    """KL(a || alpha a + (1 - alpha) b) is at most -log alpha, however impossible the one finds what the other says."""
    s = torch.tensor([[200.0, 0.0, -200.0]], dtype=torch.float64, requires_grad=True)
    values = of(s, -s.detach())
    (slope,) = torch.autograd.grad(values.sum(), s)
    assert 2.0 < float(values.detach()) <= -math.log(0.1) + 1e-12 and float(slope.abs().max()) < 1.0


def test_the_buffer_holds_what_the_student_wrote(tmp_path: Path) -> None:
    run, student, batch = ready(tmp_path)
    s = OWN.setup(student, run)
    assert int(s.drawn) == 4 and (s.ends[:4, 1] > s.ends[:4, 0]).all() and not s.ends[4:].any()
    known = {tuple(p) for p in run.source.prompts()}
    for tokens, (begin, end) in zip(s.tokens[:4].tolist(), s.ends[:4].tolist(), strict=True):
        assert tuple(tokens[:begin]) in known and 1 <= end - begin <= 6 and not any(tokens[end:])
    (made,) = OWN.step(s, batch, run)
    texts = {tuple(t[:e]) for t, (_, e) in zip(s.tokens[:4].tolist(), s.ends[:4].tolist(), strict=True)}
    replayed = OWN._replayed(s, batch, run)  # type: ignore[reportPrivateUsage]
    documents = int(((batch["inputs"]["position"] == 0) & (batch["inputs"]["document"] >= 0)).sum())
    assert len(replayed["labels"]) == documents
    for row, document, weight in zip(
        replayed["inputs"]["tokens"], replayed["inputs"]["document"], replayed["weight"], strict=True
    ):
        text = tuple(row[document >= 0].tolist())
        assert text in texts and int(weight.sum()) == next(
            e - b for t, (b, e) in zip(s.tokens.tolist(), s.ends.tolist(), strict=True) if tuple(t[:e]) == text
        )
    z, of_teacher = logits_of(student, replayed), logits_of(run.teacher.module, replayed)
    expected = SkewReverseKL()(z, of_teacher, weight=replayed["weight"]).sum()
    assert float(made.loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    assert float(made.count) == float(replayed["weight"].sum()) == float(made.logs["own"])


def test_the_oldest_answers_leave_first(tmp_path: Path) -> None:
    run, student, _ = ready(tmp_path)
    s = OWN.setup(student, run)
    first = s.tokens.clone()
    for run.step in range(2):
        with torch.no_grad():
            OWN.advance(s, {}, run)
        if run.step == 0:
            assert torch.equal(s.tokens[:4], first[:4]) and int(s.drawn) == 8
    assert int(s.drawn) == 12 and not torch.equal(s.tokens[:4], first[:4])


def drawn_at(folder: Path, method: DistiLLM, horizon: int) -> list[int]:
    """The steps that new answers were drawn for; nothing is trained."""
    run, student, _ = ready(folder)
    run.horizon = horizon
    s, before, steps = method.setup(student, run), 0, []
    for step in range(horizon):
        if step:
            run.step = step - 1
            with torch.no_grad():
                method.advance(s, {}, run)
        if int(s.drawn) > before:
            steps.append(step)
        before = int(s.drawn)
    return steps


def test_when_new_answers_are_drawn(tmp_path: Path) -> None:
    run = run_of(tmp_path / "r", STUDENT)
    chance = [_chance(run, step) for step in range(40)]
    assert len(set(chance)) == 40 and abs(sum(chance) / 40 - 0.5) < 0.2
    common = replace(OWN, start=0.6, fresh=1, sampling=Sampling(max_new=1))
    wants = [step for step in range(40) if chance[step] < 0.6]
    assert drawn_at(tmp_path / "a", replace(common, capacity=100), 40) == wants  # never full: drawn whenever used
    assert drawn_at(tmp_path / "b", replace(common, capacity=2), 40) == wants  # full, but not fading
    faded = [s for n, s in enumerate(wants) if n < 2 or chance[s] < 0.6 * (1 - s / 40)]
    assert drawn_at(tmp_path / "c", replace(common, capacity=2, fade=1.0), 40) == faded != wants


def test_a_step_is_own_with_probability_phi(tmp_path: Path) -> None:
    run, student, batch = ready(tmp_path)
    method = replace(OWN, start=0.6)
    s = method.setup(student, run)
    s.drawn.fill_(4)
    for run.step in range(20):
        (made,) = method.step(s, batch, run)
        assert (float(made.logs["own"]) > 0) == (_chance(run, run.step) < 0.6)
        assert float(made.logs["phi"]) == pytest.approx(0.6 * float(made.count))


def test_phi_rises_when_the_validation_loss_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([2.0, 1.9, 1.95, 2.06, 2.05, 2.3, 2.5])
    monkeypatch.setattr(DistiLLM, "_validation", lambda self, student, run: next(losses))
    run, student, _ = ready(tmp_path)
    method = replace(OWN, start=0.0, rise=0.6, margin=0.1, every=2)
    run.horizon, path = 100, []
    s = method.setup(student, run)
    for run.step in range(12):
        with torch.no_grad():
            method.advance(s, {}, run)
        path.append(round(float(s.phi), 6))
    #      1.9 at step 1, 1.95 (+.05) at 3, 2.06 (+.11) at 5, 2.05 at 7, 2.3 (+.25) at 9, 2.5 (+.2) at 11
    assert path == [0, 0, 0, 0, 0, 0.6, 0.6, 0.6, 0.6, 1.0, 1.0, 1.0]
    assert float(s.loss) == 2.5


def test_the_validation_loss_is_that_of_the_split(tmp_path: Path) -> None:
    run, student, _ = ready(tmp_path)
    source = run.sources()["valid"]
    student.train()
    found = replace(OWN, rows=11)._validation(student, run)  # type: ignore[reportPrivateUsage]
    batch = source.batch(range(min(11, len(source))), 0)
    logp = logits_of(student, batch).dense().log_softmax(-1).gather(-1, batch["labels"][..., None])[..., 0]
    expected = -(logp * batch["weight"]).sum() / batch["weight"].sum()
    assert found == pytest.approx(float(expected.detach()), rel=1e-5) and student.training


@pytest.mark.parametrize("parts", [2, 6])
def test_splitting_a_batch_changes_nothing(tmp_path: Path, parts: int) -> None:
    ends, owns = [], list[float]()
    for accumulate in (1, parts):
        run, loop = loop_of(tmp_path / str(accumulate), replace(OWN, start=0.7, fade=0.5))
        fit(loop, run.source, steps=6, size=6, accumulate=accumulate, on_step=lambda _, x: owns.append(x["student/own"]))
        ends.append(loop.state.state_dict())
    assert 0 < sum(o > 0 for o in owns) < 12
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], rtol=1e-4, atol=1e-5, equal_nan=True)


def test_phi_and_the_buffer_survive_a_resume(tmp_path: Path) -> None:
    method = replace(OWN, start=0.3, rise=0.3, margin=-9.0, every=2)  # rises at every look
    run, straight = loop_of(tmp_path / "a", method)
    fit(straight, run.source, steps=6, size=4)
    assert float(straight.state.phi) == pytest.approx(0.9)
    run, first = loop_of(tmp_path / "b", method)
    fit(first, run.source, steps=3, size=4)
    saved = copy.deepcopy(first.state_dict())
    run, student, _ = toy(tmp_path / "c")
    run.source, run.horizon = run.sources()["train"], 6
    with torch.no_grad():
        for p in student.parameters():
            p.mul_(0.5)  # whatever the new process builds, the checkpoint decides
    second = Loop(method, method.setup(student, run), run, first.optim)
    second.load_state_dict(saved)
    fit(second, run.source, steps=6, size=4, start=3)
    for name, value in straight.state.state_dict().items():
        assert torch.equal(value, second.state.state_dict()[name]), name


def test_what_it_cannot_do_is_said_at_once(tmp_path: Path) -> None:
    run = run_of(tmp_path, MLP(width=4), data=Clusters())
    run.source = run.sources()["train"]
    with pytest.raises(RunError, match="method.start=0"):
        DistiLLM().setup(MLP(width=4).build(run), run)
    run, student, _ = ready(tmp_path / "text")
    run._sources[id(run.recipe.data)] = (run.recipe.data, {"train": run.source, "valid": []})
    with pytest.raises(RunError, match="validation split, which is empty"):
        DistiLLM().setup(student, run)
