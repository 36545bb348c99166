"""Changes of images, for a whole batch at once and with another strength for every image.

Images are [B, C, H, W] float32 between 0 (dark) and 1 (bright); strengths are [B]. What an image becomes depends on itself
and its strength alone, to the bit: not on how many stand in the batch, or signals stored for it would not be found again.
Hence no matrix products, and no sums of floats over pixels (their rounding depends on how many are added at a time).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

OPERATIONS = (
    "identity", "rotate", "shear_x", "shear_y", "translate_x", "translate_y", "brightness", "contrast", "saturation",
    "sharpness", "posterise", "solarise", "autocontrast", "equalise",
)  # fmt: skip
GEOMETRIC = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
FINE = 2**24  # steps between 0 and 1 that float32 can tell apart at 1
LEVELS = 255  # what posterise and equalise count in


def moved(images: Tensor, down: Tensor, right: Tensor, flip: Tensor, zero: bool) -> Tensor:
    """Moved by whole pixels and, where `flip`, mirrored; what comes in is the repeated border, or with `zero` dark."""
    height, width = images.shape[-2:]
    rows, columns = torch.arange(height) + down[:, None], torch.arange(width) + right[:, None]
    columns = torch.where(flip[:, None], columns.flip(-1), columns)
    found = _picked(images, rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None, :])
    return found * (_inside(rows, height)[:, :, None] & _inside(columns, width)[:, None, :]).unsqueeze(1) if zero else found


def cropped(images: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor) -> Tensor:
    """A part of each image (in shares of its sides) brought to the image's size: bilinear, without antialiasing."""
    for axis, begin, length in ((2, top, height), (3, left, width)):
        images = _stretched(images, axis, begin, length)
    return images


def _stretched(images: Tensor, axis: int, begin: Tensor, length: Tensor) -> Tensor:
    size = images.shape[axis]
    first, count = (begin.double() * size)[:, None], (length.double() * size)[:, None]
    at = first + (torch.arange(size) + 0.5) * (count / size) - 0.5
    at = torch.minimum(torch.maximum(at, first), torch.maximum(first, first + count - 1)).clamp(0, size - 1)
    low = at.floor()
    shape = [len(images), 1, 1, 1]
    shape[axis] = size

    def line(number: Tensor) -> Tensor:
        return images.gather(axis, number.long().reshape(shape).expand_as(images))

    below = line(low)
    return below + (line((low + 1).clamp(max=size - 1)) - below) * (at - low).float().reshape(shape)


def seen_through(images: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, right: Tensor, down: Tensor) -> Tensor:
    """What stands at [[a, b], [c, d]] (x, y) + (right, down) from the middle, the nearest pixel; outside it is dark."""
    height, width = images.shape[-2:]
    x = (torch.arange(width) + 0.5 - width / 2).double()[None, None, :]
    y = (torch.arange(height) + 0.5 - height / 2).double()[None, :, None]
    a, b, c, d, right, down = (value.double()[:, None, None] for value in (a, b, c, d, right, down))
    columns = (a * x + b * y + right + width / 2).floor().long()
    rows = (c * x + d * y + down + height / 2).floor().long()
    found = _picked(images, rows.clamp(0, height - 1), columns.clamp(0, width - 1))
    return found * (_inside(rows, height) & _inside(columns, width)).unsqueeze(1)


def geometric(images: Tensor, kinds: Tensor, strength: Tensor) -> Tensor:
    """Rotated (degrees), sheared (share) or moved (share of the side), as the numbers of `OPERATIONS` say."""
    one, zero = torch.ones_like(strength), torch.zeros_like(strength)
    height, width = images.shape[-2:]

    def only(kind: str, value: Tensor, other: Tensor) -> Tensor:
        return torch.where(kinds == OPERATIONS.index(kind), value, other)

    angle = only("rotate", strength, zero) * (math.pi / 180)
    cosine, sine = ((part * 2**30).round() / 2**30 for part in (angle.cos(), angle.sin()))
    return seen_through(
        images, only("rotate", cosine, one), only("shear_x", strength, -sine), only("shear_y", strength, sine),
        only("rotate", cosine, one), only("translate_x", -(strength * width).round(), zero),
        only("translate_y", -(strength * height).round(), zero),
    )  # fmt: skip


