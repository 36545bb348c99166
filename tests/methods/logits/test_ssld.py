"""SSLD against its two equations."""

from __future__ import annotations

import pytest
import torch

from logit_toys import BATCH, STUDENT, TEACHER, mean, only, taught
from stillhouse.methods.logits.ssld import SSLD, recipe


def by_hand(form: str) -> float:
    q, p = STUDENT.softmax(-1), TEACHER.softmax(-1)
    m = (p + q) / 2
    if form == "js":
        return float((0.5 * p * (p / m).log() + 0.5 * q * (q / m).log()).sum(-1).mean())
    return float((p * (p / q).log() + q * (q / p).log()).sum(-1).mean())


@pytest.mark.parametrize("form", ["js", "sum"])
def test_the_equation(tmp_path, form):
    update, _ = only(SSLD(form=form), taught(tmp_path))
    assert mean(update) == pytest.approx(by_hand(form), rel=1e-6)


@pytest.mark.parametrize("form", ["js", "sum"])
def test_who_agrees_has_nothing_to_learn_and_the_sides_may_be_exchanged(tmp_path, form):
    same, module = only(SSLD(form=form), taught(tmp_path), TEACHER)
    assert abs(mean(same)) < 1e-6
    same.loss.backward()
    assert float(module.logits.grad.abs().max()) < 1e-6
    other, _ = only(SSLD(form=form), taught(tmp_path / "b", STUDENT), TEACHER)
    assert mean(other) == pytest.approx(by_hand(form), rel=1e-6)


def test_labels_are_not_read(tmp_path):
    blank = {**BATCH, "labels": torch.full_like(BATCH["labels"], -100)}
    first, _ = only(SSLD(), taught(tmp_path))
    second, _ = only(SSLD(), taught(tmp_path / "b"), batch=blank)
    assert torch.equal(first.loss, second.loss) and int(second.count) == 8


def test_large_logits_stay_finite_and_below_log_2(tmp_path):
    update, module = only(SSLD(), taught(tmp_path, TEACHER * 1e4), (STUDENT * 1e4).bfloat16())
    assert mean(update) <= 0.6932
    update.loss.backward()
    assert bool(module.logits.grad.isfinite().all())


def test_the_pool_comes_before_the_end():
    stages = list(recipe("small").stages)
    assert stages.index("mine") < stages.index("pool") < stages.index("train")
    assert recipe("small").stages["pool"].steps + recipe("small").stages["train"].steps == 400
