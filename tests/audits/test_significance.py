"""Intervals: right where mathematics knows the answer, and honest about documents."""

from __future__ import annotations

import math

import pytest
import torch

from stillhouse.audits.significance import bootstrap, bootstrap_mean, paired_bootstrap
from stillhouse.core.report import Finding


def test_the_interval_of_a_mean_is_the_textbooks():
    values = torch.randn(400, generator=torch.Generator().manual_seed(0)).double() * 3 + 1
    found = bootstrap_mean(values, draws=4000)
    error = float(values.std(correction=0)) / math.sqrt(400)
    assert found.value == pytest.approx(float(values.mean())) and found.n == 400
    assert found.low == pytest.approx(found.value - 1.96 * error, abs=0.12 * error)
    assert found.high == pytest.approx(found.value + 1.96 * error, abs=0.12 * error)


def test_scipy_agrees():
    stats = pytest.importorskip("scipy.stats")
    values = torch.rand(60, generator=torch.Generator().manual_seed(1)).double() ** 3
    theirs = stats.bootstrap((values.numpy(),), lambda x, axis: x.mean(axis), method="percentile", n_resamples=20_000)
    ours = bootstrap_mean(values, draws=20_000)
    width = ours.high - ours.low
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.03 * width)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.03 * width)


def test_it_covers_the_truth_as_often_as_it_says():
    draw = torch.Generator().manual_seed(2)
    hits = 0
    for trial in range(200):
        found = bootstrap_mean(torch.rand(80, generator=draw), draws=400, seed=trial)
        hits += found.low <= 0.5 <= found.high
    assert 0.88 <= hits / 200 <= 0.99


def test_a_mean_per_token_is_a_ratio_of_sums():
    """Documents of very different length: long ones count more, and drawing documents makes the interval wide."""
    lengths = torch.tensor([1000.0] + [10.0] * 50)
    sums = lengths * torch.tensor([2.0] + [1.0] * 50)
    found = bootstrap_mean(sums, lengths)
    assert found.value == pytest.approx((2000 + 500) / 1500)
    assert found.low == pytest.approx(1.0, abs=0.1) or found.low < 1.4  # the long document may not be drawn
    assert found.high > 1.7


def test_pairing_removes_what_both_share():
    draw = torch.Generator().manual_seed(3)
    shared, small = torch.randn(300, generator=draw) * 10, torch.randn(300, generator=draw) * 0.1
    paired = paired_bootstrap(shared + 0.05 + small, shared)
    assert paired.value == pytest.approx(float((0.05 + small).mean()), abs=1e-4)
    assert paired.high - paired.low < 0.03
    assert bootstrap_mean(shared).high - bootstrap_mean(shared).low > 1


def test_a_pair_is_its_own_mirror():
    a, b = torch.rand(50), torch.rand(50)
    there, back = paired_bootstrap(a, b), paired_bootstrap(b, a)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))
    same = paired_bootstrap(a, a)
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)


def test_the_seed_decides_the_draws():
    values = torch.rand(50)
    assert bootstrap_mean(values, seed=1) == bootstrap_mean(values, seed=1) != bootstrap_mean(values, seed=2)


def test_drawing_in_parts_is_drawing_at_once(monkeypatch: pytest.MonkeyPatch):
    values = torch.rand(50)
    whole = bootstrap_mean(values)
    monkeypatch.setattr("stillhouse.audits.significance.CELLS", 120)
    parts = bootstrap_mean(values)
    assert (parts.low, parts.high) == pytest.approx((whole.low, whole.high))


def test_the_bias_of_a_bent_statistic_is_taken_out():
    values = torch.randn(100, 1, generator=torch.Generator().manual_seed(4))
    values = values - values.mean()
    found = bootstrap(values, lambda sums: sums[:, 0].abs() / 100)  # 0 exactly, but positive in every draw
    assert found.value == pytest.approx(0, abs=1e-6) and found.low < 0 < found.high


def test_no_items_and_unequal_pairs():
    with pytest.raises(ValueError, match="no items to draw from"):
        bootstrap_mean(torch.zeros(0))
    with pytest.raises(ValueError, match=r"the same items, not \[3\] and \[4\]"):
        paired_bootstrap(torch.zeros(3), torch.zeros(4))


@pytest.mark.parametrize("n", [1, 4])
def test_a_few_items_bound_nothing(n: int) -> None:
    """One document drawn again and again is always the same: no width, and yet nothing is known."""
    found = paired_bootstrap(torch.arange(n) + 1.0, torch.zeros(n))
    assert found.n == n and (found.low, found.high) == (-math.inf, math.inf)
    finding = Finding(name="nll", value=found.value, subject="train", low=found.low, high=found.high, better="lower")
    assert finding.decided == "undecided"
    assert finding.plain()["low"] is None and finding.plain()["high"] is None
