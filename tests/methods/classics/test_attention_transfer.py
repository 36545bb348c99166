"""Attention transfer against its equation, cell by cell."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from feature_toys import stood
from stillhouse.core.run import RunError
from stillhouse.methods.classics.attention_transfer import AttentionTransfer
from stillhouse.methods.layers import Beside, Pairs

ALONE = Beside(labels=0.0)


def attention(x, power):
    """The attention map of one image [C, H, W], a list of its cells."""
    cells = [sum(abs(v) ** power for v in cell) / len(cell) for cell in x.double().flatten(1).T.tolist()]
    length = math.sqrt(sum(v * v for v in cells))
    return [v / length for v in cells]


@pytest.mark.parametrize(("form", "power"), [("code", 2.0), ("code", 1.0), ("paper", 2.0)])
def test_the_objective_is_a_sum_over_pairs_and_items(tmp_path, form, power):
    method = AttentionTransfer(weight=3.0, power=power, form=form, beside=Beside(labels=0.5))
    s, run, batch = stood(tmp_path, method)
    (update,) = method.step(s, batch, run)
    seen = s.see(batch, run)
    assert len(seen.mine) == 2  # the ends of both stages
    gap = 0.0
    for own, other in zip(seen.mine, seen.theirs, strict=True):
        for a, b in zip(own, other, strict=True):
            squares = [(p - q) ** 2 for p, q in zip(attention(a, power), attention(b, power), strict=True)]
            gap += sum(squares) / len(squares) if form == "code" else math.sqrt(sum(squares))
    ce = torch.nn.functional.cross_entropy(seen.logits, batch["labels"], reduction="sum")
    assert float(update.loss.detach()) == pytest.approx(0.5 * float(ce.detach()) + 3.0 * gap, rel=1e-5)
    assert float(update.count) == 6.0
    assert float(update.logs["attention"]) == pytest.approx(gap, rel=1e-4)


def test_the_equation_shows_the_form(tmp_path):
    method = AttentionTransfer()
    assert method.equation == "1 CE(y, q) + 1000 sum mean (Qs - Qt)²"
    assert replace(method, form="paper", weight=0.05).equation == "1 CE(y, q) + 0.05 sum ‖Qs - Qt‖"


def test_a_student_that_attends_to_the_same_has_nothing_to_follow(tmp_path):
    method = AttentionTransfer(beside=ALONE)
    s, run, batch = stood(tmp_path, method, same=True)
    (update,) = method.step(s, batch, run)
    assert float(update.loss.detach()) < 1e-8


def test_only_where_it_is_active_counts(tmp_path):
    """Twice the activity is the same attention."""
    method = AttentionTransfer(beside=ALONE, layers=Pairs(student=("stages.0",), teacher=("stages.0",)))
    s, run, batch = stood(tmp_path, method, same=True)
    with torch.no_grad():
        s.student.stages[0][-2].weight.mul_(2.0)  # the last group norm
        s.student.stages[0][-2].bias.mul_(2.0)
    (update,) = method.step(s, batch, run)
    assert float(update.loss.detach()) < 1e-8


def test_power_must_be_positive():
    with pytest.raises(ValueError, match="above 0"):
        AttentionTransfer(power=0.0)


def test_a_single_cell_is_refused(tmp_path):
    method = AttentionTransfer(layers=Pairs(student=("head:in",), teacher=("stages.1",)))
    with pytest.raises(RunError, match="the student's 'head:in' has one: name earlier layers"):
        stood(tmp_path, method)
