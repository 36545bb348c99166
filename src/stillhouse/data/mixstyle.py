"""Images that keep what they show and take on half of another one's light and contrast."""

from __future__ import annotations

from torch import Tensor


def restyled(images: Tensor, partner: Tensor, share: Tensor, *, eps: float = 1e-6) -> Tensor:
    """Images [B, C, H, W] whose channels get the mean and deviation share * own + (1 - share) * those of image `partner`
    [B]; share [B]. (MixStyle, Zhou et al. 2021, arXiv 2104.02008, on inputs.)

    Mean and deviation are over the pixels of one channel of one image. A channel of one value stays flat.
    """
    mean = images.mean((2, 3), keepdim=True)
    gap = images - mean
    deviation = gap.square().mean((2, 3), keepdim=True).sqrt()
    share = share.to(images.dtype)[:, None, None, None]
    spread = share * deviation + (1 - share) * deviation[partner]
    return gap / deviation.clamp(min=eps) * spread + share * mean + (1 - share) * mean[partner]
