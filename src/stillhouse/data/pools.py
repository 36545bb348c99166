"""Images that nobody has labelled, from elsewhere than the task's own, to be mined by a teacher or learned from as they are.

Whatever a pool's images are, they are brought to the shape and the light of the recipe's own, and standardised with the
recipe's mean and deviation, so that a teacher of the task can read them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core.engine import to_device
from ..core.run import Run, RunError, seed_of
from ..models.call import dense
from ..models.taps import as_vector, layers, penultimate
from . import pixels
from .images import UNKNOWN, Images, Split
from .pictures import FORMATS, need, read_pictures


@dataclass(frozen=True, kw_only=True)
class Pool:
    """The training images of all parts, one after the other, none of them labelled."""

    parts: Mapping[str, Any]  # name -> data of images

    def load(self, run: Run) -> Mapping[str, Images]:
        """The pool as a training split of the recipe's task."""
        own = own_images(run)
        if not self.parts:
            raise RunError("the pool has no parts: give parts={NAME: DATA}")
        found = [like(part.load(run)["train"], own) for part in self.parts.values()]
        return {"train": unlabelled(torch.cat(found), own)}


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Every picture in a folder and the folders in it, whatever they are called; of the size of the recipe's images."""

    path: str

    def load(self, run: Run) -> Mapping[str, Images]:
        """All of them as a training split."""
        own, root = own_images(run), Path(self.path)
        paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in FORMATS)
        if not paths:
            raise RunError(f"no pictures in {self.path} ({', '.join(FORMATS)})")
        channels, height, width = own.shape
        found, _ = read_pictures(paths, max(height, width), channels > 1, run, self.path)
        return {"train": replace(unlabelled(like_bytes(found, own), own), augment=None)}


@dataclass(frozen=True, kw_only=True)
class Rest:
    """The recipe's own training images whose label is not known, when its `split.labels` leaves some out."""

    def load(self, run: Run) -> Mapping[str, Images]:
        """They alone; RunError if every label is known."""
        spec = run.recipe.data
        split = getattr(spec, "split", None)
        if isinstance(split, Split):
            found = replace(spec, split=replace(split, unlabelled=True)).load(run)["train"]
            items = (found.labels == UNKNOWN).nonzero().flatten()
            if len(items):
                return {"train": unlabelled(found.images[items], found)}
        raise RunError("the recipe's data have no image without a label: set data.split.labels, or name another pool")


@dataclass(frozen=True, kw_only=True)
class Shifted:
    """Another look of the same things, for experiments: some images negative, all noisy and turned."""

    of: Any = Rest()  # data of images
    negative: float = 0.5  # share of the images whose light and dark are exchanged
    noise: float = 0.15  # standard deviation, as a share of the light
    degrees: float = 30.0  # at most, either way

    def load(self, run: Run) -> Mapping[str, Images]:
        """The changed training images; the change depends on the run's seed and the image's number alone."""
        found = self.of.load(run)["train"]
        draw = torch.Generator().manual_seed(seed_of(run.seed, "shifted"))
        n, (low, high) = len(found), found.light
        images = (found.images.float() - low) / (high - low)
        angle = (2 * torch.rand(n, generator=draw) - 1) * self.degrees
        images = pixels.geometric(images, torch.full((n,), pixels.OPERATIONS.index("rotate")), angle)
        turned = torch.rand(n, generator=draw) < self.negative
        images = torch.where(turned[:, None, None, None], 1 - images, images)
        images = (images + self.noise * torch.randn(images.shape, generator=draw)).clamp(0, 1)
        return {"train": replace(found, images=_typed(images * (high - low) + low, found.images.dtype))}


