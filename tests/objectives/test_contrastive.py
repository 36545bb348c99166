"""Contrast: golden values of CRD, loops, cross-entropy, evenly drawn negatives, hostile numbers."""

from __future__ import annotations

import math

import pytest
import torch
from properties import ES, ET, HOSTILE, any_size, finite, golden, gradient, inp, mask_is_subset, normal, right_gradient
from torch.nn import functional as F

from stillhouse.objectives.contrastive import (
    draw_negatives,
    info_nce,
    log_normaliser,
    memory_nce,
    nt_xent,
    remembered,
    scores,
    supcon,
)
from stillhouse.objectives.maps import unit

LABELS = torch.tensor([0, 1, 0, 2, 1, 0])
MEMORY = unit(inp((20, 4), 0.377))
INDEX = (11 * torch.arange(6)[:, None] + 3 * torch.arange(5)) % 20

EVERY = {
    "info_nce": lambda s, t, weight=None: info_nce(s, t, temperature=0.5, weight=weight),
    "info_nce_symmetric": lambda s, t, weight=None: info_nce(s, t, temperature=0.5, symmetric=True, weight=weight),
    "nt_xent": lambda s, t, weight=None: nt_xent(s, t, weight=weight),
}
each = pytest.mark.parametrize("f", EVERY.values(), ids=EVERY)


def by_class(s, labels, weight=None):
    return supcon(s.reshape(len(s), 2, 4), labels, weight=weight)


def by_memory(s, index, weight=None):
    return memory_nce(s, MEMORY.to(torch.promote_types(s.dtype, torch.float32)), index, 2.0, temperature=0.3, weight=weight)


CASES = {name: (f, lambda **o: (normal(6, 4, **o), normal(6, 4, **o))) for name, f in EVERY.items()} | {
    "supcon": (by_class, lambda **o: (normal(6, 8, **o), LABELS)),
    "memory_nce": (by_memory, lambda **o: (normal(6, 4, **o), INDEX)),
}
every = pytest.mark.parametrize(("f", "case"), CASES.values(), ids=CASES)


@every
def test_the_common_properties(f, case):
    right_gradient(f, *case())
    mask_is_subset(f, *case())
    any_size(f, *case())


@every
@HOSTILE
def test_large_numbers_stay_finite(f, case, dtype):
    """Scores of 1e8 and more: exp, as the references write it, is infinite from 88 on."""
    finite(f, *case(dtype=dtype, scale=1e4))


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_items_that_coincide_are_finite(f, case, dtype):
    student, other = case(dtype=dtype)
    finite(f, student[:1].expand_as(student), other)
    finite(f, torch.zeros_like(student), other)


@every
def test_items_keep_their_values_in_any_order(f, case):
    order = torch.randperm(6)
    inputs = case()
    assert torch.allclose(f(*(x[order] for x in inputs)), f(*inputs)[order], rtol=1e-10)


# In the batch


def test_info_nce_is_the_cross_entropy_with_the_diagonal():
    a, b = normal(6, 4), normal(6, 4)
    right = torch.arange(6)
    rows = F.cross_entropy(a @ b.T / 0.07, right, reduction="none")
    columns = F.cross_entropy(b @ a.T / 0.07, right, reduction="none")
    assert torch.allclose(info_nce(a, b), rows, rtol=1e-10)
    assert torch.allclose(info_nce(a, b, symmetric=True), (rows + columns) / 2, rtol=1e-10)
    assert torch.allclose(info_nce(a[:, :0], b[:, :0]), torch.full((6,), math.log(6), dtype=torch.float64))  # no idea


@each
def test_both_sides_learn(f):
    a, b = normal(6, 4).requires_grad_(), normal(6, 4).requires_grad_()
    assert torch.autograd.gradcheck(f, (a, b))


@pytest.mark.parametrize("f", [info_nce, nt_xent], ids=["info_nce", "nt_xent"])
def test_a_learned_temperature(f):
    a, b = normal(6, 4), normal(6, 4)
    temperature = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([1.0, 0, 1, 2, 1, 1])
    assert torch.autograd.gradcheck(lambda t: f(a, b, temperature=t, weight=weight), (temperature,))
    assert torch.equal(f(a, b, temperature=temperature), f(a, b, temperature=0.5))


