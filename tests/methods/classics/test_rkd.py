"""Relational distillation against its equations, pair by pair and triplet by triplet."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from feature_toys import stood
from stillhouse.methods.classics.rkd import RKD
from stillhouse.methods.layers import Beside

ALL = range(6)


def smooth(u):
    return 0.5 * u * u if abs(u) < 1 else abs(u) - 0.5


def distances(x):
    d = {(i, j): math.dist(x[i], x[j]) for i in ALL for j in ALL}
    mean = sum(d.values()) / 30  # the pairs of different items
    return {key: value / mean for key, value in d.items()}


def cosine(x, i, j, k):
    """Of the angle at x_i."""
    a, b = ([p - q for p, q in zip(x[other], x[i], strict=True)] for other in (j, k))
    lengths = math.hypot(*a) * math.hypot(*b)
    return sum(p * q for p, q in zip(a, b, strict=True)) / lengths if lengths else 0.0


@pytest.mark.parametrize(("distance", "angle"), [(25.0, 50.0), (25.0, 0.0), (0.0, 50.0)])
def test_the_objective_is_the_codes(tmp_path, distance, angle):
    method = RKD(distance=distance, angle=angle, beside=Beside(labels=0.5))
    s, run, batch = stood(tmp_path, method)
    (update,) = method.step(s, batch, run)
    seen = s.see(batch, run)
    own, other = (x[0].detach().double().tolist() for x in (seen.mine, seen.theirs))
    here, there = distances(own), distances(other)
    by_distance = sum(smooth(here[key] - there[key]) for key in here) / 36
    triplets = list(itertools.product(ALL, ALL, ALL))
    by_angle = sum(smooth(cosine(own, *t) - cosine(other, *t)) for t in triplets) / 216
    ce = float(torch.nn.functional.cross_entropy(seen.logits, batch["labels"]))
    mean = float(update.loss.detach()) / float(update.count)
    assert mean == pytest.approx(0.5 * ce + distance * by_distance + angle * by_angle, rel=1e-4)
    assert set(update.logs) == {"cross_entropy", *(["distance"] if distance else []), *(["angle"] if angle else [])}


def test_the_equation_has_both_terms():
    assert RKD().equation == "1 CE(y, q) + 25 mean h(ds - dt) + 50 mean h(cos_s - cos_t)"
    assert RKD(angle=0.0).equation == "1 CE(y, q) + 25 mean h(ds - dt)"


def test_place_size_and_turn_do_not_matter(tmp_path):
    method = RKD(beside=Beside(labels=0.0))
    s, run, batch = stood(tmp_path, method, same=True)
    turn = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(3)))[0]
    s.student.head.register_forward_pre_hook(lambda _, given: (5.0 * given[0] @ turn + 2.0,), prepend=True)
    (update,) = method.step(s, batch, run)
    assert float(update.loss.detach()) < 1e-4
