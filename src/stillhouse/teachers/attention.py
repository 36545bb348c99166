"""An encoder as teacher of how tokens relate: the queries, keys and values of its last layer."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from ..core.run import Run
from ..core.signal import Batch, Kind, Signal
from ..core.teacher import freeze
from ..models.call import weights_hash
from ..models.elastic_text import attention_taps
from ..models.taps import tapped
from ..models.text import HubClassifier
from .encoder import EncoderTeacher

NAMES = ("query", "key", "value")


class AttentionGiver:
    """Gives the features `query`, `key` and `value` of the last layer, `[B, T, width]` each."""

    gives: frozenset[Kind] = frozenset({"features"})

    def __init__(self, module: nn.Module):
        self.module = freeze(module)
        self.taps = attention_taps(module)

    @torch.no_grad()
    def __call__(self, batch: Batch, want: frozenset[Kind]) -> Signal:
        """The three of the batch's texts."""
        _, found = tapped(self.module, batch, self.taps)
        return Signal(features={name: found[tap] for name, tap in zip(NAMES, self.taps, strict=True)})

    def identity(self) -> dict[str, str]:
        """What makes its answers what they are: kept with stored signals."""
        return {"name": type(self.module).__name__, "weights": weights_hash(self.module)}


@dataclass(frozen=True, kw_only=True)
class AttentionTeacher(EncoderTeacher):
    """A text classifier's spec, with the weights that stage `stage` left, asked for its last layer's attention.

    Its head is not looked at, so any encoder will do.
    """

    def build(self, run: Run) -> AttentionGiver:  # type: ignore[override]
        """The frozen module on the run's device; it must cut texts as the student does."""
        model, length = self.model, getattr(run.recipe.student, "length", None)
        if isinstance(model, HubClassifier) and length is not None:
            model = replace(model, length=length)  # the student's encoder cuts the texts for both
        return AttentionGiver(EncoderTeacher(model=model, stage=self.stage).build(run).module)
