"""MEAL V2: the soft labels by hand, and who is pushed where by the discriminator."""

from __future__ import annotations

import math

import pytest
import torch

from feature_toys import stood
from stillhouse.methods.logits.meal_v2 import Critic, MealV2, proof, recipe
from stillhouse.models.call import logits_of
from stillhouse.teachers.ensemble import Averaged
from stillhouse.teachers.module import Frozen


def bce(z, target):
    return sum(math.log1p(math.exp(-v)) if t else math.log1p(math.exp(v)) for v, t in zip(z, target, strict=True)) / 2


def test_both_losses_are_those_of_the_equations(tmp_path):
    method = MealV2(labels=0.5, critic=2.0)
    s, run, batch = stood(tmp_path, method)
    first, other = run.teacher.module, stood(tmp_path, method, items=4)[0].student
    run.teachers = {"teacher": Averaged({"a": Frozen(first), "b": Frozen(other)})}
    critic, student = method.step(s, batch, run)
    with torch.no_grad():
        z = logits_of(s.student, batch).double()
        p = (logits_of(first, batch).softmax(-1) + logits_of(other, batch).softmax(-1)).double() / 2
        mine, theirs = (s.critic(x.float()).double().tolist() for x in (z.log_softmax(-1), p.log()))
    told = sum(0.5 * bce(a, (1, 0)) + 0.5 * bce(b, (0, 1)) for a, b in zip(mine, theirs, strict=True))
    assert float(critic.loss.detach()) == pytest.approx(told, rel=1e-5) and critic.group == "critic"
    expected = -float((p * z.log_softmax(-1)).sum())
    expected += 0.5 * float(torch.nn.functional.cross_entropy(z, batch["labels"], reduction="sum"))
    expected += 2.0 * sum(bce(a, (0, 1)) for a in mine)
    assert float(student.loss.detach()) == pytest.approx(expected, rel=1e-5) and float(student.count) == 6
    assert method.equation == '1 CE(p, q) + 0.5 CE(y, q) + 2 BCE(D(log q), "teacher")'


def test_the_discriminator_does_not_move_the_student(tmp_path):
    method = MealV2()
    s, run, batch = stood(tmp_path, method)
    updates = method.step(s, batch, run)
    next(updates).loss.backward()
    assert all(p.grad is None for p in s.student.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in s.critic.parameters())


@pytest.mark.parametrize("adversarial", [True, False])
def test_the_student_goes_where_the_discriminator_is_fooled_or_helped(tmp_path, adversarial):
    """Down the student's loss, D believes more (as released: less) that it hears a teacher."""
    method = MealV2(critic=1e3, adversarial=adversarial)
    s, run, batch = stood(tmp_path, method)

    def belief():
        with torch.no_grad():
            z = s.critic(logits_of(s.student, batch).log_softmax(-1))
            return float((z[:, 1] - z[:, 0]).sum())

    before = belief()
    (*_, student) = method.step(s, batch, run)
    for p, g in zip(s.student.parameters(), torch.autograd.grad(student.loss, list(s.student.parameters())), strict=True):
        with torch.no_grad():
            p -= 1e-7 * g
    assert (belief() > before) == adversarial


def test_without_a_discriminator_it_is_soft_cross_entropy_alone(tmp_path):
    method = MealV2(critic=0.0)
    s, run, batch = stood(tmp_path, method, same=True)
    (update,) = method.step(s, batch, run)
    assert set(s.groups()) == {"student"}
    slope = torch.autograd.grad(update.loss, list(s.student.parameters()))
    assert max(float(g.abs().max()) for g in slope) < 1e-5  # it says what its teacher says: nothing to learn


def test_bfloat16_large_logits_and_no_items(tmp_path):
    method = MealV2()
    s, run, batch = stood(tmp_path, method)
    with torch.no_grad():
        s.student.head.weight.mul_(1e4)
    s.bfloat16()
    for update in method.step(s, batch, run):
        assert update.loss.isfinite() and update.loss.dtype == torch.float32
    nothing = {**batch, "weight": torch.zeros(6)}
    assert [float(update.count) for update in method.step(s, nothing, run)] == [0.0, 0.0]


def test_its_widths_follow_the_number_of_classes():
    assert [part.out_features for part in Critic(1000).layers[::2]] == [125, 15, 2]
    assert [part.out_features for part in Critic(10).layers[::2]] == [8, 8, 2]


def test_the_recipe_has_three_teachers_and_a_student_that_learned_before():
    made = recipe("small")
    assert list(made.stages) == ["teacher", "second", "third", "pretrained", "train", "alone", "audit"]
    assert set(made.teachers["teacher"].members) == {"teacher", "second", "third"}
    assert made.stages["train"].student.stage == made.stages["alone"].student.stage == "pretrained"
    arms = proof().arms
    assert arms["anew"].stages["train"].steps == 800 and arms["anew"].stages["train"].student is None
    assert list(arms["alone"].stages) == ["pretrained", "train", "audit"]
