"""Exits: what a layer half-way through a network would answer, by a small branch of its own.

Group norms of one group stand where papers have batch norms, which would see how a batch is split.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .vision import TransformerBlock

TOKENS = 7  # a side, that tokens are merged down to
HEADS = 4


def exit_from(shape: tuple[int, ...], width: int, classes: int, left: int) -> nn.Module:
    """A branch from what a layer gives for one item (a map [C, H, W], tokens [N, D] or a vector [D]) to logits.

    `width` is that of the features that it classifies. `left` is how many stages of the network come after the layer: the
    earlier the layer, the more the branch has to do.
    """
    if len(shape) == 3:
        return ConvExit(shape[0], width, classes, left)
    if len(shape) == 2:
        return TokenExit(shape[0], shape[1], width, classes, left)
    return nn.Sequential(nn.Linear(shape[0], width), nn.ReLU(), nn.Linear(width, classes))


class ConvExit(nn.Module):
    """For each stage left, separable convolutions that halve a map; channels double, the last have `width`. Mean, head."""

    def __init__(self, channels: int, width: int, classes: int, left: int):
        super().__init__()
        widths = [*(channels * 2**i for i in range(left)), width]
        halvings = [_halving(a, b) for a, b in zip(widths, widths[1:], strict=False)]
        self.steps = nn.Sequential(*halvings) if left else nn.Conv2d(channels, width, 1)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, classes]."""
        return self.head(self.steps(x).mean((-2, -1)))


class TokenExit(nn.Module):
    """Patches merged two by two to at most 7 x 7, a transformer block for each stage left and at least one, head.

    It classifies the class token where one stands in front of a square of patches, else the mean of all.
    """

    def __init__(self, count: int, inner: int, width: int, classes: int, left: int):
        super().__init__()
        side = math.isqrt(count)
        self.extra = count - side * side  # class and distillation tokens
        self.square = self.extra <= 2
        merges: list[nn.Module] = []
        while self.square and side > TOKENS:
            merges.append(Merging(width if merges else inner, width))
            side = (side + 1) // 2
        self.merges = nn.ModuleList(merges)
        # For the tokens that no merging brings to the width.
        self.into = nn.Identity() if merges and not self.extra else nn.Linear(inner, width)
        heads = math.gcd(HEADS, width)
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads, 4 * width, 0.0) for _ in range(max(left, 1))))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] to [B, classes]."""
        if len(self.merges):
            extra, x = x[:, : self.extra], x[:, self.extra :]
            for merge in self.merges:
                x = merge(x)
            x = torch.cat([self.into(extra), x], 1) if self.extra else x
        else:
            x = self.into(x)
        x = self.norm(self.blocks(x))
        return self.head(x[:, 0] if self.square and self.extra else x.mean(1))


class Merging(nn.Module):
    """Two by two tokens of a square side by side, norm, linear layer, GELU; an odd side gets a row of zeros."""

    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(4 * inputs), nn.Linear(4 * inputs, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, side², inputs] to [B, ceil(side / 2)², width]."""
        side = math.isqrt(x.shape[1])
        cells = F.pad(x.unflatten(1, (side, side)), (0, 0, 0, side % 2, 0, side % 2))
        four = cells.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).transpose(2, 3)  # [B, h, w, 2, 2, inputs]
        return F.gelu(self.linear(self.norm(four.flatten(3).flatten(1, 2))))


def _halving(inputs: int, width: int) -> nn.Sequential:
    """Depthwise 3x3 with stride 2, 1x1, norm, ReLU, and once more without stride, to `width`."""
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, 2, 1, groups=inputs, bias=False), nn.Conv2d(inputs, inputs, 1, bias=False),
        nn.GroupNorm(1, inputs), nn.ReLU(),
        nn.Conv2d(inputs, inputs, 3, 1, 1, groups=inputs, bias=False), nn.Conv2d(inputs, width, 1, bias=False),
        nn.GroupNorm(1, width), nn.ReLU(),
    )  # fmt: skip
