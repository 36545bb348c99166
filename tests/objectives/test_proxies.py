"""Zero-cost proxies and the rank correlation against loops, numpy and scipy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from torch.nn import functional as F

from stillhouse.objectives.proxies import code_products, kendall, log_volume, semantic_gap
from stillhouse.objectives.relations import relation_loss


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def outer(gradient: torch.Tensor) -> torch.Tensor:
    """The outer product of every class with itself, rows at length 1."""
    return F.normalize(gradient.unsqueeze(2) @ gradient.unsqueeze(1), dim=2)


def test_channels_against_the_outer_products():
    mine, theirs = drawn(5, 7), drawn(5, 7, seed=1)
    found = semantic_gap(mine, theirs, "channels")
    apart = (outer(mine) - outer(theirs)).square()
    assert found.shape == (5,)
    assert torch.allclose(found, apart.sum((1, 2)) / 7)
    assert float(found.mean()) == pytest.approx(float(apart.sum()) / (7 * 5))  # ‖E_s - E_t‖² / (d K)
    as_channels = relation_loss(mine.unsqueeze(1), theirs.unsqueeze(1), "channel_gram")
    assert torch.allclose(found, 7 * as_channels)


def test_channels_that_a_class_does_not_draw_on():
    mine = torch.tensor([[3.0, 0.0, -4.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    theirs = torch.tensor([[0.0, 1.0, -1.0], [1.0, 2.0, 2.0], [0.0, 0.0, 0.0]])
    assert torch.allclose(semantic_gap(mine, theirs, "channels"), (outer(mine) - outer(theirs)).square().sum((1, 2)) / 3)
    assert semantic_gap(mine, theirs, "channels")[1:].tolist() == [1.0, 0.0]


def test_classes_against_a_loop():
    mine, theirs = drawn(4, 3), drawn(4, 9, seed=1)
    found = semantic_gap(mine, theirs, "classes")
    for k in range(4):
        rows = []
        for g in (mine, theirs):
            row = [sum(float(a * b) for a, b in zip(g[k], g[j], strict=True)) for j in range(4)]
            rows.append([v / math.sqrt(sum(w * w for w in row)) for v in row])
        assert float(found[k]) == pytest.approx(sum((a - b) ** 2 for a, b in zip(*rows, strict=True)) / 4)


@pytest.mark.parametrize("by", ["channels", "classes"])
def test_alike_is_zero_whatever_the_scale(by: str):
    g = drawn(6, 5)
    assert semantic_gap(g, g, by).abs().max() < 1e-12  # type: ignore[arg-type]
    assert semantic_gap(1e-9 * g, 1e4 * g, by).abs().max() < 1e-12  # type: ignore[arg-type]
    assert semantic_gap(g, drawn(6, 5, seed=1), by).min() > 1e-3  # type: ignore[arg-type]
    low = semantic_gap(g.bfloat16(), 1e4 * drawn(6, 5, seed=1).bfloat16(), by)  # type: ignore[arg-type]
    assert low.dtype == torch.float32 and bool(low.isfinite().all())


def test_channels_of_unequal_widths_are_refused():
    with pytest.raises(ValueError, match='semantic="classes"'):
        semantic_gap(drawn(4, 3), drawn(4, 9), "channels")


def test_agreement_is_the_units_that_do_not_differ():
    active = drawn(5, 3, 2, 2) > 0
    found = code_products(active)
    for i in range(5):
        for j in range(5):
            assert int(found[i, j]) == sum(
                int(a == b) for a, b in zip(active[i].flatten(), active[j].flatten(), strict=True)
            )
    assert log_volume(found) == pytest.approx(float(np.linalg.slogdet(found.numpy())[1]))
    assert log_volume(torch.full((2, 2), 7.0)) == -math.inf


@pytest.mark.parametrize("seed", range(5))
def test_kendall_against_scipy(seed: int):
    draw = np.random.default_rng(seed)
    x, y = draw.integers(0, 6, 20), draw.normal(size=20).round(seed % 2)
    expected: Any = scipy.stats.kendalltau(x, y)
    assert kendall(torch.from_numpy(x), torch.from_numpy(y)) == pytest.approx(expected.statistic)


def test_kendall_at_its_ends():
    x = torch.tensor([1.0, 2.0, 3.0, math.inf])
    assert kendall(x, x) == 1.0 and kendall(x, -x) == -1.0
    assert math.isnan(kendall(x, torch.zeros(4)))
