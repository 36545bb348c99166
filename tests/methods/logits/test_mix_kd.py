"""MIX-KD's loss item by item, and its recipe."""

from __future__ import annotations

import math
import statistics

import pytest
import torch

from feature_toys import stood
from stillhouse.data.augment import Augment
from stillhouse.data.mixing import Partly
from stillhouse.methods.logits.mix_kd import MixKD, _mixing, proof, recipe
from stillhouse.models.call import logits_of


def soft(z):
    """softmax of a list in units of its standard deviation."""
    spread = statistics.stdev(z)
    e = [math.exp(v / spread) for v in z]
    return [v / sum(e) for v in e]


def test_the_loss_is_the_codes(tmp_path):
    method = MixKD(labels=0.3, soft=0.7)
    s, run, batch = stood(tmp_path, method)
    batch = {**batch, "labels_b": batch["labels"].roll(1), "mix": torch.tensor([1.0, 0.5, 0.25, 0.9, 0.0, 0.6])}
    (update,) = method.step(s, batch, run)
    rows = zip(
        logits_of(s.student, batch).tolist(), logits_of(run.teacher.module, batch).tolist(), batch["labels"].tolist(),
        batch["labels_b"].tolist(), batch["mix"].tolist(), strict=True,
    )  # fmt: skip
    expected = 0.0
    for mine, theirs, first, other, m in rows:
        q, p = soft(mine), soft(theirs)
        expected += 0.3 * -(m * math.log(q[first]) + (1 - m) * math.log(q[other]))
        expected += 0.7 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert float(update.loss.detach()) == pytest.approx(expected, rel=1e-4) and float(update.count) == 6
    assert method.equation == "0.3 CE(y, q) + 0.7 KL(p ‖ q), of logits in standard deviations"


def test_the_range_of_the_logits_does_not_matter_and_may_be_large(tmp_path):
    method = MixKD()
    s, run, batch = stood(tmp_path, method)
    (before,) = method.step(s, batch, run)
    with torch.no_grad():
        for factor in (50.0, 1e3):
            s.student.head.weight.mul_(factor)
            s.student.head.bias.mul_(factor)
    (after,) = method.step(s, batch, run)
    assert torch.allclose(before.loss, after.loss, rtol=1e-4)
    s.student.bfloat16()
    (rough,) = method.step(s, batch, run)
    rough.loss.backward()
    assert s.student.head.weight.grad.isfinite().all()


def test_items_without_a_label_keep_the_teachers_term(tmp_path):
    method = MixKD()
    s, run, batch = stood(tmp_path, method)
    (update,) = method.step(s, {**batch, "labels": torch.full((6,), -100)}, run)
    assert float(update.logs["cross_entropy"]) == 0.0 and float(update.loss.detach()) > 0 and float(update.count) == 6


def test_only_the_students_images_are_mixed():
    made = recipe("small")
    assert made.data.augment == Partly(mixup=1.0, mixed=0.1) and made.stages["train"].data is None
    assert made.stages["alone"].data.augment == Augment() and made.stages["teacher"].data.augment == Augment(shift=1)
    assert recipe("paper").data.augment == Partly(shift=4, flip=True, mixup=1.0)
    assert _mixing(Augment(shift=2)).shift == 2
    arms = proof().arms
    assert arms["mixed_teacher"].stages["teacher"].data.augment.mixup == 1.0
    assert arms["ours"].stages["teacher"].data.augment.mixup == 0.0
    assert arms["full"].data.augment.mixed == 1.0
    assert all(arms[name].data.augment is None for name in ("unmixed", "hinton", "alone"))
