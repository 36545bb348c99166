"""Relations of tokens against loops, their limits and their gradients."""

from __future__ import annotations

import math

import pytest
import torch

from stillhouse.objectives.tokens import counterpart_gap, graph_gap, inner_gap, neighbour_graph

DRAW = torch.Generator().manual_seed(0)


def drawn(*shape):
    return torch.randn(*shape, generator=DRAW, dtype=torch.float64)


def graph(tokens, k):
    """A, token by token."""
    x = [[v / math.sqrt(sum(u * u for u in t)) for v in t] for t in tokens.tolist()]
    d = [[sum((a - b) ** 2 for a, b in zip(p, q, strict=True)) for q in x] for p in x]
    near = [sorted((j for j in range(len(x)) if j != i), key=lambda j: row[j])[:k] for i, row in enumerate(d)]
    sigma = sum(d[i][j] for i, js in enumerate(near) for j in js) / (k * len(x))
    return [[math.exp(-d[i][j] / (2 * sigma)) if j in near[i] else 0.0 for j in range(len(x))] for i in range(len(x))]


def softmax(row):
    total = sum(math.exp(v) for v in row)
    return [math.exp(v) / total for v in row]


def test_the_graph_by_hand():
    tokens = drawn(9, 4)
    assert torch.allclose(neighbour_graph(tokens, 3), torch.tensor(graph(tokens, 3), dtype=torch.float64))


def test_the_graph_knows_no_scale_and_has_so_many_edges():
    tokens = drawn(9, 4)
    assert torch.allclose(neighbour_graph(tokens, 3), neighbour_graph(tokens * torch.arange(1, 10.0)[:, None], 3))
    assert (neighbour_graph(tokens, 3) > 0).sum(1).tolist() == [3] * 9
    assert (neighbour_graph(tokens, 100) > 0).sum(1).tolist() == [8] * 9
    assert float(neighbour_graph(tokens, 3).diagonal().abs().max()) == 0.0


def test_the_local_term_by_hand():
    student, teacher = drawn(8, 3), drawn(8, 5)
    found = graph_gap(student, teacher, neighbours=2)
    for value, own, other in zip(found, graph(student, 2), graph(teacher, 2), strict=True):
        q, p = softmax(own), softmax(other)
        assert float(value) == pytest.approx(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))


def test_the_global_term_by_hand():
    student, teacher = drawn(6, 4), drawn(6, 4)
    found = counterpart_gap(student, teacher, temperature=0.3)
    cosine = torch.nn.functional.cosine_similarity(student[:, None], teacher[None], dim=-1)
    for i, value in enumerate(found):
        row = softmax([float(c) / 0.3 for c in cosine[i]])
        assert float(value) == pytest.approx(-math.log(row[i]))


def test_the_inner_term_by_hand():
    student, teacher = drawn(2, 3, 4), drawn(2, 3, 6)
    for item, value in enumerate(inner_gap(student, teacher)):
        gap = 0.0
        for i in range(3):
            q, p = (
                softmax([float(x[item, i] @ x[item, j]) / math.sqrt(x.shape[-1]) for j in range(3)])
                for x in (student, teacher)
            )
            gap += sum((a - b) ** 2 for a, b in zip(q, p, strict=True)) / 9
        assert float(value) == pytest.approx(gap)


def test_equal_tokens_have_no_gap_and_a_turn_changes_nothing():
    tokens = drawn(10, 6)
    turned = tokens @ torch.linalg.qr(drawn(6, 6))[0]
    assert torch.allclose(graph_gap(tokens, turned), torch.zeros(10, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(inner_gap(tokens[None], turned[None]), torch.zeros(1, dtype=torch.float64), atol=1e-12)


def test_gradients():
    student, teacher = drawn(7, 3).requires_grad_(), drawn(7, 3)
    assert torch.autograd.gradcheck(lambda x: graph_gap(x, teacher, neighbours=3), student)
    assert torch.autograd.gradcheck(lambda x: counterpart_gap(x, teacher), student)
    assert torch.autograd.gradcheck(lambda x: inner_gap(x[None], teacher[None]), student)
    theirs = teacher.clone().requires_grad_()
    for gap in (graph_gap(student, theirs), counterpart_gap(student, theirs), inner_gap(student[None], theirs[None])):
        assert torch.autograd.grad(gap.sum(), theirs, allow_unused=True) == (None,)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_very_few_tokens(count):
    student, teacher = drawn(count, 3).requires_grad_(), drawn(count, 3)
    for gap in (graph_gap(student, teacher), counterpart_gap(student, teacher)):
        assert gap.shape == (count,) and bool(gap.isfinite().all())
        gap.sum().backward()
    assert bool(student.grad.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_large_and_blank_tokens_stay_finite(dtype, scale):
    student, teacher = (drawn(12, 4) * scale).to(dtype).requires_grad_(), drawn(12, 4).to(dtype)
    gaps = (graph_gap(student, teacher), counterpart_gap(student, teacher), inner_gap(student[None], teacher[None]))
    assert all(gap.dtype == torch.float32 for gap in gaps)
    torch.cat(gaps).sum().backward()
    assert all(bool(gap.isfinite().all()) for gap in gaps) and bool(student.grad.isfinite().all())
