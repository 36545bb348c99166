"""A part of the training images: drawn at random, or the hardest or easiest by a score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..core.run import Run, RunError, seed_of
from .images import Images


@dataclass(frozen=True)
class Part(Images):
    """Images that are `share` of all there were."""

    share: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """A share of the training images of `source`; the other splits stay whole.

    `stage` is one of `models.scored.Scores`, before this one, on the same data; left out, the images are drawn at random
    by the run's seed.
    """

    share: float = 0.5
    stage: str | None = None
    by: Literal["el2n", "grand", "forgetting", "margin", "entropy", "prototype"] = "el2n"
    keep: Literal["hardest", "easiest"] = "hardest"
    balanced: bool = False  # the same share of every class
    source: Any = None  # data of images; None: the recipe's

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share must be above 0 and at most 1, not {self.share}")

    def load(self, run: Run) -> Mapping[str, Images]:
        """The splits."""
        sources = run.sources(self.source)
        train = sources["train"]
        if not isinstance(train, Images):
            raise RunError("what is pruned are images (data.images); other data are not")
        kept = self._kept(train, run)
        own = {f.name: getattr(train, f.name) for f in fields(Images)}
        for name in ("images", "labels", "truth"):
            own[name] = None if own[name] is None else own[name][kept]
        return {**sources, "train": Part(**own, share=self.share)}

    def _kept(self, train: Images, run: Run) -> Tensor:
        """Numbers of the images that stay, ascending; of every class at least one where classes are balanced."""
        if self.stage is None:
            draw = torch.Generator().manual_seed(seed_of(run.seed, "pruned"))
            hard = torch.rand(len(train), generator=draw, dtype=torch.float64)
        else:
            hard = load_file(run.path(self.stage) / "scores.safetensors")[self.by]
        if len(hard) != len(train):
            raise RunError(
                f"stage {self.stage!r} has scored {len(hard):,} images and there are {len(train):,}: give it the same data"
            )
        order = hard.argsort(descending=self.keep == "hardest", stable=True)
        if not self.balanced:
            kept = order[: max(1, round(self.share * len(train)))]
        else:
            by_class = [order[train.labels[order] == label] for label in train.labels.unique()]
            kept = torch.cat([own[: max(1, round(self.share * len(own)))] for own in by_class])
        return kept.sort().values