def test_nt_xent_view_by_view():
    a, b = unit(normal(6, 4)), unit(normal(6, 4))
    views = torch.cat([a, b])
    losses = []
    for i in range(12):
        odds = [math.exp(float(views[i] @ views[j]) / 0.5) for j in range(12)]
        losses.append(-math.log(odds[(i + 6) % 12] / (sum(odds) - odds[i])))
    expected = [(losses[i] + losses[i + 6]) / 2 for i in range(6)]
    assert nt_xent(a, b).tolist() == pytest.approx(expected, rel=1e-10)
    assert torch.allclose(nt_xent(a, b), nt_xent(b, a), rtol=1e-12)


def test_supcon_by_loops():
    z = unit(normal(6, 3, 4))
    flat, labels = z.reshape(18, 4), LABELS.repeat_interleave(3).tolist()
    losses = []
    for i in range(18):
        odds = [math.exp(float(flat[i] @ flat[j]) / 0.1) for j in range(18)]
        partners = [j for j in range(18) if j != i and labels[j] == labels[i]]
        losses.append(-sum(math.log(odds[p] / (sum(odds) - odds[i])) for p in partners) / len(partners))
    expected = [sum(losses[3 * i : 3 * i + 3]) / 3 for i in range(6)]
    assert supcon(z, LABELS).tolist() == pytest.approx(expected, rel=1e-10)


def test_with_a_class_each_supcon_is_nt_xent():
    a, b = normal(6, 4), normal(6, 4)
    flat = torch.cat([a, b])
    table = (flat @ flat.T / 0.5).fill_diagonal_(-math.inf)
    both = F.cross_entropy(table, torch.arange(12).roll(6), reduction="none").reshape(2, 6).mean(0)
    found = supcon(torch.stack([a, b], 1), torch.tensor([9, 3, 4, 1, 0, 7]), temperature=0.5)
    assert torch.allclose(found, both, rtol=1e-10)


def test_a_view_without_a_partner_has_nothing_to_learn():
    z = normal(6, 1, 4)
    assert torch.equal(supcon(z, torch.arange(6)), torch.zeros(6, dtype=torch.float64))
    found = supcon(z, LABELS)
    assert float(found[3]) == 0 and bool((found[[0, 1, 2, 4, 5]] > 0).all())  # class 2 has one item


# CRD


def golden_case():
    """Embeddings of length 1, memories of 50 rows, K = 16, item i is row i; the normaliser is that of this batch."""
    student, teacher = unit(ES), unit(ET)
    v1, v2 = unit(inp((50, 64), 0.377)), unit(inp((50, 64), 0.641))
    index = (11 * torch.arange(8)[:, None] + 5 * torch.arange(17)) % 50
    index[:, 0] = torch.arange(8)
    return student, teacher, v1, v2, index


def test_golden_values():
    # HobbitLong/RepDistiller, crd/memory.py and crd/criterion.py. It keeps T and Z in float32: from there 3.6e-10.
    student, teacher, v1, v2, index = golden_case()
    z_s, z_t = log_normaliser(student, v2, index), log_normaliser(teacher, v1, index)
    golden(memory_nce(student, v2, index, z_s) + memory_nce(teacher, v1, index, z_t), 8.038668343665273)
    own = index[:, 0]
    after = v1.index_copy(0, own, remembered(v1, own, student))
    assert float(after.abs().sum()) == pytest.approx(354.3184904287212, rel=1e-9)
    assert torch.equal(after[8:], v1[8:]) and not torch.equal(after[:8], v1[:8])


def test_crd_by_a_loop():
    student, _, _, memory, index = golden_case()
    temperature, eps = 0.07, 1e-7
    odds = [[math.exp(float(student[i] @ memory[j]) / temperature) for j in index[i].tolist()] for i in range(8)]
    z = 50 * sum(map(sum, odds)) / (8 * 17)
    assert float(log_normaliser(student, memory, index)) == pytest.approx(math.log(z), rel=1e-10)
    noise = 16 / 50
    expected = []
    for row in odds:
        own, *others = (v / z for v in row)
        value = -math.log(own / (own + noise + eps)) - sum(math.log(noise / (h + noise + eps)) for h in others)
        expected.append(value)
    assert memory_nce(student, memory, index, math.log(z)).tolist() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_scores_by_a_product_and_by_rows(dtype):
    """A memory of 100 rows is multiplied whole for 30 of them each, and read row by row for 5."""
    memory, query = normal(100, 4).to(torch.promote_types(dtype, torch.float32)), normal(6, 4, dtype=dtype)
    many = torch.randint(100, (6, 30))
    for index in (many, many[:, :5]):
        expected = torch.einsum("bd,bkd->bk", query.to(memory.dtype), memory[index])
        assert torch.allclose(scores(query, memory, index), expected, rtol=1e-5, atol=1e-5)
        assert torch.allclose(scores(query, memory, index), scores(query, memory, many)[:, : index.shape[1]], atol=1e-5)
        slope = gradient(lambda q, index=index, memory=memory: scores(q, memory, index), query)
        expected = memory[index].sum(1).to(dtype)
        assert torch.allclose(slope, expected, rtol=1e-2, atol=1e-2 if dtype == torch.bfloat16 else 1e-5)


