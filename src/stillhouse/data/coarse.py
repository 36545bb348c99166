"""Images whose classes are put together to fewer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..core.run import Run, RunError
from .images import UNKNOWN, Images


@dataclass(frozen=True, kw_only=True)
class Coarse:
    """The images of `source` in fewer classes: `{even: [0, 2], odd: [1, 3]}`; those of classes left out are left out."""

    source: Any  # data of images
    groups: Mapping[str, tuple[int | str, ...]]  # new class -> old ones, by name, or by number from 0

    def __post_init__(self) -> None:
        old = [name for names in self.groups.values() for name in names]
        if len(self.groups) < 2 or len(set(old)) < len(old) or not all(self.groups.values()):
            raise ValueError("groups are two or more new classes, each of old ones that are in no other group")

    def load(self, run: Run) -> Mapping[str, Images]:
        """The splits of `source`."""
        return {name: self._of(images) for name, images in self.source.load(run).items()}

    def _of(self, images: Images) -> Images:
        into = torch.full((images.classes,), -1)
        for number, old in enumerate(self.groups.values()):
            for name in old:
                if name not in images.names and not (isinstance(name, int) and 0 <= name < images.classes):
                    raise RunError(f"no class {name!r} to put into a group; there are {', '.join(images.names)}")
                place = name if isinstance(name, int) else images.names.index(name)
                if into[place] != -1:
                    raise RunError(f"class {images.names[place]!r} is in two groups, by its name and by its number")
                into[place] = number

        def new(labels: Tensor) -> Tensor:
            return into[labels.clamp(min=0)].where(labels >= 0, UNKNOWN)

        truth = images.labels if images.truth is None else images.truth
        kept = new(truth) != -1
        return replace(
            images, images=images.images[kept], labels=new(images.labels)[kept], names=tuple(self.groups),
            truth=None if images.truth is None else new(truth)[kept],
        )  # fmt: skip
