"""Points to generate: mixtures and moons made up on the spot, any .npy or .csv file, and pairs that a teacher drew.

A batch has `inputs` [B, d] float32 and `items` [B], the points' numbers in their split, from which noise can be drawn item
by item; and `labels` [B] where points have a class.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy
import torch
from safetensors.torch import load_file
from torch import Tensor

from ..core.run import Run, RunError, seed_of
from ..core.signal import Batch

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Mixture:
    """Gaussians of one deviation and equal weight."""

    centres: Tensor  # [K, d]
    deviation: float


@dataclass(frozen=True)
class Cloud:
    """One split of points in memory."""

    inputs: Tensor  # [N, d], or items of any shape
    labels: Tensor | None = None  # [N]
    noise: Tensor | None = None  # like inputs: what a teacher made each item of
    mixture: Mixture | None = None  # where the points are known to come from one
    mean: Tensor | float = 0.0  # mean + deviation * inputs are the user's numbers
    deviation: Tensor | float = 1.0
    classes: int = 0

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one item."""
        return tuple(self.inputs.shape[1:])

    def batch(self, items: Sequence[int], epoch: int) -> Batch:
        """inputs [B, ...], items [B], and labels and noise if there are any."""
        chosen = torch.tensor(items, dtype=torch.long)
        found = {"inputs": self.inputs[chosen], "items": chosen}
        if self.labels is not None:
            found["labels"] = self.labels[chosen]
        if self.noise is not None:
            found["noise"] = self.noise[chosen]
        return found


@dataclass(frozen=True, kw_only=True)
class _MadeUp:
    """Splits drawn from a distribution; the same for every seed of the run."""

    train: int = 4000
    valid: int = 1000
    test: int = 1000

    def _draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def mixture(self) -> Mixture | None:
        """The mixture that the points come from, if they come from one."""
        return None

    def load(self, run: Run) -> Mapping[str, Cloud]:
        """The splits."""
        generator = torch.Generator().manual_seed(seed_of("points", type(self).__name__))
        drawn = {name: self._draw(n, generator) for name, n in zip(SPLITS, (self.train, self.valid, self.test), strict=True)}
        classes = int(max(labels.max() for _, labels in drawn.values())) + 1
        known = self.mixture()
        return {name: Cloud(x, labels, mixture=known, classes=classes) for name, (x, labels) in drawn.items()}


@dataclass(frozen=True, kw_only=True)
class Ring(_MadeUp):
    """Gaussians on a circle: every mode is seen at once, and one that is left out shows."""

    modes: int = 8
    radius: float = 1.4  # 1.4: each coordinate has a deviation of about 1
    spread: float = 0.1  # deviation of each Gaussian

    def mixture(self) -> Mixture:
        """The Gaussians."""
        angle = torch.arange(self.modes) * (2 * math.pi / self.modes)
        return Mixture(self.radius * torch.stack([angle.cos(), angle.sin()], -1), self.spread)

    def _draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return _from_mixture(self.mixture(), n, generator)


@dataclass(frozen=True, kw_only=True)
class Grid(_MadeUp):
    """Gaussians on a square grid."""

    side: int = 5
    step: float = 0.7
    spread: float = 0.05

    def mixture(self) -> Mixture:
        """The Gaussians."""
        line = (torch.arange(self.side) - (self.side - 1) / 2) * self.step
        return Mixture(torch.cartesian_prod(line, line), self.spread)

    def _draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return _from_mixture(self.mixture(), n, generator)


@dataclass(frozen=True, kw_only=True)
class Moons(_MadeUp):
    """Two half circles that reach into each other."""

    spread: float = 0.08

    def _draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        labels = torch.arange(n) % 2
        angle = math.pi * torch.rand(n, generator=generator)
        upper = torch.stack([angle.cos(), angle.sin()], -1)
        lower = torch.stack([1 - angle.cos(), 0.5 - angle.sin()], -1)
        points = torch.where(labels[:, None] == 0, upper, lower) + self.spread * torch.randn(n, 2, generator=generator)
        return (points - torch.tensor([0.5, 0.25])) / torch.tensor([0.87, 0.5]), labels


@dataclass(frozen=True, kw_only=True)
class PointFile:
    """A .npy file [N, d], or a .csv file of numbers with a point a row and one line of names at most.

    Which points are held out depends on the points alone. Coordinates are standardised by the training split; what is
    drawn is given back in the file's own numbers.
    """

    path: str
    valid: float = 0.15  # shares
    test: float = 0.15

    def load(self, run: Run) -> Mapping[str, Cloud]:
        """The splits."""
        points = torch.from_numpy(self._read())
        order = sorted(range(len(points)), key=lambda i: seed_of("points", points[i].tolist()))
        cuts = [0, round(self.test * len(order)), round((self.test + self.valid) * len(order)), len(order)]
        test, valid, train = (points[order[a:b]] for a, b in zip(cuts, cuts[1:], strict=False))
        if min(len(test), len(valid), len(train)) < 2:
            raise RunError(f"{self.path} has too few points ({len(points)}) to hold some out")
        mean, deviation = train.mean(0), train.std(0, correction=0).clamp(min=1e-6)
        parts = zip(SPLITS, (train, valid, test), strict=True)
        return {name: Cloud(((x - mean) / deviation).float(), mean=mean, deviation=deviation) for name, x in parts}

    def _read(self) -> numpy.ndarray:
        path = Path(self.path)
        if not path.is_file():
            raise RunError(f"no file {self.path}")
        try:
            if path.suffix == ".npy":
                found = numpy.load(path, allow_pickle=False)
            else:
                with path.open(encoding="utf-8-sig") as file:
                    first = file.readline()
                found = numpy.loadtxt(path, delimiter=",", ndmin=2, skiprows=int(not _numbers(first)), encoding="utf-8-sig")
        except (OSError, ValueError, EOFError) as error:
            raise RunError(f"cannot read {self.path} as points: {str(error).splitlines()[0]}") from error
        if found.ndim != 2 or found.dtype.kind not in "uif":
            raise RunError(f"{self.path} is {found.dtype} {list(found.shape)}; it should hold numbers, one point a row")
        if not numpy.isfinite(found).all():
            raise RunError(f"{self.path} has entries that are no numbers; fill them or leave their rows out")
        return found.astype("float64")


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """What stage `stage` of this run (a `teachers.score.DrawPairs`) drew: noise and what the teacher made of it."""

    stage: str = "pairs"
    FILE: ClassVar[str] = "pairs.safetensors"

    def load(self, run: Run) -> Mapping[str, Cloud]:
        """Everything is for training."""
        found = load_file(run.path(self.stage) / self.FILE)
        labels = found.get("labels")
        return {
            "train": Cloud(found["inputs"], labels, found["noise"], classes=0 if labels is None else int(labels.max()) + 1)
        }


def _from_mixture(mixture: Mixture, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    labels = torch.arange(n) % len(mixture.centres)
    noise = torch.randn(n, mixture.centres.shape[1], generator=generator)
    return mixture.centres[labels] + mixture.deviation * noise, labels


def _numbers(line: str) -> bool:
    try:
        return [float(part) for part in line.split(",")] != []
    except ValueError:
        return False
