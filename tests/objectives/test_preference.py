"""Losses on pairs: values worked out by hand, limits, and that the gradient through scores is the gradient."""

from __future__ import annotations

import itertools
import math
from functools import partial

import pytest
import torch
from torch.autograd import gradcheck

from stillhouse.core.signal import HeadLogits
from stillhouse.objectives import fused
from stillhouse.objectives.divergences import cross_entropy
from stillhouse.objectives.preference import (
    along_scores,
    dpo,
    listwise,
    plackett_luce,
    redi,
    sequence_logp,
    simpo,
)


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


# -- sets of answers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.1, 1.0, 4.0])
def test_listwise_of_two_with_a_sure_target_is_dpo(beta: float):
    w, lo, rw, rl = (5 * torch.randn(4, 200, dtype=torch.float64)).unbind()
    w, lo = w.requires_grad_(), lo.requires_grad_()
    expected = dpo(w, lo, rw, rl, beta=beta)
    sure = numbers(1.0, 0.0).expand(200, 2)
    found = listwise(torch.stack([w, lo], -1), sure, torch.stack([rw, rl], -1), tau=1 / beta)
    assert (found - expected).abs().max() < 1e-6
    for a, b in zip(*(torch.autograd.grad(x.sum(), (w, lo)) for x in (found, expected)), strict=True):
        assert (a - b).abs().max() < 1e-6 and b.abs().max() > 0.01


def test_listwise_with_a_doubtful_target_is_smoothed_dpo():
    """-(1 - e) log sigmoid(m) - e log sigmoid(-m), less the target's entropy; its minimum is at log((1 - e) / e)."""
    e, margin = 0.3, numbers(-2.0, 0.0, 1.7)
    found = listwise(torch.stack([margin, torch.zeros(3)], -1), numbers(1 - e, e).expand(3, 2))
    smoothed = (1 - e) * dpo(margin, margin * 0, margin * 0, margin * 0, beta=1.0)
    smoothed = smoothed + e * dpo(-margin, margin * 0, margin * 0, margin * 0, beta=1.0)
    entropy = -(1 - e) * math.log(1 - e) - e * math.log(e)
    assert torch.allclose(found, smoothed - entropy)
    least = torch.tensor([[math.log((1 - e) / e), 0.0]], dtype=torch.float64, requires_grad=True)
    loss = listwise(least, numbers(1 - e, e)[None])
    assert loss.item() == pytest.approx(0.0, abs=1e-12)
    assert torch.autograd.grad(loss.sum(), least)[0].abs().max() < 1e-12


def test_listwise_agrees_with_loops_and_with_torch():
    s, r, a = (3 * torch.randn(3, 6, 5, dtype=torch.float64)).unbind()
    q, tau = a.softmax(-1), torch.rand(6, dtype=torch.float64) + 0.2
    found = listwise(s, q, r, tau=tau)
    for row in range(6):
        z = [math.exp((s[row, i] - r[row, i]) / tau[row]) for i in range(5)]
        assert found[row].item() == pytest.approx(sum(q[row, i] * math.log(q[row, i] / (z[i] / sum(z))) for i in range(5)))
    plain = torch.nn.functional.kl_div(((s - r) / 2.0).log_softmax(-1), q, reduction="none").sum(-1)
    assert torch.allclose(listwise(s, q, r, tau=2.0), plain)


def test_listwise_curves_as_one_over_tau_squared_at_the_anchor():
    """The trust region that tau sets: Hessian (diag(1/n) - 1/n^2) / tau^2."""
    r, q, n = torch.randn(4, dtype=torch.float64), numbers(0.7, 0.1, 0.1, 0.1), 4
    for tau in (0.5, 2.0):
        found = torch.autograd.functional.hessian(
            lambda s, tau=tau: listwise(s[None], q[None], r[None], tau=tau).sum(), r.clone()
        )
        expected = (torch.eye(n, dtype=torch.float64) / n - 1 / n**2) / tau**2
        assert torch.allclose(found, expected)


def test_listwise_leaves_out_what_is_not_there():
    s, r, a = torch.randn(3, 2, 4, dtype=torch.float64).unbind()
    present = torch.tensor([[True, True, True, False], [False] * 4])
    q = a.masked_fill(~present, -torch.inf).softmax(-1).nan_to_num(0.0)
    s = torch.where(present, s, torch.nan).requires_grad_()
    found = listwise(s, q, r, tau=0.8, present=present)
    alone = listwise(s[:1, :3], q[:1, :3], r[:1, :3], tau=0.8)
    assert found.tolist() == [pytest.approx(alone.item()), 0.0]
    (slope,) = torch.autograd.grad(found.sum(), s)
    assert bool((slope[~present] == 0).all()) and bool((slope[present] != 0).all())


def test_listwise_in_bfloat16_without_sets_and_with_hostile_scores():
    s = torch.tensor([[0.0, -1e5], [-1e5, 0.0]], dtype=torch.float64)
    sure = numbers(1.0, 0.0).expand(2, 2)
    assert listwise(s, sure, tau=0.1).tolist() == [0.0, pytest.approx(1e6)]
    low = torch.randn(3, 4, dtype=torch.bfloat16)
    assert bool(torch.isfinite(listwise(low, torch.full((3, 4), 0.25), tau=0.5)).all())
    assert listwise(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0,)
    assert gradcheck(
        lambda x: listwise(x, numbers(0.5, 0.5, 0.0)[None], tau=0.7), torch.randn(1, 3, dtype=torch.float64).requires_grad_()
    )


def test_plackett_luce_is_the_probability_of_drawing_in_that_order():
    """Over all orders of four the probabilities, by drawing one after another, sum to one and are these."""
    s = torch.randn(4, dtype=torch.float64) * 2
    total = 0.0
    for order in itertools.permutations(range(4)):
        left, probability = list(order), 1.0
        while left:
            probability *= math.exp(s[left[0]]) / sum(math.exp(s[i]) for i in left)
            left.pop(0)
        assert plackett_luce(s[list(order)]).item() == pytest.approx(-math.log(probability))
        total += probability
    assert total == pytest.approx(1.0)


def test_plackett_luce_is_least_for_the_agreeing_order_and_sees_differences_only():
    s = torch.randn(7, 5, dtype=torch.float64)
    best = plackett_luce(s.sort(-1, descending=True).values)
    assert all(bool((plackett_luce(s[:, list(order)]) >= best - 1e-12).all()) for order in itertools.permutations(range(5)))
    assert torch.allclose(plackett_luce(s), plackett_luce(s + 100.0))
    two = plackett_luce(s[:, :2])
    assert torch.allclose(two, dpo(s[:, 0], s[:, 1], s[:, 0] * 0, s[:, 1] * 0, beta=1.0))
    assert plackett_luce(s[:, :1]).tolist() == [0.0] * 7 and plackett_luce(s[:, :0]).tolist() == [0.0] * 7


def test_plackett_luce_gradients_and_hostile_scores():
    assert gradcheck(plackett_luce, torch.randn(3, 6, dtype=torch.float64).requires_grad_())
    hostile = torch.tensor([[1e5, 0.0, -1e5], [-1e5, 0.0, 1e5]], dtype=torch.float64)
    assert plackett_luce(hostile).tolist() == [0.0, pytest.approx(3e5)]
    assert plackett_luce(torch.randn(2, 8, dtype=torch.bfloat16)).dtype == torch.float32


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
