"""One network that contains many: of every layer the first channels make a narrower one, and blocks can be skipped.

A `Family` is a module with several members, `module(images, member=i)`. Called without, it is its largest member.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.run import Run, RunError
from .call import logits_of
from .toys import Kept, sizes_of
from .vision import Norm


@dataclass(frozen=True, order=True)
class Member:
    """One network of a family."""

    width: float = 1.0  # share of the channels
    skipped: int = 0  # blocks left out at the end of every stage
    ratio: float = 1.0  # channels inside a block, as a share of those between blocks

    @property
    def name(self) -> str:
        """Such as `width 0.65, 1 skipped, ratio 0.25`."""
        return f"width {self.width:g}, {self.skipped} skipped, ratio {self.ratio:g}"


@dataclass(frozen=True, kw_only=True)
class Elastic(Kept):
    """A residual network that contains others (as in Once-for-All, Cai et al. 2020, arXiv 1908.09791).

    The first block of a stage is never skipped. `apart`: the same members without shared weights, to compare with.
    """

    channels: tuple[int, ...] = (16, 32)  # of the stages at full width; each but the first halves the image
    blocks: int = 3  # of a stage
    widths: tuple[float, ...] = (0.65, 0.8, 1.0)
    skips: tuple[int, ...] = (0, 1, 2)
    ratios: tuple[float, ...] = (0.2, 0.25, 0.35)
    kernels: tuple[int, ...] = (1, 3, 1)  # of a block's convolutions; all but the last are as wide as the ratio says
    divisor: int = 8  # numbers of channels are multiples of it
    norm: Norm = "batch"  # batch norms have to be recalibrated for each member; group norms of `divisor` channels do not
    apart: bool = False

    def __post_init__(self) -> None:
        if not self.channels or max(self.skips, default=0) >= self.blocks or min(self.skips, default=0) < 0:
            raise ValueError(f"each of {self.blocks} blocks but the first can be skipped: skips from 0 to {self.blocks - 1}")
        if not (self.widths and self.skips and self.ratios) or min(*self.widths, *self.ratios, 1.0) <= 0:
            raise ValueError("give at least one width, skip and ratio, all shares above 0")
        if not self.kernels or any(size < 1 or size % 2 == 0 for size in self.kernels):
            raise ValueError("kernels are odd numbers, one for each convolution of a block: [1, 3, 1]")
        if max(self.widths) > 1:
            raise ValueError("widths are shares of the channels, at most 1")

    @property
    def members(self) -> tuple[Member, ...]:
        """All of them, the largest first."""
        every = product(sorted(self.widths, reverse=True), sorted(self.skips), sorted(self.ratios, reverse=True))
        return tuple(Member(*each) for each in every)

    def build(self, run: Run) -> nn.Module:
        """Images `[B, C, H, W]` to logits `[B, classes]`."""
        shape, classes = sizes_of(run, None, None)
        if self.apart:
            return Several([Supernet(self, shape[0], classes, only=member) for member in self.members], self.members)
        return Supernet(self, shape[0], classes)


class Family(nn.Module):
    """Several networks in one module, which is called with the number of one of its `members`."""

    members: tuple[Member, ...]


class Supernet(Family):
    """The whole; `members` are in it. With `only`, the network of one member by itself."""

    def __init__(self, spec: Elastic, inputs: int, classes: int, only: Member | None = None):
        super().__init__()
        self.spec, self.members = spec, spec.members if only is None else (only,)
        top = self.members[0]
        stem = self._count(spec.channels[0], top.width)
        self.stem, self.norm = nn.Conv2d(inputs, stem, 3, padding=1, bias=False), _norm(spec, stem)
        self.stages = nn.ModuleList()
        before = stem
        for i, full in enumerate(spec.channels):
            width = self._count(full, top.width)
            made = [
                Block(spec, before if j == 0 else width, self._inner(full, top), width, 2 if i and j == 0 else 1)
                for j in range(spec.blocks - top.skipped)
            ]
            self.stages.append(nn.ModuleList(made))
            before = width
        self.head = nn.Linear(before, classes)

    def _count(self, full: int, share: float) -> int:
        return max(self.spec.divisor, round(full * share / self.spec.divisor) * self.spec.divisor)

    def _inner(self, full: int, member: Member) -> int:
        return self._count(full, member.width * member.ratio)

    def forward(self, images: Tensor, member: int = 0) -> Tensor:
        """`[B, C, H, W]` to `[B, classes]`, by member number `member`."""
        chosen = self.members[member]
        x = images.to(self.head.weight.dtype)
        x = F.relu(_normed(self.norm, _convolved(self.stem, x, self._count(self.spec.channels[0], chosen.width))))
        for full, stage in zip(self.spec.channels, self.stages, strict=True):
            width, inner = self._count(full, chosen.width), self._inner(full, chosen)
            for block in list(stage)[: self.spec.blocks - chosen.skipped]:  # type: ignore[arg-type]
                x = block(x, inner, width)
        x = x.mean((2, 3))
        return F.linear(x, self.head.weight[:, : x.shape[1]], self.head.bias)


class Several(Family):
    """Networks that share nothing, as one family."""

    def __init__(self, parts: Iterable[nn.Module], members: tuple[Member, ...]):
        super().__init__()
        self.parts, self.members = nn.ModuleList(parts), members

    def forward(self, images: Tensor, member: int = 0) -> Tensor:
        """`[B, C, H, W]` to `[B, classes]`, by member number `member`."""
        return self.parts[member](images)


class Block(nn.Module):
    """Convolutions, each with a norm, and a shortcut."""

    def __init__(self, spec: Elastic, inputs: int, inner: int, width: int, stride: int):
        super().__init__()
        last = len(spec.kernels) - 1
        at = spec.kernels.index(max(spec.kernels))  # the first of the largest kernels halves the image
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        for i, size in enumerate(spec.kernels):
            given, made = inputs if i == 0 else inner, width if i == last else inner
            self.convs.append(nn.Conv2d(given, made, size, stride if i == at else 1, size // 2, bias=False))
            self.norms.append(_norm(spec, made))
        self.shortcut = nn.Conv2d(inputs, width, 1, stride, bias=False) if inputs != width or stride > 1 else None

    def forward(self, x: Tensor, inner: int, width: int) -> Tensor:
        """`[B, any, H, W]` to `[B, width, H / stride, W / stride]`."""
        y, last = x, len(self.convs) - 1
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            y = _normed(norm, _convolved(conv, y, width if i == last else inner))
            y = y if i == last else F.relu(y)
        return F.relu(y + (x if self.shortcut is None else _convolved(self.shortcut, x, width)))


def _convolved(conv: nn.Module, x: Tensor, width: int) -> Tensor:
    assert isinstance(conv, nn.Conv2d)
    return F.conv2d(x, conv.weight[:width, : x.shape[1]], None, conv.stride, conv.padding)  # type: ignore[arg-type]


def _norm(spec: Elastic, width: int) -> nn.Module:
    return nn.BatchNorm2d(width) if spec.norm == "batch" else nn.GroupNorm(width // spec.divisor, width)


def _normed(norm: nn.Module, x: Tensor) -> Tensor:
    """By the norm of the first channels; running means move as those of a batch norm do."""
    width = x.shape[1]
    if isinstance(norm, nn.GroupNorm):
        each = norm.num_channels // norm.num_groups
        return F.group_norm(x, width // each, norm.weight[:width], norm.bias[:width], norm.eps)
    assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None
    momentum = 1 / float(_counted(norm)) if norm.momentum is None and norm.training else norm.momentum or 0.0
    mean, var = norm.running_mean[:width], norm.running_var[:width]
    return F.batch_norm(x, mean, var, norm.weight[:width], norm.bias[:width], norm.training, momentum, norm.eps)


def _counted(norm: nn.BatchNorm2d) -> Tensor:
    assert norm.num_batches_tracked is not None
    return norm.num_batches_tracked.add_(1)


# -- families --------------------------------------------------------------------------------------------------------


def members_of(module: nn.Module) -> tuple[Any, ...]:
    """The members of a family; a module that is none is its own only member."""
    return module.members if isinstance(module, Family) else (None,)


def logits_by(module: nn.Module, batch: Mapping[str, Any], member: int) -> Tensor:
    """[B, V]: what one member says."""
    said = module(batch["inputs"], member=member) if isinstance(module, Family) else logits_of(module, batch)
    if not isinstance(said, Tensor):
        raise RunError(f"{type(module).__name__} leaves its logits unprojected: a network for images is needed")
    return said


@contextmanager
def recalibrated(module: nn.Module, member: int, batches: Iterable[Mapping[str, Any]]) -> Iterator[nn.Module]:
    """A copy of the module in evaluation mode whose batch norms have the means of this member over the batches: what a
    shared one has seen is a mixture of all members. Without batch norms it is the module itself."""
    if not isinstance(module, Family) or not any(isinstance(part, nn.BatchNorm2d) for part in module.modules()):
        yield module.eval()
        return
    made = copy.deepcopy(module).eval()
    for part in made.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.reset_running_stats()
            part.momentum = None  # the plain mean over the batches
            part.train()
    with torch.no_grad():
        for batch in batches:
            logits_by(made, batch, member)
    yield made.eval()
