"""Changes of images that leave their class as it is: drawn for each image, or siamese ones that gradients pass through.

A change is drawn first and made afterwards. `Augment` draws by item and epoch alone, so that a batch is a pure function
of its items; what it drew are plain numbers that can be stored and give the same images to the bit. `Siamese` (Zhao &
Bilen 2021, arXiv 2102.08259) draws one change for real and synthetic images alike: numbers between 0 and 1, which mean
the same for any number and size of images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy
import torch
from torch import Tensor
from torch.nn import functional as F

from ..core.run import seed_of
from . import pixels

Drawn = Mapping[str, Any]  # change -> its numbers: tensors [B, k], or lists of one image's; `other` holds the partner's
PLACES = {"crop": 0, "colour": 4, "cutout": 7, "mix": 9, "operations": 128}  # where in its stream a change reads
TRIES = 32  # of a rejection sampler whose tries succeed at least every other time
MOST = {  # at magnitude 1; like the strengths of posterise and solarise those of torchvision's RandAugment, from memory
    "rotate": 30.0, "shear_x": 0.3, "shear_y": 0.3, "translate_x": 0.45, "translate_y": 0.45, "brightness": 0.9,
    "contrast": 0.9, "saturation": 0.9, "sharpness": 0.9,
}  # fmt: skip
FACTORS = ("brightness", "contrast", "saturation", "sharpness")


@dataclass(frozen=True, kw_only=True)
class Augment:
    """What is changed; drawn for each image and epoch, in the order of the fields. Nothing is, as long as nothing is set.

    Colours work between the darkest and the brightest value of the training split. Leave out `flip` and the like where
    a changed image is another thing, as a mirrored letter is.
    """

    crop: float = (
        1.0  # least share of the area that a random crop keeps (or 1 / `aspect`); it is brought to the image's size
    )
    aspect: float = 4 / 3  # of a crop: how much wider or higher than the image it may be
    shift: int = 0  # pixels at most, each way: a random crop of the padded image
    border: Literal["repeat", "zero"] = "repeat"  # what a shift brings in: the outermost pixels again, or darkness
    flip: bool = False  # left to right, every other time
    brightness: float = 0.0  # factor from 1 - this to 1 + this
    contrast: float = 0.0
    saturation: float = 0.0
    operations: int = 0  # how many of `kinds` one after the other: RandAugment (Cubuk et al. 2020, arXiv 1909.13719)
    magnitude: float = 0.3  # their strength, 1 the strongest; the authors' 9 of 30
    kinds: tuple[str, ...] = pixels.OPERATIONS
    cutout: float = 0.0  # of the image's side, that is blanked out (DeVries & Taylor 2017, arXiv 1708.04552)
    mixup: float = 0.0  # parameter of the Beta distribution (Zhang et al. 2018, arXiv 1710.09412); 0: no mixing
    cutmix: float = 0.0  # the same for a box of another image (Yun et al. 2019, arXiv 1905.04899); with both: either
    draws: int | None = None  # after so many epochs the same changes come again, for stored signals; None: never

    def __post_init__(self) -> None:
        unknown = [kind for kind in self.kinds if kind not in pixels.OPERATIONS]
        if unknown or not self.kinds:
            raise ValueError(f"no operation {unknown[0] if unknown else None!r}; there are {', '.join(pixels.OPERATIONS)}")
        if not 0 < self.crop <= 1 or self.aspect < 1:
            raise ValueError(f"crop must be above 0 and at most 1 and aspect 1 or more, not {self.crop} and {self.aspect}")
        if self.shift < 0 or self.operations < 0 or (self.draws is not None and self.draws < 1):
            raise ValueError("shift and operations must be 0 or more, draws 1 or more")
        for name in ("magnitude", "cutout", "mixup", "cutmix"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be between 0 and 1, not {getattr(self, name)}")
        if min(self.brightness, self.contrast, self.saturation) < 0:
            raise ValueError("brightness, contrast and saturation must be 0 or more")

    def __call__(self, images: Tensor, items: Sequence[int], epoch: int, seed: int) -> Tensor:
        """Changed images `[B, C, H, W]` with values from 0 to 1; `items` are their numbers in the split. Nothing is mixed:
        that takes other images of the split."""
        return apply(images, self.draw(items, epoch, seed, 1))

    def draw(self, items: Sequence[int], epoch: int, seed: int, size: int) -> Drawn:
        """What is changed of these items of a split of `size` images: float64 tensors [B, k]."""
        epoch = epoch if self.draws is None else epoch % self.draws
        bits = numpy.array([seed_of(seed, "augment", item, epoch) for item in items], dtype=numpy.uint64)
        drawn = self._own(bits)
        if self.mixup or self.cutmix:
            drawn["mix"] = torch.from_numpy(self._mix(bits, numpy.asarray(items), size))
            partners = drawn["mix"][:, 0].long().tolist()
            drawn["other"] = self._own(numpy.array([seed_of(seed, "augment", i, epoch) for i in partners], numpy.uint64))
        return drawn

    def _own(self, bits: Any) -> dict[str, Any]:
        """The changes of images one by one."""
        drawn: dict[str, Any] = {}
        if self.crop < 1:
            u = _uniform(bits, PLACES["crop"], 4)
            area, ratio = self.crop + (1 - self.crop) * u[:, 0], self.aspect ** (2 * u[:, 1] - 1)
            height, width = (numpy.minimum(numpy.sqrt(part), 1) for part in (area / ratio, area * ratio))
            drawn["crop"] = [u[:, 2] * (1 - height), u[:, 3] * (1 - width), height, width]
        if self.shift or self.flip:
            span = numpy.uint64(2 * self.shift + 1)
            down, right = (part.astype("int64") - self.shift for part in (bits % span, bits // span % span))
            flipped = (bits // span**2 % numpy.uint64(2)).astype("int64") * self.flip
            drawn["move"] = [down, right, flipped, numpy.full(len(bits), self.border == "zero")]
        spread = numpy.array([self.brightness, self.contrast, self.saturation])
        if spread.any():
            factors = 1 + (2 * _uniform(bits, PLACES["colour"], 3) - 1) * spread
            drawn["colour"] = list(numpy.maximum(factors, 0).T)
        for number in range(self.operations):
            u = _uniform(bits, PLACES["operations"] + 2 * number, 2)
            known = numpy.array([pixels.OPERATIONS.index(kind) for kind in self.kinds])
            kind = known[(u[:, 0] * len(known)).astype("int64")]
            drawn[f"operation {number + 1}"] = [kind, self._strengths()[kind, (u[:, 1] < 0.5).astype("int64")]]
        if self.cutout:
            drawn["cutout"] = [*_uniform(bits, PLACES["cutout"], 2).T, numpy.full(len(bits), self.cutout)]
        return {name: torch.from_numpy(_plain(numpy.stack(columns, -1))) for name, columns in drawn.items()}

    def _strengths(self) -> Any:
        """[operation, sign]: what an operation takes at this magnitude."""
        table = numpy.zeros((len(pixels.OPERATIONS), 2))
        for number, kind in enumerate(pixels.OPERATIONS):
            by = self.magnitude * MOST.get(kind, 0.0)
            table[number] = (1 + by, 1 - by) if kind in FACTORS else (by, -by)
        table[pixels.OPERATIONS.index("posterise")] = round(4 * self.magnitude)
        table[pixels.OPERATIONS.index("solarise")] = 1 - self.magnitude
        return table

    def _mix(self, bits: Any, items: Any, size: int) -> Any:
        """[B, 5]: the partner, the first image's share, whether a box is cut, the box's middle."""
        u = _uniform(bits, PLACES["mix"], 4 + 2 * TRIES)
        partner = (items + 1 + (u[:, 0] * (size - 1)).astype("int64")) % size  # never itself where there are others
        cut = u[:, 1] < 0.5 if self.mixup and self.cutmix else numpy.full(len(bits), self.cutmix > 0)
        first, second = u[:, 4 : 4 + TRIES], u[:, 4 + TRIES :]
        share = numpy.where(cut, _beta(first, second, self.cutmix), _beta(first, second, self.mixup))
        return _plain(numpy.stack([partner, share, cut, u[:, 2], u[:, 3]], -1))


def apply(images: Tensor, drawn: Drawn, dark: float = 0.0, bright: float = 1.0, blank: Tensor | float = 0.0) -> Tensor:
    """Images [B, C, H, W] with values from `dark` to `bright`, changed as drawn but not mixed. A cutout becomes `blank`
    ([C, 1, 1])."""
    drawn = {name: numbers for name, numbers in drawn.items() if name not in ("mix", "other")}
    span = max(bright - dark, 1e-12)
    exact = not drawn or list(drawn) == ["move"] and not bool(drawn["move"][:, 3].any())  # whole pixels put elsewhere
    images = images if exact else ((images - dark) * (1 / span)).clamp(0, 1)
    for name, numbers in drawn.items():
        columns = numbers.unbind(-1)
        if name == "crop":
            images = pixels.cropped(images, *columns)
        elif name == "move":
            down, right, flip = (column.long() for column in columns[:3])
            images = pixels.moved(images, down, right, flip > 0, bool(columns[3].any()))
        elif name == "colour":
            for change, factor in zip((pixels.brightness, pixels.contrast, pixels.saturation), columns, strict=True):
                images = images if bool((factor == 1).all()) else change(images, factor)
        elif name.startswith("operation"):
            images = pixels.operated(images, columns[0].long(), columns[1])
        elif name == "cutout":
            grey = (torch.as_tensor(blank) - dark) * (1 / span)
            images = torch.where(pixels.hole(images, *columns), grey, images)
    return images if exact else images * span + dark


def plain(drawn: Drawn) -> Drawn:
    """What was drawn for one image as lists of numbers, for JSON and the like."""
    return {name: plain(value) if isinstance(value, Mapping) else value[0].tolist() for name, value in drawn.items()}


def stacked(drawn: Sequence[Drawn]) -> Drawn:
    """The inverse for a batch; all of them were drawn by one `Augment`."""
    if not drawn:
        return {}
    return {
        name: stacked([one[name] for one in drawn])
        if isinstance(value, Mapping)
        else torch.tensor([one[name] for one in drawn], dtype=torch.float64)
        for name, value in drawn[0].items()
    }


def _uniform(bits: Any, place: int, count: int) -> Any:
    """[B, count] float64 in [0, 1): a stream of its own for each of `bits` (SplitMix64, Steele et al. 2014)."""
    step = numpy.arange(place + 1, place + count + 1, dtype=numpy.uint64) * numpy.uint64(0x9E3779B97F4A7C15)
    z = bits[:, None] + step
    z = (z ^ (z >> numpy.uint64(30))) * numpy.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> numpy.uint64(27))) * numpy.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> numpy.uint64(31))) >> numpy.uint64(11)).astype("float64") * 2.0**-53


def _beta(first: Any, second: Any, alpha: float) -> Any:
    """[B] from Beta(alpha, alpha), alpha at most 1, out of uniform numbers [B, TRIES] (Joehnk 1964)."""
    if not alpha:
        return numpy.ones(len(first))
    with numpy.errstate(divide="ignore", invalid="ignore"):
        x, y = numpy.log(first) / alpha, numpy.log(second) / alpha
    good = numpy.logaddexp(x, y) <= 0
    row, column = numpy.arange(len(first)), good.argmax(1)
    return 1 / (1 + numpy.exp(numpy.clip(y - x, -700, 700)[row, column]))


def _plain(numbers: Any) -> Any:
    """Rounded, so that the last bit of a library's logarithm makes no difference."""
    return numpy.round(numbers.astype("float64") * 2**30) / 2**30


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
