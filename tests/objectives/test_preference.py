"""Losses on pairs: values worked out by hand, limits, and that the gradient through scores is the gradient."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch.autograd import gradcheck

from stillhouse.core.signal import HeadLogits
from stillhouse.objectives import fused
from stillhouse.objectives.divergences import cross_entropy
from stillhouse.objectives.preference import along_scores, dpo, redi, sequence_logp, simpo


def numbers(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def language(rows: int = 4, length: int = 7, width: int = 5, classes: int = 11, dtype=torch.float64):
    """hidden, head, labels, and a ragged mask with one row that has a single token."""
    torch.manual_seed(1)
    hidden = torch.randn(rows, length, width, dtype=dtype, requires_grad=True)
    head = torch.randn(classes, width, dtype=dtype, requires_grad=True)
    labels = torch.randint(classes, (rows, length))
    weight = torch.zeros(rows, length)
    for row, (begin, end) in enumerate([(2, 7), (0, 3), (3, 4), (1, 6)][:rows]):
        weight[row, begin:end] = 1.0
    return hidden, head, labels, weight


def brute(hidden, head, labels, weight, *, mean: bool) -> torch.Tensor:
    """Scores by loops."""
    scores = []
    for h, ids, counted in zip(hidden, labels, weight, strict=True):
        logp = [(h[t] @ head.T).log_softmax(-1)[ids[t]] for t in range(len(ids)) if counted[t]]
        scores.append(torch.stack(logp).mean() if mean else torch.stack(logp).sum())
    return torch.stack(scores)


# -- the losses ----------------------------------------------------------------------------------------------------


def test_values_by_hand():
    w, lo, rw, rlo = numbers(-3.0), numbers(-4.0), numbers(-3.5), numbers(-3.0)
    # beta ((-3 + 3.5) - (-4 + 3)) = 0.1 * 1.5
    assert dpo(w, lo, rw, rlo, beta=0.1).item() == pytest.approx(math.log(1 + math.exp(-0.15)))
    # 2 (-3 + 4) - 0.5 = 1.5
    assert simpo(w, lo, beta=2.0, gamma=0.5).item() == pytest.approx(math.log(1 + math.exp(-1.5)))
    assert redi(w, lo, alpha=0.8).item() == pytest.approx(3.0 - 3.2)
    assert redi(w, lo, alpha=0.8, gamma=0.25).item() == pytest.approx(3.0 - 3.2 * math.exp(-1.0))


def test_dpo_at_the_reference_is_log_two_and_pulls_by_half_beta():
    w, lo = numbers(-3.0, -700.0).requires_grad_(), numbers(-9.0, -2.0).requires_grad_()
    loss = dpo(w, lo, w.detach(), lo.detach(), beta=0.3)
    assert torch.allclose(loss, torch.full_like(loss, math.log(2.0)))
    up, down = torch.autograd.grad(loss.sum(), (w, lo))
    assert torch.allclose(up, torch.full_like(up, -0.15)) and torch.allclose(down, torch.full_like(down, 0.15))


def test_for_small_beta_dpo_and_simpo_are_the_symmetric_loss():
    """(loss - log 2) / (beta / 2) -> -(s_w - s_l): REDI with alpha = 1."""
    w, lo = numbers(-0.4, -2.0), numbers(-1.5, -0.7)
    expected = redi(w, lo, alpha=1.0)
    beta, log2, nothing = 1e-6, math.log(2.0), torch.zeros(2, dtype=torch.float64)
    assert torch.allclose((dpo(w, lo, nothing, nothing, beta=beta) - log2) / (beta / 2), expected, rtol=1e-4)
    assert torch.allclose((simpo(w, lo, beta=beta, gamma=0.0) - log2) / (beta / 2), expected, rtol=1e-4)


def test_dpo_sees_differences_only():
    w, lo, rw, rlo = torch.randn(4, 6, dtype=torch.float64)
    assert torch.allclose(dpo(w, lo, rw, rlo), dpo(w + 5, lo - 2, rw + 5, rlo - 2))
    assert torch.allclose(dpo(w, lo, rw, rlo, beta=1.0).exp(), 1 + dpo(lo, w, rlo, rw, beta=1.0).exp().sub(1).reciprocal())


def test_hostile_scores_stay_finite():
    w, lo = numbers(-1e5, 0.0), numbers(0.0, -1e5)
    for loss in (dpo(w, lo, lo, w, beta=1.0), simpo(w, lo), redi(w, lo, gamma=1.0)):
        assert bool(torch.isfinite(loss).all())
    assert dpo(w, lo, lo, w, beta=1.0)[0].item() == pytest.approx(2e5)


def test_redi_alpha_zero_ignores_the_rejected_answer():
    w, lo = numbers(-1.0).requires_grad_(), numbers(-2.0).requires_grad_()
    up, down = torch.autograd.grad(redi(w, lo, alpha=0.0).sum(), (w, lo))
    assert (up.item(), down.item()) == (-1.0, 0.0)


@pytest.mark.parametrize("detached", [False, True])
def test_redi_gamma_turns_the_slope_round_unless_detached(detached: bool):
    lo = numbers(-0.5, -2.0, -8.0).requires_grad_()
    (slope,) = torch.autograd.grad(redi(numbers(0.0), lo, alpha=0.8, gamma=0.5, detached=detached).sum(), lo)
    s = lo.detach()
    expected = 0.8 * (0.5 * s).exp() * (1.0 if detached else 1 + 0.5 * s)
    assert torch.allclose(slope, expected)
    assert bool(slope[0] > 0) and bool((slope[2] > 0) if detached else (slope[1] == 0) & (slope[2] < 0))


FIXED = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
ANCHORED = partial(dpo, reference_chosen=FIXED[0], reference_rejected=FIXED[1])


@pytest.mark.parametrize("loss", [ANCHORED, simpo, partial(redi, gamma=0.3)])
def test_gradients_in_double(loss):
    w, lo = -torch.rand(2, 5, dtype=torch.float64) * 3
    assert gradcheck(loss, (w.requires_grad_(), lo.requires_grad_()))
    assert loss(w, lo).shape == (5,)


# -- the scores ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("unprojected", [False, True])
def test_scores_agree_with_loops(mean: bool, unprojected: bool):
    hidden, head, labels, weight = language()
    logits = HeadLogits(hidden, head) if unprojected else hidden @ head.T
    found = sequence_logp(logits, labels, weight=weight, mean=mean)
    assert found.shape == (4,)
    assert torch.allclose(found, brute(hidden, head, labels, weight, mean=mean))


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("unprojected", [False, True])
def test_along_scores_is_the_gradient_of_the_whole(mean: bool, unprojected: bool):
    """Value and gradient against autograd through loops, for a loss that bends differently for every sequence."""
    hidden, head, labels, weight = language()

    def objective(scores: torch.Tensor) -> torch.Tensor:
        return simpo(*scores.chunk(2), beta=0.7, gamma=0.2) + scores[:2].square()

    logits = HeadLogits(hidden, head) if unprojected else hidden @ head.T
    loss, scores = along_scores(objective, logits, labels, weight=weight, mean=mean)
    expected = objective(brute(hidden, head, labels, weight, mean=mean)).sum()
    assert loss.item() == pytest.approx(expected.item())
    assert not scores.requires_grad
    for found, true in zip(*(torch.autograd.grad(x, (hidden, head)) for x in (loss, expected)), strict=True):
        assert torch.allclose(found, true) and true.abs().max() > 0.01


def test_along_scores_gradcheck():
    hidden, head, labels, weight = language(rows=2)

    def whole(hidden: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
        return along_scores(lambda s: -s.sigmoid(), HeadLogits(hidden, head), labels, weight=weight, mean=True)[0]

    assert gradcheck(whole, (hidden, head))


def test_along_scores_takes_two_passes_and_through_the_scores_would_take_a_second_gradient(monkeypatch):
    hidden, head, labels, weight = language()
    passes: list[bool] = []
    sweep = fused._sweep
    monkeypatch.setattr(fused, "_sweep", lambda work, needs: passes.append(any(needs)) or sweep(work, needs))
    loss, _ = along_scores(lambda s: s.square(), HeadLogits(hidden, head), labels, weight=weight)
    loss.backward()
    assert passes == [False, True]
    passes.clear()
    sequence_logp(HeadLogits(hidden, head), labels, weight=weight).square().sum().backward()
    assert passes == [True, True]  # if this becomes [False, True], along_scores is not needed any more


def test_redi_without_negatives_is_the_length_normalised_nll():
    hidden, head, labels, weight = language()
    loss, _ = along_scores(
        lambda s: redi(*s.chunk(2), alpha=0.0), HeadLogits(hidden, head), labels, weight=weight, mean=True
    )
    per_token = cross_entropy(hidden @ head.T, labels, weight=weight)[:2]
    expected = (per_token.sum(-1) / weight[:2].sum(-1)).sum()
    assert loss.item() == pytest.approx(expected.item())
    for found, true in zip(*(torch.autograd.grad(x, (hidden, head)) for x in (loss, expected)), strict=True):
        assert torch.allclose(found, true)


def test_masked_tokens_may_be_anything():
    hidden, head, labels, weight = language()
    loss, scores = along_scores(lambda s: s.square(), HeadLogits(hidden, head), labels, weight=weight, mean=True)
    spoiled = hidden.detach().masked_fill(weight[..., None] == 0, torch.inf).requires_grad_()
    other = labels.masked_fill(weight == 0, 3)
    again, same = along_scores(lambda s: s.square(), HeadLogits(spoiled, head), other, weight=weight, mean=True)
    assert torch.equal(scores, same) and loss.item() == again.item()
    a, b = (torch.autograd.grad(x, h)[0] for x, h in ((loss, hidden), (again, spoiled)))
    assert torch.equal(a, b)


def test_bfloat16_scores_are_kept_in_float32():
    hidden, head, labels, weight = language(dtype=torch.bfloat16)
    loss, scores = along_scores(
        lambda s: simpo(*s.chunk(2)), HeadLogits(hidden * 30, head), labels, weight=weight, mean=True
    )
    assert scores.dtype == torch.float32 and bool(torch.isfinite(scores).all()) and bool(torch.isfinite(loss))
    loss.backward()
    assert hidden.grad is not None and bool(torch.isfinite(hidden.grad).all())


def test_no_pair_and_no_token():
    hidden, head, labels, weight = language()
    loss, scores = along_scores(lambda s: redi(*s.chunk(2)), HeadLogits(hidden[:0], head), labels[:0], weight=weight[:0])
    loss.backward()
    assert loss.item() == 0 and scores.shape == (0,) and head.grad is not None and not head.grad.any()
    assert sequence_logp(hidden @ head.T, labels, weight=torch.zeros_like(weight), mean=True).tolist() == [0.0] * 4
