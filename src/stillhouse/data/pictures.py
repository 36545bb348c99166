"""Files of pictures as tensors: PNG, JPEG and their kin one by one, and NPZ files of arrays or of JPEG bytes.

A picture is turned as its EXIF data say; transparent places become white; palettes become colours; of 16 bits the upper
eight are kept; of a moving picture the first one. A few bad pictures among many are left out and kept in `rejects.jsonl`
with their reason; many are an error.
"""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from ..core.run import Run, RunError

FORMATS = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
ORIENTATION = 0x0112  # the EXIF tag that says how the camera was held
BAD = 0.05  # share of pictures that may be bad: some always are, but so many point to a mistake
ARRAYS = (("images", "labels", "test_images", "test_labels"), ("x_train", "y_train", "x_test", "y_test"))


class BadPicture(ValueError):
    """A picture that cannot be read; the message says why."""


def picture(source: Path | bytes, size: int | None, colour: bool) -> Tensor:
    """One picture as [C, size, size] uint8, with 3 channels or one; without `size` it keeps its own."""
    pillow, ops = need("PIL.Image"), need("PIL.ImageOps")
    try:
        with pillow.open(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
            file.load()
            turned = ops.exif_transpose(file) if file.getexif().get(ORIENTATION, 1) != 1 else file
            if turned.mode[0] in "IF":  # more than 8 bits: `convert` would cut them off at 255 and not scale them
                deep = numpy.asarray(turned).astype("float64")
                high = 65535 if turned.mode.startswith("I;16") or deep.max(initial=0) > 255 else 255
                turned = pillow.fromarray((deep.clip(0, high) * (255 / high)).astype("uint8"))
            if turned.mode in ("RGBA", "LA", "PA") or "transparency" in turned.info:
                clear = turned.convert("RGBA")
                turned = pillow.alpha_composite(pillow.new("RGBA", clear.size, "white"), clear)
            found = turned.convert("RGB" if colour else "L")
            found = found if size is None else found.resize((size, size))
    except (OSError, ValueError, SyntaxError, EOFError, pillow.DecompressionBombError) as error:  # all that Pillow raises
        raise BadPicture(str(error).splitlines()[0] if str(error) else type(error).__name__) from error
    pixels = torch.from_numpy(numpy.array(found))
    return pixels.movedim(-1, 0) if colour else pixels.unsqueeze(0)


def read_pictures(paths: Sequence[Path], size: int, colour: bool, run: Run, owner: str) -> tuple[Tensor, list[int]]:
    """(pictures [N, C, size, size] uint8, which of `paths` they are); those that cannot be read are left out."""
    check_memory(len(paths) * (3 if colour else 1) * size**2, owner, "lower data.size or give fewer images")
    pixels = torch.empty(len(paths), 3 if colour else 1, size, size, dtype=torch.uint8)
    bad: dict[int, str] = {}
    for number, path in enumerate(paths):
        try:
            pixels[number] = picture(path, size, colour)
        except BadPicture as error:
            bad[number] = str(error)
    kept = without(bad, len(paths), lambda i: {"path": str(paths[i])}, "cannot be read", run, owner)
    return pixels[kept] if bad else pixels, kept


def without(
    bad: Mapping[int, str], count: int, row: Callable[[int], Mapping[str, Any]], what: str, run: Run, owner: str
) -> list[int]:
    """The numbers of the good ones of `count` images; the bad ones are rejected, too many of them are a RunError."""
    if bad:
        first = min(bad)
        named = f"{', '.join(str(value) for value in row(first).values())}: {bad[first]}"
        if len(bad) > BAD * count:
            raise RunError(f"{len(bad)} of the {count} images of {owner} {what}; remove or replace them (first {named})")
        for number, why in bad.items():
            run.reject(row(number), f"an image that {what}: {why}")
        run.event("warning", text=f"{len(bad)} of the {count} images of {owner} {what} and are left out (first {named})")
    return [number for number in range(count) if number not in bad]


@dataclass(frozen=True, eq=False)
class Jpegs:
    """Pictures that are still compressed; only those that are asked for are decoded."""

    data: Any  # uint8, all files one after the other
    start: Any  # [N + 1] where each begins
    number: Any  # [n] which of them these are

    def __len__(self) -> int:
        return len(self.number)

    def content(self, item: int) -> bytes:
        """The bytes of one picture."""
        at = self.number[item]
        return self.data[int(self.start[at]) : int(self.start[at + 1])].tobytes()

    def key(self, item: int) -> bytes:
        """What depends on the content alone."""
        return hashlib.sha256(self.content(item)).digest()

    def take(self, items: Sequence[int]) -> Tensor:
        """[n, 3, H, W] uint8; RunError if one cannot be read or has another size."""
        try:
            return torch.stack([picture(self.content(item), None, colour=True) for item in items])
        except (BadPicture, RuntimeError) as error:
            raise RunError(f"cannot read the JPEG data: {str(error).splitlines()[0]}") from error


@dataclass(frozen=True, eq=False)
class Plain:
    """Pictures as they lie in an array."""

    array: Any  # [N, H, W], [N, H, W, C] or [N, C, H, W] numbers

    def __len__(self) -> int:
        return len(self.array)

    def key(self, item: int) -> bytes:
        """What depends on the content alone."""
        return hashlib.sha256(numpy.ascontiguousarray(self.array[item]).tobytes()).digest()

    def take(self, items: Sequence[int]) -> Tensor:
        """[n, C, H, W] in the array's type."""
        return self._channels(torch.from_numpy(self.array[list(items)]))

    def whole(self) -> Tensor:
        """All of them, without a copy where the channels come first."""
        return self._channels(torch.from_numpy(self.array))

    def _channels(self, tensor: Tensor) -> Tensor:
        if tensor.ndim == 3:
            tensor = tensor.unsqueeze(1)
        elif tensor.shape[-1] in (1, 3, 4):
            tensor = tensor.movedim(-1, 1)
        return tensor.contiguous()


@dataclass(frozen=True, eq=False)
class Stored:
    """What an NPZ file holds."""

    images: Plain | Jpegs
    labels: Any  # [N] whole numbers or names
    test: tuple[Plain | Jpegs, Any] | None
    names: tuple[str, ...] | None  # of the classes, if the file says


def read_npz(path: Path) -> Stored:
    """The images and labels of an NPZ file; RunError says what is wrong with it."""
    arrays = _arrays(path)
    if {"blob", "offs", "y", "split"} <= set(arrays):
        return _compressed(arrays, path)
    names = next((n for n in ARRAYS if {n[0], n[1]} <= set(arrays)), None)
    if names is None:
        raise RunError(f"{path} holds {', '.join(arrays) or 'nothing'}; it needs the arrays `images` and `labels`")
    found = _pair(arrays, names[0], names[1], path)
    test = _pair(arrays, names[2], names[3], path) if {names[2], names[3]} <= set(arrays) else None
    if test is not None and len(test[0]) and len(found[0]) and test[0].take([0]).shape != found[0].take([0]).shape:
        shapes = [list(part.take([0]).shape[1:]) for part in (test[0], found[0])]
        raise RunError(f"{path}: `{names[2]}` are {shapes[0]} and `{names[0]}` {shapes[1]}; make them alike")
    return Stored(*found, test, None)


def _arrays(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise RunError(f"no file {path}")
    try:
        with zipfile.ZipFile(path) as packed:
            check_memory(sum(part.file_size for part in packed.infolist()), str(path), "give fewer or smaller images")
        with numpy.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except RunError:
        raise
    except Exception as error:  # numpy raises whatever zip, zlib and its own parser raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunError(f"cannot read {path} as an NPZ file: {reason}") from error


def _pair(arrays: Mapping[str, Any], images: str, labels: str, path: Path) -> tuple[Plain, Any]:
    pixels, values = arrays[images], arrays[labels]
    if pixels.ndim not in (3, 4) or pixels.dtype.kind not in "uif":
        found = f"{pixels.dtype} {list(pixels.shape)}"
        raise RunError(f"{path}: `{images}` is {found}; it should be numbers [N, H, W] or [N, H, W, C]")
    if values.shape == (len(pixels), 1):  # Keras writes CIFAR so
        values = values[:, 0]
    if values.shape != pixels.shape[:1] or values.dtype.kind not in "uiU":
        raise RunError(
            f"{path}: `{labels}` is {values.dtype} {list(values.shape)}; it should hold one whole number for each "
            f"of the {len(pixels)} images, or its class's name"
        )
    if pixels.dtype.kind == "u" and pixels.dtype.itemsize > 1:  # torch can do next to nothing with uint16
        pixels = pixels.astype("int32" if pixels.dtype.itemsize == 2 else "int64")
    return Plain(pixels.astype(pixels.dtype.newbyteorder("="), copy=False)), values


def _compressed(arrays: Mapping[str, Any], path: Path) -> Stored:
    data, start, labels, part = (arrays[name] for name in ("blob", "offs", "y", "split"))
    if data.dtype != numpy.uint8 or len(start) != len(labels) + 1 or len(part) != len(labels) or start[-1] != len(data):
        raise RunError(f"{path}: `blob`, `offs`, `y` and `split` do not belong together")
    train, test = (numpy.flatnonzero(part == number) for number in (0, 1))
    names = tuple(map(str, arrays["classes"])) if "classes" in arrays else None
    made = [(Jpegs(data, start, number), labels[number]) for number in (train, test)]
    return Stored(*made[0], made[1] if len(test) else None, names)


def check_memory(size: int, owner: str, remedy: str) -> None:
    """RunError if `size` bytes of images, held twice while they are divided, do not fit into the machine's memory."""
    try:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not every system says
        return
    if 2 * size > there:
        needed = f"{2 * size / 1e9:,.1f} GB of memory to divide, and this machine has {there / 1e9:,.1f} GB"
        raise RunError(f"the images of {owner} take {needed}: {remedy}")


def need(module: str) -> Any:
    """A module of an optional library; RunError with the install line if it is missing."""
    try:
        return import_module(module)
    except ImportError as error:
        package = {"sklearn": "scikit-learn", "PIL": "pillow"}[module.split(".")[0]]
        raise RunError(f"reading these images needs {package}: pip install 'stillhouse[vision]'") from error
