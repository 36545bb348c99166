"""What a training item does to a loss on other items: influence functions of a network's last layer.

The layer maps features h [D], a 1 behind them, to logits z = W h. An item whose loss has the gradient r = dl/dz has the
gradient r hᵀ in W [V, D], so everything here is made of residuals [n, V] and features [n, D].
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def extended(features: Tensor) -> Tensor:
    """Features [n, D - 1] with a 1 behind them, for the bias."""
    return torch.cat([features, torch.ones_like(features[..., :1])], -1)


def residuals(student: Tensor, teacher: Tensor, labels: Tensor, soft: float, temperature: float) -> Tensor:
    """dl/dz [n, V] of (1 - soft) CE(y, q) + soft T² KL(p_T ‖ q_T) at logits [n, V]; a negative label has no first
    part."""
    known = (labels >= 0).to(student.dtype).unsqueeze(-1)
    hot = torch.nn.functional.one_hot(labels.clamp(min=0), student.shape[-1]).to(student.dtype)
    hard = (student.softmax(-1) - hot) * known
    gap = (student / temperature).softmax(-1) - (teacher / temperature).softmax(-1)
    return (1 - soft) * hard + soft * temperature * gap


def curved(direction: Tensor, probabilities: Tensor, features: Tensor, damping: float) -> Tensor:
    """H V [V, D] for a direction V: H is the Hessian of the mean cross-entropy in W at these items, plus `damping` I."""
    changed = features @ direction.T
    changed = probabilities * (changed - (probabilities * changed).sum(-1, keepdim=True))
    return changed.T @ features / len(features) + damping * direction


def solved(
    gradient: Tensor, probabilities: Tensor, features: Tensor, damping: float, *, steps: int = 100, tolerance: float = 1e-8
) -> Tensor:
    """H^-1 g [V, D] by conjugate gradients: at most `steps`, or until the residual is `tolerance` of g."""
    found = torch.zeros_like(gradient)
    left, along = gradient.clone(), gradient.clone()
    size = start = left.square().sum()
    for _ in range(steps):
        if float(size) <= tolerance**2 * float(start):
            break
        bent = curved(along, probabilities, features, damping)
        step = size / (along * bent).sum()
        found, left = found + step * along, left - step * bent
        size, before = left.square().sum(), size
        along = left + size / before * along
    return found


def influence(solution: Tensor, residual: Tensor, features: Tensor) -> Tensor:
    """phi [n] = -g_valᵀ H^-1 (r hᵀ): how the validation loss moves per unit of weight put on an item; below 0 is good.

    Taking an item of n out, of weight 1 / n, moves it by about -phi / n.
    """
    return -(residual * (features @ solution.T)).sum(-1)


def ranked_right(scores: Tensor, good: Tensor) -> float:
    """The area under the ROC curve: how often a good item has the larger score than one that is not; ties count half."""
    found: Any = scores.double()  # torch leaves `unique` untyped
    order: Tensor = found.unique(return_inverse=True)[1]
    counts = order.bincount().double()
    middle = counts.cumsum(0) - (counts - 1) / 2  # the mean rank of equal scores
    ranks, many = middle[order], int(good.sum())
    fewer = len(good) - many
    if not many or not fewer:
        return float("nan")
    return float((ranks[good].sum() - many * (many + 1) / 2) / (many * fewer))
