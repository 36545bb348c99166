"""Mutual learning against a plain loop of Algorithm 1, its groups, and what is kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from logit_toys import BATCH, LABELS, STUDENT, TEACHER, Headed, Said, inp
from stillhouse.core.engine import Loop
from stillhouse.core.method import State
from stillhouse.core.optim import Optim
from stillhouse.core.run import Run
from stillhouse.core.stage import execute
from stillhouse.methods.classics.dml import DML, recipe
from stillhouse.methods.classics.supervised import Supervised
from stillhouse.models.toys import MLP

RATE = 0.5
SGD = Optim(name="sgd", lr=RATE, momentum=0.0, schedule="constant", warmup=0.0, clip=None)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = Run(tmp_path / "run", device=torch.device("cpu"))
    made.horizon = 1
    return made


def state(*logits: Any) -> State:
    student, *peers = (Said(z) if isinstance(z, torch.Tensor) else z for z in logits)
    return State(student=student, **{f"peer{n}": peer for n, peer in enumerate(peers, 1)})


def by_hand(logits: list[torch.Tensor], weight: float) -> list[torch.Tensor]:
    """Algorithm 1: network after network, each from what the others say by then; plain gradient descent."""
    now = [z.clone() for z in logits]
    for k in range(len(now)):
        z = now[k].clone().requires_grad_()
        loss = F.cross_entropy(z, LABELS)
        for j, other in enumerate(now):
            if j != k:
                kl = F.kl_div(z.log_softmax(-1), other.softmax(-1), reduction="batchmean")
                loss = loss + weight / (len(now) - 1) * kl
        now[k] = (z - RATE * torch.autograd.grad(loss, z)[0]).detach()
    return now


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("count", [2, 3])
def test_a_step_is_the_papers_algorithm(run: Run, count: int, parts: int):
    begun = [STUDENT, TEACHER, inp((8, 100), 0.377, 2)][:count]
    s = state(*begun)
    method = DML(peers=(None,) * (count - 1), weight=2.0)
    batches = [{k: v.chunk(parts)[i] for k, v in BATCH.items()} for i in range(parts)]
    Loop(method, s, run, SGD).step(batches)
    for network, wanted in zip(s.groups().values(), by_hand(begun, 2.0), strict=True):
        assert torch.allclose(network.logits, wanted, rtol=0, atol=1e-6)


def test_unprojected_logits_of_tokens_teach_the_same(run: Run):
    plain, headed = state(STUDENT, TEACHER), state(Headed(STUDENT), Headed(TEACHER))
    tokens = {"inputs": torch.arange(8).view(2, 4), "labels": LABELS.view(2, 4)}
    a = [u.loss.item() for u in DML().step(plain, BATCH, run)]
    b = [u.loss.item() for u in DML().step(headed, tokens, run)]
    assert a == pytest.approx(b, rel=1e-6)


def test_nobody_s_loss_moves_the_others(run: Run):
    s = state(STUDENT, TEACHER)
    stream = DML().step(s, BATCH, run)
    first = next(stream)
    first.loss.backward()
    assert first.group == "student" and s.student.logits.grad.any() and s.peer1.logits.grad is None
    s.student.zero_grad()
    second = next(stream)
    second.loss.backward()
    assert second.group == "peer1" and s.student.logits.grad is None and s.peer1.logits.grad.any()


def test_weight_0_is_each_alone(run: Run):
    s = state(STUDENT, TEACHER)
    alone = State(student=Said(STUDENT))
    (plain,) = Supervised().step(alone, BATCH, run)
    first, second = DML(weight=0.0).step(s, BATCH, run)
    assert first.loss.item() == pytest.approx(plain.loss.item(), rel=1e-12)
    assert second.loss.item() == pytest.approx(8 * F.cross_entropy(TEACHER, LABELS).item(), rel=1e-9)


def test_an_unknown_label_keeps_what_the_others_say(run: Run):
    labels = torch.full_like(LABELS, -100)
    first, _ = DML().step(state(STUDENT, TEACHER), {**BATCH, "labels": labels}, run)
    assert first.loss.item() == pytest.approx(8 * 2.4221741883835124, rel=1e-9) and float(first.count) == 8


def test_peers_are_built_as_named_and_begin_differently(run: Run):
    run.recipe = recipe("smoke").set("train.method", DML(peers=(None, MLP(width=5))))
    run.stage = "train"
    student = run.recipe.student.build(run)
    s = run.recipe.stages["train"].method.setup(student, run)
    assert list(s.groups()) == ["student", "peer1", "peer2"]
    assert s.peer2.hidden[0].out_features == 5
    pairs = list(zip(student.parameters(), s.peer1.parameters(), strict=True))
    assert all(a.shape == b.shape for a, b in pairs) and any(not torch.equal(a, b) for a, b in pairs)


def test_the_student_is_what_is_kept(tmp_path: Path):
    made = recipe("smoke").set("train.steps", 3)
    run = Run(tmp_path / "kept", device=torch.device("cpu"))
    execute(replace(made, stages={"train": made.stages["train"]}), run)
    assert {p.name for p in run.path("train").iterdir()} == {"model.safetensors"}
    made.student.load(run.path("train"), run)


def test_no_peers_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        DML(peers=())


def test_the_equation_has_every_factor():
    assert DML().equation == "1 CE(y, q) + 1 KL(q_other ‖ q)"
    assert DML(peers=(None, None), weight=0.5).equation == "1 CE(y, q) + 0.5 mean of 2 KL(q_other ‖ q)"
