"""Images of which only some are mixed with others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..core.run import seed_of
from .augment import Augment, Drawn


@dataclass(frozen=True, kw_only=True)
class Partly(Augment):
    """Changes of images as `Augment` draws them; only a share of the images, drawn anew in every epoch, is mixed.

    Partial mixup of MIX-KD (Choi et al. 2022, arXiv 2211.03946).
    """

    mixed: float = 0.1  # share of the images that are mixed with another one

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.mixed <= 1.0:
            raise ValueError(f"mixed is a share between 0 and 1, not {self.mixed}")

    def draw(self, items: Sequence[int], epoch: int, seed: int, size: int) -> Drawn:
        """What is changed of these items of a split of `size` images: float64 tensors [B, k]."""
        drawn = super().draw(items, epoch, seed, size)
        if "mix" not in drawn:
            return drawn
        epoch = epoch if self.draws is None else epoch % self.draws
        bits = [seed_of(seed, "mixed", item, epoch) / 2**63 for item in items]
        whole = torch.tensor(bits, dtype=torch.float64) >= self.mixed
        mix = drawn["mix"].clone()
        mix[whole, 1], mix[whole, 2] = 1.0, 0.0  # all of the first image, and no box
        return {**drawn, "mix": mix}
