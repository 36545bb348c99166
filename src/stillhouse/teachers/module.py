"""Any module as teacher: what a model spec builds, or what an earlier stage of this run has trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from ..core.run import Run, seed_of
from ..core.signal import Batch, Kind, Signal
from ..core.teacher import freeze
from ..models.call import cast, logits_of, weights_hash
from ..models.taps import tapped


class Frozen:
    """Gives a module's logits, and what it computes at the layers that it was asked to tap."""

    gives: frozenset[Kind] = frozenset({"logits", "features"})

    def __init__(self, module: nn.Module):
        self.module = freeze(module)
        self.taps: tuple[str, ...] = ()

    def tap(self, names: Sequence[str]) -> None:
        """From now on give these layers (see `models.taps`) too, when features are wanted."""
        self.taps = tuple(dict.fromkeys((*self.taps, *names)))

    @torch.no_grad()
    def __call__(self, batch: Batch, want: frozenset[Kind]) -> Signal:
        """Logits `[*N, V]` of the batch's items; features by tap."""
        if "features" not in want:
            return Signal(logits=logits_of(self.module, batch))
        logits, features = tapped(self.module, batch, self.taps)
        return Signal(logits=logits, features=features)

    def identity(self) -> dict[str, Any]:
        """What makes its answers what they are: kept with stored signals."""
        return {"name": type(self.module).__name__, "weights": weights_hash(self.module)}


@dataclass(frozen=True, kw_only=True)
class ModuleTeacher:
    """A teacher from a model spec, with the weights that training stage `stage` of this run left."""

    spec: Any  # ModelSpec
    stage: str | None = None  # None: the weights that the spec builds
    dtype: Literal["float32", "bfloat16"] = "float32"  # of its weights; what it says is compared in float32 all the same

    def build(self, run: Run) -> Frozen:
        """The frozen module on the run's device; weights that nobody trained depend on the run's seed alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(run.seed, "teacher"))
            module = self.spec.build(run) if self.stage is None else self.spec.load(run.path(self.stage), run)
        return Frozen(cast(module, getattr(torch, self.dtype)).to(run.device))
