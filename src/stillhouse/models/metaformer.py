"""MetaFormers from scratch (Yu et al. 2022, arXiv 2210.13452): one structure, whatever mixes the positions of an image.

Maps [B, C, H, W] pass through stages. A stage, `stages.0`, begins with a strided convolution, `stages.0.0`; its blocks
follow, `stages.0.1` and so on: x + mixer(norm(x)), then x + perceptron(norm(x)). In front of the head stands the mean over
all positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.run import Run, RunError
from .toys import Kept, sizes_of
from .vision import channels_last

Mix = Literal["identity", "random", "pool", "conv", "attention"]
Norm = Literal["channels", "image"]
Activation = Literal["star", "gelu"]
Head = Literal["linear", "perceptron"]
SCALED = 2  # stages, the last ones, in whose blocks x has a learned scale for each channel
HEAD = 32  # numbers of one head of attention
UNIT = (2 / 5**0.5, -1 / 5**0.5)  # scale and bias at which StarReLU of a standard normal number has mean 0, variance 1


@dataclass(frozen=True, kw_only=True)
class MetaFormer(Kept):
    """A MetaFormer; as it stands a small one of two stages.

    | name | mixers | norm | head |
    |---|---|---|---|
    | IdentityFormer | identity, identity, identity, identity | image | linear |
    | RandFormer | identity, identity, random, random | image | linear |
    | PoolFormerV2 | pool, pool, pool, pool | image | linear |
    | ConvFormer | conv, conv, conv, conv | channels | perceptron |
    | CAFormer | conv, conv, attention, attention | channels | perceptron |

    All published ones have patch=4; S12 and S18 have widths=(64, 128, 320, 512), S12 depths=(2, 2, 6, 2) and S18
    depths=(3, 3, 9, 3). The mixers are nothing at all; a matrix over all positions that is drawn once and never learned;
    the mean of 3x3 positions; a depthwise 7x7 convolution of twice the width between two linear layers; attention.
    """

    mixers: tuple[Mix, ...] = ("conv", "attention")  # of the stages
    widths: tuple[int, ...] = (32, 64)  # channels of the stages
    depths: tuple[int, ...] = (2, 2)  # blocks of the stages
    patch: int = 2  # stride of the first stage, whose convolution is 2 patch - 1 pixels wide; each other one halves
    ratio: float = 4.0  # of the perceptrons' width to the blocks' width
    norm: Norm = "channels"  # of a block: over the channels of each position, or over the whole image
    activation: Activation = "star"
    head: Head = "linear"
    drop_path: float = 0.0  # how often the last block is skipped in training; earlier ones less, the first never
    shape: tuple[int, int, int] | None = None  # [C, H, W] of an image; None: as the recipe's data have
    classes: int | None = None  # None: as the recipe's data have

    def __post_init__(self) -> None:
        if not len(self.mixers) == len(self.widths) == len(self.depths) > 0:
            raise ValueError(
                "name a mixer, a width and a depth for each stage: mixers, widths and depths are alike in length"
            )
        if self.patch < 1 or not 0.0 <= self.drop_path < 1.0:
            raise ValueError("patch is 1 or more, drop_path at least 0 and below 1")

    def build(self, run: Run) -> nn.Module:
        """Images `[B, C, H, W]` to logits `[B, classes]`; of one size, where a mixer is random."""
        shape, classes = sizes_of(run, self.shape, self.classes)
        if len(shape) != 3 or min(after(self.patch, side) for side in shape[1:]) < 1:
            raise RunError(f"items of shape {list(shape)} are too small for steps of {self.patch} pixels: set `patch`")
        return channels_last(Staged(self, (shape[0], shape[1], shape[2]), classes))


def after(patch: int, side: int) -> int:
    """How many positions the first stage has on a side of so many pixels."""
    return (side + 2 * (patch // 2) - (2 * patch - 1)) // patch + 1


class Staged(nn.Module):
    """Stages, mean, norm, head."""

    def __init__(self, spec: MetaFormer, shape: tuple[int, int, int], classes: int):
        super().__init__()
        before, *sides = shape
        count = len(spec.widths)
        drops = iter(torch.linspace(0, spec.drop_path, sum(spec.depths), device="cpu").tolist())
        self.stages = nn.ModuleList()
        for i, (mix, width, depth) in enumerate(zip(spec.mixers, spec.widths, spec.depths, strict=True)):
            sides = [(side - 1) // 2 + 1 if i else after(spec.patch, side) for side in sides]
            step = nn.Conv2d(before, width, 3, 2, 1) if i else _stem(before, width, spec.patch)
            # The first convolution has its norm behind it, the others have it in front.
            begin = nn.Sequential(LayerNorm(before), step) if i else nn.Sequential(step, LayerNorm(width))
            blocks = [Block(spec, mix, width, sides[0] * sides[1], i >= count - SCALED, next(drops)) for _ in range(depth)]
            self.stages.append(nn.Sequential(begin, *blocks))
            before = width
        self.norm = nn.LayerNorm(before, eps=1e-6)
        self.head = nn.Linear(before, classes) if spec.head == "linear" else _perceptron_head(before, classes)
        for part in self.modules():
            if isinstance(part, (nn.Conv2d, nn.Linear)):
                nn.init.trunc_normal_(part.weight, std=0.02)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)

    def forward(self, images: Tensor) -> Tensor:
        """`[B, C, H, W]` to `[B, classes]`."""
        x = images.to(self.norm.weight.dtype)
        for stage in self.stages:
            x = stage(x)
        return self.head(self.norm(x.mean((-2, -1))))


def _stem(channels: int, width: int, patch: int) -> nn.Module:
    return nn.Conv2d(channels, width, 2 * patch - 1, patch, patch // 2)


def _perceptron_head(width: int, classes: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, 4 * width), SquaredReLU(), nn.LayerNorm(4 * width), nn.Linear(4 * width, classes))


class Block(nn.Module):
    """A mixer of positions and a perceptron over channels, each after a norm and added to the stream."""

    def __init__(self, spec: MetaFormer, mix: Mix, width: int, positions: int, scaled: bool, drop: float):
        super().__init__()
        norm = LayerNorm if spec.norm == "channels" else ImageNorm
        inner = round(spec.ratio * width)
        self.norm1, self.norm2 = norm(width), norm(width)
        self.mixer = _mixer(mix, width, positions, spec.activation)
        self.mlp = nn.Sequential(
            nn.Conv2d(width, inner, 1, bias=False), ACTIVATIONS[spec.activation](), nn.Conv2d(inner, width, 1, bias=False)
        )
        self.scales = nn.Parameter(torch.ones(2, width, 1, 1)) if scaled else None
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, H, W]."""
        for i, (norm, part) in enumerate(((self.norm1, self.mixer), (self.norm2, self.mlp))):
            kept = F.dropout(x.new_ones(len(x), 1, 1, 1), self.drop, self.training)
            x = (x if self.scales is None else self.scales[i] * x) + kept * part(norm(x))
        return x


