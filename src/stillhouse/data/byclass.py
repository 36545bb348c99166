"""A class as one item: what condensing learns from, where a loss compares whole classes and not single images.

Such a loss is a sum over classes, so a batch may be split between them, as other batches are split between images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.run import Run, RunError, seed_of
from ..core.signal import Batch


@dataclass(frozen=True, kw_only=True)
class ByClass:
    """The training split of the recipe's own data, regrouped; a stage holds this as its `data`."""

    images: int = 64  # real images of a class, drawn anew every epoch

    def load(self, run: Run) -> Mapping[str, Classes]:
        """`train` alone; what is judged is judged on the recipe's data."""
        if isinstance(run.recipe.data, ByClass):
            raise RunError("ByClass regroups the recipe's data and cannot be them; give it to a stage, `train.data`")
        source: Any = run.sources()["train"]
        members = members_of(source)
        if self.images < 1:
            raise RunError(f"train.data.images must be 1 or more, not {self.images}")
        return {"train": Classes(source, members, self.images, run.seed)}


@dataclass(frozen=True)
class Classes:
    """One item is one class, with some of its real images."""

    source: Any  # the images one by one
    members: tuple[Tensor, ...]  # the items of every class in it
    images: int
    seed: int

    def __len__(self) -> int:
        return len(self.members)

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return len(self.members)

    @property
    def shape(self) -> tuple[int, ...]:
        """[C, H, W] of one image."""
        return self.source.shape

    @property
    def mixes(self) -> bool:
        """Whether its images may be mixed."""
        return getattr(self.source, "mixes", False)

    def batch(self, items: Sequence[int], epoch: int) -> Batch:
        """inputs [B, images, C, H, W], labels [B]; which images depends on the class and the epoch alone."""
        inputs = [self.source.batch(self._drawn(item, epoch), epoch)["inputs"] for item in items]
        return {"inputs": torch.stack(inputs), "labels": torch.tensor(items, dtype=torch.long)}

    def _drawn(self, label: int, epoch: int) -> list[int]:
        """Without replacement; a class with too few images gives each of them equally often, give or take one."""
        members = self.members[label]
        draw = torch.Generator().manual_seed(seed_of(self.seed, "class", label, epoch))
        rounds = -(-self.images // len(members))
        order = torch.cat([torch.randperm(len(members), generator=draw) for _ in range(rounds)])[: self.images]
        return members[order].tolist()


def members_of(source: Any) -> tuple[Tensor, ...]:
    """The items of every class in a split with `labels`; items whose label is not known belong to none."""
    labels, classes = getattr(source, "labels", None), getattr(source, "classes", None)
    if not isinstance(labels, Tensor) or classes is None or len(getattr(source, "shape", ())) != 3:
        raise RunError("condensing needs labelled images: data.images.Npz, Folder or Digits")
    found = tuple((labels == label).nonzero().flatten() for label in range(classes))
    names = getattr(source, "names", tuple(map(str, range(classes))))
    for name, members in zip(names, found, strict=True):
        if not len(members):
            raise RunError(f"the training split has no image of class {name} whose label is known")
    return found
