"""The convolutional network that papers on condensed data sets share: "ConvNet-D3" with instance norm.

A block is a 3x3 convolution, instance norm, ReLU and a halving by average pooling; a linear head follows the last one.
Instance norm sees one image at a time, so a gradient does not depend on how a batch was split.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.run import Run, RunError
from .toys import Kept, sizes_of


@dataclass(frozen=True, kw_only=True)
class ConvNetD(Kept):
    """`depth` blocks of `width` channels."""

    width: int = 128
    depth: int | None = None  # None: 3 for 32 pixels, one more for each doubling and never fewer than 2

    def build(self, run: Run) -> nn.Module:
        """Images `[B, C, H, W]` of the recipe's data to logits `[B, classes]`."""
        shape, classes = sizes_of(run, None, None)
        return self.of(shape, classes)

    def of(self, shape: tuple[int, ...], classes: int, draw: torch.Generator | None = None) -> Blocks:
        """The network for images of `shape` [C, H, W]; with `draw`, its weights depend on that generator alone."""
        if len(shape) != 3 or min(shape[1:]) < 4:
            raise RunError(f"this network is for images [C, H, W] of 4 pixels a side or more, not {list(shape)}")
        size = min(shape[1:])
        depth = max(2, round(math.log2(size)) - 2) if self.depth is None else self.depth
        if size < 2**depth:
            most = int(math.log2(size))
            raise RunError(f"{size} pixels cannot be halved {depth} times; set the network's depth to at most {most}")
        network = Blocks(shape, classes, self.width, depth)
        if draw is not None:
            network.redraw(draw)
        return network


class Blocks(nn.Module):
    """The network; `maps` gives what its blocks see."""

    def __init__(self, shape: tuple[int, ...], classes: int, width: int, depth: int):
        super().__init__()
        channels, height, across = shape
        self.convolutions = nn.ModuleList([nn.Conv2d(width if i else channels, width, 3, padding=1) for i in range(depth)])
        self.norms = nn.ModuleList([nn.GroupNorm(width, width) for _ in range(depth)])
        self.head = nn.Linear(width * (height >> depth) * (across >> depth), classes)

    def redraw(self, draw: torch.Generator) -> None:
        """New weights from torch's usual distribution, `uniform(-1, 1) / sqrt(inputs)`."""
        with torch.no_grad():
            for layer in (*self.convolutions, self.head):
                weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")
                bound = weight[0].numel() ** -0.5
                weight.uniform_(-bound, bound, generator=draw)
                bias.uniform_(-bound, bound, generator=draw)

    def maps(self, inputs: Tensor) -> tuple[list[Tensor], Tensor]:
        """(each block's ReLU output [B, width, H, W] before it is halved, the flat features in front of the head)."""
        x, found = inputs.to(self.head.weight.dtype), list[Tensor]()
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = norm(convolution(x)).relu()
            found.append(x)
            x = F.avg_pool2d(x, 2)
        return found, x.flatten(1)

    def forward(self, inputs: Tensor) -> Tensor:
        """`[B, C, H, W]` to `[B, classes]`."""
        return self.head(self.maps(inputs)[1])
