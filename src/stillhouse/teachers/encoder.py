"""An encoder as teacher: what it says, and what it computes on the way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..core.run import Run, seed_of
from ..core.signal import Batch, Kind, Signal
from ..core.teacher import TeacherMismatch, freeze
from ..models.call import weights_hash
from ..models.encoder import inside

PROBE = ("Unbelievably, the 2 tokenizers agree: naive, THE end!", "a b")


class InsideTeacher:
    """Gives logits, and as features `hidden.0` (the embedding), `hidden.1`, ... and, if they can be had, `scores.1`, ..."""

    gives: frozenset[Kind] = frozenset({"logits", "features"})

    def __init__(self, module: nn.Module):
        self.module = freeze(module)

    @torch.no_grad()
    def __call__(self, batch: Batch, want: frozenset[Kind]) -> Signal:
        """Logits `[B, V]`, hidden states `[B, T, d]`, scores `[B, heads, T, T]`."""
        seen = inside(self.module, batch)
        features = {f"hidden.{i}": value for i, value in enumerate(seen.hidden)}
        features |= {f"scores.{i + 1}": value for i, value in enumerate(seen.scores)}
        return Signal(logits=seen.logits, features=features)

    def identity(self) -> dict[str, Any]:
        """What makes its answers what they are: kept with stored signals."""
        return {"name": type(self.module).__name__, "weights": weights_hash(self.module)}


@dataclass(frozen=True, kw_only=True)
class EncoderTeacher:
    """A teacher from the spec of a text classifier, with the weights that stage `stage` of this run left.

    It must read texts as the student does, token by token, which is checked when it is built.
    """

    model: Any  # ModelSpec with an `encoder`: models.text.HubClassifier, models.encoder.TinyEncoder
    stage: str | None = None  # None: the weights that the spec builds

    def build(self, run: Run) -> InsideTeacher:
        """The frozen module on the run's device."""
        mine, theirs = (spec.encoder(run)(PROBE)["input_ids"] for spec in (run.recipe.student, self.model))
        if not torch.equal(mine, theirs):
            raise TeacherMismatch(
                "student and teacher cut the same text into different tokens, so what goes on at each token cannot be "
                "compared: take a student with the teacher's tokenizer"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(run.seed, "teacher"))
            module = self.model.build(run) if self.stage is None else self.model.load(run.path(self.stage), run)
        return InsideTeacher(module.to(run.device))
