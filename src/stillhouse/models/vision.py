"""Networks for images from scratch: residual, vision transformer, MLP-mixer, depthwise separable.

The submodules are called `stem`, `stages.0`, `stages.0.1` (or `blocks.3`), `norm` and `head`, so that a layer can be named
in a recipe. The convolutional ones keep their channels last in memory, which a CPU is faster with.

`norm="batch"` is what the papers train with. A batch norm sees how a batch is split; `norm="group"` does not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.run import Run, RunError
from .toys import Kept, sizes_of

Norm = Literal["batch", "group"]


@dataclass(frozen=True, kw_only=True)
class ResNet(Kept):
    """A residual network for small images (He et al. 2015, arXiv 1512.03385, Section 4.2), or a wide one.

    | name | settings |
    |---|---|
    | resnet20, 32, 56, 110 | depth=20, … |
    | resnet8x4, 32x4 | depth=8, …, stem=32, widths=(64, 128, 256) |
    | WRN-16-2, 40-2, … | depth=16, …, widths=(32, 64, 128), preactivated=True |

    The shortcuts that change the number of channels are 1x1 convolutions (option B), as in the code that papers on
    distillation share. Wide networks (Zagoruyko and Komodakis 2016, arXiv 1605.07146) normalise before they convolve.
    """

    depth: int = 20  # layers: 2 in every block, stem and head; 1 more for each stage's shortcut if preactivated
    stem: int = 16  # channels after the first convolution
    widths: tuple[int, ...] = (16, 32, 64)  # channels of the stages; each but the first halves the image
    preactivated: bool = False  # norm and ReLU before the convolutions
    norm: Norm = "batch"
    dropout: float = 0.0  # between the convolutions of a block
    channels: int | None = None  # of the image; None: as the recipe's data have
    classes: int | None = None  # None: as the recipe's data have

    def __post_init__(self) -> None:
        count = len(self.widths)
        extra = 1 + count if self.preactivated else 2
        if count == 0 or self.depth <= extra or (self.depth - extra) % (2 * count):
            near = [extra + 2 * max(count, 1) * n for n in (1, 2, 3)]
            raise ValueError(f"a network of {count} stages has depth {', '.join(map(str, near))}, …, not {self.depth}")

    @property
    def blocks(self) -> int:
        """Blocks of one stage."""
        return (self.depth - (1 + len(self.widths) if self.preactivated else 2)) // (2 * len(self.widths))

    def build(self, run: Run) -> nn.Module:
        """Images `[B, channels, H, W]` to logits `[B, classes]`."""
        shape, classes = sizes_of(run, None if self.channels is None else (self.channels,), self.classes)
        return channels_last(Residual(self, shape[0], classes))


@dataclass(frozen=True, kw_only=True)
class Mobile(Kept):
    """Depthwise separable convolutions (Howard et al. 2017, arXiv 1704.04861): few parameters for their accuracy."""

    stem: int = 16  # channels after the first convolution
    widths: tuple[int, ...] = (32, 64, 128)  # channels of the stages; each but the first halves the image
    depth: int = 2  # blocks of a stage
    norm: Norm = "batch"
    channels: int | None = None  # of the image; None: as the recipe's data have
    classes: int | None = None  # None: as the recipe's data have

    def build(self, run: Run) -> nn.Module:
        """Images `[B, channels, H, W]` to logits `[B, classes]`."""
        shape, classes = sizes_of(run, None if self.channels is None else (self.channels,), self.classes)
        return channels_last(Separable(self, shape[0], classes))


@dataclass(frozen=True, kw_only=True)
class ViT(Kept):
    """A vision transformer (Dosovitskiy et al. 2020, arXiv 2010.11929), with a distillation token if asked.

    With `distilled` a second token has a head of its own (DeiT, Touvron et al. 2020, arXiv 2012.12877). The logits are then
    the mean of both heads', as they classify; `module(images, each=True)` gives every head's, as they are trained.
    """

    patch: int = 4  # pixels a side
    width: int = 64
    depth: int = 4  # blocks
    heads: int = 4
    ratio: float = 4.0  # of the MLP's width to the blocks' width
    class_token: bool = True  # False: classify the mean of the patches
    distilled: bool = False
    dropout: float = 0.0
    shape: tuple[int, int, int] | None = None  # [C, H, W] of an image; None: as the recipe's data have
    classes: int | None = None  # None: as the recipe's data have

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of the heads, not {self.width} for {self.heads} heads")
        if self.distilled and not self.class_token:
            raise ValueError("a distillation token stands beside a class token: class_token=true")

    def build(self, run: Run) -> nn.Module:
        """Images `[B, C, H, W]` of one size to logits `[B, classes]`."""
        shape, classes = sizes_of(run, self.shape, self.classes)
        return VisionTransformer(self, _divided(shape, self.patch), classes)


@dataclass(frozen=True, kw_only=True)
class Mixer(Kept):
    """Perceptrons over the patches and over the channels in turn (Tolstikhin et al. 2021, arXiv 2105.01601)."""

    patch: int = 4  # pixels a side
    width: int = 64
    depth: int = 4  # blocks
    across_patches: float = 0.5  # width of the perceptron over patches, as a ratio to `width`
    across_channels: float = 4.0  # the same over channels
    shape: tuple[int, int, int] | None = None  # [C, H, W] of an image; None: as the recipe's data have
    classes: int | None = None  # None: as the recipe's data have

    def build(self, run: Run) -> nn.Module:
        """Images `[B, C, H, W]` of one size to logits `[B, classes]`."""
        shape, classes = sizes_of(run, self.shape, self.classes)
        return MLPMixer(self, _divided(shape, self.patch), classes)


# -- convolutional ---------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    """Stem, stages of blocks, mean, head."""

    def __init__(self, spec: ResNet, channels: int, classes: int):
        super().__init__()
        first = nn.Conv2d(channels, spec.stem, 3, padding=1, bias=False)
        # A preactivated block begins with a norm of its own.
        self.stem = first if spec.preactivated else nn.Sequential(first, _norm(spec.norm, spec.stem), nn.ReLU())
        block = PreactivatedBlock if spec.preactivated else Block
        self.stages = nn.ModuleList()
        for i, (before, width) in enumerate(zip((spec.stem, *spec.widths), spec.widths, strict=False)):
            sizes = [(before if j == 0 else width, 2 if i and j == 0 else 1) for j in range(spec.blocks)]
            self.stages.append(nn.Sequential(*(block(n, width, stride, spec.norm, spec.dropout) for n, stride in sizes)))
        last = spec.widths[-1]
        self.norm = nn.Sequential(_norm(spec.norm, last), nn.ReLU()) if spec.preactivated else None
        self.head = nn.Linear(last, classes)
        _drawn(self)

    def forward(self, images: Tensor) -> Tensor:
        """`[B, C, H, W]` to `[B, classes]`."""
        x = self.stem(images.to(self.head.weight.dtype))
        for stage in self.stages:
            x = stage(x)
        return self.head((x if self.norm is None else self.norm(x)).mean((-2, -1)))


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut; `relu2:in` is what the block gives before its last ReLU."""

    def __init__(self, inputs: int, width: int, stride: int, norm: Norm, dropout: float):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.norm1, self.relu1 = _norm(norm, width), nn.ReLU()
        self.dropout = dropout
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2, self.relu2 = _norm(norm, width), nn.ReLU()
        self.shortcut = None
        if inputs != width or stride != 1:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False), _norm(norm, width))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, inputs, H, W]` to `[B, width, H / stride, W / stride]`."""
        inner = F.dropout(self.relu1(self.norm1(self.conv1(x))), self.dropout, self.training)
        return self.relu2(self.norm2(self.conv2(inner)) + (x if self.shortcut is None else self.shortcut(x)))


class PreactivatedBlock(nn.Module):
    """The same with norm and ReLU first; a shortcut that changes the channels begins after them."""

    def __init__(self, inputs: int, width: int, stride: int, norm: Norm, dropout: float):
        super().__init__()
        self.norm1, self.relu1 = _norm(norm, inputs), nn.ReLU()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.norm2, self.relu2 = _norm(norm, width), nn.ReLU()
        self.dropout = dropout
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(inputs, width, 1, stride, bias=False) if inputs != width or stride != 1 else None

    def forward(self, x: Tensor) -> Tensor:
        """`[B, inputs, H, W]` to `[B, width, H / stride, W / stride]`."""
        active = self.relu1(self.norm1(x))
        inner = F.dropout(self.relu2(self.norm2(self.conv1(active))), self.dropout, self.training)
        return self.conv2(inner) + (x if self.shortcut is None else self.shortcut(active))


class Separable(nn.Module):
    """Stem, stages of depthwise separable blocks, mean, head."""

    def __init__(self, spec: Mobile, channels: int, classes: int):
        super().__init__()
        self.stem = _conv(channels, spec.stem, 3, 1, spec.norm)
        self.stages = nn.ModuleList()
        for i, (before, width) in enumerate(zip((spec.stem, *spec.widths), spec.widths, strict=False)):
            sizes = [(before if j == 0 else width, 2 if i and j == 0 else 1) for j in range(spec.depth)]
            self.stages.append(nn.Sequential(*(_separable(n, width, stride, spec.norm) for n, stride in sizes)))
        self.head = nn.Linear(spec.widths[-1], classes)
        _drawn(self)

    def forward(self, images: Tensor) -> Tensor:
        """`[B, C, H, W]` to `[B, classes]`."""
        x = self.stem(images.to(self.head.weight.dtype))
        for stage in self.stages:
            x = stage(x)
        return self.head(x.mean((-2, -1)))


def _separable(inputs: int, width: int, stride: int, norm: Norm) -> nn.Sequential:
    return nn.Sequential(_conv(inputs, inputs, 3, stride, norm, groups=inputs), _conv(inputs, width, 1, 1, norm))


def _conv(inputs: int, width: int, size: int, stride: int, norm: Norm, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, width, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, _norm(norm, width), nn.ReLU())


def _norm(norm: Norm, width: int) -> nn.Module:
    return nn.BatchNorm2d(width) if norm == "batch" else nn.GroupNorm(math.gcd(8, width), width)


def _drawn(module: nn.Module) -> None:
    """He et al.'s initial weights (arXiv 1502.01852), by the outputs of a convolution."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")


def channels_last(module: nn.Module) -> nn.Module:
    """The module with the weights of its convolutions stored as a CPU computes with them faster."""
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


# -- of patches ------------------------------------------------------------------------------------------------------


class VisionTransformer(nn.Module):
    """Patches, tokens, blocks, head."""

    def __init__(self, spec: ViT, shape: tuple[int, int, int], classes: int):
        super().__init__()
        channels, height, across = shape
        self.tokens = int(spec.class_token) + int(spec.distilled)  # in front of the patches
        self.stem = nn.Conv2d(channels, spec.width, spec.patch, spec.patch)
        count = (height // spec.patch) * (across // spec.patch) + self.tokens
        self.extra = nn.Parameter(torch.zeros(1, self.tokens, spec.width)) if self.tokens else None
        self.position = nn.Parameter(torch.zeros(1, count, spec.width))
        for table in (self.extra, self.position):
            if table is not None:
                nn.init.trunc_normal_(table, std=0.02)
        self.blocks = nn.ModuleList(
            [
                TransformerBlock(spec.width, spec.heads, round(spec.ratio * spec.width), spec.dropout)
                for _ in range(spec.depth)
            ]
        )
        self.norm = nn.LayerNorm(spec.width)
        self.head = nn.Linear(spec.width, classes)
        self.head_distilled = nn.Linear(spec.width, classes) if spec.distilled else None

    def forward(self, images: Tensor, each: bool = False) -> Tensor | dict[str, Tensor]:
        """`[B, C, H, W]` to `[B, classes]`; with `each`, `logits` beside `class` and `distilled`, one a head."""
        x = self.stem(images.to(self.head.weight.dtype)).flatten(2).transpose(1, 2)
        if self.extra is not None:
            x = torch.cat([self.extra.expand(len(x), -1, -1), x], 1)
        x = x + self.position
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        distilled = None if self.head_distilled is None else self.head_distilled(x[:, 1])
        own = self.head(x[:, 0] if self.tokens else x.mean(1))
        logits = own if distilled is None else (own + distilled) / 2
        if not each:
            return logits
        return {"logits": logits, "class": own} | ({} if distilled is None else {"distilled": distilled})


class TransformerBlock(nn.Module):
    """Attention and an MLP, each after a norm and added to the stream."""

    def __init__(self, width: int, heads: int, inner: int, dropout: float):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, width]."""
        x = x + F.dropout(self.attention(self.norm1(x)), self.dropout, self.training)
        return x + F.dropout(self.mlp(self.norm2(x)), self.dropout, self.training)


class Attention(nn.Module):
    """Every token looks at every other."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, width]."""
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2))


class MLPMixer(nn.Module):
    """Patches, blocks, mean, head."""

    def __init__(self, spec: Mixer, shape: tuple[int, int, int], classes: int):
        super().__init__()
        channels, height, across = shape
        patches = (height // spec.patch) * (across // spec.patch)
        inner = round(spec.across_patches * spec.width), round(spec.across_channels * spec.width)
        self.stem = nn.Conv2d(channels, spec.width, spec.patch, spec.patch)
        self.blocks = nn.ModuleList([MixerBlock(patches, spec.width, *inner) for _ in range(spec.depth)])
        self.norm = nn.LayerNorm(spec.width)
        self.head = nn.Linear(spec.width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """`[B, C, H, W]` to `[B, classes]`."""
        x = self.stem(images.to(self.head.weight.dtype)).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


class MixerBlock(nn.Module):
    """A perceptron over patches, then one over channels, each after a norm and added to the stream."""

    def __init__(self, patches: int, width: int, inner_patches: int, inner_channels: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.patches = _perceptron(patches, inner_patches)
        self.channels = _perceptron(width, inner_channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, width]."""
        x = x + self.patches(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


def _perceptron(width: int, inner: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))


def _divided(shape: Sequence[int], patch: int) -> tuple[int, int, int]:
    """The image's shape; RunError if patches do not fill it."""
    if len(shape) != 3 or shape[1] % patch or shape[2] % patch:
        raise RunError(f"patches of {patch} pixels do not fill items of shape {list(shape)}: set the model's `patch`")
    return shape[0], shape[1], shape[2]
