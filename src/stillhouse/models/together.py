"""The models of several stages as one: an average of what they say."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.files import write_atomically
from ..core.run import Run, RunError
from .call import dense, logits_of


class Average(nn.Module):
    """The logarithm of the mean of the members' probabilities."""

    def __init__(self, members: Sequence[nn.Module]):
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, *args: Any, **inputs: Any) -> Tensor:
        """What the members are called with to `[*N, V]`, at least float32."""
        batch = {"inputs": args[0] if args else inputs}
        said = [dense(logits_of(member, batch)) for member in self.members]
        return torch.stack([z.to(torch.promote_types(z.dtype, torch.float32)).log_softmax(-1) for z in said]).logsumexp(
            0
        ) - math.log(len(said))


@dataclass(frozen=True, kw_only=True)
class Members:
    """Loads the models of these stages, which a run keeps where they are."""

    stages: tuple[str, ...]

    def load(self, folder: Path, run: Run) -> Average:
        """The members as they were trained."""
        return Average([self._spec(name, run).load(run.path(name), run) for name in self.stages])

    def _spec(self, name: str, run: Run) -> Any:
        stage: Any = run.recipe.stages.get(name)
        if not hasattr(stage, "student"):
            raise RunError(f"no training stage {name!r} to average; there are {', '.join(run.recipe.stages)}")
        return stage.student or run.recipe.student


@dataclass(frozen=True, kw_only=True)
class Together:
    """The models of these stages as one ensemble, for an audit. Its artifact names them; nothing is copied."""

    stages: tuple[str, ...]
    label: str = ""  # what the report calls it; empty: from the stage's name

    @property
    def student(self) -> Members:
        """What an audit loads."""
        return Members(stages=self.stages)

    def __call__(self, run: Run) -> None:
        """Check that they are there, and write their names down."""
        began = time.monotonic()
        for name in self.stages:
            run.path(name)
        with run.artifact(run.stage, kind="model", steps=0, items=0, tokens=0, seconds=time.monotonic() - began) as folder:
            write_atomically(folder / "members.json", json.dumps(list(self.stages)) + "\n")
