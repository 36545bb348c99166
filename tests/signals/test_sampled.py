"""Drawn classes: unbiased for forward KL, and refused for everything else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from stillhouse.core.signal import HeadLogits, Signal, TopK
from stillhouse.objectives.divergences import JSD, ForwardKL, ReverseKL, mixed
from stillhouse.signals.sampled import Sampled

NOWHERE = Path("/nonexistent")


def sample(logits: torch.Tensor, form: Sampled, key: bytes = b"k") -> TopK:
    items = Signal(logits=logits)
    facts = form.facts(items, None)
    (record,) = form.encode(items, [len(logits)], [key], facts)
    return form.decode([memoryview(record)], [len(logits)], facts, NOWHERE).need("topk")


@pytest.mark.parametrize("draw", ["systematic", "independent"])
def test_the_mean_gradient_is_that_of_the_whole_distribution(draw: Any):
    """4,000 samples of one item: every coordinate within 4.5 standard errors."""
    dice = torch.Generator().manual_seed(0)
    teacher, student = torch.randn(1, 30, generator=dice) * 2, torch.randn(1, 30, generator=dice)
    n = 4000
    drawn = sample(teacher.expand(n, -1), Sampled(draws=6, draw=draw))
    z = student.expand(n, -1).clone().requires_grad_()
    ForwardKL()(z, drawn).sum().backward()
    mean = z.grad.mean(0)  # type: ignore[union-attr]
    spread = (teacher.softmax(-1)[0] / (6 * n)).sqrt()  # of independent draws; systematic ones vary less
    whole = student.clone().requires_grad_()
    ForwardKL()(whole, teacher).sum().backward()
    assert bool(((mean - whole.grad[0]).abs() <= 4.5 * spread + 1e-6).all())  # type: ignore[index]


def test_systematic_counts_are_within_one_of_their_expectation():
    z = torch.randn(200, 40) * 2
    drawn = sample(z, Sampled(draws=20))
    counts = torch.zeros(200, 40).scatter_add_(-1, drawn.index, drawn.values.exp() * 20)
    assert float((counts - 20 * z.softmax(-1)).abs().max()) < 1 + 1e-3
    assert torch.allclose(counts.sum(-1), torch.full((200,), 20.0), atol=1e-3)


def test_systematic_draws_vary_less():
    z = torch.randn(1, 50) * 2
    p = z.softmax(-1)

    def variance(draw: Any) -> float:
        drawn = sample(z.expand(2000, -1), Sampled(draws=10, draw=draw))
        q = torch.zeros(2000, 50).scatter_add_(-1, drawn.index, drawn.values.exp())
        return float((q - p).square().sum(-1).mean())

    assert variance("systematic") < 0.6 * variance("independent")


def test_no_class_is_named_twice_and_fillers_have_no_mass():
    drawn = sample(torch.randn(300, 12) * torch.rand(300, 1) * 8, Sampled(draws=30))
    for row, values in zip(drawn.index.tolist(), drawn.values.tolist(), strict=True):
        assert len(set(row)) == len(row)
        assert abs(sum(torch.tensor(values).exp().tolist()) - 1) < 1e-5
    assert drawn.sampled and bool((drawn.rest == -torch.inf).all())


def test_all_classes_drawn_leaves_nothing_to_fill_with():
    drawn = sample(torch.zeros(5, 3), Sampled(draws=90))
    assert drawn.index.sort(-1).values.tolist() == [[0, 1, 2]] * 5


def test_the_same_key_draws_the_same_and_another_does_not():
    z = torch.randn(20, 1000)
    a, b, c = (sample(z, Sampled(), key) for key in (b"x", b"x", b"y"))
    assert torch.equal(a.index, b.index) and torch.equal(a.values, b.values)
    assert a.index.shape != c.index.shape or not torch.equal(a.index, c.index)


@pytest.mark.parametrize(("classes", "size"), [(1000, 2), (70_000, 3)])
def test_ids_take_as_many_bytes_as_they_need(classes: int, size: int):
    z = torch.full((1, classes), -30.0)
    z[0, classes - 1] = 30.0
    assert sample(z, Sampled(draws=3)).index[0, 0] == classes - 1
    assert Sampled().facts(Signal(logits=z), None)["id_bytes"] == size


def test_gradients_on_heads_are_those_on_dense_logits():
    dice = torch.Generator().manual_seed(0)
    drawn = sample(torch.randn(7, 20, generator=dice), Sampled(draws=8))
    hidden = torch.randn(7, 5, generator=dice, dtype=torch.float64)
    weight = torch.randn(20, 5, generator=dice, dtype=torch.float64)

    def gradient(head: bool) -> torch.Tensor:
        h = hidden.clone().requires_grad_()
        ForwardKL()(HeadLogits(h, weight) if head else h @ weight.T, drawn).sum().backward()
        assert h.grad is not None
        return h.grad

    assert torch.allclose(gradient(True), gradient(False), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("divergence", [ReverseKL(), JSD()])
def test_divergences_for_which_a_sample_is_biased_are_refused(divergence: Any):
    drawn = sample(torch.randn(2, 9), Sampled(draws=4))
    with pytest.raises(ValueError, match="unbiased for forward KL alone"):
        divergence(torch.randn(2, 9), drawn)
    with pytest.raises(ValueError, match="unbiased for forward KL alone"):
        mixed(divergence, torch.randn(2, 9), drawn, torch.zeros(2, dtype=torch.long), 0.5)


@pytest.mark.parametrize("draws", [0, 256])
def test_draws_have_bounds(draws: int):
    with pytest.raises(ValueError, match="between 1 and 255"):
        Sampled(draws=draws)
