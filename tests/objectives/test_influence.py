"""Influence of the last layer: against autograd, dense solves, and what leaving an item out really does."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from stillhouse.objectives.influence import curved, extended, influence, ranked_right, residuals, solved

N, V, D = 60, 3, 4


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_residual_is_the_gradient_in_the_logits():
    student, teacher, labels = 3 * drawn(9, V), 3 * drawn(9, V, seed=1), torch.tensor([0, 1, 2, -100, 0, 1, 2, 0, -100])
    z = student.clone().requires_grad_()
    soft = F.kl_div((z / 4).log_softmax(-1), (teacher / 4).softmax(-1), reduction="sum")
    hard = F.cross_entropy(z, labels, reduction="sum")
    (0.3 * hard + 0.7 * 16 * soft).backward()
    assert torch.allclose(residuals(student, teacher, labels, 0.7, 4.0), z.grad, atol=1e-12)  # type: ignore[arg-type]


def mean_loss(weights: torch.Tensor, h: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(h @ weights.view(V, -1).T, labels)


def test_the_curvature_is_the_hessian():
    h, labels, weights = extended(drawn(N, D)), torch.arange(N) % V, drawn(V * (D + 1), seed=2)
    hessian = torch.autograd.functional.hessian(lambda w: mean_loss(w, h, labels), weights)
    hessian = hessian + 0.1 * torch.eye(len(weights), dtype=hessian.dtype)
    direction, p = drawn(V, D + 1, seed=3), (h @ weights.view(V, -1).T).softmax(-1)
    bent = curved(direction, p, h, 0.1)
    assert torch.allclose(bent.flatten(), hessian @ direction.flatten(), atol=1e-12)
    found = solved(direction, p, h, 0.1)
    assert torch.allclose(found.flatten(), torch.linalg.solve(hessian, direction.flatten()), atol=1e-8)


def test_solving_for_nothing_and_with_few_steps():
    h, p = extended(drawn(N, D)), drawn(N, V).softmax(-1)
    assert not solved(torch.zeros(V, D + 1, dtype=torch.float64), p, h, 0.1).any()
    wanted = drawn(V, D + 1, seed=4)
    errors = [float((curved(solved(wanted, p, h, 0.1, steps=n), p, h, 0.1) - wanted).norm()) for n in (0, 2, 15)]
    assert errors[0] > errors[1] > errors[2] < 1e-8


def fitted(h: torch.Tensor, labels: torch.Tensor, kept: torch.Tensor, decay: float) -> torch.Tensor:
    """Regularised logistic regression by Newton's method; the sum is divided by all items, kept or not."""
    weights = torch.zeros(V * h.shape[1], dtype=torch.float64)

    def loss(w: torch.Tensor) -> torch.Tensor:
        each = F.cross_entropy(h @ w.view(V, -1).T, labels, reduction="none")
        return (each * kept).sum() / len(h) + decay / 2 * w.square().sum()

    for _ in range(12):
        gradient = torch.autograd.functional.jacobian(loss, weights)
        weights = weights - torch.linalg.solve(torch.autograd.functional.hessian(loss, weights), gradient)
    return weights


def test_it_tells_what_leaving_an_item_out_does():
    """50 items of a logistic regression, some with wrong labels, each left out and fitted again."""
    n, decay = 50, 0.01
    labels, x = torch.arange(n) % V, drawn(n, D)
    x[torch.arange(n), labels] += 2.0
    labels[:8] = (labels[:8] + 1) % V
    held, truth = drawn(90, D, seed=5), torch.arange(90) % V
    held[torch.arange(90), truth] += 2.0
    h, judged, everything = extended(x), extended(held), torch.ones(n, dtype=torch.float64)
    weights = fitted(h, labels, everything, decay)
    matrix = weights.view(V, -1)
    z, z_judged = h @ matrix.T, judged @ matrix.T
    gradient = residuals(z_judged, z_judged, truth, 0.0, 1.0).T @ judged / 90
    solution = solved(gradient, z.softmax(-1), h, decay)
    told = influence(solution, residuals(z, z, labels, 0.0, 1.0), h)
    before, really = mean_loss(weights, judged, truth), torch.zeros(n, dtype=torch.float64)
    for i in range(n):
        kept = everything.clone()
        kept[i] = 0
        really[i] = mean_loss(fitted(h, labels, kept, decay), judged, truth) - before
    assert float(torch.corrcoef(torch.stack([-told / n, really]))[0, 1]) > 0.97
    assert float((really / (-told / n)).median()) == pytest.approx(1, abs=0.2)  # the scale as well
    assert float(told[:8].mean()) > 0 > float(told[8:].mean())  # wrong labels do harm


def test_certain_logits_have_finite_influences():
    h = extended(drawn(N, D).float())
    z = 1e4 * drawn(N, V, seed=6).float()
    solution = solved(drawn(V, D + 1).float(), z.softmax(-1), h, 1e-2)
    assert influence(solution, residuals(z, -z, torch.arange(N) % V, 0.9, 4.0), h).isfinite().all()


def test_ranks_against_counting_pairs():
    scores, good = torch.tensor([0.1, 0.4, 0.4, 0.9, 0.2, 0.4]), torch.tensor([False, True, False, True, False, True])
    pairs = [(a, b) for a in scores[good].tolist() for b in scores[~good].tolist()]
    expected = sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs)
    assert ranked_right(scores, good) == pytest.approx(expected)
    assert ranked_right(scores, scores > 0.3) == 1.0 and math.isnan(ranked_right(scores, scores > 0))
