"""Images for classification, wholly in memory: scikit-learn's digits, an NPZ file, a folder with one subfolder a class.

Splits are the same for every run; which labels are known depends on the run's seed. What is drawn for an image
depends on the image and the epoch alone, so a batch is a pure function of its items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from ..core.run import Run, RunError, seed_of
from ..core.signal import Batch

UNKNOWN = -100  # the label of an image whose label is not known
FORMATS = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


@dataclass(frozen=True, kw_only=True)
class Split:
    """Which images are held out, and how many labels are known."""

    valid: float = 0.2  # share of every class held out to choose
    test: float = 0.2  # share of every class held out to judge; not used where the data bring a test split
    labels: int | None = None  # known labels of every class in training; None: all
    unlabelled: bool = True  # keep the training images whose label is not known


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Small changes that leave the class as it is; drawn for each image and epoch."""

    shift: int = 0  # pixels at most, each way; the border is repeated
    flip: bool = False  # left to right, every other time
    draws: int | None = None  # after so many epochs the same changes come again, for stored signals; None: never

    def __call__(self, images: Tensor, items: Sequence[int], epoch: int, seed: int) -> Tensor:
        """Changed images `[B, C, H, W]`; `items` are their numbers in the split."""
        epoch = epoch if self.draws is None else epoch % self.draws
        bits = [seed_of(seed, "augment", item, epoch) for item in items]
        span = 2 * self.shift + 1
        down = torch.tensor([b % span - self.shift for b in bits])
        right = torch.tensor([b // span % span - self.shift for b in bits])
        height, width = images.shape[-2:]
        rows = (torch.arange(height) + down[:, None]).clamp(0, height - 1)
        columns = (torch.arange(width) + right[:, None]).clamp(0, width - 1)
        if self.flip:
            mirrored = torch.tensor([b // span**2 % 2 == 1 for b in bits])
            columns = torch.where(mirrored[:, None], columns.flip(-1), columns)
        image = torch.arange(len(images))[:, None, None]
        return images.movedim(1, -1)[image, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


@dataclass(frozen=True)
class Images:
    """One split: images as they are stored, standardised when a batch is made."""

    images: Tensor  # [N, C, H, W], any dtype
    labels: Tensor  # [N]; UNKNOWN where it is not known
    names: tuple[str, ...]  # of the classes
    mean: Tensor  # [C, 1, 1], over the training split
    deviation: Tensor  # [C, 1, 1]
    seed: int = 0
    augment: Augment | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return len(self.names)

    @property
    def shape(self) -> tuple[int, ...]:
        """[C, H, W] of one image."""
        return tuple(self.images.shape[1:])

    def batch(self, items: Sequence[int], epoch: int) -> Batch:
        """inputs [B, C, H, W] float32, labels [B]."""
        chosen = torch.tensor(items, dtype=torch.long)
        images = (self.images[chosen].float() - self.mean) / self.deviation
        if self.augment is not None:
            images = self.augment(images, items, epoch, self.seed)
        return {"inputs": images, "labels": self.labels[chosen]}


@dataclass(frozen=True, kw_only=True)
class Known:
    """The recipe's own data with every label known, or without the images whose label is not; a stage's `data`."""

    every: bool = True  # False: those labels that the recipe's data know, and no other image

    def load(self, run: Run) -> Mapping[str, Any]:
        """The splits; as they are where the data do not say how many labels are known."""
        spec = run.recipe.data
        split = getattr(spec, "split", None)
        if not isinstance(split, Split):
            return run.sources()
        return replace(spec, split=replace(split, labels=None) if self.every else replace(split, unlabelled=False)).load(run)


@dataclass(frozen=True, kw_only=True)
class Digits:
    """The 1,797 handwritten digits of 8x8 pixels that come with scikit-learn."""

    split: Split = Split(valid=0.2, test=0.3)
    augment: Augment | None = None

    def load(self, run: Run) -> Mapping[str, Images]:
        """The splits."""
        found = _need("sklearn.datasets").load_digits()
        images = torch.from_numpy(found.images).to(torch.uint8).unsqueeze(1)
        labels = torch.from_numpy(found.target).long()
        names = tuple(str(digit) for digit in range(10))
        return _splits(images, labels, names, range(len(labels)), self.split, self.augment, run)


@dataclass(frozen=True, kw_only=True)
class Npz:
    """An NPZ file with `images` and `labels`, and `test_images` and `test_labels` if it brings a test split.

    The names of Keras's files (`x_train`, `y_train`, `x_test`, `y_test`) do as well. Images are [N, H, W],
    [N, H, W, C] or [N, C, H, W].
    """

    path: str
    split: Split = Split()
    augment: Augment | None = None

    def load(self, run: Run) -> Mapping[str, Images]:
        """The splits."""
        arrays = self._read()
        pair = next((p for p in (("images", "labels"), ("x_train", "y_train")) if set(p) <= set(arrays)), None)
        if pair is None:
            held = ", ".join(arrays) or "nothing"
            raise RunError(f"{self.path} holds {held}; it needs the arrays `images` and `labels`")
        images, values = self._pair(arrays, *pair)
        found, labels = values.unique(return_inverse=True)
        names = tuple(str(v) for v in found.tolist())
        held_out = None
        other = {"images": ("test_images", "test_labels"), "x_train": ("x_test", "y_test")}[pair[0]]
        if set(other) <= set(arrays):
            test_images, test_values = self._pair(arrays, *other)
            if not bool(torch.isin(test_values, found).all()):
                raise RunError(f"{self.path}: `{other[1]}` has a class that `{pair[1]}` has not")
            held_out = test_images, torch.searchsorted(found, test_values)
        return _splits(images, labels, names, range(len(labels)), self.split, self.augment, run, held_out, self.path)

    def _read(self) -> dict[str, Any]:
        if not Path(self.path).is_file():
            raise RunError(f"no file {self.path}")
        try:
            with numpy.load(self.path, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except Exception as error:  # numpy raises whatever zip, zlib and its own parser raise
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise RunError(f"cannot read {self.path} as an NPZ file: {reason}") from error

    def _pair(self, arrays: Mapping[str, Any], images: str, labels: str) -> tuple[Tensor, Tensor]:
        pixels, values = arrays[images], arrays[labels]
        if pixels.ndim not in (3, 4) or pixels.dtype.kind not in "uif":
            found = f"{pixels.dtype} {list(pixels.shape)}"
            raise RunError(f"{self.path}: `{images}` is {found}; it should be numbers [N, H, W] or [N, H, W, C]")
        if values.shape != pixels.shape[:1] or values.dtype.kind not in "ui":
            raise RunError(
                f"{self.path}: `{labels}` is {values.dtype} {list(values.shape)}; it should hold one whole number for "
                f"each of the {len(pixels)} images"
            )
        tensor = torch.from_numpy(pixels)
        if tensor.ndim == 3:
            tensor = tensor.unsqueeze(1)
        elif tensor.shape[-1] in (1, 3, 4):
            tensor = tensor.movedim(-1, 1)
        return tensor.contiguous(), torch.from_numpy(values.astype("int64"))


@dataclass(frozen=True, kw_only=True)
class Folder:
    """A folder with one subfolder for each class; every image is brought to `size` x `size` pixels."""

    path: str
    size: int = 32
    colour: bool = True  # False: grey
    split: Split = Split()
    augment: Augment | None = None

    def load(self, run: Run) -> Mapping[str, Images]:
        """The splits; an image stays in its split when others are added to the folder or taken away."""
        root = Path(self.path)
        if not root.is_dir():
            raise RunError(f"no folder {self.path}")
        files = {
            folder.name: sorted(p for p in folder.rglob("*") if p.suffix.lower() in FORMATS)
            for folder in sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
        }
        files = {name: found for name, found in files.items() if found}
        if not files:
            raise RunError(
                f"no images in the subfolders of {self.path}; put those of each class into a folder of its own "
                f"({', '.join(FORMATS)})"
            )
        paths = [path for found in files.values() for path in found]
        images = torch.stack([self._read(path) for path in paths])
        labels = torch.tensor([number for number, found in enumerate(files.values()) for _ in found])
        keys = [path.relative_to(root).as_posix() for path in paths]
        return _splits(images, labels, tuple(files), keys, self.split, self.augment, run, owner=self.path)

    def _read(self, path: Path) -> Tensor:
        """One image, [C, size, size] uint8."""
        pillow = _need("PIL.Image")
        try:
            with pillow.open(path) as file:
                picture = file.convert("RGB" if self.colour else "L").resize((self.size, self.size))
        except (OSError, ValueError, SyntaxError, pillow.DecompressionBombError) as error:  # all that Pillow raises
            raise RunError(f"cannot read the image {path}; remove it or replace it ({error})") from error
        pixels = torch.from_numpy(numpy.array(picture))
        return pixels.movedim(-1, 0) if self.colour else pixels.unsqueeze(0)


def _splits(
    images: Tensor, labels: Tensor, names: tuple[str, ...], keys: Sequence[object], split: Split,
    augment: Augment | None, run: Run, held_out: tuple[Tensor, Tensor] | None = None, owner: str = "the data",
) -> dict[str, Images]:  # fmt: skip
    """Train, valid and test; `keys` name the images, so that the split depends on nothing else."""
    if len(names) < 2:
        raise RunError(f"{owner} has only the class {', '.join(names) or '(none)'}; to classify takes two or more")
    parts: dict[str, list[int]] = {"train": [], "valid": [], "test": []}
    for label in range(len(names)):
        members = (labels == label).nonzero().flatten().tolist()
        members.sort(key=lambda i: seed_of("split", str(keys[i])))
        test = 0 if held_out is not None else _share(split.test, len(members))
        valid = _share(split.valid, len(members))
        if test + valid >= len(members):
            raise RunError(f"{owner} has too few images of class {names[label]} ({len(members)}) to split them")
        parts["test"] += members[:test]
        parts["valid"] += members[test : test + valid]
        parts["train"] += members[test + valid :]
    chosen = {name: torch.tensor(sorted(part), dtype=torch.long) for name, part in parts.items()}
    train = images[chosen["train"]].float()
    mean = train.mean((0, 2, 3))[:, None, None]
    deviation = train.std((0, 2, 3), correction=0)[:, None, None].clamp(min=1e-6)

    def source(some_images: Tensor, some_labels: Tensor, change: Augment | None = None) -> Images:
        return Images(some_images, some_labels, names, mean, deviation, run.seed, change)

    known, kept = _known(labels[chosen["train"]], len(names), split, run)
    result = {"train": source(images[chosen["train"]][kept], known[kept], augment)}
    for name in ("valid", "test"):
        result[name] = source(images[chosen[name]], labels[chosen[name]])
    if held_out is not None:
        result["test"] = source(*held_out)
    return result


def _share(share: float, n: int) -> int:
    return max(1, round(share * n)) if share > 0 else 0


def _known(labels: Tensor, classes: int, split: Split, run: Run) -> tuple[Tensor, Tensor]:
    """Labels with the unknown ones blanked out, and which images are kept."""
    if split.labels is None:
        return labels, torch.ones_like(labels, dtype=torch.bool)
    draw = torch.Generator().manual_seed(seed_of(run.seed, "labels"))
    known = torch.zeros_like(labels, dtype=torch.bool)
    for label in range(classes):
        members = (labels == label).nonzero().flatten()
        known[members[torch.randperm(len(members), generator=draw)[: split.labels]]] = True
    return labels.where(known, UNKNOWN), known | split.unlabelled


def _need(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        package = {"sklearn": "scikit-learn", "PIL": "pillow"}[module.split(".")[0]]
        raise RunError(f"reading these images needs {package}: pip install 'stillhouse[vision]'") from error
