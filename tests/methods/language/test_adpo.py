"""ADPO: its loss and gradient against DPO and loops, its targets, the rule for tau, and its own answers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from language import Folders, run_of, write_jsonl
from preferences import gradient, pairs, scores, toy
from stillhouse.cli import launch
from stillhouse.cli.results import findings
from stillhouse.core.engine import Loop, fit
from stillhouse.core.optim import Optim
from stillhouse.core.recipe import Recipe
from stillhouse.core.run import RunError
from stillhouse.core.stage import Train
from stillhouse.data.candidates import CandidateSource, Drafts, StageCandidates
from stillhouse.data.tasks import Questions
from stillhouse.data.tastes import Tastes
from stillhouse.data.toys import Sentences
from stillhouse.methods.classics.dpo import DPO
from stillhouse.methods.groups import drawn
from stillhouse.methods.language.adpo import ADPO, OnlineADPO, recipe, rows_of, wanted
from stillhouse.models.generate import Sampling
from stillhouse.models.hub import HubLM
from stillhouse.models.toys import TinyLM
from stillhouse.teachers.local import LocalLM

BLIND = TinyLM(width=16, depth=1)


def moved(folder: Path, method: Any, batch: Any = None) -> tuple[Any, Any, Any]:
    """(run, state, batch), the student moved away from its anchor."""
    run, student, found = toy(folder)
    state = method.setup(student, run)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return run, state, found if batch is None else batch


def sets() -> CandidateSource:
    """A set of four answers and one of three, from the documents of the pairs."""
    (a, b), (c, d), (e, f), (g, _) = pairs().pairs
    return CandidateSource((((a, b, c, d), (1.0, 0.0, 0.0, 1.0)), ((e, f, g), (0.2, 0.9, -1.0))), 64, pairs().classes)


@pytest.mark.parametrize("beta", [0.1, 1.25])
def test_sure_pairs_are_dpo(tmp_path: Path, beta: float):
    run, state, batch = moved(tmp_path, ADPO(tau=1 / beta))
    (ours,), (theirs,) = (list(method.step(state, batch, run)) for method in (ADPO(tau=1 / beta), DPO(beta=beta)))
    assert ours.loss.item() == pytest.approx(theirs.loss.item(), abs=1e-6) and ours.count == theirs.count == 4
    torch.testing.assert_close(
        gradient(ours.loss, state.student), gradient(theirs.loss, state.student), rtol=1e-5, atol=1e-6
    )
    assert int(ours.logs["best_first"]) == int(theirs.logs["preferred"])


def test_doubtful_pairs_stop_at_the_margin_that_the_doubt_sets(tmp_path: Path):
    run, student, _ = toy(tmp_path)
    run.horizon, method = 200, ADPO(tau=0.8, doubt=0.3)
    loop = Loop(method, method.setup(student, run), run, Optim(lr=3e-3))
    fit(loop, pairs(), steps=200, size=4)
    w, lo = scores(loop.state.student, mean=False)
    rw, rl = scores(loop.state.reference, mean=False)
    margin = ((w - rw) - (lo - rl)).detach() / 0.8
    assert torch.allclose(margin, torch.full_like(margin, math.log(0.7 / 0.3)), atol=0.15)


@pytest.mark.parametrize("standardised", [True, False])
def test_the_loss_of_sets_is_the_papers(tmp_path: Path, standardised: bool):
    """By loops over documents in double: a set of four and one of three."""
    method = ADPO(tau=0.6, heat=0.5, standardised=standardised)
    source = sets()
    run, state, batch = moved(tmp_path, method, source.batch([0, 1], 0))
    (made,) = method.step(state, batch, run)
    expected = torch.zeros((), dtype=torch.float64)

    def logp(module: Any, d: Any) -> Any:
        z = module(torch.tensor([d.tokens])).dense()[0].double().log_softmax(-1)
        return sum(z[t - 1, d.tokens[t]] for t in range(1, len(d.tokens)) if d.counts[t])

    for documents, truth in source.sets:
        a = torch.tensor(truth, dtype=torch.float64)
        a = (a - a.mean()) / (a.std() + 1e-4) if standardised else a
        q = (a / 0.5).exp() / (a / 0.5).exp().sum()
        z = torch.stack([(logp(state.student, d) - logp(state.reference, d).detach()) / 0.6 for d in documents])
        expected = expected + (q * (q.log() - (z.exp() / z.exp().sum()).log())).sum()
    assert made.loss.item() == pytest.approx(expected.item(), rel=1e-4) and made.count == 2
    torch.testing.assert_close(gradient(made.loss, state.student), gradient(expected, state.student), rtol=1e-3, atol=1e-4)


def test_targets_by_hand():
    q = wanted(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), 0.5, True)[0]
    e = math.exp(4.0)  # (0.75 / 0.5 + 0.25 / 0.5) / 0.5, but for the 1e-4
    assert q.tolist() == pytest.approx([e / (e + 3), *[1 / (e + 3)] * 3], abs=2e-4)
    assert wanted(torch.full((1, 4), 0.3), 0.5, True)[0].tolist() == pytest.approx([0.25] * 4)
    teacher = torch.tensor([[-1.0, -2.0, 9.0]])
    there = torch.tensor([[True, True, False]])
    q = wanted(teacher, 1.0, False, there)[0]
    assert q.tolist() == pytest.approx([1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1)), 0.0])
    assert torch.allclose(wanted(teacher, 1.0, True, there)[0, :2], wanted(teacher[:, :2], 1.0, True)[0])
    assert rows_of([2, 3]).tolist() == [[0, 1, -1], [2, 3, 4]] and rows_of([]).shape == (0, 0)


def test_splitting_a_batch_of_sets_changes_nothing(tmp_path: Path):
    ends: list[dict[str, torch.Tensor]] = []
    for parts in (1, 2):
        run, student, _ = toy(tmp_path / str(parts))
        run.horizon = 3
        loop = Loop(ADPO(), ADPO().setup(student, run), run, Optim(name="sgd", lr=1e-2))
        fit(loop, sets(), steps=3, size=2, accumulate=parts)
        ends.append(loop.state.student.state_dict())
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], rtol=1e-4, atol=1e-6)


def test_what_cannot_be_is_refused(tmp_path: Path):
    for wrong, match in (({"tau": 0.0}, "above 0"), ({"heat": -1.0}, "above 0"), ({"doubt": 0.7}, "between 0 and 0.5")):
        with pytest.raises(ValueError, match=match):
            ADPO(**wrong)
    with pytest.raises(ValueError, match="two answers"):
        OnlineADPO(group=1)
    run, student, _ = toy(tmp_path)
    text = Sentences().load(run)["train"].batch([0], 0)
    with pytest.raises(RunError, match="pairs or from sets"):
        next(ADPO().step(ADPO().setup(student, run), text, run))
    with pytest.raises(RunError, match="has no verifier"):
        OnlineADPO().setup(student, run)


# -- its own answers -----------------------------------------------------------------------------------------------


class Even(Tastes):
    """The reward is the share of an answer's tokens with even numbers, which chance meets half of the time."""

    def verify(self, run: Any, split: str, example: int, answer: Any) -> float:
        return sum(token % 2 == 0 for token in answer) / len(answer)


