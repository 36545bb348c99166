"""Between two feature spaces: a small layer that brings what a student computes to the shape of what its teacher does."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.method import State
from .taps import AS, Form


class Adapted(State):
    """A student and what learns with it, in one group: one gradient norm, one optimizer; only the student is kept."""

    def __init__(self, student: nn.Module, adapters: Iterable[nn.Module] = (), **parts: nn.Module | float | Tensor):
        super().__init__(student=student, adapters=nn.ModuleList(adapters), **parts)

    def groups(self) -> dict[str, nn.Module]:
        """The student with its adapters, and the groups that are left."""
        rest = super().groups()
        rest.pop("adapters", None)
        return {**rest, "student": nn.ModuleDict({"student": self.student, "adapters": self.adapters})}


def shaped(shape: tuple[int, ...], form: Form) -> tuple[int, ...]:
    """The shape of one item [C, H, W], [N, D] or [D] after `taps.AS[form]`."""
    made = AS[form](torch.empty(1, *shape, device="meta"))
    return tuple(made.shape[1:])


def width(shape: tuple[int, ...]) -> int:
    """Channels of a map, width of tokens or of a vector."""
    return shape[0] if len(shape) == 3 else shape[-1]


def adapter(mine: tuple[int, ...], theirs: tuple[int, ...], *, always: bool = True) -> nn.Module:
    """A module from items of shape `mine` to `theirs`, both maps [C, H, W], tokens [N, D] or vectors [D].

    A linear map of the channels (for maps a 1x1 convolution), then a map of another size is averaged down or interpolated
    up, and tokens of another number are interpolated. Where the shapes agree and not `always`, nothing.
    """
    if len(mine) != len(theirs):
        raise ValueError(f"an adapter keeps the form, and {list(mine)} is another than {list(theirs)}")
    if mine == theirs and not always:
        return nn.Identity()
    if len(mine) == 3:
        return ToMap(mine[0], theirs)
    if len(mine) == 2:
        return ToTokens(mine[1], theirs)
    return nn.Linear(mine[0], theirs[0])


class ToMap(nn.Module):
    """A 1x1 convolution to the teacher's channels, and its size."""

    def __init__(self, channels: int, shape: tuple[int, ...]):
        super().__init__()
        self.project, self.size = nn.Conv2d(channels, shape[0], 1), (shape[1], shape[2])

    def forward(self, x: Tensor) -> Tensor:
        """[B, c, h, w] to [B, C, H, W]."""
        return resized(self.project(x), self.size)


class ToTokens(nn.Module):
    """A linear layer to the teacher's width, and its number of tokens."""

    def __init__(self, width: int, shape: tuple[int, ...]):
        super().__init__()
        self.project, self.count = nn.Linear(width, shape[1]), shape[0]

    def forward(self, x: Tensor) -> Tensor:
        """[B, n, d] to [B, N, D]."""
        x = self.project(x)
        if x.shape[1] == self.count:
            return x
        return F.interpolate(x.transpose(1, 2), self.count, mode="linear", align_corners=False).transpose(1, 2)


def resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps [B, C, h, w] at another size: averaged down where it is smaller, interpolated up where it is larger."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    smaller = size[0] <= x.shape[-2] and size[1] <= x.shape[-1]
    return F.adaptive_avg_pool2d(x, size) if smaller else F.interpolate(x, size, mode="bilinear", align_corners=False)
