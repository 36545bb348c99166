"""Losses on answers of which some are better: functions of one score for each sequence, one value a pair or a set.

A score is the log-probability of a whole answer: the sum over its tokens (DPO) or their mean (SimPO, REDI). For pairs they
are `[N]`, chosen first, rejected second; for sets of n answers to one prompt `[N, n]`. Nothing is reduced.

How much a token weighs depends here on the score of its whole sequence, which is known only after all of its tokens
have been read. `along_scores` therefore reads the logits twice, the backbone once: without gradient for the scores, then
as one weighted sum over tokens. With `HeadLogits` that makes four matrix products, where differentiating through
`sequence_logp` makes six: the fused pass would take its gradient with the wrong weights first, and once more on the
way back.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from stillhouse.core.signal import Logits

from .divergences import token_logp


def sequence_logp(logits: Logits, labels: Tensor, *, weight: Tensor, mean: bool = False) -> Tensor:
    """The log-probability of every row's counted tokens, `[B]`: their sum, or with `mean` the sum by how many there are.

    logits [B, T, V], labels and weight [B, T]; a token of weight 0 is not looked at. A row without any has the score 0.
    """
    total = token_logp(logits, labels, weight=weight).sum(-1)
    return total / _lengths(labels, weight).to(total.dtype) if mean else total


def along_scores(
    objective: Callable[[Tensor], Tensor], logits: Logits, labels: Tensor, *, weight: Tensor, mean: bool = False
) -> tuple[Tensor, Tensor]:
    """The sum of `objective` over the scores `[B]` of `sequence_logp`, and those scores without gradient.

    Value and first derivatives are those of `objective(sequence_logp(...)).sum()`; second derivatives are not.
    """
    with torch.no_grad():
        scores = sequence_logp(logits, labels, weight=weight, mean=mean)
    with torch.enable_grad():
        leaf = scores.clone().requires_grad_()
        value = objective(leaf).sum()
        (slope,) = torch.autograd.grad(value, leaf)
    if mean:
        slope = slope / _lengths(labels, weight).to(slope.dtype)
    pulled = token_logp(logits, labels, weight=weight * slope.unsqueeze(-1)).sum()
    return value.detach() + (pulled - pulled.detach()), scores


def dpo(
    chosen: Tensor, rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, *, beta: float = 0.1
) -> Tensor:
    """-log sigmoid(beta ((s_w - r_w) - (s_l - r_l))), Rafailov et al. 2023, Eq. 7; scores are sums over tokens.

    s is the student's score, r the reference's, w the chosen and l the rejected answer. log 2 where s = r.
    """
    return -F.logsigmoid(beta * ((chosen - reference_chosen) - (rejected - reference_rejected)))


def simpo(chosen: Tensor, rejected: Tensor, *, beta: float = 2.0, gamma: float = 1.0) -> Tensor:
    """-log sigmoid(beta (s_w - s_l) - gamma), Meng et al. 2024, Eq. 6; scores are means over tokens, no reference."""
    return -F.logsigmoid(beta * (chosen - rejected) - gamma)


def redi(chosen: Tensor, rejected: Tensor, *, alpha: float = 0.8, gamma: float = 0.0, detached: bool = False) -> Tensor:
    """-s_w + alpha exp(gamma s_l) s_l; scores are means over tokens, no reference.

    alpha = 0 is the length-normalised negative log-likelihood of the chosen answer. With gamma > 0 an answer that is
    unlikely already is pushed down less. The factor is differentiated too unless `detached`: the slope in s_l is then
    alpha exp(gamma s_l) (1 + gamma s_l), which turns round at s_l = -1 / gamma, so that answers below are pulled up.
    """
    factor = (gamma * (rejected.detach() if detached else rejected)).exp() if gamma else 1.0
    return -chosen + alpha * factor * rejected


def listwise(
    scores: Tensor,
    target: Tensor,
    reference: Tensor | None = None,
    *,
    tau: float | Tensor = 1.0,
    present: Tensor | None = None,
) -> Tensor:
    """KL(target || softmax((scores - reference) / tau)) over n answers to each prompt, `[N, n]` to `[N]` (ADPO).

    `target` is a distribution over the answers, to which nothing flows back; `reference` their anchored scores (None: 0),
    `tau` a number or one for each set `[N]`. Of sets of unequal size `present` [N, n] says what is there. n = 2 with the
    target (1, 0) is `dpo` with beta = 1 / tau. 0 for an empty set.
    """
    scores = _float(scores)
    target = target.detach().to(scores.dtype)
    anchored = scores if reference is None else scores - reference.detach()
    anchored = anchored / (tau.detach().unsqueeze(-1) if isinstance(tau, Tensor) else tau)
    if present is not None:
        anchored, target = anchored.masked_fill(~present, -torch.inf), target.where(present, 0.0)
        anchored = anchored.masked_fill(~present.any(-1, keepdim=True), 0.0)
    logp = anchored.log_softmax(-1).masked_fill(target == 0, 0.0)  # 0 log 0 = 0, also where p is 0
    return (torch.xlogy(target, target) - target * logp).sum(-1)


def plackett_luce(scores: Tensor) -> Tensor:
    """-log of the probability of a ranking, `[*N, K]` scores in rank order (the best first) to `[*N]` (Plackett 1975).

    sum_i [ log sum_{j >= i} exp(s_j) - s_i ]: of what is left, the next one is drawn by softmax. A constant added to all
    scores changes nothing; K = 2 is `-log sigmoid(s_1 - s_2)`; no item and a single one give 0.
    """
    scores = _float(scores)
    left = scores.flip(-1).logcumsumexp(-1).flip(-1)
    return (left - scores).sum(-1)


def _float(scores: Tensor) -> Tensor:
    """At least float32."""
    return scores.float() if scores.dtype in (torch.bfloat16, torch.float16) else scores


def _lengths(labels: Tensor, weight: Tensor) -> Tensor:
    """How many tokens of each row count, at least 1, `[B]`."""
    return (weight * (labels >= 0)).sum(-1).clamp(min=1)
