"""Similarity preservation against its equation, pair by pair."""

from __future__ import annotations

import math

import pytest
import torch

from feature_toys import stood
from stillhouse.methods.classics.sp import SP
from stillhouse.methods.layers import Beside


def rows(x):
    """G of a batch of maps, as lists."""
    flat = x.detach().double().flatten(1)
    gram = [[float((a * b).sum()) for b in flat] for a in flat]
    return [[g / math.sqrt(sum(v * v for v in row)) for g in row] for row in gram]


def test_the_objective_is_the_papers(tmp_path):
    method = SP(weight=300.0, beside=Beside(labels=0.5))
    s, run, batch = stood(tmp_path, method)
    (update,) = method.step(s, batch, run)
    seen = s.see(batch, run)
    (own,), (other,) = seen.mine, seen.theirs  # the last stages' ends alone
    pairs = [(a, b) for row, line in zip(rows(own), rows(other), strict=True) for a, b in zip(row, line, strict=True)]
    paper = sum((a - b) ** 2 for a, b in pairs) / len(pairs)  # 1/B² of the squared Frobenius norm
    ce = float(torch.nn.functional.cross_entropy(seen.logits, batch["labels"]))
    assert float(update.loss.detach()) / float(update.count) == pytest.approx(0.5 * ce + 300.0 * paper, rel=1e-5)
    assert method.equation == "0.5 CE(y, q) + 300 mean (Gs - Gt)²"


def test_items_that_are_alike_alike_leave_nothing_to_learn(tmp_path):
    """A turned and scaled layer has the same similarities."""
    method = SP(beside=Beside(labels=0.0))
    s, run, batch = stood(tmp_path, method, same=True)
    turn = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(3)))[0]
    s.student.stages[1].register_forward_hook(lambda _, __, out: 3.0 * torch.einsum("bchw,cd->bdhw", out, turn))
    (update,) = method.step(s, batch, run)
    assert float(update.loss.detach()) < 1e-6
