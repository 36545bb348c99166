"""Learning from rewards: advantages within a group of answers, clipped policy losses, and their price per token.

Everywhere `[*N]` values per token, no reduction. `logp` is the student's log-probability of the token that was drawn,
`old` the same under the weights that drew it, A the token's advantage; nothing flows through the last two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from stillhouse.core.signal import HeadLogits, Logits

from .divergences import cross_entropy, token_logp

Norm = Literal["std", "none", "leave_one_out"]
EPSILON = 1e-4  # beside the standard deviation of a group


def group_advantage(rewards: Tensor, norm: Norm = "std") -> Tensor:
    """How much better each answer is than its group, `[N, G]` rewards to `[N, G]` advantages.

    `std`: less the group's mean, over its standard deviation (unbiased, plus 1e-4; GRPO, Shao et al. 2024, section
    4.1.2). `none`: less the mean (Liu et al. 2025, arXiv 2503.20783). `leave_one_out`: less the mean of the others
    (RLOO, Ahmadian et al. 2024, arXiv 2402.14740). A group whose answers are all alike has advantage 0.
    """
    size = rewards.shape[-1]
    if size < 2:
        raise ValueError("a group needs at least two answers to compare")
    centred = rewards - rewards.mean(-1, keepdim=True)
    alike = rewards.amax(-1, keepdim=True) == rewards.amin(-1, keepdim=True)
    centred = centred.masked_fill(alike, 0.0)  # exactly: the mean of seven 0.1 is not 0.1
    if norm == "std":
        deviation = (centred.square().sum(-1, keepdim=True) / (size - 1)).sqrt()
        return centred / (deviation + EPSILON)
    return centred if norm == "none" else centred * (size / (size - 1))


def dense_advantage(teacher: Tensor, student: Tensor, reference: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """scale (teacher - reference) - (student - reference), log-probabilities of drawn tokens `[*N]` all three.

    On-policy distillation as a reward for every token; with `scale` beside 1 the teacher's reward, which is how it
    differs from the reference, is drawn out or weakened (G-OPD, arXiv 2602.12125). At 1 the reference cancels and is
    not read. Where policies move up this advantage, they come to teacher^scale reference^(1 - scale), normalised.
    """
    gain = teacher - student
    if scale == 1.0:
        return gain
    if reference is None:
        raise ValueError("a reward that is scaled needs a reference to be told from")
    return gain + (scale - 1.0) * (teacher - reference)


def turn_returns(rewards: Tensor, discount: float = 1.0) -> Tensor:
    """R_k = r_k + discount R_(k+1) of every turn, `[*N, turns]` to the same; a turn that did not happen is nan in both."""
    found = rewards.clone()
    for turn in range(rewards.shape[-1] - 2, -1, -1):
        found[..., turn] += discount * found[..., turn + 1].nan_to_num(0.0)
    return found


def turn_advantage(returns: Tensor) -> Tensor:
    """Each turn's return less the mean of the same turn in the group, `[N, G, turns]` to the same.

    A turn that did not happen (nan) has advantage 0 and is no part of the mean; one that happened once in its group is
    its own mean, hence 0.
    """
    return (returns - returns.nanmean(1, keepdim=True)).nan_to_num(0.0)


def cross_turn_advantage(rewards: Tensor) -> Tensor:
    """What an answer to feedback is worth without it: r_last less the group's mean at the FIRST turn (RLTF, 2602.02482).

    `[N, G, turns]` to `[N, G]`: above 0 only where the later answer beats what the model can do in one turn; 0 where
    there was no second turn. The first turn always happens.
    """
    happened = ~rewards.isnan()
    last = rewards.gather(-1, happened.sum(-1, keepdim=True) - 1)[..., 0]
    gain = last - rewards[..., 0].mean(1, keepdim=True)
    return gain * (happened.sum(-1) > 1)


def clipped(logp: Tensor, old: Tensor, advantage: Tensor, low: float = 0.2, high: float = 0.2) -> Tensor:
    """- min(r A, clip(r, 1 - low, 1 + high) A) with r = exp(logp - old) (PPO, Schulman et al. 2017, Eq. 7)."""
    ratio = (logp - old.detach()).exp()
    advantage = advantage.detach()
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)


def anchored(old: Tensor, teacher: Tensor, alpha: float) -> Tensor:
    """alpha old + (1 - alpha) teacher: what RLAD's clipped ratio is taken to (arXiv 2602.22495), log-probabilities both.

    A geometric mixture that is not renormalised; alpha = 1 gives `old` itself, to the bit. The two are never taken to be
    further apart than 20 nats, so that a token that the teacher rules out gives no infinite ratio (ours).
    """
    return old + (1 - alpha) * (teacher - old).clamp(-20.0, 20.0)


def importance(logp: Tensor, old: Tensor, advantage: Tensor) -> Tensor:
    """- exp(logp - old) A: the policy gradient on tokens that other weights drew, unbounded; there `reinforce`'s."""
    return -(logp - old.detach()).exp() * advantage.detach()


def reinforce(logp: Tensor, advantage: Tensor) -> Tensor:
    """- A logp (Williams 1992): the gradient of an expectation under the weights that drew the token."""
    return -advantage.detach() * logp


def k3(logp: Tensor, reference: Tensor) -> Tensor:
    """exp(d) - d - 1 with d = reference - logp: KL(student || reference) from drawn tokens, never negative.

    Unbiased in value for tokens drawn from the student (Schulman 2020; GRPO's Eq. 4); differentiated as it stands, as
    GRPO does.
    """
    gap = reference.detach() - logp
    return gap.exp() - gap - 1


def of_tokens(student: Logits, labels: Tensor, loss: Callable[[Tensor], Tensor], *, weight: Tensor | None = None) -> Tensor:
    """`loss(log q[label])` of each item times `weight`, [*N], for any elementwise and differentiable `loss`.

    For `HeadLogits` a gradient that differs from token to token would be swept twice (see `fused`: it must know every
    item's weight before it runs). So the log-probabilities are read first, without gradient; how steep the loss is at
    them is the weight of one pass of cross-entropy. Four matrix products with the head in place of six, and a token
    whose loss is flat there (a clipped one) costs none. Right for the sum over items, which is all that engines ask.
    """
    counted = labels >= 0
    weight = counted.float() if weight is None else weight * counted
    with torch.no_grad():
        logp = token_logp(student.detach(), labels, weight=(weight != 0).float())
    with torch.enable_grad():
        at = logp.detach().requires_grad_()
        values = torch.where(weight != 0, loss(at), 0.0) * weight
        (slope,) = torch.autograd.grad(values.sum(), at)
    carrier = cross_entropy(student, labels, weight=-slope.where(weight != 0, 0.0))
    return values.detach() + (carrier - carrier.detach())


def tempered(logits: Logits, temperature: float) -> Logits:
    """The logits over `temperature`: the distribution that answers are drawn from."""
    if temperature == 1.0:
        return logits
    if not isinstance(logits, HeadLogits):
        return logits / temperature
    if logits.softcap is not None:
        raise ValueError("this model caps its logits, and a temperature would have to follow the cap: draw at 1")
    return replace(logits, scale=logits.scale / temperature)
