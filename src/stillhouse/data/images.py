"""Images for classification, wholly in memory: scikit-learn's digits, NPZ files, folders, tables, standard sets.

Splits are the same for every run; which labels are known, which images a long tail keeps and which labels are wrong
depends on the run's seed. What is drawn for an image depends on the image and the epoch alone, so a batch is a pure
function of its items. Images stay in the type that they are stored in, and become float32 when a batch is made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy
import torch
from torch import Tensor

from ..core.run import Run, RunError, seed_of
from ..core.signal import Batch
from . import pixels
from .augment import Augment, Drawn, apply, plain, stacked
from .pictures import FORMATS, Jpegs, Plain, need, read_npz, read_pictures, without
from .shelves import looked_in, shelves
from .tables import read_rows

UNKNOWN = -100  # the label of an image whose label is not known


@dataclass(frozen=True, kw_only=True)
class LongTail:
    """Fewer images of every further class: n_k = n_max factor^(-k / (K - 1)) (Cui et al. 2019, arXiv 1901.05555)."""

    factor: float = 100.0  # how many times as many the first class has as the last

    def __post_init__(self) -> None:
        if not self.factor >= 1:
            raise ValueError(f"factor must be 1 or more, not {self.factor}")

    def kept(self, labels: Tensor, classes: int, seed: int) -> Tensor:
        """[N] true where an image stays; at least one of every class does. n_max is the largest class's size."""
        draw = torch.Generator().manual_seed(seed_of(seed, "long tail"))
        most = int(labels[labels >= 0].bincount(minlength=classes).max())
        kept = labels < 0
        for label in range(classes):
            members = (labels == label).nonzero().flatten()
            count = max(1, int(most * self.factor ** (-label / max(classes - 1, 1))))
            kept[members[torch.randperm(len(members), generator=draw)[:count]]] = True
        return kept


@dataclass(frozen=True, kw_only=True)
class Noisy:
    """Wrong labels: those of exactly this share of the labelled images."""

    share: float = 0.4
    kind: Literal["symmetric", "pair"] = "symmetric"  # any other class, as likely; or always the next one

    def __post_init__(self) -> None:
        if not 0.0 <= self.share <= 1.0:
            raise ValueError(f"share must be between 0 and 1, not {self.share}")

    def said(self, labels: Tensor, classes: int, seed: int) -> Tensor:
        """[N] the labels that training is told."""
        draw = torch.Generator().manual_seed(seed_of(seed, "noisy labels"))
        known = (labels >= 0).nonzero().flatten()
        wrong = known[torch.randperm(len(known), generator=draw)[: round(self.share * len(known))]]
        by = torch.randint(1, classes, (len(wrong),), generator=draw) if self.kind == "symmetric" else 1
        said = labels.clone()
        said[wrong] = (labels[wrong] + by) % classes
        return said