def online(folder: Path, method: OnlineADPO) -> tuple[Any, Any]:
    tasks = Even(size=1, train=3, valid=1, test=1)
    run = run_of(folder, BLIND, data=tasks, train=Train(method=method, steps=1, batch=2))
    run.stage = "train"
    torch.manual_seed(0)
    return run, BLIND.build(run)


def test_fresh_answers_pull_by_how_much_better_their_target_is_than_flat(tmp_path: Path):
    """At the anchor p is flat: the gradient is that of -sum_i (q_i - 1/n) l_i / tau."""
    method = OnlineADPO(group=8, adaptive=False, base=0.8, sampling=Sampling(max_new=2))
    run, student = online(tmp_path, method)
    state = method.setup(student, run)
    batch = run.sources()["train"].batch([0, 1], 0)
    (made,) = method.step(state, batch, run)
    answers, rewards = drawn(student, batch, run, method.sampling, 8)
    assert 0 < float(rewards.mean()) < 1
    logp = student(**answers["inputs"]).dense().log_softmax(-1).gather(-1, answers["labels"][..., None])[..., 0]
    l = (logp * answers["weight"]).sum(-1).view(2, 8)  # noqa: E741
    q = wanted(rewards, 0.5, True)
    expected = -((q - 1 / 8) * l / 0.8).sum()
    torch.testing.assert_close(gradient(made.loss, student), gradient(expected, student), rtol=1e-3, atol=1e-5)
    assert made.loss.item() == pytest.approx(float((q * (q * 8).log()).sum()), rel=1e-4) and made.count == 2


