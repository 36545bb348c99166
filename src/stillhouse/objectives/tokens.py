"""How the tokens of a batch relate: to their nearest neighbours, to their counterparts in the teacher, within their
item.

Student first, teacher second; no gradient goes to the teacher; computed in at least float32. One value per token, or
per item where it says so. The formulas are those of token-level relationship graphs (Zhang et al. 2023), as far as they
are known.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .contrastive import info_nce
from .divergences import ForwardKL
from .maps import each_item, unit, wide
from .relations import log_rows, relation_matrix


def neighbour_graph(tokens: Tensor, neighbours: int = 8) -> Tensor:
    """A [S, S] for tokens [S, D]: exp(-d_ij² / (2 sigma)) if j is one of the `neighbours` nearest of i, else 0.

    d_ij is the distance of the tokens at length 1, sigma the mean of d² over all pairs of neighbours, so that no scale is
    left. A token is not its own neighbour. Tokens that coincide have an edge of 1, and one token alone has none.
    """
    x = unit(tokens)
    count = min(neighbours, len(x) - 1)
    if count < 1:
        return x @ x.T * 0.0
    # Squares, not distances: their slope is finite where tokens coincide.
    square = x.square().sum(1)
    d = (square.unsqueeze(1) + square - 2 * x @ x.T).clamp(min=0.0)
    itself = torch.eye(len(x), dtype=torch.bool, device=x.device)
    near = d.detach().masked_fill(itself, torch.inf).topk(count, largest=False).indices
    edges = d.gather(1, near)
    sigma = edges.mean()
    return torch.zeros_like(d).scatter(1, near, (-edges / (2 * sigma.where(sigma > 0, 1.0))).exp())


def graph_gap(student: Tensor, teacher: Tensor, *, neighbours: int = 8) -> Tensor:
    """KL(softmax_j A_t ‖ softmax_j A_s) of each token's row of the two graphs, [S], for tokens [S, d] and [S, D]."""

    def values(student: Tensor, teacher: Tensor) -> Tensor:
        a_s, a_t = (log_rows(neighbour_graph(x, neighbours)) for x in (student, teacher))
        return ForwardKL().term(a_s, a_t).sum(-1)

    return each_item(values, student, teacher, weight=None)


def counterpart_gap(student: Tensor, teacher: Tensor, *, temperature: float = 0.07) -> Tensor:
    """-log exp(cos(s_i, t_i) / T) / sum_j exp(cos(s_i, t_j) / T), [S], for tokens of one width [S, D]."""
    return info_nce(unit(student), unit(teacher.detach()), temperature=temperature)


def inner_gap(student: Tensor, teacher: Tensor, *, weight: Tensor | None = None) -> Tensor:
    """The mean square difference of softmax(F F^T / sqrt(d)) within each item, [B], for tokens [B, N, d] and [B, N, D]."""

    def values(student: Tensor, teacher: Tensor) -> Tensor:
        own, other = (relation_matrix(wide(x), "attn_rel").softmax(-1) for x in (student, teacher))
        return (own - other).square().flatten(1).mean(1)

    return each_item(values, student, teacher, weight=weight)
