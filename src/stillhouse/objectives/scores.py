"""Objectives of diffusion models: the denoising loss with its weightings, and the distribution-matching gradient.

Everything is said in estimates of x_0, [B, ...]. With x_t = alpha x_0 + sigma eps, score(x_t) = (alpha x0 - x_t) / sigma^2.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Weighting = Literal["x0", "eps", "v", "flow", "edm", "min_snr"]
Matching = Literal["error", "alpha_error", "kl"]


def denoising_weight(kind: Weighting, alpha: Tensor, sigma: Tensor, *, deviation: float = 1.0, most: float = 5.0) -> Tensor:
    """The factor of |x0 - target|^2 that makes it the squared error of another quantity, shaped like `alpha`.

    x0: 1. eps: snr, DDPM's simple loss. v: ((alpha^2 + sigma^2) / sigma)^2. flow: ((alpha + sigma) / sigma)^2.
    edm: snr + 1 / deviation^2 (Karras et al. 2022). min_snr: min(snr, most) (Hang et al. 2023).
    """
    snr = (alpha / sigma).square()
    if kind == "x0":
        return torch.ones_like(snr)
    if kind == "eps":
        return snr
    if kind == "v":
        return ((alpha.square() + sigma.square()) / sigma).square()
    if kind == "flow":
        return ((alpha + sigma) / sigma).square()
    if kind == "edm":
        return snr + deviation**-2
    return snr.clamp(max=most)


def denoising(student: Tensor, target: Tensor, weight: Tensor | float = 1.0) -> Tensor:
    """weight * |student - target|^2 averaged over the numbers of an item: [B]. `weight` [B, 1, ...] or a number."""
    return (weight * (student - target).square()).flatten(1).mean(1)


def matching_gradient(
    made: Tensor, fake: Tensor, real: Tensor, *, alpha: Tensor, sigma: Tensor, weight: Matching = "error"
) -> Tensor:
    """The gradient that moves what a generator made towards the real distribution, [B, ...]; no graph.

    fake and real are the two estimates of x_0 for the same noised `made`; alpha and sigma [B, 1, ...]. All are multiples
    of s_fake - s_real = alpha (fake - real) / sigma^2:

    kl: alpha (s_fake - s_real), the gradient of KL(fake || real) at that noise with respect to x_0 (DMD Eq. 7, w = 1).
    error: (fake - real) / mean|made - real|, the mean over the numbers of an item (DMD Algorithm 2, and its code).
    alpha_error: alpha times that, which is DMD's Eq. 7 with the weight of its Eq. 8. The same where alpha = 1 (EDM).

    Where the two estimates agree it is zero, also if `real` is `made` to the last bit.
    """
    made, fake, real = made.detach(), fake.detach(), real.detach()
    gap = fake - real
    if weight == "kl":
        return gap * (alpha / sigma).square()
    scale = (made - real).flatten(1).abs().mean(1).reshape(alpha.shape)
    scaled = gap / scale.clamp(min=torch.finfo(scale.dtype).tiny)
    scaled = torch.where(gap == 0, torch.zeros_like(gap), scaled)
    return alpha * scaled if weight == "alpha_error" else scaled


def follow(made: Tensor, gradient: Tensor) -> Tensor:
    """A loss [B] whose gradient with respect to an item of `made` is `gradient` over how many numbers it has.

    0.5 mean (made - sg(made - gradient))^2, so its value is half the gradient's mean square.
    """
    return 0.5 * (made - (made - gradient).detach()).square().flatten(1).mean(1)
