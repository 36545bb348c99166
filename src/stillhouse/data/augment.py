"""Differentiable siamese augmentation (Zhao & Bilen 2021, arXiv 2102.08259): changes that gradients pass through.

A change is drawn first and made afterwards, so that real and synthetic images can be changed in the same way: what is
drawn are numbers between 0 and 1, which mean the same for any number and size of images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

KINDS = ("colour", "crop", "cutout", "flip", "scale", "rotate")


@dataclass(frozen=True, kw_only=True)
class Siamese:
    """What may be drawn: one of `kinds` a time. The strengths are those of the authors' code.

    Leave out `flip` where a mirrored image is another thing, as a digit or a letter is.
    """

    kinds: tuple[str, ...] = KINDS  # none: no change
    brightness: float = 1.0  # how wide the added number is spread
    saturation: float = 2.0  # most factor on what differs between channels; the least is 0
    contrast: float = 0.5  # least factor on what differs from the image's mean; the most is 1 more
    crop: float = 0.125  # of the image's side, that it is moved at most; what comes in is 0
    cutout: float = 0.5  # of the image's side, that is blanked out
    flip: float = 0.5  # probability
    scale: float = 1.2  # most zoom, in or out, of each side for itself
    rotate: float = 15.0  # degrees at most, either way

    def __post_init__(self) -> None:
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown:
            raise ValueError(f"no augmentation {unknown[0]!r}; there are {', '.join(KINDS)}")

    def draw(self, generator: torch.Generator, images: int = 1) -> Change:
        """One kind of change: the same for all images it will meet, or, for `images` of them, another for each."""
        if not self.kinds:
            return Change(self, "", torch.zeros(1, 3))
        kind = self.kinds[int(torch.randint(len(self.kinds), (1,), generator=generator))]
        return Change(self, kind, torch.rand(images, 3, generator=generator))


@dataclass(frozen=True)
class Change:
    """A drawn change; call it with images."""

    strength: Siamese
    kind: str
    numbers: Tensor  # [1, 3] or [B, 3], between 0 and 1

    def __call__(self, images: Tensor) -> Tensor:
        """Changed images, `[B, C, H, W]` like the given ones."""
        if not self.kind or not len(images):
            return images
        a, b, c = self.numbers.to(images.device, images.dtype).expand(len(images), 3).unbind(-1)
        return getattr(self, f"_{self.kind}")(images, a, b, c)

    def _colour(self, images: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        strength = self.strength
        images = images + (_each(a) - 0.5) * strength.brightness
        grey = images.mean(1, keepdim=True)
        images = (images - grey) * (_each(b) * strength.saturation) + grey
        mean = images.mean((1, 2, 3), keepdim=True)
        return (images - mean) * (_each(c) + strength.contrast) + mean

    def _crop(self, images: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        rows, down = _moved(images.shape[-2], self.strength.crop, a)
        columns, right = _moved(images.shape[-1], self.strength.crop, b)
        wide = F.pad(images, (right, right, down, down)).movedim(1, -1)
        image = torch.arange(len(images), device=images.device)[:, None, None]
        return wide[image, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)

    def _cutout(self, images: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        rows, columns = (_hole(n, self.strength.cutout, u) for n, u in zip(images.shape[-2:], (a, b), strict=True))
        return images.masked_fill((rows[:, :, None] & columns[:, None, :]).unsqueeze(1), 0.0)

    def _flip(self, images: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return torch.where(_each(a) < self.strength.flip, images.flip(-1), images)

    def _scale(self, images: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        least, most = 1 / self.strength.scale, self.strength.scale
        zero = torch.zeros_like(a)
        return _affine(images, least + (most - least) * a, zero, zero, least + (most - least) * b)

    def _rotate(self, images: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        angle = (2 * a - 1) * math.radians(self.strength.rotate)
        return _affine(images, angle.cos(), -angle.sin(), angle.sin(), angle.cos())


def _each(numbers: Tensor) -> Tensor:
    """[B] for images [B, C, H, W]."""
    return numbers[:, None, None, None]


def _moved(size: int, share: float, number: Tensor) -> tuple[Tensor, int]:
    """Positions [B, size] in an image with a margin, and that margin."""
    margin = int(size * share + 0.5)
    by = _whole(number, 2 * margin + 1)
    return torch.arange(size, device=number.device) + by[:, None], margin


def _hole(size: int, share: float, number: Tensor) -> Tensor:
    """[B, size], true where a hole is whose middle may be anywhere."""
    length = int(size * share + 0.5)
    begin = _whole(number, size + 1 - length % 2)[:, None] - length // 2
    position = torch.arange(size, device=number.device)
    return (position >= begin) & (position < begin + length)


def _whole(number: Tensor, count: int) -> Tensor:
    """0 .. count - 1, each as likely."""
    return (number * count).long().clamp(max=count - 1)


def _affine(images: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """The images seen through [[a, b], [c, d]] around their middles; 0 outside."""
    matrix = F.pad(torch.stack([torch.stack([a, b], -1), torch.stack([c, d], -1)], -2), (0, 1))
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)
