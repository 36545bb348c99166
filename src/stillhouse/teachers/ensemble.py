"""Several teachers that answer as one: the mean of their probabilities."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..core.run import Run, RunError
from ..core.signal import Batch, Kind, Signal
from ..core.teacher import Teacher, check_gives
from ..models.call import dense

LOGITS: frozenset[Kind] = frozenset({"logits"})


class Averaged:
    """Gives the logarithm of the members' mean probability, so that a softmax of it is that mean."""

    gives = LOGITS

    def __init__(self, members: Mapping[str, Teacher]):
        self.members = members

    @torch.no_grad()
    def __call__(self, batch: Batch, want: frozenset[Kind]) -> Signal:
        """Log-probabilities [*N, V], at least float32."""
        said = [dense(member(batch, LOGITS).need("logits")) for member in self.members.values()]
        if len({z.shape[-1] for z in said}) > 1:
            sizes = ", ".join(f"{name} {z.shape[-1]}" for name, z in zip(self.members, said, strict=True))
            raise RunError(f"the teachers of an ensemble must know the same classes, and they have {sizes}")
        logs = [z.to(torch.promote_types(z.dtype, torch.float32)).log_softmax(-1) for z in said]
        return Signal(logits=torch.stack(logs).logsumexp(0) - math.log(len(logs)))

    def identity(self) -> dict[str, Any]:
        """What makes its answers what they are."""
        known: dict[str, Any] = {name: member.identity() for name, member in self.members.items()}  # type: ignore[attr-defined]
        return {"name": "ensemble", "members": known}


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """Any teachers that give logits over the same classes."""

    members: Mapping[str, Any]  # name -> spec of a teacher

    def __post_init__(self) -> None:
        if not self.members:
            raise ValueError("an ensemble needs at least one member")

    def build(self, run: Run) -> Averaged:
        """All members, held at the same time."""
        made = {name: spec.build(run) for name, spec in self.members.items()}
        for name, member in made.items():
            check_gives(name, member, LOGITS)
        return Averaged(made)