@dataclass(frozen=True, kw_only=True)
class Strays:
    """Pieces of the two photographs that come with scikit-learn: images of nothing that the task is about."""

    count: int = 400
    smallest: int = 24  # side of a piece, pixels
    largest: int = 160

    def load(self, run: Run) -> Mapping[str, Images]:
        """So many squares, each of another place and size."""
        own = own_images(run)
        photos = [
            torch.from_numpy(photo.copy()).movedim(-1, 0) for photo in need("sklearn.datasets").load_sample_images().images
        ]
        draw = torch.Generator().manual_seed(seed_of(run.seed, "strays"))

        def below(limit: int) -> int:
            return int(torch.randint(limit, (), generator=draw))

        made: list[Tensor] = []
        for _ in range(self.count):
            photo, side = photos[below(len(photos))], self.smallest + below(self.largest - self.smallest + 1)
            top, left = below(photo.shape[1] - side + 1), below(photo.shape[2] - side + 1)
            made.append(like_bytes(photo[None, :, top : top + side, left : left + side], own))
        return {"train": unlabelled(torch.cat(made) if made else own.images[:0], own)}


@dataclass(frozen=True, kw_only=True)
class Mined:
    """The recipe's own training images, and those that stage `stage` (a `Mine`) kept of its pool."""

    stage: str = "mine"
    own: bool = True  # False: those of the pool alone

    def load(self, run: Run) -> Mapping[str, Images]:
        """One training split; labels as the recipe knows them, the pool's unknown."""
        stage: Any = run.recipe.stages.get(self.stage)
        if not isinstance(stage, Mine):
            raise RunError(f"stage {self.stage!r} of the recipe mines no pool (data.pools.Mine)")
        own, pool = own_images(run), stage.pool.load(run)["train"]
        items = torch.tensor(run.load_json(self.stage)["items"], dtype=torch.long)
        if not self.own:
            return {"train": unlabelled(pool.images[items], own)}
        both = replace(own, images=torch.cat([own.images, pool.images[items]]), truth=None)
        return {"train": replace(both, labels=torch.cat([own.labels, pool.labels[items]]))}


@dataclass(frozen=True, kw_only=True)
class Mine:
    """A stage: the recipe's teacher goes through a pool, and keeps for every class the images it is surest of.

    Left out are those that look to the teacher as one of the held-out images does: the cosine of the features before its
    head is above `twin`. The held-out images are compared and no more; their labels are not read.
    """

    pool: Any  # data without labels, such as `Pool`
    count: int = 4000  # images of every class, at most
    least: float = 0.0  # the teacher's probability of its class, at least
    twin: float = 0.9999  # 1: nothing is taken for a twin
    batch: int = 256

    def __call__(self, run: Run) -> None:
        """Choose, and write the chosen items down."""
        pool = plain(self.pool.load(run)["train"])
        sure, classes, features = self._seen(pool, run)
        twins = torch.zeros(len(pool), dtype=torch.bool)
        if self.twin < 1:
            held = [self._seen(plain(run.sources()[name]), run)[2] for name in ("valid", "test") if name in run.sources()]
            twins = near(features, torch.cat(held), self.twin) if held else twins
        items = surest(sure, classes, self.count, (sure >= self.least) & ~twins)
        if not len(items):
            raise RunError(f"stage {run.stage!r} keeps none of {len(pool)} images: lower least, or raise twin")
        kept = classes[items].bincount(minlength=pool.classes).tolist()
        run.event("mined", kept=len(items), of=len(pool), twins=int(twins.sum()), by_class=kept)
        run.save_json(run.stage, {"items": items.tolist(), "of": len(pool), "twins": int(twins.sum())}, kind="items")

    @torch.no_grad()
    def _seen(self, source: Images, run: Run) -> tuple[Tensor, Tensor, Tensor]:
        """Of every image the teacher's probability of its class [N], the class [N], and unit features [N, D]."""
        teacher: Any = run.teacher
        if not hasattr(teacher, "tap"):
            raise RunError("mining looks into the teacher, which must be a model here: teachers.module.ModuleTeacher")
        tap = ""
        sure: list[Tensor] = []
        classes: list[Tensor] = []
        features: list[Tensor] = []
        for batch in batches(source, self.batch, run):
            if not tap:
                tap = penultimate(layers(teacher.module, batch), source.classes)
                teacher.tap([tap])
            said = teacher(batch, frozenset({"logits", "features"}))
            top = dense(said.need("logits")).float().softmax(-1).max(-1)
            sure.append(top.values.cpu())
            classes.append(top.indices.cpu())
            features.append(F.normalize(as_vector(said.need("features")[tap]).float(), dim=-1).cpu())
        if not sure:
            raise RunError("the pool is empty")
        return torch.cat(sure), torch.cat(classes), torch.cat(features)


