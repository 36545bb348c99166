"""Correlation congruence against its equation, pair by pair, and against the Gaussian kernel that it expands."""

from __future__ import annotations

import math

import pytest
import torch

from feature_toys import stood
from stillhouse.methods.classics.cc import CC
from stillhouse.methods.layers import Beside

LABELS = Beside(labels=0.5)


def expansion(x, gamma, order):
    """k of every pair of items of [B, D], as lists."""
    unit = [v / v.norm() for v in x.detach().double()]
    dots = [[float(a @ b) for b in unit] for a in unit]
    terms = [(2 * gamma) ** p / math.factorial(p) for p in range(order + 1)]
    return [[math.exp(-2 * gamma) * sum(t * d**p for p, t in enumerate(terms)) for d in row] for row in dots]


def gaussian(x, gamma):
    unit = [(v / v.norm()).tolist() for v in x.detach().double()]
    return [[math.exp(-gamma * math.dist(a, b) ** 2) for b in unit] for a in unit]


def apart(ours, theirs):
    """The mean square difference of two tables."""
    pairs = [(a, b) for row, line in zip(ours, theirs, strict=True) for a, b in zip(row, line, strict=True)]
    return sum((a - b) ** 2 for a, b in pairs) / len(pairs)


@pytest.mark.parametrize("order", [1, 2, 12])
def test_the_objective_is_the_papers(tmp_path, order):
    method = CC(weight=1000.0, gamma=0.3, order=order, beside=LABELS)
    s, run, batch = stood(tmp_path, method)
    (update,) = method.step(s, batch, run)
    seen = s.see(batch, run)
    own, other = seen.mine[0], seen.theirs[0]
    ce = float(torch.nn.functional.cross_entropy(seen.logits, batch["labels"]))
    mean = float(update.loss.detach()) / float(update.count)
    wanted = 1000.0 * apart(expansion(own, 0.3, order), expansion(other, 0.3, order))
    assert mean == pytest.approx(0.5 * ce + wanted, rel=1e-4)
    if order == 12:
        assert wanted == pytest.approx(1000.0 * apart(gaussian(own, 0.3), gaussian(other, 0.3)), rel=1e-6)
    assert len(s.adapters) == 0


def test_the_form_of_the_tables(tmp_path):
    method = CC(weight=0.02, form="code", beside=LABELS)
    s, run, batch = stood(tmp_path, method)
    (update,) = method.step(s, batch, run)
    seen = s.see(batch, run)
    error = [
        [abs(a - b) for a, b in zip(v, w, strict=True)]
        for v, w in zip(seen.mine[0].tolist(), seen.theirs[0].tolist(), strict=True)
    ]
    products = [sum(a * b for a, b in zip(error[i], error[i + 1], strict=True)) for i in range(5)]
    ce = float(torch.nn.functional.cross_entropy(seen.logits, batch["labels"]))
    mean = float(update.loss.detach()) / float(update.count)
    assert mean == pytest.approx(0.5 * ce + 0.02 * sum(products) / 5, rel=1e-5)
    assert len(s.adapters) == 1  # the student's width is brought to the teacher's


def test_soft_targets_stand_beside_it():
    assert CC().equation == "0.1 CE(y, q) + 14.4 KL(p ‖ q at T=4) + 100 mean (k(s) - k(t))²"
    assert CC(weight=0.02, form="code", beside=Beside()).equation == "1 CE(y, q) + 0.02 mean |s - t|·|s' - t'|"


def test_equal_features_leave_nothing_to_learn(tmp_path):
    method = CC(beside=Beside(labels=0.0))
    s, run, batch = stood(tmp_path, method, same=True)
    (update,) = method.step(s, batch, run)
    assert float(update.loss.detach()) < 1e-8


@pytest.mark.parametrize("wrong", [{"gamma": 0.0}, {"order": 0}])
def test_settings_that_compare_nothing_are_refused(wrong):
    with pytest.raises(ValueError, match="gamma must be above 0 and order 1 or more"):
        CC(**wrong)
