"""Relations of tokens in queries, keys and values: against loops, and what must not change them."""

from __future__ import annotations

import math

import pytest
import torch

from stillhouse.objectives.attention import cut_anew, relation_gap

REAL = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]]).bool()


def pair(dtype: torch.dtype = torch.float64, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """A student of 14 channels and a teacher of 24."""
    draw = torch.Generator().manual_seed(0)
    return tuple((scale * torch.randn(3, 5, w, generator=draw, dtype=torch.float64)).to(dtype) for w in (14, 24))  # type: ignore[return-value]


def relations(x: torch.Tensor, head: int, heads: int) -> list[list[float]]:
    """R of one text [T, width] and one relation head, number by number."""
    size = x.shape[1] // heads
    rows = [[float(v) for v in row[head * size : (head + 1) * size]] for row in x]
    return [[sum(a * b for a, b in zip(m, n, strict=True)) / math.sqrt(size) for n in rows] for m in rows]


def test_heads_are_cut_anew_side_by_side() -> None:
    x = torch.arange(2 * 3 * 14).reshape(2, 3, 14)
    made = cut_anew(x, 4)
    assert made.shape == (2, 4, 3, 3)  # 3 channels each, 2 of 14 are left over
    for head in range(4):
        assert torch.equal(made[:, head], x[..., 3 * head : 3 * head + 3])
    two = x.unflatten(-1, (2, 7)).transpose(1, 2)  # heads of 7 channels are the same channels, whatever cuts them
    assert torch.equal(cut_anew(two.transpose(1, 2).flatten(-2), 4), made)
    with pytest.raises(ValueError, match="14 channels cannot be cut into 15"):
        cut_anew(x, 15)


@pytest.mark.parametrize("metric", ["mse", "kl"])
def test_the_gap_by_loops(metric: str) -> None:
    student, teacher = pair()
    found = relation_gap(student, teacher, REAL, heads=4, metric=metric)  # type: ignore[arg-type]
    for b in range(3):
        n = int(REAL[b].sum())
        total = 0.0
        for head in range(4):
            own, other = (relations(x[b, :n], head, 4) for x in (student, teacher))
            for s, t in zip(own, other, strict=True):
                if metric == "mse":
                    total += sum((u - v) ** 2 for u, v in zip(s, t, strict=True)) / n
                else:
                    q, p = ([math.exp(v) / sum(map(math.exp, row)) for v in row] for row in (s, t))
                    total += sum(v * math.log(v / u) for u, v in zip(q, p, strict=True))
        assert float(found[b]) == pytest.approx(total / (4 * n), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("metric", ["mse", "kl"])
def test_what_changes_nothing(metric: str) -> None:
    student, teacher = pair()
    value = relation_gap(student, teacher, REAL, heads=4, metric=metric)  # type: ignore[arg-type]
    off = ~REAL.unsqueeze(-1)
    student = student.masked_fill(off, math.nan).requires_grad_()
    padded = relation_gap(student, teacher.masked_fill(off, math.inf), REAL, heads=4, metric=metric)  # type: ignore[arg-type]
    torch.testing.assert_close(padded, value)
    (slope,) = torch.autograd.grad(padded.sum(), student)
    assert slope.isfinite().all() and not slope[~REAL].any() and slope[:2, 0].any()
    turned = teacher.clone()  # a relation head turned in its own channels relates its tokens as before
    turn, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))
    turned[..., 6:12] = turned[..., 6:12] @ turn
    torch.testing.assert_close(relation_gap(student, turned, REAL, heads=4, metric=metric), padded)  # type: ignore[arg-type]
    same = relation_gap(teacher, teacher, REAL, heads=4, metric=metric)  # type: ignore[arg-type]
    assert same.abs().max() < 1e-12
    assert not relation_gap(student, teacher, torch.zeros_like(REAL), heads=4, metric=metric).any()  # type: ignore[arg-type]
    assert relation_gap(student[:0], teacher[:0], REAL[:0], heads=4, metric=metric).shape == (0,)  # type: ignore[arg-type]


@pytest.mark.parametrize("metric", ["mse", "kl"])
def test_slopes(metric: str) -> None:
    student, teacher = pair()
    student.requires_grad_()
    teacher.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: relation_gap(x, teacher, REAL, heads=4, metric=metric), student)  # type: ignore[arg-type]
    relation_gap(student, teacher, REAL, heads=4, metric=metric).sum().backward()  # type: ignore[arg-type]
    assert teacher.grad is None


@pytest.mark.parametrize("metric", ["mse", "kl"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_numbers_stay_finite(metric: str, dtype: torch.dtype) -> None:
    student, teacher = pair(dtype, scale=100.0)  # products of 1e4
    student.requires_grad_()
    found = relation_gap(student, teacher, REAL, heads=4, metric=metric)  # type: ignore[arg-type]
    assert found.dtype == torch.float32 and found.isfinite().all()
    found.sum().backward()
    assert student.grad is not None and student.grad.isfinite().all()
