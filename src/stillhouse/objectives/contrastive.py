"""Tell the right partner from the wrong ones: contrastive objectives, one value per item.

Vectors are compared as they are given: `maps.unit` first where a paper compares directions (all but SLidR's pooled means).
Everything is differentiable in both sides, as both embeddings often learn: detach what should not. In at least float32 and
in log space. `weight` [B] multiplies, and an item of weight 0 is not looked at, as a negative neither.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .divergences import dense
from .fused import IMPOSSIBLE
from .maps import length, wide
from .relations import log_rows


def info_nce(
    first: Tensor,
    second: Tensor,
    *,
    temperature: float | Tensor = 0.07,
    symmetric: bool = False,
    weight: Tensor | None = None,
) -> Tensor:
    """-log exp(a_i·b_i / T) / sum_j exp(a_i·b_j / T) over the batch, [B], for [B, D] and [B, D] (van den Oord et al. 2018).

    symmetric: the mean of that and of the same with the sides exchanged, as CLIP has it. A temperature that is learned
    is a tensor without axes.
    """

    def values(first: Tensor, second: Tensor) -> Tensor:
        scores = wide(first) @ wide(second).T / temperature
        found = -log_rows(scores).diagonal()
        return (found - log_rows(scores.T).diagonal()) / 2 if symmetric else found

    return dense(values, first, second, weight=weight)


def nt_xent(first: Tensor, second: Tensor, *, temperature: float | Tensor = 0.5, weight: Tensor | None = None) -> Tensor:
    """SimCLR's loss (Chen et al. 2020, Eq. 1) for two views [B, D] of each item, the mean of its two views, [B].

    A view's negatives are the 2 B - 2 views of other items.
    """
    own = torch.arange(len(first), device=first.device)
    return supcon(torch.stack([first, second], 1), own, temperature=temperature, weight=weight)


def supcon(views: Tensor, labels: Tensor, *, temperature: float | Tensor = 0.1, weight: Tensor | None = None) -> Tensor:
    """Supervised Contrastive Learning (Khosla et al. 2020, Eq. 2, L_out) for views [B, V, D] and labels [B]; [B].

    Each view is an anchor: minus the mean over the other views of its class of log exp(z·z_p / T) / sum_(a not itself)
    exp(z·z_a / T). An item has the mean of its views; an anchor without a partner has 0 (it is 0 / 0 in the paper). The
    authors' code multiplies by T over a base temperature.
    """
    v, d = views.shape[1:]

    def values(flat: Tensor, labels: Tensor) -> Tensor:
        z, own = wide(flat.reshape(-1, d)), labels.repeat_interleave(v)
        itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
        log_q = log_rows((z @ z.T / temperature).masked_fill(itself, IMPOSSIBLE))
        partner = (own.unsqueeze(1) == own) & ~itself
        total = log_q.where(partner, 0.0).sum(1)
        return -(total / partner.sum(1).clamp(min=1)).reshape(-1, v).mean(1)

    return dense(values, views.flatten(1), labels, weight=weight)


# Contrastive Representation Distillation


def memory_nce(
    query: Tensor,
    memory: Tensor,
    index: Tensor,
    log_z: Tensor | float,
    *,
    temperature: float = 0.07,
    eps: float = 1e-7,
    weight: Tensor | None = None,
) -> Tensor:
    """One side of CRD (Tian et al. 2020), [B]: is a memory's row this item's, or drawn at random?

    query [B, D]; memory [n, D] of the other network, a constant; index [B, 1 + K], the item's own row first, then K others.
    With h = exp(query·row / T) / Z an item has -log h+ / (h+ + K/n + eps) - sum_k log (K/n) / (h_k + K/n + eps). The
    paper's loss is memory_nce(student, teacher's memory) + memory_nce(teacher, student's memory).
    """
    noise = (index.shape[1] - 1) / len(memory)
    if not noise:
        raise ValueError("the index has only the items' own rows: draw at least one negative for each, more are better")

    def values(query: Tensor, index: Tensor) -> Tensor:
        log_h = scores(query, memory, index) / temperature - log_z
        either = torch.logaddexp(log_h, log_h.new_tensor(math.log(noise + eps)))
        return either[:, 0] - log_h[:, 0] + (either[:, 1:] - math.log(noise)).sum(1)

    return dense(values, query, index, weight=weight)


def log_normaliser(
    query: Tensor, memory: Tensor, index: Tensor, *, temperature: float = 0.07, weight: Tensor | None = None
) -> Tensor:
    """log Z, a constant without axes: n times the mean of exp(query·row / T) over the rows of `index`.

    CRD's authors take it from the first batch, one for each side, and keep it. -inf if no item has a weight.
    """
    with torch.no_grad():
        if weight is not None:
            query, index = query[weight != 0], index[weight != 0]
        found = scores(query, memory, index).flatten() / temperature
        return found.logsumexp(0) - math.log(max(len(found), 1)) + math.log(len(memory))


def remembered(memory: Tensor, index: Tensor, query: Tensor, *, momentum: float = 0.5) -> Tensor:
    """The new rows `index` [B] of a memory [n, D]: momentum * old + (1 - momentum) * query [B, D], at length 1; [B, D].

    A constant. The method writes them where it changes state: `memory.index_copy_(0, index, rows)`.
    """
    with torch.no_grad():
        rows = momentum * memory[index] + (1 - momentum) * query.to(memory.dtype)
        return rows / length(rows).clamp(min=torch.finfo(rows.dtype).tiny)


def draw_negatives(own: Tensor, count: int, labels: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """For items `own` [B] the ids of themselves and of `count` items of other classes, [B, 1 + count], on their device.

    labels [n]: the class of every item; `torch.arange(n)` makes every other item a negative. Drawn evenly and
    with repetition (the authors' code draws without where there are enough): sorted by class, what may not be drawn is one
    block, which the draw jumps over.
    """
    n = len(labels)
    order = labels.argsort(stable=True)
    ranked = labels[order]
    mine = labels[own].contiguous()
    start = torch.searchsorted(ranked, mine).unsqueeze(1)
    size = torch.searchsorted(ranked, mine, right=True).unsqueeze(1) - start
    if bool((size == n).any()):
        raise ValueError("all items are of one class, so there are no negatives: give torch.arange(n) as labels")
    # The remainder of a number this large is even to one part in 2^62 / n.
    drawn = torch.randint(2**62, (len(own), count), generator=generator, device=labels.device) % (n - size)
    return torch.cat([own.unsqueeze(1), order[drawn + size * (drawn >= start)]], 1)


def scores(query: Tensor, memory: Tensor, index: Tensor) -> Tensor:
    """query_i · memory[index_ij], [B, k], without a gradient to the memory.

    By one product with the whole memory where that is less than its rows [B, k, D] would be.
    """
    query, memory = wide(query), memory.detach().to(torch.promote_types(query.dtype, torch.float32))
    if len(memory) <= index.shape[1] * memory.shape[1]:
        return (query @ memory.T).gather(1, index)
    return (memory[index] @ query.unsqueeze(-1)).squeeze(-1)