@dataclass(frozen=True, kw_only=True)
class Split:
    """Which images are held out, and what training is told of the others."""

    valid: float = 0.2  # share of every class held out to choose
    test: float = 0.2  # share of every class held out to judge; not used where the data bring a test split
    labels: int | None = None  # known labels of every class in training; None: all
    unlabelled: bool = True  # keep the training images whose label is not known
    tail: LongTail | None = None  # of the training split alone, as are wrong labels
    noise: Noisy | None = None


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
    truth: Tensor | None = None  # [N] the labels as they really are, where training is told others or none
    light: tuple[float, float] = (0.0, 255.0)  # the darkest and the brightest value of the training split

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

    @property
    def mixes(self) -> bool:
        """Whether a batch may hold mixed images, which have two labels."""
        return self.augment is not None and bool(self.augment.mixup or self.augment.cutmix)

    def batch(self, items: Sequence[int], epoch: int) -> Batch:
        """inputs [B, C, H, W] float32, labels [B], items [B], their numbers in the split; of mixed images also labels_b [B]
        and mix [B], see `models.call`."""
        drawn = {} if self.augment is None else self.augment.draw(items, epoch, self.seed, len(self))
        return self._made(items, drawn)

    def sample(self, item: int, draw: int) -> Drawn:
        """What is changed of an image in epoch `draw`, as plain numbers to store and give to `replay`."""
        return {} if self.augment is None else plain(self.augment.draw([item], draw, self.seed, len(self)))

    def replay(self, items: Sequence[int], drawn: Sequence[Drawn]) -> Batch:
        """The batch of these items with stored changes, one for each: the same tensors to the bit."""
        return self._made(items, stacked(drawn))

    def _made(self, items: Sequence[int], drawn: Drawn) -> Batch:
        chosen = torch.tensor(items, dtype=torch.long)
        images, labels = self._changed(chosen, drawn), self.labels[chosen]
        more: dict[str, Tensor] = {}
        if "mix" in drawn:
            partner, share, cut, y, x = drawn["mix"].unbind(-1)
            others = self._changed(partner.long(), drawn["other"])
            images, mix = pixels.mixed(images, others, share, cut, y, x)
            more = {"labels_b": self.labels[partner.long()], "mix": mix}
        return {"inputs": (images - self.mean) / self.deviation, "labels": labels, "items": chosen, **more}

    def _changed(self, items: Tensor, drawn: Drawn) -> Tensor:
        images = self.images[items].float()
        return apply(images, drawn, *self.light, self.mean) if drawn else images


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
class Changed:
    """The recipe's own data with another augmentation in training; a stage's `data`."""

    augment: Augment

    def load(self, run: Run) -> Mapping[str, Any]:
        """The splits; as they are where the data know no augmentation."""
        spec = run.recipe.data
        return replace(spec, augment=self.augment).load(run) if hasattr(spec, "augment") else run.sources()


@dataclass(frozen=True, kw_only=True)
class Digits:
    """The 1,797 handwritten digits of 8x8 pixels that come with scikit-learn."""

    split: Split = Split(valid=0.2, test=0.3)
    augment: Augment | None = None

    def load(self, run: Run) -> Mapping[str, Images]:
        """The splits."""
        found = need("sklearn.datasets").load_digits()
        images = torch.from_numpy(found.images).to(torch.uint8).unsqueeze(1)
        labels = torch.from_numpy(found.target).long()
        names = tuple(str(digit) for digit in range(10))
        return _splits(images, labels, names, range(len(labels)), self.split, self.augment, run)