def grey(images: Tensor) -> Tensor:
    """[B, 1, H, W]: how bright each pixel looks (ITU-R 601) where there are three channels, else their mean."""
    channels = images.unbind(1)
    shares = (0.299, 0.587, 0.114) if len(channels) == 3 else (1 / len(channels),) * len(channels)
    total = channels[0] * shares[0]
    for channel, share in zip(channels[1:], shares[1:], strict=True):
        total = total + channel * share
    return total.unsqueeze(1)


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """0 is dark, 1 the image itself."""
    return (images * _each(factor)).clamp(0, 1)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """0 is the grey image's mean, 1 the image itself."""
    whole = (grey(images) * FINE).round().long().sum((1, 2, 3))  # whole numbers add up the same in any order
    mean = (whole.double() / (FINE * images[0, 0].numel())).float()
    return _blend(_each(mean), images, factor)


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """0 is the grey image, 1 the image itself; an image of one channel stays as it is."""
    return _blend(grey(images), images, factor) if images.shape[1] > 1 else images


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """0 is a smoothed image, 1 the image itself, more is sharper; the outermost pixels stay."""
    if min(images.shape[-2:]) < 3:
        return images
    total = images[..., 1:-1, 1:-1] * 4  # the kernel is 1 around 5, over 13
    for down in range(3):
        for right in range(3):
            total = total + images[..., down : images.shape[-2] - 2 + down, right : images.shape[-1] - 2 + right]
    smooth = images.clone()
    smooth[..., 1:-1, 1:-1] = total / 13
    return _blend(smooth, images, factor)


def posterise(images: Tensor, lost: Tensor) -> Tensor:
    """So many of the eight bits of every pixel set to zero."""
    step = 2 ** _each(lost).round()
    return ((images * LEVELS).round() / step).floor() * step / LEVELS


def solarise(images: Tensor, threshold: Tensor) -> Tensor:
    """Negative where it is as bright as the threshold."""
    return torch.where(images >= _each(threshold), 1 - images, images)


def autocontrast(images: Tensor, strength: Tensor) -> Tensor:
    """Every channel stretched so that its darkest pixel is 0 and its brightest 1."""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    return torch.where(high > low, (images - low) / (high - low).clamp(min=1 / FINE), images)


def equalise(images: Tensor, strength: Tensor) -> Tensor:
    """Every channel's levels spread so that each is about as frequent, as Pillow does it."""
    level = (images * LEVELS).round().long().flatten(2)
    count = torch.zeros(*level.shape[:2], LEVELS + 1, dtype=torch.long).scatter_add_(2, level, torch.ones_like(level))
    before = count.cumsum(2) - count
    last = count.gather(2, level.amax(2, keepdim=True))
    step = (level.shape[2] - last) // LEVELS
    table = ((before + step // 2) // step.clamp(min=1)).clamp(max=LEVELS)
    spread = (table.gather(2, level).float() / LEVELS).reshape(images.shape)
    return torch.where(step.unsqueeze(-1) > 0, spread, images)


def operated(images: Tensor, kinds: Tensor, strength: Tensor) -> Tensor:
    """Each image changed by its own of `OPERATIONS`, with its own strength."""
    changed = images.clone()
    shapes = torch.tensor([OPERATIONS.index(kind) for kind in GEOMETRIC])
    members = torch.isin(kinds, shapes).nonzero().flatten()
    if len(members):
        changed[members] = geometric(images[members], kinds[members], strength[members])
    for kind in kinds.unique().tolist():
        if kind and kind not in shapes:
            members = (kinds == kind).nonzero().flatten()
            changed[members] = globals()[OPERATIONS[kind]](images[members], strength[members])
    return changed


def hole(images: Tensor, y: Tensor, x: Tensor, side: Tensor) -> Tensor:
    """[B, 1, H, W] true in a square (share of each side) around a point (shares); parts outside are cut off."""
    spans: list[Tensor] = []
    for size, middle in ((images.shape[-2], y), (images.shape[-1], x)):
        length = (side * size).floor()
        begin = (middle * size).floor() - (length / 2).floor()
        at = torch.arange(size)
        spans.append((at >= begin[:, None]) & (at < (begin + length)[:, None]))
    return (spans[0][:, :, None] & spans[1][:, None, :]).unsqueeze(1)


def mixed(images: Tensor, others: Tensor, share: Tensor, cut: Tensor, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """(mixed images, the share [B] of the first): added up, or where `cut`, with a box of the other one."""
    box = hole(images, y, x, (1 - share).sqrt()) & _each(cut > 0)
    share = torch.where(cut > 0, 1 - box.flatten(1).sum(1) / box[0].numel(), share).float()
    blended = images * _each(share) + others * (1 - _each(share))
    return torch.where(_each(cut > 0), torch.where(box, others, images), blended), share


def _blend(other: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    factor = _each(factor)
    return (images * factor + other * (1 - factor)).clamp(0, 1)


def _each(numbers: Tensor) -> Tensor:
    """[B] for images [B, C, H, W]."""
    numbers = numbers if numbers.dtype == torch.bool else numbers.float()
    return numbers[:, None, None, None]


def _inside(position: Tensor, size: int) -> Tensor:
    return (position >= 0) & (position < size)


def _picked(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The pixels at rows [B, H or 1 ..] and columns of each image."""
    batch, channels, height, width = images.shape
    place = (rows * width + columns).reshape(batch, 1, -1).expand(-1, channels, -1)
    return images.flatten(2).gather(2, place).reshape(batch, channels, height, width)
