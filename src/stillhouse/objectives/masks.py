"""Compare maps group by group, each group looking at some channels or some positions only.

Student first, teacher second, maps [B, C, H, W] of one shape; one value per item [B]; no gradient goes to the teacher,
one goes to the masks; computed in at least float32. Masks M between 0 and 1 come as their logarithms [B, M, P], so that
those that have all but closed stay finite.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .divergences import log_softmax
from .maps import wide

FAR = 40.0  # nats between two masks' largest values, beyond which they share nothing


def channel_gap(student: Tensor, teacher: Tensor, log_masks: Tensor) -> Tensor:
    """mean_m sum_c M_mc mean_p (s_cp - t_cp)² / sum_c M_mc, [B], for masks of channels [B, M, C]."""
    return _grouped((wide(student) - wide(teacher).detach()).square().mean((2, 3)), log_masks)


def position_gap(student: Tensor, teacher: Tensor, log_masks: Tensor) -> Tensor:
    """mean_m sum_p M_mp mean_c (s_cp - t_cp)² / sum_p M_mp, [B], for masks of positions [B, M, H W]."""
    return _grouped((wide(student) - wide(teacher).detach()).square().mean(1).flatten(1), log_masks)


def overlap(log_masks: Tensor) -> Tensor:
    """How much the masks of an item look at the same: the mean of 2 M_i·M_j / (|M_i|² + |M_j|²) over i != j, [B].

    1 for equal masks, 0 for masks that share nothing, and for one mask alone.
    """
    log_masks = wide(log_masks)
    # The formula holds for masks divided by constants, here by their largest values, which are then put back.
    most = log_masks.detach().amax(2, keepdim=True)
    masks = (log_masks - most).exp()
    product = masks @ masks.mT
    square = product.diagonal(dim1=1, dim2=2)
    larger = (most - most.mT).clamp(-FAR, FAR).exp()
    dice = 2 * product / (larger * square.unsqueeze(2) + square.unsqueeze(1) / larger)
    count = log_masks.shape[1]
    apart = ~torch.eye(count, dtype=torch.bool, device=masks.device)
    return dice.where(apart, 0.0).sum((1, 2)) / max(count * (count - 1), 1)


def _grouped(gaps: Tensor, log_masks: Tensor) -> Tensor:
    """The mean over groups of the mean of gaps [B, P], weighted by each group's mask [B, M, P]."""
    return (log_softmax(log_masks).exp() @ gaps.unsqueeze(2)).squeeze(2).mean(1)
