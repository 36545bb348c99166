"""Advantages, clipped losses and their gradients per token, against definitions written out and against TRL."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from stillhouse.core.signal import HeadLogits
from stillhouse.objectives import policy
from stillhouse.objectives.divergences import token_logp
from stillhouse.objectives.policy import (
    anchored,
    clipped,
    cross_turn_advantage,
    dense_advantage,
    group_advantage,
    importance,
    k3,
    of_tokens,
    reinforce,
    tempered,
    turn_advantage,
    turn_returns,
)

torch.set_num_threads(1)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# -- advantages --------------------------------------------------------------------------------------------------------


def test_advantages_written_out() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 0.5, 0.25, 0.25]], dtype=torch.float64)
    for row, std, none, out in zip(
        rewards, group_advantage(rewards), group_advantage(rewards, "none"), group_advantage(rewards, "leave_one_out"),
        strict=True,
    ):  # fmt: skip
        for i, reward in enumerate(row):
            others = [float(r) for j, r in enumerate(row) if j != i]
            assert float(none[i]) == pytest.approx(float(reward - row.mean()))
            assert float(out[i]) == pytest.approx(float(reward) - sum(others) / len(others))
            assert float(std[i]) == pytest.approx(float((reward - row.mean()) / (row.std() + 1e-4)))
        for advantage in (std, none, out):
            assert float(advantage.sum()) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("norm", ["std", "none", "leave_one_out"])
@pytest.mark.parametrize("value", [0.0, 1.0, 0.1])
def test_a_group_of_equals_teaches_exactly_nothing(norm: Any, value: float) -> None:
    assert not group_advantage(torch.full((3, 7), value), norm).any()


def test_a_group_needs_two() -> None:
    with pytest.raises(ValueError, match="at least two"):
        group_advantage(torch.ones(3, 1))
    assert group_advantage(torch.zeros(0, 4)).shape == (0, 4)


def test_the_dense_advantage_written_out_and_without_its_reference() -> None:
    teacher, student, reference = (draw(3, 4, seed=i) - 3 for i in range(3))
    for scale in (0.5, 1.25, 2.0):
        expected = scale * (teacher - reference) - (student - reference)
        torch.testing.assert_close(dense_advantage(teacher, student, reference, scale), expected)
    plain = dense_advantage(teacher, student)
    torch.testing.assert_close(plain, teacher - student)
    for other in (reference, torch.full_like(reference, torch.nan)):
        assert torch.equal(dense_advantage(teacher, student, other, 1.0), plain)
    assert not torch.equal(
        dense_advantage(teacher, student, reference, 1.25), dense_advantage(teacher, student, plain, 1.25)
    )
    with pytest.raises(ValueError, match="needs a reference"):
        dense_advantage(teacher, student, scale=1.25)


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.25, 2.0])
def test_the_dense_advantage_leads_where_it_should(scale: float) -> None:
    """A bandit with the exact policy gradient comes to teacher^scale reference^(1 - scale), normalised."""
    teacher, reference = (0.5 * draw(6)).log_softmax(-1), (0.5 * draw(6, seed=1)).log_softmax(-1)
    z = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    for _ in range(1000):
        logp = z.log_softmax(-1)
        advantage = dense_advantage(teacher, logp.detach(), reference, scale)
        (slope,) = torch.autograd.grad((logp.exp().detach() * reinforce(logp, advantage)).sum(), z)
        z = (z - slope).detach().requires_grad_()
    target = (scale * teacher + (1 - scale) * reference).log_softmax(-1)
    torch.testing.assert_close(z.detach().log_softmax(-1), target, atol=1e-4, rtol=0)


nan = math.nan


def test_returns_and_advantages_of_turns_written_out() -> None:
    rewards = torch.tensor([[[0.0, 1.0], [0.0, 0.0], [1.0, nan], [0.0, 1.0]], [[1.0, nan]] * 3 + [[0.0, 1.0]]])
    returns = turn_returns(rewards, 0.1)
    expected = torch.tensor([[[0.1, 1.0], [0.0, 0.0], [1.0, nan], [0.1, 1.0]], [[1.0, nan]] * 3 + [[0.1, 1.0]]])
    torch.testing.assert_close(returns, expected, equal_nan=True)
    assert torch.equal(rewards.isnan(), returns.isnan())  # and the rewards are as they were
    advantage = turn_advantage(returns)
    torch.testing.assert_close(advantage[0, :, 0], torch.tensor([-0.2, -0.3, 0.7, -0.2]))
    torch.testing.assert_close(advantage[0, :, 1], torch.tensor([1 / 3, -2 / 3, 0.0, 1 / 3]))
    torch.testing.assert_close(advantage[1, :, 0], torch.tensor([0.225, 0.225, 0.225, -0.675]))
    assert not advantage[1, :, 1].any()  # one second turn is its own mean
    three = turn_returns(torch.tensor([[1.0, 2.0, 4.0], [1.0, 2.0, nan]]), 0.5)
    torch.testing.assert_close(three, torch.tensor([[3.0, 4.0, 4.0], [2.0, 2.0, nan]]), equal_nan=True)


def test_one_turn_is_the_plain_group() -> None:
    rewards = draw(3, 5, 1)
    torch.testing.assert_close(turn_advantage(turn_returns(rewards, 0.3))[..., 0], group_advantage(rewards[..., 0], "none"))
    assert not cross_turn_advantage(rewards).any()


def test_a_later_answer_is_measured_by_the_first_turn() -> None:
    rewards = torch.tensor([[[0.0, 1.0], [0.0, 0.0], [1.0, nan], [0.0, 1.0]]])
    torch.testing.assert_close(cross_turn_advantage(rewards), torch.tensor([[0.75, -0.25, 0.0, 0.75]]))
    three = torch.tensor([[[0.0, 0.5, nan], [0.0, 0.0, 1.0]]])  # the last turn that happened
    torch.testing.assert_close(cross_turn_advantage(three), torch.tensor([[0.5, 1.0]]))


# -- losses ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("low", "high"), [(0.2, 0.2), (0.2, 0.28), (0.0, 0.0)])
def test_the_clipped_loss_case_by_case(low: float, high: float) -> None:
    for ratio in (0.5, 0.81, 1.0, 1.19, 1.25, 3.0):
        for a in (-2.0, 0.0, 1.5):
            logp = torch.tensor(math.log(ratio) - 1.0, dtype=torch.float64, requires_grad=True)
            value = clipped(logp, torch.tensor(-1.0, dtype=torch.float64), torch.tensor(a, dtype=torch.float64), low, high)
            bounded = min(max(ratio, 1 - low), 1 + high)
            assert float(value.detach()) == pytest.approx(-min(ratio * a, bounded * a))
            (slope,) = torch.autograd.grad(value, logp)
            beyond = (a > 0 and ratio > 1 + high) or (a < 0 and ratio < 1 - low)
            if abs(ratio - 1) > 1e-9 or low > 0:
                assert float(slope) == pytest.approx(0.0 if beyond else -ratio * a)


def test_the_anchor_between_the_old_student_and_the_teacher() -> None:
    old, teacher, logp = (draw(5, seed=i).abs().neg() for i in range(3))
    assert torch.equal(anchored(old, teacher, 1.0), old)
    torch.testing.assert_close(anchored(old, teacher, 0.0), teacher)
    ratio = (logp - anchored(old, teacher, 0.3)).exp()
    torch.testing.assert_close(ratio, (logp - old).exp() ** 0.3 * (logp - teacher).exp() ** 0.7)
    ruled_out = torch.full((5,), -torch.inf, dtype=torch.float64)
    assert torch.equal(anchored(old, ruled_out, 1.0), old)
    torch.testing.assert_close(anchored(old, ruled_out, 0.5), old - 10.0)
    assert anchored(old.bfloat16(), teacher.bfloat16(), 0.5).isfinite().all()


def test_the_anchor_decides_what_is_learned() -> None:
    """On fresh answers: rewarded tokens that the teacher dislikes and punished ones that it likes do not move."""
    old = torch.full((4,), -1.0, dtype=torch.float64)
    teacher, a = torch.tensor([-3.0, 0.0, -3.0, 0.0]).double(), torch.tensor([1.0, 1.0, -1.0, -1.0]).double()
    logp = old.clone().requires_grad_()
    (slope,) = torch.autograd.grad(clipped(logp, anchored(old, teacher, 0.5), a).sum(), logp)
    torch.testing.assert_close(slope, torch.tensor([0.0, -math.exp(-0.5), math.exp(1.0), 0.0]).double())


def test_importance_sampling_is_the_policy_gradient_at_the_old_weights_and_unbounded_elsewhere() -> None:
    logp, a = draw(3, 5).requires_grad_(), draw(3, 5, seed=1)
    mine = torch.autograd.grad(importance(logp, logp, a).sum(), logp)[0]
    torch.testing.assert_close(mine, torch.autograd.grad(reinforce(logp, a).sum(), logp)[0])
    old = draw(3, 5, seed=2)
    torch.testing.assert_close(importance(logp, old, a), -a * logp.exp() / old.exp())
    # right in the mean: tokens that `old` drew give the other policy's gradient
    q, z = draw(6).log_softmax(-1), draw(6, seed=1).requires_grad_()
    b = draw(6, seed=2)
    (found,) = torch.autograd.grad((q.exp() * importance(z.log_softmax(-1), q, b)).sum(), z)
    (exact,) = torch.autograd.grad(-(z.softmax(-1) * b).sum(), z)
    torch.testing.assert_close(found, exact)


def test_at_the_old_weights_it_is_the_policy_gradient() -> None:
    logp, a = draw(3, 5).requires_grad_(), draw(3, 5, seed=1)
    mine = torch.autograd.grad(clipped(logp, logp, a).sum(), logp)[0]
    torch.testing.assert_close(mine, torch.autograd.grad(reinforce(logp, a).sum(), logp)[0])


def test_nothing_flows_through_the_old_the_advantage_or_the_reference() -> None:
    logp = draw(4).requires_grad_()
    for make in (lambda x: clipped(logp, x, draw(4)), lambda x: clipped(logp, logp.detach(), x),
                 lambda x: reinforce(logp, x), lambda x: k3(logp, x), lambda x: importance(logp, x, draw(4)),
                 lambda x: importance(logp, logp.detach(), x)):  # fmt: skip
        other = draw(4, seed=3).requires_grad_()
        make(other).sum().backward()
        assert other.grad is None


def test_k3_is_the_divergence_in_the_mean_and_never_negative() -> None:
    q, p = draw(7).softmax(-1), draw(7, seed=1).softmax(-1)
    values = k3(q.log(), p.log())
    assert bool((values >= 0).all())
    assert float((q * values).sum()) == pytest.approx(float((q * (q / p).log()).sum()))
    assert not k3(q.log(), q.log()).any()


def test_gradients_in_double() -> None:
    fixed = draw(6)
    for loss in (
        lambda x: clipped(x, fixed * 0.7, fixed.sin()),
        lambda x: k3(x, fixed * 0.7),
        lambda x: reinforce(x, fixed),
        lambda x: importance(x, fixed * 0.7, fixed.sin()),
    ):
        assert torch.autograd.gradcheck(loss, (draw(6).requires_grad_(),))


def test_large_ratios_stay_where_they_belong() -> None:
    logp = torch.tensor([0.0, -200.0, -1e4], requires_grad=True)
    values = clipped(logp, torch.tensor([-60.0, 0.0, 0.0]), torch.tensor([1.0, 1.0, -1.0]))
    values.sum().backward()
    assert torch.isfinite(values).all() and torch.isfinite(logp.grad).all()  # type: ignore[arg-type]
    assert float(values[0].detach()) == pytest.approx(-1.2) and float(logp.grad[0]) == 0.0  # type: ignore[index]


@pytest.mark.parametrize(("kind", "average"), [("grpo", "answer"), ("bnpo", "token")])
def test_trl_agrees(kind: str, average: str) -> None:
    """GRPO's whole loss over ragged answers, value and gradient, as TRL's trainer computes it."""
    trainer = pytest.importorskip("trl.trainer.grpo_trainer").GRPOTrainer
    logp, old, ref, a = (draw(4, 6, seed=i, dtype=torch.float32) * 0.3 for i in range(4))
    a, mask = a[:, 0], (torch.arange(6) < torch.tensor([[6], [3], [1], [4]])).float()
    mine, theirs = logp.clone().requires_grad_(), logp.clone().requires_grad_()
    values = clipped(mine, old, a[:, None], 0.2, 0.28) + 0.04 * k3(mine, ref)
    loss = (values * mask).sum() / mask.sum()
    if average == "answer":
        loss = (values * mask / mask.sum(-1, keepdim=True)).sum() / 4
    fake = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *args, **kwargs: (theirs, torch.zeros(4, 6), None), beta=0.04,
        loss_type=kind, epsilon_low=0.2, epsilon_high=0.28, importance_sampling_level="token", top_entropy_quantile=1.0,
        off_policy_mask_threshold=None, aux_loss_enabled=False, use_vllm=False, current_gradient_accumulation_steps=1,
        _entropy_bonus_enabled=False, _metrics={"train": defaultdict(list)}, model=SimpleNamespace(training=True),
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False),
        accelerator=SimpleNamespace(gather=lambda x: x, reduce=lambda x, reduction: x),
    )  # fmt: skip
    ids = torch.zeros(4, 6, dtype=torch.long)
    inputs = {
        "prompt_ids": ids, "prompt_mask": ids, "completion_ids": ids, "completion_mask": mask, "advantages": a,
        "old_per_token_logps": old, "ref_per_token_logps": ref,
    }  # fmt: skip
    expected = trainer._compute_loss(fake, None, inputs)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(mine.grad, theirs.grad)
    assert mine.grad.abs().max() > 0  # type: ignore[union-attr]


# -- through the head --------------------------------------------------------------------------------------------------


def heads(dtype: torch.dtype = torch.float64, scale: float = 1.0) -> tuple[HeadLogits, torch.Tensor, torch.Tensor]:
    hidden, weight = draw(3, 5, 8, dtype=dtype).requires_grad_(), draw(11, 8, seed=1, dtype=dtype).requires_grad_()
    labels = torch.arange(15).view(3, 5) % 11
    mask = (torch.arange(5) < torch.tensor([[5], [2], [4]])).to(dtype)
    return HeadLogits(hidden * scale, weight), labels, mask


def losses(old: torch.Tensor, a: torch.Tensor, ref: torch.Tensor) -> dict[str, Any]:
    return {
        "clipped": lambda logp: clipped(logp, old, a) + 0.1 * k3(logp, ref),
        "first": lambda logp: clipped(logp, logp, a),
        "reinforce": lambda logp: reinforce(logp, a),
        "square": lambda logp: logp**2,
    }


@pytest.mark.parametrize("name", ["clipped", "first", "reinforce", "square"])
@pytest.mark.parametrize("dense", [False, True])
def test_any_loss_of_the_drawn_tokens_flows_back_rightly(name: str, dense: bool) -> None:
    head, labels, mask = heads()
    at = head.dense().log_softmax(-1).gather(-1, labels[..., None])[..., 0]
    old, a, ref = at.detach() + 0.3 * draw(3, 5, seed=5), draw(3, 5, seed=2), at.detach() + draw(3, 5, seed=3)
    loss = losses(old, a, ref)[name]
    weight = mask * (0.2 + draw(3, 5, seed=4).abs())
    student: Any = head.dense() if dense else head
    values = of_tokens(student, labels, loss, weight=weight)
    expected = loss(at) * weight
    torch.testing.assert_close(values.detach(), expected.detach())
    leaves = [x for x in (head.hidden, head.weight)]
    found = torch.autograd.grad(values.sum(), leaves, retain_graph=True)
    for mine, theirs in zip(found, torch.autograd.grad(expected.sum(), leaves), strict=True):
        torch.testing.assert_close(mine, theirs)
        assert mine.abs().max() > 0


def test_masked_tokens_may_hold_anything() -> None:
    head, labels, mask = heads()
    rotten = replace(head, hidden=torch.where(mask[..., None] > 0, head.hidden, torch.nan))
    a = torch.where(mask > 0, draw(3, 5, seed=2), torch.nan)
    values = of_tokens(rotten, labels, lambda logp: reinforce(logp, a), weight=mask)
    assert torch.isfinite(values).all() and not values[mask == 0].any()
    whole = of_tokens(head, labels, lambda logp: reinforce(logp, draw(3, 5, seed=2)), weight=mask)
    torch.testing.assert_close(values, whole)
    negative = of_tokens(head, labels.masked_fill(mask == 0, -100), lambda logp: reinforce(logp, draw(3, 5, seed=2)))
    torch.testing.assert_close(negative, whole)
    (slope,) = torch.autograd.grad(values.sum(), head.weight)
    assert torch.isfinite(slope).all()


def test_no_token_and_no_gradient_are_fine() -> None:
    head, labels, _ = heads()
    none = of_tokens(head[:0], labels[:0], lambda logp: logp)
    assert none.shape == (0, 5)
    with torch.no_grad():
        values = of_tokens(head, labels, lambda logp: -logp)
    torch.testing.assert_close(values, -token_logp(head, labels).detach())
    assert not values.requires_grad


@pytest.mark.parametrize(("dtype", "scale"), [(torch.bfloat16, 1.0), (torch.float32, 300.0)])
def test_bfloat16_and_large_logits_stay_finite(dtype: torch.dtype, scale: float) -> None:
    head, labels, mask = heads(dtype, scale)
    values = of_tokens(head, labels, lambda logp: clipped(logp, logp, torch.ones(3, 5)), weight=mask)
    slopes = torch.autograd.grad(values.sum(), [head.hidden, head.weight])
    assert torch.isfinite(values).all() and all(torch.isfinite(s).all() for s in slopes)


def test_a_token_whose_loss_is_flat_is_not_projected(monkeypatch: pytest.MonkeyPatch) -> None:
    head, labels, mask = heads()
    seen: list[int] = []
    real = policy.cross_entropy
    monkeypatch.setattr(
        policy, "cross_entropy", lambda *a, weight: seen.append(int((weight != 0).sum())) or real(*a, weight=weight)
    )
    far = token_logp(head, labels).detach() - 1.0  # every ratio is e, beyond the clip where the advantage is positive
    a = torch.tensor([1.0, -1.0, 1.0, 1.0, 1.0])
    of_tokens(head, labels, lambda logp: clipped(logp, far, a.expand(3, 5)), weight=mask)
    assert seen == [3]  # the second token of each row


def test_temperature_divides_the_logits() -> None:
    head, _, _ = heads()
    biased = replace(head, bias=draw(11, seed=7), scale=1.7)
    for logits in (head, biased):
        torch.testing.assert_close(tempered(logits, 1.3).dense(), logits.dense() / 1.3)  # type: ignore[union-attr]
        torch.testing.assert_close(tempered(logits.dense(), 1.3), logits.dense() / 1.3)
        assert tempered(logits, 1.0) is logits
    with pytest.raises(ValueError, match="caps its logits"):
        tempered(replace(head, softcap=30.0), 1.1)
