"""Chunk likelihoods: sums over tokens, a divergence that is one, and the gradient of both taken together."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Bernoulli, kl_divergence

from stillhouse.core.signal import HeadLogits
from stillhouse.objectives.chunks import along_chunks, binarised_kl, chunk_logp


def test_sums_over_chunks() -> None:
    logp = torch.tensor([[-1.0, -2.0, -3.0], [-4.0, -5.0, -6.0]])
    chunk = torch.tensor([[0, 0, -1], [2, 1, 2]])
    assert chunk_logp(logp, chunk, 4).tolist() == [-3.0, -5.0, -10.0, 0.0]


@pytest.mark.parametrize("tau", [1.0, 10.0, 100.0])
def test_it_is_the_divergence_of_two_coins(tau: float) -> None:
    draw = torch.Generator().manual_seed(0)
    student, teacher = (-8 * torch.rand(50, generator=draw, dtype=torch.float64) - 1e-3 for _ in range(2))
    expected = tau * kl_divergence(Bernoulli((teacher / tau).exp()), Bernoulli((student / tau).exp()))
    torch.testing.assert_close(binarised_kl(student, teacher, tau), expected)
    assert binarised_kl(teacher, teacher, tau).abs().max() < 1e-12
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: binarised_kl(s, teacher, tau), student)


def test_certain_and_impossible_chunks_stay_finite() -> None:
    student = torch.tensor([0.0, -1e4, 0.0, -1e4, -3.0], requires_grad=True)
    teacher = torch.tensor([0.0, -1e4, -1e4, 0.0, 0.0])
    values = binarised_kl(student, teacher)
    values.sum().backward()
    assert values.isfinite().all() and student.grad is not None and student.grad.isfinite().all()
    assert values[:2].abs().max() < 1e-3 and values[2:4].min() > 10
    assert binarised_kl(student[:0], teacher[:0]).shape == (0,)


@pytest.mark.parametrize("head", [False, True])
def test_value_and_gradient_are_those_of_the_plain_way(head: bool) -> None:
    draw = torch.Generator().manual_seed(1)
    hidden, weight = (torch.randn(*s, generator=draw, dtype=torch.float64) for s in ((2, 6, 4), (9, 4)))
    hidden.requires_grad_()
    weight.requires_grad_()
    labels = torch.randint(0, 9, (2, 6), generator=draw)
    chunk = torch.tensor([[0, 0, 1, -1, 2, 2], [3, 3, 3, 4, -1, -1]])
    teacher = -5 * torch.rand(5, generator=draw, dtype=torch.float64)
    counted = (chunk >= 0).double()
    z = HeadLogits(hidden, weight) if head else hidden @ weight.T
    total, likely = along_chunks(z, labels, chunk, teacher, weight=counted, tau=7.0)
    logp = (hidden @ weight.T).log_softmax(-1).gather(-1, labels[..., None]).squeeze(-1)
    sums = torch.stack([logp[chunk == k].sum() for k in range(5)])
    expected = binarised_kl(sums, teacher, 7.0).sum()
    torch.testing.assert_close(likely, sums.detach())
    torch.testing.assert_close(total, expected)
    grads = [torch.autograd.grad(x, [hidden, weight], retain_graph=True) for x in (total, expected)]
    for mine, other in zip(*grads, strict=True):
        torch.testing.assert_close(mine, other)


def test_no_chunk_at_all() -> None:
    z = torch.randn(1, 3, 5, requires_grad=True)
    nowhere = torch.full((1, 3), -1)
    total, likely = along_chunks(z, torch.zeros(1, 3).long(), nowhere, torch.zeros(0), weight=torch.zeros(1, 3))
    assert total.item() == 0 and len(likely) == 0
