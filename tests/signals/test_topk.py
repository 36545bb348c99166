"""The top-k record: ids exact, mass of the rest exact, log-probabilities within a few thousandths."""

from __future__ import annotations

import math

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.core.run import RunError
from stillhouse.core.signal import HeadLogits, Signal, TopK
from stillhouse.signals.topk import KeptTopK, decode, encode, record_width, shorten, top_k


def logits_like_a_language_models(n: int, classes: int, seed: int = 0) -> torch.Tensor:
    """Zipf-like with a few likely classes; peaked rows and flat ones."""
    dice = torch.Generator().manual_seed(seed)
    sharp = torch.rand(n, 1, generator=dice) * 3 + 0.2
    return torch.randn(n, classes, generator=dice) * sharp * 2


def outcomes(values: torch.Tensor, index: torch.Tensor, rest: torch.Tensor) -> dict[int, float]:
    return dict(zip(index.tolist(), values.tolist(), strict=True)) | {-1: float(rest)}


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.sampled_from([2, 3, 7, 64, 300, 5000, 49_152, 151_936]), st.integers(0, 5), st.integers(0, 99))
def test_ids_and_rest_come_back_exactly(k: int, classes: int, n: int, seed: int):
    k = min(k, classes)
    top = top_k(logits_like_a_language_models(n, classes, seed), k)
    data = encode(top, classes)
    assert data.shape == (n, record_width(k, classes))
    back = decode(data, k, classes)
    assert torch.equal(back.index, top.index.sort(-1).values)
    assert torch.equal(back.rest, top.rest.float())
    assert back.classes == classes and not back.sampled


@pytest.mark.parametrize(("k", "most"), [(1, 1e-6), (2, 1e-6), (8, 1e-5), (63, 2e-5), (64, 2e-5), (65, 2e-5), (1024, 5e-5)])
def test_the_kl_to_what_was_kept_is_small(k: int, most: float):
    """On made-up rows, flatter than a language model's (there: 5e-6 at k = 64, benchmarks/results/signals.json)."""
    top = top_k(logits_like_a_language_models(200, 49_152, 1), k)
    back = decode(encode(top, 49_152), k, 49_152)
    values, order = top.index.sort(-1)
    p = torch.cat([top.values.gather(-1, order), top.rest[:, None]], -1).double()
    q = torch.cat([back.values, back.rest[:, None]], -1).double()
    kl = (p.exp() * (p - q)).sum(-1)
    assert float(kl.mean()) < most
    assert torch.allclose(q.exp().sum(-1), torch.ones(200, dtype=torch.float64), atol=1e-5)


def test_the_size_that_was_promised():
    assert record_width(64, 49_152) <= 165
    assert record_width(64, 151_936) <= 178


def test_any_item_can_be_read_alone():
    top = top_k(logits_like_a_language_models(50, 1000), 10)
    data = encode(top, 1000)
    whole, one = decode(data, 10, 1000), decode(data[17:18], 10, 1000)
    assert torch.equal(one.values[0], whole.values[17]) and torch.equal(one.index[0], whole.index[17])


def test_against_a_sum_over_all_classes():
    z = logits_like_a_language_models(4, 500)
    top = top_k(z, 5)
    for row in range(4):
        p = [math.exp(v - max(z[row].tolist())) for v in z[row].tolist()]
        best = sorted(range(500), key=lambda i: -p[i])[:5]
        assert sorted(best) == sorted(top.index[row].tolist())
        outside = sum(p[i] for i in range(500) if i not in best) / sum(p)
        assert math.isclose(float(top.rest[row].exp()), outside, rel_tol=1e-4)


def test_a_head_is_projected_and_trimmed():
    dice = torch.Generator().manual_seed(0)
    head = HeadLogits(torch.randn(300, 8, generator=dice), torch.randn(40, 8, generator=dice), scale=0.7)
    assert torch.equal(top_k(head, 4).index, top_k(head.dense(), 4).index)
    assert int(top_k(head, 4, classes=20).index.max()) < 20


@pytest.mark.parametrize(
    "z",
    [
        torch.tensor([[0.0, 1e4, -1e4, 5.0]]), torch.tensor([[0.0, -math.inf, -math.inf, 1.0]]), torch.zeros(1, 4),
        torch.tensor([[0.0, 0.0, 0.0, 100.0]]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("k", [1, 3, 4])
def test_extreme_rows_stay_finite_and_right(z: torch.Tensor, k: int):
    top = top_k(z, k)
    back = decode(encode(top, 4), k, 4)
    assert bool(back.values.isfinite().all())
    p = z.double().softmax(-1)[0]
    for index, value in zip(back.index[0].tolist(), back.values[0].tolist(), strict=True):
        assert abs(math.exp(value) - float(p[index])) < 1e-3


def test_k_of_all_classes_leaves_no_rest():
    top = top_k(torch.randn(3, 6), 6)
    assert bool((top.rest == -math.inf).all())
    assert torch.equal(decode(encode(top, 6), 6, 6).rest, top.rest)


def test_logits_that_are_not_finite_are_refused():
    with pytest.raises(RunError, match="not finite"):
        top_k(torch.tensor([[math.nan, 1.0]]), 1)


@pytest.mark.parametrize("index", [[[1, 1]], [[0, 5]], [[-1, 2]]])
def test_a_top_k_that_is_none_is_refused(index: list[list[int]]):
    with pytest.raises(RunError, match="different classes"):
        encode(TopK(torch.zeros(1, 2), torch.tensor(index), torch.zeros(1)), 5)


def test_a_longer_top_k_is_cut_and_its_tail_joins_the_rest():
    z = torch.randn(5, 30)
    cut, direct = shorten(top_k(z, 20), 4), top_k(z, 4)
    assert torch.equal(cut.index.sort(-1).values, direct.index.sort(-1).values)
    assert torch.allclose(cut.rest, direct.rest, atol=1e-5)


def test_the_format_keeps_records_apart():
    form = KeptTopK(k=3)
    items = Signal(logits=torch.randn(6, 50))
    facts = form.facts(items, None)
    records = form.encode(items, [1, 3, 2], [b"a", b"b", b"c"], facts)
    assert [len(r) for r in records] == [n * record_width(3, 50) for n in (1, 3, 2)]
    back = form.decode([memoryview(r) for r in (records[2], records[0])], [2, 1], facts, None)  # type: ignore[arg-type]
    whole = decode(encode(top_k(items.need("logits"), 3), 50), 3, 50)
    assert torch.equal(back.need("topk").index, whole.index[[4, 5, 0]])
    assert numpy.isclose(form.size(50, 8), record_width(3, 50))


@pytest.mark.parametrize("k", [0, -1, 1025])
def test_k_has_bounds(k: int):
    with pytest.raises(ValueError, match="between 1 and 1,024"):
        KeptTopK(k=k)
