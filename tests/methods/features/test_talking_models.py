"""The conversation against its equations."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from feature_toys import stood
from stillhouse.core.run import RunError
from stillhouse.methods.features.talking_models import TalkingModels
from stillhouse.methods.layers import Beside, Pairs
from stillhouse.models.toys import Perceptron
from stillhouse.models.vision import VisionTransformer, ViT
from stillhouse.teachers.module import Frozen

PLAIN = Beside(labels=0.0)
METHOD = TalkingModels(interaction=2.0, message=3.0, state=4.0, rounds=2, width=5, beside=Beside(labels=0.5))


def by_hand(method, s, run, batch):
    """The three losses, each a sum over the items; the teacher's second stage is called by itself."""
    teacher = run.teachers["teacher"].module
    seen = s.see(batch, run, adapted=False)
    (talk,) = s.adapters
    (low, up), (their_low, their_up) = seen.mine, seen.theirs

    def gap(a, b):
        return float((a - b).square().flatten(1).mean(1).sum().detach())

    said, interaction = talk.student_low(low), 0.0
    for _ in range(method.rounds):
        state = talk.to_teacher(said)
        reached = teacher.stages[1](F.max_pool2d(state, 2))
        answer = talk.to_student(talk.teacher_up(reached))
        interaction += gap(up, answer) / method.rounds
        said = F.interpolate(talk.student_up(answer), (8, 8), mode="bilinear", align_corners=False)
    message = gap(talk.student_low(low), talk.teacher_low(their_low)) + gap(talk.student_up(up), talk.teacher_up(their_up))
    state = gap(talk.to_teacher(talk.teacher_low(their_low)), their_low) + gap(talk.to_student(talk.student_up(up)), up)
    return interaction, message, state, seen


def test_the_objective_is_the_papers(tmp_path):
    s, run, batch = stood(tmp_path, METHOD)
    assert s.taps == (("stages.0", "stages.0"), ("stages.1", "stages.1"))
    (update,) = METHOD.step(s, batch, run)
    interaction, message, state, seen = by_hand(METHOD, s, run, batch)
    ce = float(F.cross_entropy(seen.logits, batch["labels"], reduction="sum").detach())
    wanted = 0.5 * ce + 2.0 * interaction + 3.0 * message + 4.0 * state
    assert float(update.loss.detach()) == pytest.approx(wanted, rel=1e-5)
    assert METHOD.equation == "0.5 CE(y, q) + 2 L_int + 3 L_MC + 4 L_SC"


def test_through_the_teacher_the_student_and_both_sides_of_the_talk_learn(tmp_path):
    method = replace(METHOD, message=0.0, state=0.0, rounds=1, beside=PLAIN)
    s, run, batch = stood(tmp_path, method)
    (update,) = method.step(s, batch, run)
    update.loss.backward()
    (talk,) = s.adapters
    asked = (talk.student_low, talk.to_teacher, talk.teacher_up, talk.to_student, s.student.stages[0], s.student.stages[1])
    assert all(bool(p.grad.abs().sum() > 0) for part in asked for p in part.parameters() if p.ndim > 1)
    assert all(p.grad is None for p in run.teachers["teacher"].module.parameters())
    assert set(s.groups()) == {"student"} and not run.teachers["teacher"].module.training


def test_what_is_kept_does_not_move_the_student(tmp_path):
    method = replace(METHOD, interaction=0.0, message=0.0, beside=PLAIN)
    s, run, batch = stood(tmp_path, method)
    (update,) = method.step(s, batch, run)
    update.loss.backward()
    assert all(p.grad is None or float(p.grad.abs().sum()) == 0.0 for p in s.student.parameters())
    (talk,) = s.adapters
    kept = (talk.teacher_low, talk.to_teacher, talk.student_up, talk.to_student)
    assert all(bool(p.grad.any()) for part in kept for p in part.parameters() if p.ndim > 1)  # they keep what they are told


@pytest.mark.parametrize("swap", [False, True])
def test_a_transformer_and_a_convolutional_network_can_talk(tmp_path, swap):
    s, run, batch = stood(tmp_path, METHOD)
    vit = VisionTransformer(ViT(patch=2, width=8, depth=2, heads=2), (1, 8, 8), 4)
    student = vit if swap else s.student
    if not swap:
        run.teachers = {"teacher": Frozen(vit)}
    s = METHOD.setup(student, run)
    (update,) = METHOD.step(s, batch, run)
    update.loss.backward()
    assert bool(update.loss.isfinite()) and all(p.grad is not None for p in s.adapters.parameters())


def test_edges(tmp_path):
    s, run, batch = stood(tmp_path, METHOD)
    poisoned = dict(batch, inputs=batch["inputs"].clone(), weight=torch.tensor([0.0, 1, 1, 1, 1, 1]))
    poisoned["inputs"][0] = float("nan")
    (ours,), (wanted,) = (METHOD.step(s, b, run) for b in (poisoned, {k: v[1:] for k, v in batch.items()}))
    assert torch.allclose(ours.loss, wanted.loss, rtol=1e-5)
    s.to(torch.bfloat16)
    (one,) = METHOD.step(s, {"inputs": batch["inputs"][:1], "labels": torch.tensor([-100])}, run)
    one.loss.backward()
    assert bool(one.loss.isfinite()) and float(one.logs["cross_entropy"]) == 0.0


def test_two_layers_are_needed(tmp_path):
    s, run, _ = stood(tmp_path, METHOD)
    with pytest.raises(RunError, match="name two of each"):
        METHOD.setup(Perceptron(64, 4, 8, 2), run)
    named = replace(METHOD, layers=Pairs(student=("stages.1", "stages.0"), teacher=("stages.1", "stages.0")))
    s = named.setup(s.student, run)
    with pytest.raises(RunError, match="name the earlier layer first"):
        next(named.step(s, run.source.batch(range(3), 0), run))