def surest(sure: Tensor, classes: Tensor, count: int, allowed: Tensor) -> Tensor:
    """The items [n], in their order, of the `count` largest `sure` [N] of every class among those `allowed` [N]."""
    kept = torch.zeros_like(allowed)
    for label in classes.unique().tolist():
        members = ((classes == label) & allowed).nonzero().flatten()
        kept[members[sure[members].argsort(descending=True, stable=True)[:count]]] = True
    return kept.nonzero().flatten()


def near(features: Tensor, others: Tensor, least: float) -> Tensor:
    """[N] true where some row of `others` [M, D] has a cosine above `least` with the row of `features` [N, D]; all of
    length 1."""
    return torch.cat([(part @ others.T).amax(1) > least for part in features.split(1024)])


def plain(source: Images) -> Images:
    """The same images, never changed."""
    return replace(source, augment=None)


def batches(source: Images, size: int, run: Run) -> Iterator[Mapping[str, Any]]:
    """All of them in order, on the run's device."""
    for begin in range(0, len(source), size):
        yield to_device(source.batch(range(begin, min(begin + size, len(source))), 0), run.device)


def own_images(run: Run) -> Images:
    """The recipe's training images; RunError if they are none."""
    found = run.sources()["train"]
    if not isinstance(found, Images):
        raise RunError("a pool of images is for data of images: data.images.Folder, Npz, Table, Standard or Digits")
    return found


def unlabelled(images: Tensor, own: Images) -> Images:
    """Images [N, C, H, W] in the recipe's shape and light as a split whose labels nobody knows."""
    return replace(own, images=images, labels=torch.full((len(images),), UNKNOWN), truth=None)


def like(other: Images, own: Images) -> Tensor:
    """Images of another set in the channels, size, light and type of `own`."""
    return _brought(other.images, other.light, own)


def like_bytes(images: Tensor, own: Images) -> Tensor:
    """The same for pictures of 0 to 255."""
    return _brought(images, (0.0, 255.0), own)


def _brought(images: Tensor, light: tuple[float, float], own: Images) -> Tensor:
    channels, height, width = own.shape
    if images.shape[1:] == own.images.shape[1:] and light == own.light and images.dtype == own.images.dtype:
        return images
    (low, high), (dark, bright) = light, own.light

    def change(part: Tensor) -> Tensor:
        x = (part.float() - low) / max(high - low, 1e-12)
        if x.shape[1] != channels:
            x = pixels.grey(x).expand(-1, channels, -1, -1)
        if x.shape[-2:] != (height, width):
            x = F.interpolate(x, (height, width), mode="bilinear", align_corners=False, antialias=True)
        return _typed(x.clamp(0, 1) * (bright - dark) + dark, own.images.dtype)

    return _in_parts(change, images, own)


def _in_parts(change: Callable[[Tensor], Tensor], images: Tensor, own: Images) -> Tensor:
    if not len(images):
        return own.images[:0]
    return torch.cat([change(images[i * 1024 : (i + 1) * 1024]) for i in range(math.ceil(len(images) / 1024))])


def _typed(images: Tensor, dtype: torch.dtype) -> Tensor:
    return images.to(dtype) if dtype.is_floating_point else images.round().to(dtype)
