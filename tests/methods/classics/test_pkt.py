"""Probabilistic knowledge transfer against its equation, neighbour by neighbour."""

from __future__ import annotations

import math

import pytest
import torch

from feature_toys import stood
from stillhouse.methods.classics.pkt import PKT
from stillhouse.methods.layers import Beside


def chances(x):
    """Whom each item of a batch [B, D] has for a neighbour, as lists."""
    flat = x.detach().double()
    near = [[(1 + float((a * b).sum() / (a.norm() * b.norm()))) / 2 for b in flat] for a in flat]
    return [[v / sum(row) for v in row] for row in near]


def test_the_objective_is_the_codes(tmp_path):
    method = PKT(weight=1e5, beside=Beside(labels=0.5))
    s, run, batch = stood(tmp_path, method)
    s.double(), run.teachers["teacher"].module.double()  # a KL of 1e-6 is small beside float32's rounding
    (update,) = method.step(s, batch, run)
    seen = s.see(batch, run)
    (own,), (other,) = seen.mine, seen.theirs
    assert own.shape == (6, 8) and other.shape == (6, 16)  # in front of the heads
    kl = [
        sum(p * math.log(p / q) for p, q in zip(line, row, strict=True))
        for row, line in zip(chances(own), chances(other), strict=True)
    ]
    ce = float(torch.nn.functional.cross_entropy(seen.logits, batch["labels"], reduction="sum"))
    assert float(update.loss.detach()) == pytest.approx(0.5 * ce + 1e5 * sum(kl) / 6, rel=1e-4)  # of eps
    assert method.equation == "0.5 CE(y, q) + 100000 mean P log(P / S)"


def test_equal_cosines_leave_nothing_to_learn(tmp_path):
    method = PKT(beside=Beside(labels=0.0))
    s, run, batch = stood(tmp_path, method, same=True)
    (update,) = method.step(s, batch, run)
    assert abs(float(update.loss.detach())) < 1e-3  # 30,000 times the rounding of float32
