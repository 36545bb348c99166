"""Images that are changed less towards the end of a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from ..core.run import Run, RunError
from ..core.signal import Batch
from .augment import Augment
from .images import Images


@dataclass(frozen=True)
class Turning(Images):
    """Images that know when it is late."""

    turn: int = 0  # the first late epoch

    def batch(self, items: Sequence[int], epoch: int) -> Batch:
        """As of `Images`, nothing mixed when it is late; `late` [B] is 1 then and 0 before."""
        late = epoch >= self.turn
        plain = None if self.augment is None else replace(self.augment, mixup=0.0, cutmix=0.0)
        own = replace(self, augment=plain) if late else self
        return {**Images.batch(own, items, epoch), "late": torch.full((len(items),), float(late))}


@dataclass(frozen=True, kw_only=True)
class Late:
    """The images of `source`, of which none are mixed from epoch `turn` on; a stage's data.

    The batches say so (`late` [B]), and methods that weigh classes late begin to do so.
    """

    turn: int  # epochs before it is late; 0: always
    source: Any = None  # data of images; None: the recipe's
    augment: Augment | None = None  # in place of the source's own; None: that

    def load(self, run: Run) -> Mapping[str, Images]:
        """The splits; only training has an end."""
        sources = run.sources(self.source)
        train = sources["train"]
        if not isinstance(train, Images):
            raise RunError("what is changed less late are images (data.images); other data are not")
        own = {f.name: getattr(train, f.name) for f in fields(Images)}
        augment = train.augment if self.augment is None else self.augment
        return {**sources, "train": Turning(**{**own, "augment": augment}, turn=self.turn)}