def test_tau_follows_the_answers():
    """Unsure answers: base (1 + 0.5); sure and right: base; sure and wrong: base 1.5; halfway by hand."""
    method, weight = OnlineADPO(base=0.8), torch.tensor([[1.0, 1.0, 0.0]] * 2)

    def tau(logp: float, reward: float) -> float:
        return float(method._tau(logp * weight, weight, torch.full((1, 2), reward), 10))

    assert tau(-math.log(10), 1.0) == pytest.approx(0.8 * 1.5)
    assert tau(0.0, 1.0) == pytest.approx(0.8) and tau(0.0, 0.0) == pytest.approx(1.2)
    assert tau(-0.5 * math.log(10), 0.5) == pytest.approx(0.8 * (1 + 0.25 + 0.5 * 0.5 * 0.5))
    assert OnlineADPO(base=9.0)._tau(weight, weight, torch.zeros(1, 2), 10).item() == 5.0
    fixed = OnlineADPO(base=9.0, adaptive=False)._tau(weight, weight, torch.zeros(1, 2), 10)
    assert fixed.tolist() == [9.0]


def test_it_learns_from_verdicts_alone_and_a_split_changes_nothing(tmp_path: Path):
    method = OnlineADPO(group=4, inner=2, sampling=Sampling(max_new=2))
    ends: list[dict[str, torch.Tensor]] = []
    logs: list[dict[str, float]] = []
    for parts in (1, 4):
        run, student = online(tmp_path / str(parts), method)
        run.horizon = 40
        loop = Loop(method, method.setup(student, run), run, Optim(name="sgd", lr=0.02, momentum=0.0))
        fit(loop, run.sources()["train"], steps=3, size=4, accumulate=parts)
        ends.append({name: value.clone() for name, value in student.state_dict().items()})
        if parts == 1:
            loop = Loop(method, method.setup(student, run), run, Optim(lr=1e-2))
            fit(loop, run.sources()["train"], steps=40, size=6, on_step=lambda _, found: logs.append(found))
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], rtol=1e-4, atol=1e-6)
    assert logs[0]["student/reward"] < 0.85 and logs[-1]["student/reward"] > 0.95


# -- a user's own model and file -----------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_users_sets_and_model_go_through(tmp_path: Path, folders: Folders, precision: str):
    rows = [
        {
            "prompt": f"what is {i}?",
            "answers": [f"it is {i}", f"no {i}", "maybe"][: 2 + i % 2],
            "scores": [3, 1, 2][: 2 + i % 2],
        }
        for i in range(40)
    ]
    made = recipe("paper").set("student.path", str(folders.student)).set("train.steps", 12).set("train.accumulate", 2)
    made = made.set("data.path", str(write_jsonl(tmp_path / "sets.jsonl", rows))).set("train.batch", 8)
    made = made.set("train.optim.lr", 3e-3).set("train.precision", precision).set("train.checkpointing", False)
    run = launch.launch(made.set("data.test", 0.2), folder=tmp_path / "run", device="cpu")
    losses = [m["student/loss"] for m in run.read("metrics.jsonl")]
    assert losses[-1] < losses[0] and all(map(math.isfinite, losses))
    found = {(f.name, f.subject): f.value for f in findings(run.folder) if f.versus is None}
    assert found["ranked", "train"] > found["ranked", "start"] and 0 <= found["best_first", "train"] <= 1


def test_a_teachers_distribution_over_its_own_answers_is_distilled(tmp_path: Path, folders: Folders):
    """Two models with a tokenizer: the teacher writes and scores, the student comes to prefer as it does."""
    rows = [{"question": f"what is {i} + 1?", "answer": str(i + 1)} for i in range(16)]
    tasks = Questions(path=str(write_jsonl(tmp_path / "q.jsonl", rows)), instruction="", length=128)
    sets = StageCandidates(stage="drafts", base=tasks)
    made = Recipe(
        id="x",
        student=HubLM(path=str(folders.student)),
        data=tasks,
        teachers={"teacher": LocalLM(model=HubLM(path=str(folders.teacher)))},
        stages={
            "drafts": Drafts(data=tasks, each=4, scored="teacher", sampling=Sampling(max_new=5)),
            "train": Train(
                method=ADPO(tau=1.0, heat=1.0, standardised=False), data=sets, steps=60, batch=6, optim=Optim(lr=1e-2)
            ),
        },
    )
    run = launch.launch(made, folder=tmp_path / "run", device="cpu")
    losses = [m["student/loss"] for m in run.read("metrics.jsonl")]
    assert sum(losses[-5:]) < 0.3 * sum(losses[:5]) and math.isfinite(losses[-1])