@dataclass(frozen=True, kw_only=True)
class Npz:
    """An NPZ file with `images` and `labels`, and `test_images` and `test_labels` if it brings a test split.

    The names of Keras's files (`x_train`, `y_train`, `x_test`, `y_test`) do as well. Images are [N, H, W],
    [N, H, W, C] or [N, C, H, W]; labels are whole numbers, negative where nobody knows them, or names.
    """

    path: str
    split: Split = Split()
    augment: Augment | None = None

    def load(self, run: Run) -> Mapping[str, Images]:
        """The splits."""
        stored = read_npz(Path(self.path))
        names, number = _classes(stored.labels, stored.names, self.path)
        images, kept = _finite(stored.images, run, self.path)
        labels = number(stored.labels)[kept]
        held_out = None
        if stored.test is not None:
            judged = number(stored.test[1])
            test, good = _finite(stored.test[0], run, f"the test split of {self.path}")
            held_out = test, judged[good]
        return _splits(images, labels, names, kept, self.split, self.augment, run, held_out, self.path)


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
        labels = torch.tensor([number for number, found in enumerate(files.values()) for _ in found])
        images, kept = read_pictures(paths, self.size, self.colour, run, self.path)
        keys = [paths[i].relative_to(root).as_posix() for i in kept]
        return _splits(images, labels[kept], tuple(files), keys, self.split, self.augment, run, owner=self.path)


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table (.csv, .jsonl, .json, .parquet) with a picture's path and its label in every row.

    A path is meant from the table's folder. A row without a label is an image whose label is not known.
    """

    path: str
    image: str = "path"  # the column of the pictures' paths
    label: str = "label"  # the column of the labels; numbers are taken as names
    size: int = 32
    colour: bool = True  # False: grey
    split: Split = Split()
    augment: Augment | None = None

    def load(self, run: Run) -> Mapping[str, Images]:
        """The splits; an image stays in its split when rows are added or taken away."""
        said: dict[str, str] = {}
        rows = read_rows(self.path, run)
        for row in rows:
            name, label = (str("" if row.get(c) is None else row[c]).strip() for c in (self.image, self.label))
            if not name:
                run.reject(row, f"nothing in column {self.image!r}")
            elif said.setdefault(name, label) != label:
                raise RunError(f"{self.path}: the image {name} has two labels, {said[name]!r} and {label!r}")
        names = tuple(sorted(set(said.values()) - {""}))
        if not names:
            raise RunError(
                f"no row of {self.path} has a picture in {self.image!r} and a label in {self.label!r}; the columns are "
                f"{', '.join(map(str, rows[0]))}: name them with data.image and data.label"
            )
        labels = torch.tensor([names.index(label) if label else UNKNOWN for label in said.values()])
        paths = [Path(self.path).expanduser().parent / name for name in said]
        images, kept = read_pictures(paths, self.size, self.colour, run, self.path)
        keys = [list(said)[i] for i in kept]
        return _splits(images, labels[kept], names, keys, self.split, self.augment, run, owner=self.path)


@dataclass(frozen=True, kw_only=True)
class Standard:
    """A standard set by its name, looked for in `$STILLHOUSE_DATA` and `data`: NAME/NAME.npz or NAME/NAME_jpeg.npz.

    `NAME.npz` is as for `Npz` and brings a test split. `NAME_jpeg.npz` holds JPEG files: `blob` (all bytes), `offs`
    [N + 1], `y` [N], `split` [N] (0 train, 1 test), and `classes`. Training and validation take as many images of every
    class, those whose content has the lowest hash, the same for every seed.
    """

    name: str = "mnist"
    train: int | None = 1000  # images to train on, over all classes; None: all that are not to choose by
    valid: int = 1000  # training images held out to choose by
    test: int | None = None  # images of the test split; None: all
    halved: int = 0  # how often both sides are halved, four pixels becoming their mean: for quick experiments
    split: Split = Split()  # what training is told; its shares are for `otherwise`, here the numbers above count
    augment: Augment | None = None
    otherwise: Any = None  # data of images to take when nothing is found; they get this split and augmentation

    def __post_init__(self) -> None:
        if min(self.valid, self.train or 0, self.test or 0) < 0:
            raise ValueError("train, valid and test are numbers of images, 0 or more")
        if self.otherwise is not None and not isinstance(getattr(self.otherwise, "split", None), Split):
            raise ValueError("otherwise takes data of images: Digits, Npz, Folder or Table")

    def load(self, run: Run) -> Mapping[str, Images]:
        """The splits."""
        path = find(self.name)
        if path is None:
            if self.otherwise is None:
                raise RunError(
                    f"no {self.name} in {looked_in()}; set $STILLHOUSE_DATA to the folder of {self.name}/{self.name}.npz"
                )
            instead = type(self.otherwise).__name__
            run.event("note", text=f"the data are {instead}, because {self.name} was not found in {looked_in()}")
            shares = {"valid": self.otherwise.split.valid, "test": self.otherwise.split.test}
            return replace(self.otherwise, split=replace(self.split, **shares), augment=self.augment).load(run)
        images, labels, names, parts, test = _chosen(
            path, path.stat().st_mtime_ns, self.train, self.valid, self.test, self.halved
        )
        return _sources(images, labels, names, parts, self.split, self.augment, run, test)


def find(name: str) -> Path | None:
    """The file of a standard set, or None."""
    places = [
        shelf / folder / f"{name}{kind}.npz" for shelf in shelves() for folder in (name, ".") for kind in ("", "_jpeg")
    ]
    return next((place for place in places if place.is_file()), None)


Held = tuple[Tensor, Tensor]  # images [N, C, H, W], labels [N]


@lru_cache(maxsize=2)  # the arms and stages of a proof ask for the same images again and again
def _chosen(
    path: Path, time: int, train: int | None, valid: int, test: int | None, halved: int
) -> tuple[Tensor, Tensor, tuple[str, ...], dict[str, list[int]], Held]:
    """(images, labels, names, which are for train and valid, the test split) of a standard set."""
    stored = read_npz(path)
    if stored.test is None:
        raise RunError(f"{path} brings no test split; a standard set has one (`test_images` and `test_labels`)")
    names, number = _classes(stored.labels, stored.names, path)
    choose, teach = _lowest(stored.images, number(stored.labels), names, [valid, train], path)
    order = sorted(choose + teach)
    place = {item: i for i, item in enumerate(order)}
    parts = {"train": [place[i] for i in sorted(teach)], "valid": [place[i] for i in sorted(choose)], "test": []}
    judge = sorted(_lowest(stored.test[0], number(stored.test[1]), names, [test], path)[0])
    held_out = _halved(stored.test[0].take(judge), halved), number(stored.test[1])[judge]
    return _halved(stored.images.take(order), halved), number(stored.labels)[order], names, parts, held_out


def _halved(images: Tensor, times: int) -> Tensor:
    """Images of half the sides, so many times; an odd side loses its last row."""
    if not times:
        return images
    small = torch.nn.functional.avg_pool2d(images.float(), 2**times)
    return small.round().to(images.dtype) if not images.is_floating_point() else small.to(images.dtype)


def _lowest(
    images: Plain | Jpegs, labels: Tensor, names: tuple[str, ...], counts: Sequence[int | None], path: Path
) -> list[list[int]]:
    """Balanced disjoint parts of so many images each, those with the lowest hashes first; None: all the rest."""
    parts: list[list[int]] = [[] for _ in counts]
    for label, name in enumerate(names):
        members = (labels == label).nonzero().flatten().tolist()
        if any(count is not None for count in counts):
            members.sort(key=images.key)
        for part, count in zip(parts, counts, strict=True):
            share = len(members) if count is None else count // len(names) + (label < count % len(names))
            if share > len(members):
                raise RunError(
                    f"{path} has too few images of class {name} for {count} images that are spread evenly over "
                    f"{len(names)} classes; lower data.train, data.valid or data.test"
                )
            part += members[:share]
            members = members[share:]
    return parts


def _classes(values: Any, given: tuple[str, ...] | None, owner: object) -> tuple[tuple[str, ...], Callable[[Any], Tensor]]:
    """(the names, what turns labels as a file has them into numbers of classes); negative numbers are not known."""

    def known(said: Any) -> Any:
        return numpy.ones(len(said), dtype=bool) if said.dtype.kind == "U" else said >= 0

    found = numpy.unique(values[known(values)])
    names = tuple(str(value) for value in found.tolist())
    if given is not None and found.tolist() == list(range(len(given))):
        names = given

    def number(said: Any) -> Tensor:
        new = said[known(said) & ~numpy.isin(said, found)]
        if len(new):
            raise RunError(f"{owner}: the test labels have a class that the training labels have not: {new[0]}")
        placed = torch.from_numpy(numpy.searchsorted(found, said).astype("int64"))
        return placed.where(torch.from_numpy(known(said)), UNKNOWN)

    return names, number


def _finite(images: Plain | Jpegs, run: Run, owner: str) -> tuple[Tensor, list[int]]:
    """(the images, their numbers in the file), without those that have pixels that are no finite numbers."""
    pixels = images.whole() if isinstance(images, Plain) else images.take(range(len(images)))
    everything = list(range(len(pixels)))
    if not pixels.is_floating_point() or not len(pixels):
        return pixels, everything
    good = torch.cat([part.isfinite().flatten(1).all(1) for part in pixels.split(1024)])
    if bool(good.all()):
        return pixels, everything
    bad = {int(i): "NaN or infinite" for i in (~good).nonzero().flatten()}
    kept = without(bad, len(pixels), lambda i: {"image": i}, "have pixels that are not finite", run, owner)
    return pixels[kept], kept


def _splits(
    images: Tensor, labels: Tensor, names: tuple[str, ...], keys: Sequence[object], split: Split,
    augment: Augment | None, run: Run, held_out: Held | None = None, owner: str = "the data",
) -> dict[str, Images]:  # fmt: skip
    """Train, valid and test; `keys` name the images, so that the split depends on nothing else."""
    if len(names) < 2:
        raise RunError(f"{owner} has only the class {', '.join(names) or '(none)'}; to classify takes two or more")
    parts: dict[str, list[int]] = {"train": (labels < 0).nonzero().flatten().tolist(), "valid": [], "test": []}
    for label in range(len(names)):
        members = (labels == label).nonzero().flatten().tolist()
        members.sort(key=lambda i: seed_of("split", str(keys[i])))
        test = 0 if held_out is not None else _share(split.test, len(members))
        valid = _share(split.valid, len(members))
        if test + valid >= len(members):
            raise RunError(
                f"{owner} has too few images of class {names[label]} ({len(members)}) to split them; add some or leave "
                "the class out"
            )
        parts["test"] += members[:test]
        parts["valid"] += members[test : test + valid]
        parts["train"] += members[test + valid :]
    parts = {name: sorted(part) for name, part in parts.items()}
    return _sources(images, labels, names, parts, split, augment, run, held_out)


def _sources(
    images: Tensor, labels: Tensor, names: tuple[str, ...], parts: Mapping[str, Sequence[int]], split: Split,
    augment: Augment | None, run: Run, held_out: Held | None,
) -> dict[str, Images]:  # fmt: skip
    """The splits as they are learned from. Mean and deviation are over all training images: they depend on no seed."""
    chosen = {name: torch.tensor(part, dtype=torch.long) for name, part in parts.items()}
    mean, deviation = _moments(images, chosen["train"])
    light = _light(images, chosen["train"])

    def source(
        some_images: Tensor, some_labels: Tensor, change: Augment | None = None, truth: Tensor | None = None
    ) -> Images:
        return Images(some_images, some_labels, names, mean, deviation, run.seed, change, truth, light)

    truth = labels[chosen["train"]]
    kept = torch.ones_like(truth, dtype=torch.bool) if split.tail is None else split.tail.kept(truth, len(names), run.seed)
    train, truth = chosen["train"][kept], truth[kept]
    said = truth if split.noise is None else split.noise.said(truth, len(names), run.seed)
    known, kept = _known(said, len(names), split, run)
    result = {"train": source(images[train[kept]], known[kept], augment, truth[kept])}
    for name in ("valid", "test"):
        result[name] = source(images[chosen[name]], labels[chosen[name]])
    if held_out is not None:
        result["test"] = source(*held_out)
        absent = [name for label, name in enumerate(names) if not bool((held_out[1] == label).any())]
        if absent:
            run.event("warning", text=f"the test split has no image of class {', '.join(absent)}")
    return result


def _moments(images: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation [C, 1, 1] of every channel, a few images at a time: all at once as float32 take four times
    the memory."""
    dims, count = (0, 2, 3), len(items) * images.shape[-2] * images.shape[-1]
    sums, squares = 0.0, 0.0
    for part in items.split(1024):
        sums = sums + images[part].double().sum(dims)
    mean = torch.as_tensor(sums) / count
    for part in items.split(1024):
        squares = squares + (images[part].double() - mean[:, None, None]).square().sum(dims)
    deviation = (torch.as_tensor(squares) / count).sqrt()
    return mean.float()[:, None, None], deviation.float()[:, None, None].clamp(min=1e-6)


def _light(images: Tensor, items: Tensor) -> tuple[float, float]:
    """The darkest and the brightest value; dark is 0 where nothing is below."""
    ends = [torch.stack(images[part].aminmax()) for part in items.split(1024)]
    return min(0.0, float(min(end[0] for end in ends))), float(max(end[1] for end in ends))


def _share(share: float, n: int) -> int:
    return max(1, round(share * n)) if share > 0 else 0


def _known(labels: Tensor, classes: int, split: Split, run: Run) -> tuple[Tensor, Tensor]:
    """Labels with the unknown ones blanked out, and which images are kept."""
    known = labels >= 0
    if split.labels is not None:
        draw = torch.Generator().manual_seed(seed_of(run.seed, "labels"))
        known = torch.zeros_like(known)
        for label in range(classes):
            members = (labels == label).nonzero().flatten()
            known[members[torch.randperm(len(members), generator=draw)[: split.labels]]] = True
    return labels.where(known, UNKNOWN), known | split.unlabelled
