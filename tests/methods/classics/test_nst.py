"""Neuron selectivity transfer against its equation, channel by channel."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from feature_toys import stood
from stillhouse.core.run import RunError
from stillhouse.methods.classics.nst import NST
from stillhouse.methods.layers import Beside, Pairs


def kernel(a, b):
    """The mean of (cos)² over all pairs of channels of two images [C, H, W]."""
    every = [float(F.cosine_similarity(p, q, dim=0)) ** 2 for p in a.double().flatten(1) for q in b.double().flatten(1)]
    return sum(every) / len(every)


def test_the_objective_is_a_sum_over_pairs_and_items(tmp_path):
    method = NST(weight=5.0, beside=Beside(labels=0.5))
    s, run, batch = stood(tmp_path, method)
    (update,) = method.step(s, batch, run)
    seen = s.see(batch, run)
    assert len(seen.mine) == 2
    gap = 0.0
    with torch.no_grad():
        for own, other in zip(seen.mine, seen.theirs, strict=True):
            gap += sum(kernel(a, a) - 2 * kernel(a, b) + kernel(b, b) for a, b in zip(own, other, strict=True))
    ce = float(F.cross_entropy(seen.logits, batch["labels"], reduction="sum"))
    assert float(update.loss.detach()) == pytest.approx(0.5 * ce + 5.0 * gap, rel=1e-4)
    assert method.equation == "0.5 CE(y, q) + 5 sum MMD²(s, t)"


def test_the_order_of_the_channels_does_not_matter(tmp_path):
    method = NST(beside=Beside(labels=0.0), layers=Pairs(student=("stages.1",), teacher=("stages.1",)))
    s, run, batch = stood(tmp_path, method, same=True)
    s.student.stages[1].register_forward_hook(lambda _, __, out: out.flip(1))
    (update,) = method.step(s, batch, run)
    assert abs(float(update.loss.detach())) < 1e-4


def test_a_single_cell_is_refused(tmp_path):
    method = NST(layers=Pairs(student=("stages.1",), teacher=("head:in",)))
    with pytest.raises(RunError, match="the teacher's 'head:in' has one"):
        stood(tmp_path, method)
