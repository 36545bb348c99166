"""A condensed data set as a student: its parameters are pixels, its labels are fixed, and it may begin as real images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..core.run import Run, RunError, seed_of
from ..data.byclass import members_of

Start = Literal["random", "kmeans", "noise"]
FILE = "condensed.safetensors"
ROUNDS = 100  # of k-means at most
SHOWN = 20  # images a row of the picture


class Pixels(nn.Module):
    """`classes * per_class` images, those of class 0 first, standardised as the batches of the real data are."""

    labels: Tensor  # [N]
    mean: Tensor  # [C, 1, 1], of the real data
    deviation: Tensor  # [C, 1, 1]

    def __init__(self, images: Tensor, labels: Tensor, mean: Tensor, deviation: Tensor):
        super().__init__()
        self.images = nn.Parameter(images)  # [N, C, H, W]
        for name, value in (("labels", labels), ("mean", mean), ("deviation", deviation)):
            self.register_buffer(name, value)
        self.classes = int(labels.max()) + 1
        self.per_class = len(labels) // self.classes

    @property
    def shape(self) -> tuple[int, ...]:
        """[C, H, W] of one image."""
        return tuple(self.images.shape[1:])

    def of(self, label: int) -> Tensor:
        """The images of one class, [per_class, C, H, W]."""
        return self.images[label * self.per_class : (label + 1) * self.per_class]

    def stored(self) -> Tensor:
        """The images in the units of the real data's files, on the CPU."""
        return (self.images.detach().float() * self.deviation + self.mean).cpu()


@dataclass(frozen=True, kw_only=True)
class Condensed:
    """`per_class` images of every class of the recipe's data."""

    per_class: int = 10
    start: Start = "random"  # real images drawn at random, those nearest to k-means' centres, or noise

    def __post_init__(self) -> None:
        if self.per_class < 1:
            raise ValueError(f"per_class must be 1 or more, not {self.per_class}")

    def build(self, run: Run) -> Pixels:
        """The images that learning starts from; they depend on the run's seed and the data alone."""
        source: Any = run.sources()["train"]
        members = members_of(source)
        names = getattr(source, "names", range(len(members)))
        images: list[Tensor] = []
        for label, items in enumerate(members):
            draw = torch.Generator().manual_seed(seed_of(run.seed, "condensed", self.start, label))
            if self.start == "noise":
                images.append(torch.randn(self.per_class, *source.shape, generator=draw))
                continue
            if len(items) < self.per_class:
                raise RunError(
                    f"class {names[label]} has {len(items)} training images, fewer than the {self.per_class} asked for; "
                    f"set student.per_class to at most {min(map(len, members))}, or student.start to noise"
                )
            images.append(source.batch(items[self._choice(source, items, draw)].tolist(), 0)["inputs"])
        labels = torch.arange(len(members)).repeat_interleave(self.per_class)
        zero, one = torch.zeros(source.shape[0], 1, 1), torch.ones(source.shape[0], 1, 1)
        mean, deviation = getattr(source, "mean", zero), getattr(source, "deviation", one)
        return Pixels(torch.cat(images), labels, mean.clone(), deviation.clone())

    def _choice(self, source: Any, items: Tensor, draw: torch.Generator) -> Tensor:
        if self.start == "random":
            return torch.randperm(len(items), generator=draw)[: self.per_class]
        return nearest_to_centres(source.batch(items.tolist(), 0)["inputs"].flatten(1), self.per_class, draw)

    def save(self, module: nn.Module, folder: Path, run: Run) -> None:
        """`condensed.safetensors` to go on from, `condensed.npz` to train on, `condensed.png` to look at."""
        assert isinstance(module, Pixels)
        state = {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}
        save_file(state, folder / FILE)
        images, labels = module.stored().movedim(1, -1).numpy(), module.labels.cpu().numpy()
        source: Any = run.sources()["train"]
        names = numpy.array([str(name) for name in getattr(source, "names", range(module.classes))])
        numpy.savez(folder / "condensed.npz", images=images, labels=labels, names=names)
        real = getattr(source, "images", None)
        low, high = (0.0, 1.0) if real is None else (float(real.min()), float(real.max()))
        _picture((module.stored() - low) / max(high - low, 1e-6), module.per_class).save(folder / "condensed.png")

    def load(self, folder: Path, run: Run) -> Pixels:
        """The images that `save` wrote."""
        try:
            return Pixels(**load_file(folder / FILE))
        except (OSError, TypeError, RuntimeError) as error:
            raise RunError(f"no condensed images in {folder}: {str(error).splitlines()[0]}") from error


def nearest_to_centres(points: Tensor, k: int, draw: torch.Generator) -> Tensor:
    """k different rows of `points` [n, d], each the nearest that is left to one of the centres of k-means."""
    points = points.double()
    centres = points[_spread(points, k, draw)]
    belongs = torch.full((len(points),), -1)
    for _ in range(ROUNDS):
        before, belongs = belongs, torch.cdist(points, centres).argmin(1)
        if torch.equal(before, belongs):
            break
        counts = torch.bincount(belongs, minlength=k)
        sums = torch.zeros_like(centres).index_add_(0, belongs, points)
        centres = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], centres)
    distance, chosen = torch.cdist(points, centres), list[int]()
    for centre in range(k):
        distance[chosen] = torch.inf
        chosen.append(int(distance[:, centre].argmin()))
    return torch.tensor(chosen)


def _spread(points: Tensor, k: int, draw: torch.Generator) -> list[int]:
    """The beginning of k-means++ (Arthur & Vassilvitskii 2007): rows far from those already taken are likelier."""
    chosen = [int(torch.randint(len(points), (1,), generator=draw))]
    nearest = (points - points[chosen[0]]).square().sum(1)
    while len(chosen) < k:
        odds = nearest if bool(nearest.sum() > 0) else torch.ones_like(nearest)  # all rows alike
        chosen.append(int(torch.multinomial(odds, 1, generator=draw)))
        nearest = torch.minimum(nearest, (points - points[chosen[-1]]).square().sum(1))
    return chosen


def _picture(images: Tensor, per_class: int) -> Any:
    """A row of images for each class, at least 32 pixels each; `images` between 0 and 1, clipped."""
    from PIL import Image  # matplotlib brings it

    zoom = max(1, -(-32 // images.shape[-1]))
    pixels = (images.clamp(0, 1) * 255).round().to(torch.uint8)
    pixels = pixels[:, :3] if pixels.shape[1] >= 3 else pixels[:, :1].expand(-1, 3, -1, -1)
    pixels = pixels.repeat_interleave(zoom, -1).repeat_interleave(zoom, -2)
    framed = nn.functional.pad(pixels, (1, 1, 1, 1), value=128).unflatten(0, (-1, per_class))[:, :SHOWN]
    rows, columns, _, height, width = framed.shape
    grid = framed.permute(0, 3, 1, 4, 2).reshape(rows * height, columns * width, 3)
    return Image.fromarray(grid.numpy())
