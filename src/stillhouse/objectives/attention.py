"""How the tokens of a text relate in a layer's queries, keys or values, in the student as in the teacher.

Student first, teacher second; widths and numbers of heads may differ, as both are cut anew into the same number of relation
heads. Projections [B, T, width] in, `[B]` out: the mean over relation heads and real tokens. `real` [B, T] says which
positions are no padding; what stands at the others, NaN too, touches neither value nor gradient. A text without a real
token has value 0. No gradient goes to the teacher; computed in at least float32.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .divergences import ForwardKL, log_softmax
from .latent import score_gap
from .relations import relation_matrix

Metric = Literal["mse", "kl"]


def cut_anew(x: Tensor, heads: int) -> Tensor:
    """`[B, T, width]` as `[B, heads, T, width // heads]`: neighbouring channels are a head, what is left over is dropped."""
    size = x.shape[-1] // heads
    if size == 0:
        raise ValueError(f"{x.shape[-1]} channels cannot be cut into {heads} relation heads; take fewer")
    return x[..., : heads * size].reshape(*x.shape[:-1], heads, size).transpose(1, 2)


def relation_gap(student: Tensor, teacher: Tensor, real: Tensor, *, heads: int = 12, metric: Metric = "mse") -> Tensor:
    """The distance of R = X X^T / sqrt(channels of a head), X being one relation head's [T, channels]; [B].

    mse: mean square difference of R over pairs of real tokens (AutoDistil). kl: KL(softmax(R_t) ‖ softmax(R_s)), each row
    over the real tokens, mean over rows (MiniLMv2, Wang et al. 2021, Eq. 4).
    """
    there = real.unsqueeze(-1)
    own, other = (relation_matrix(cut_anew(x.where(there, 0.0), heads), "attn_rel") for x in (student, teacher.detach()))
    if metric == "mse":
        return score_gap(own, other, real)
    keys = real[:, None, None]
    low = torch.finfo(own.dtype).min / 2  # not -inf: a text may have no real token at all
    log_q, log_p = (log_softmax(r.masked_fill(~keys, low)).where(keys, 0.0) for r in (own, other))
    rows = (ForwardKL().term(log_q, log_p) * keys).sum(-1)  # [B, heads, T]
    seen = real.unsqueeze(1).expand_as(rows)
    return rows.where(seen, 0.0).flatten(1).sum(1) / seen.flatten(1).sum(1).clamp(min=1)
