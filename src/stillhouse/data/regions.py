"""Images with a region of interest, seen as two: what is inside of it, and what is around it.

A batch has 2 C channels: first the C channels of the image with all but the region dark, then those with the region
dark. Their sum is the whole image. So that dark stays 0 and the sum stays right, such images are divided by one
number for each channel and no mean is taken off.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy
import torch
from torch import Tensor

from ..core.run import Run, RunError, seed_of
from .images import Images, Split, _splits  # pyright: ignore[reportPrivateUsage]

CLASSES = ("disc in a frame", "disc on stripes", "square in a frame", "square on stripes", "cross", "triangle")


@dataclass(frozen=True, kw_only=True)
class Regions:
    """An NPZ file with `images` [N, H, W] or [N, H, W, C], `masks` [N, H, W] (not 0 inside the region) and `labels` [N]."""

    path: str
    split: Split = Split()

    def load(self, run: Run) -> Mapping[str, Images]:
        """The splits."""
        path = Path(self.path)
        try:
            with numpy.load(path, allow_pickle=False) as file:
                found = {name: file[name] for name in ("images", "masks", "labels")}
        except (OSError, ValueError, KeyError) as error:
            raise RunError(f"{path} is no NPZ file with images, masks and labels: {str(error).splitlines()[0]}") from error
        images = torch.from_numpy(found["images"])
        images = images.unsqueeze(1) if images.ndim == 3 else images.movedim(-1, 1)
        inside = torch.from_numpy(found["masks"]) != 0
        labels = torch.from_numpy(found["labels"].astype("int64"))
        if not (len(images) == len(inside) == len(labels)) or inside.shape[1:] != images.shape[2:]:
            raise RunError(
                f"{path}: images {list(images.shape)}, masks {list(inside.shape)} and labels {list(labels.shape)} do not fit"
            )
        names = tuple(str(name) for name in labels[labels >= 0].unique().tolist())
        order = torch.searchsorted(labels[labels >= 0].unique(), labels.clamp(min=0)).where(labels >= 0, -100)
        return split_apart(images, inside, order, names, self.split, run, str(path))


@dataclass(frozen=True, kw_only=True)
class Scenes:
    """Shapes in surroundings, for experiments: two shapes mean one thing in a frame and another on stripes.

    A shape stands anywhere in a noisy image of 16 x 16 pixels. The surroundings are drawn for the classes that they decide;
    a cross and a triangle have either.
    """

    count: int = 1800
    size: int = 16
    noise: float = 0.15  # standard deviation, as a share of the light
    split: Split = Split(valid=0.25, test=0.5)

    def load(self, run: Run) -> Mapping[str, Images]:
        """The splits, the same for every seed."""
        draw = torch.Generator().manual_seed(seed_of("scenes", self.count, self.size))
        images, inside = [], []
        labels = torch.arange(self.count) % len(CLASSES)
        for label in labels.tolist():
            image, mask = self._scene(label, draw)
            images.append(image)
            inside.append(mask)
        pixels = torch.stack(images)
        pixels = (pixels + self.noise * torch.randn(pixels.shape, generator=draw)).clamp(0.02, 1) * 255
        return split_apart(
            pixels.round().to(torch.uint8).unsqueeze(1), torch.stack(inside), labels, CLASSES, self.split, run, "the scenes"
        )

    def _scene(self, label: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        size = self.size
        row, column = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
        half = size // 5
        top, left = (int(torch.randint(half + 1, size - half - 1, (), generator=draw)) for _ in range(2))
        down, right = row - top, column - left
        shapes = {
            "disc": down**2 + right**2 <= half**2,
            "square": (down.abs() <= half - 1) & (right.abs() <= half - 1),
            "cross": ((down.abs() <= half) & (right == 0)) | ((right.abs() <= half) & (down == 0)),
            "triangle": (down.abs() <= half) & (right.abs() * 2 <= down + half),
        }
        shape = shapes[CLASSES[label].split()[0]]
        framed = "frame" in CLASSES[label]
        if label >= 4:
            framed = bool(torch.randint(2, (), generator=draw))
        border = (row == 0) | (column == 0) | (row == size - 1) | (column == size - 1)
        around = border if framed else (row + column) % 4 == 0
        mask = (down.abs() <= half) & (right.abs() <= half)
        return torch.where(mask, shape.float(), around.float()) * 0.7, mask


def split_apart(
    images: Tensor, inside: Tensor, labels: Tensor, names: tuple[str, ...], split: Split, run: Run, owner: str
) -> dict[str, Images]:
    """The splits of images [N, C, H, W] whose region is `inside` [N, H, W], as pairs [N, 2 C, H, W]."""
    region = inside.unsqueeze(1)
    both = torch.cat([images * region, images * ~region], 1)
    found = _splits(both, labels, names, range(len(labels)), split, None, run, None, owner)
    whole = found["train"].images
    channels = images.shape[1]
    size = (whole[:, :channels].float() + whole[:, channels:].float()).square().mean((0, 2, 3)).sqrt().clamp(min=1e-6)
    scale = size.repeat(2)[:, None, None]
    return {name: replace(part, mean=torch.zeros_like(scale), deviation=scale) for name, part in found.items()}


def moved(pairs: Tensor, down: int, right: int) -> Tensor:
    """Pairs [B, 2 C, H, W] whose region was moved, around the border; what it uncovers stays dark, what it covers too."""
    channels = pairs.shape[1] // 2
    region, rest = pairs[:, :channels], pairs[:, channels:]
    there = region.roll((down, right), (2, 3))
    covered = (there != 0).any(1, keepdim=True)
    return torch.cat([there, rest.masked_fill(covered, 0.0)], 1)