# -- mixers ----------------------------------------------------------------------------------------------------------


def _mixer(mix: Mix, width: int, positions: int, activation: Activation) -> nn.Module:
    if mix == "random":
        return RandomMixing(positions)
    if mix == "pool":
        return Pooling()
    if mix == "conv":
        return nn.Sequential(
            nn.Conv2d(width, 2 * width, 1, bias=False), ACTIVATIONS[activation](),
            nn.Conv2d(2 * width, 2 * width, 7, padding=3, groups=2 * width, bias=False),
            nn.Conv2d(2 * width, width, 1, bias=False),
        )  # fmt: skip
    return MapAttention(width) if mix == "attention" else nn.Identity()


class RandomMixing(nn.Module):
    """Every position becomes a mean of all, with weights that are drawn once."""

    def __init__(self, positions: int):
        super().__init__()
        self.register_buffer("weights", torch.rand(positions, positions).softmax(-1))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W]."""
        weights = self.get_buffer("weights").to(x.dtype)
        return (x.flatten(2) @ weights.mT).unflatten(2, x.shape[2:])


class Pooling(nn.Module):
    """What the mean of the 3x3 positions around adds to each; beyond the edge there is nothing."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W]."""
        return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False) - x


class MapAttention(nn.Module):
    """Every position looks at every other."""

    def __init__(self, width: int):
        super().__init__()
        self.heads = max(width // HEAD, 1)
        self.qkv = nn.Conv2d(width, 3 * self.heads * HEAD, 1, bias=False)
        self.out = nn.Conv2d(self.heads * HEAD, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, H, W]."""
        q, k, v = self.qkv(x).flatten(2).unflatten(1, (3, self.heads, HEAD)).mT.unbind(1)  # [B, heads, H W, HEAD]
        return self.out(F.scaled_dot_product_attention(q, k, v).mT.flatten(1, 2).unflatten(2, x.shape[2:]))


# -- norms and activations -------------------------------------------------------------------------------------------


class LayerNorm(nn.Module):
    """The channels of each position at mean 0 and variance 1, then a scale for each; no bias."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, H, W]."""
        return F.layer_norm(x.movedim(1, -1), self.weight.shape, self.weight, eps=1e-6).movedim(-1, 1)


class ImageNorm(nn.Module):
    """All numbers of an image at mean 0 and variance 1, then a scale for each channel; no bias."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, H, W]."""
        return F.group_norm(x, 1, self.weight, eps=1e-6)


class StarReLU(nn.Module):
    """scale relu(x)² + bias, both learned; they begin at 1 and 0, as in the authors' code."""

    def __init__(self, scale: float = 1.0, bias: float = 0.0):
        super().__init__()
        self.scale, self.bias = nn.Parameter(torch.tensor(scale)), nn.Parameter(torch.tensor(bias))

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return self.scale * x.relu().square() + self.bias


class SquaredReLU(nn.Module):
    """relu(x)²."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return x.relu().square()


ACTIVATIONS: Mapping[Activation, type[nn.Module]] = {"star": StarReLU, "gelu": nn.GELU}
