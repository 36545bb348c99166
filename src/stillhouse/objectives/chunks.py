"""Likelihoods of chunks of text: what models with different tokenizers can be compared by."""

from __future__ import annotations

import torch
from torch import Tensor

from stillhouse.core.signal import Logits

from .divergences import token_logp


def chunk_logp(logp: Tensor, chunk: Tensor, chunks: int) -> Tensor:
    """The sum over the tokens of each chunk, [chunks], of token values [*N]; tokens of chunk -1 are left out."""
    inside = chunk >= 0
    return logp.new_zeros(chunks).index_add_(0, chunk[inside], logp[inside])


def binarised_kl(student: Tensor, teacher: Tensor, tau: float = 100.0) -> Tensor:
    """tau (p log(p / q) + (1 - p) log((1 - p) / (1 - q))) of each chunk, [K]; log p = teacher / tau, log q = student / tau.

    Whether the text goes on with this chunk or with any other, both likelihoods tempered (ALM, Minixhofer et al. 2025).
    `student` and `teacher` are log-probabilities [K], at most 0. 0 where they agree; finite where one is 0. The factor tau
    is ours: without it the loss is of the order 1 / tau.
    """
    log_p, log_q = (x.clamp(max=0.0) / tau for x in (teacher.detach(), student))
    rest_p, rest_q = _log_rest(log_p), _log_rest(log_q)
    p = log_p.exp()
    return tau * (p * (log_p - log_q) + (1 - p) * (rest_p - rest_q))


def _log_rest(log_p: Tensor) -> Tensor:
    """log(1 - p), kept above log 1e-12: a chunk of likelihood 1 leaves nothing."""
    return torch.log(-torch.expm1(log_p.clamp(max=-1e-12)))


def along_chunks(
    student: Logits, labels: Tensor, chunk: Tensor, teacher: Tensor, *, weight: Tensor, tau: float = 100.0
) -> tuple[Tensor, Tensor]:
    """The sum of `binarised_kl` over the chunks, and the student's chunk log-probabilities [K] without gradient.

    student [*N, V], labels and chunk [*N], teacher [K]. The logits are read twice, the backbone once: how steep a chunk's
    loss is has to be known before the one pass that carries the gradient (see `preference.along_scores`).
    """
    with torch.no_grad():
        likely = chunk_logp(token_logp(student, labels, weight=weight), chunk, len(teacher))
    with torch.enable_grad():
        leaf = likely.clone().requires_grad_()
        value = binarised_kl(leaf, teacher, tau).sum()
        (slope,) = torch.autograd.grad(value, leaf)
    steep = torch.where(chunk >= 0, slope[chunk.clamp(min=0)], 0.0) if len(slope) else torch.zeros_like(weight)
    pulled = token_logp(student, labels, weight=weight * steep.to(weight.dtype)).sum()
    return value.detach() + (pulled - pulled.detach()), likely