def test_the_memory_is_a_constant():
    student, _, _, memory, index = golden_case()
    memory.requires_grad_()
    student.requires_grad_()
    memory_nce(student, memory, index, 3.0).sum().backward()
    assert memory.grad is None and student.grad is not None
    assert not remembered(memory, index[:, 0], student).requires_grad
    assert not log_normaliser(student, memory, index).requires_grad


def test_the_normaliser_makes_the_mean_even():
    """Z = n E[exp] over the rows: then h is on average 1 / n, the probability of a row drawn evenly."""
    student, _, _, memory, index = golden_case()
    log_h = scores(student, memory, index) / 0.07 - log_normaliser(student, memory, index)
    assert float(log_h.exp().mean()) == pytest.approx(1 / 50, rel=1e-10)
    weight = torch.tensor([1.0, 0, 1, 0, 1, 1, 1, 1])
    dirty = student.clone()
    dirty[weight == 0] = torch.nan
    kept = weight.bool()
    assert torch.equal(
        log_normaliser(dirty, memory, index, weight=weight), log_normaliser(student[kept], memory, index[kept])
    )


def test_remembered_rows_have_length_1_and_stay_where_momentum_is_1():
    student, _, memory, _, index = golden_case()
    own = index[:, 0]
    rows = remembered(memory, own, student, momentum=0.3)
    assert torch.allclose(rows, F.normalize(0.3 * memory[own] + 0.7 * student, dim=1), rtol=1e-12)
    assert torch.allclose(remembered(memory, own, student, momentum=1.0), memory[own], rtol=1e-12)
    assert torch.allclose(remembered(memory, own, student, momentum=0.0), student, rtol=1e-12)
    assert bool(remembered(memory, own, -memory[own]).isfinite().all())  # they cancel
    assert remembered(memory.float(), own, student.bfloat16()).dtype == torch.float32
    assert remembered(memory, own[:0], student[:0]).shape == (0, 64)


def test_without_negatives_there_is_nothing_to_tell_apart():
    student, _, _, memory, index = golden_case()
    with pytest.raises(ValueError, match="draw at least one negative"):
        memory_nce(student, memory, index[:, :1], 0.0)


def test_negatives_are_drawn_evenly_from_the_other_classes():
    labels = torch.tensor([2, 0, 1, 0, 2, 2, 5, 1])
    own = torch.arange(8)
    found = draw_negatives(own, 6000, labels, generator=torch.Generator().manual_seed(1))
    assert torch.equal(found[:, 0], own) and found.shape == (8, 6001)
    for i in range(8):
        others = (labels != labels[i]).nonzero().squeeze(1)
        drawn = torch.bincount(found[i, 1:], minlength=8)
        assert int(drawn[labels == labels[i]].sum()) == 0
        even = 6000 / len(others)
        squares = float(((drawn[others] - even) ** 2 / even).sum())
        assert squares < 27  # chi squared with at most 6 degrees of freedom: once in 10,000


def test_every_other_item_is_a_negative_without_classes():
    found = draw_negatives(torch.tensor([3, 0, 3]), 500, torch.arange(5), generator=torch.Generator().manual_seed(1))
    assert [sorted(set(row[1:].tolist())) for row in found] == [[0, 1, 2, 4], [1, 2, 3, 4], [0, 1, 2, 4]]
    again = draw_negatives(torch.tensor([3, 0, 3]), 500, torch.arange(5), generator=torch.Generator().manual_seed(1))
    assert torch.equal(found, again)
    assert draw_negatives(torch.tensor([], dtype=torch.long), 4, torch.arange(5)).shape == (0, 5)
    with pytest.raises(ValueError, match="no negatives"):
        draw_negatives(torch.tensor([0]), 4, torch.zeros(5, dtype=torch.long))
