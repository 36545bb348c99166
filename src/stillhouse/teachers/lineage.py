"""Teachers that become known as a run goes on: whoever was trained last teaches next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..core.run import Run, RunError
from ..core.signal import Batch, Kind, Signal
from .module import Frozen, ModuleTeacher


class Elder:
    """Answers as the model of the stage before the one that runs."""

    gives: frozenset[Kind] = Frozen.gives

    def __init__(self, stages: tuple[str, ...], run: Run):
        self.stages, self.run = stages, run
        self._held: tuple[str, Frozen] | None = None  # one model at a time

    @property
    def name(self) -> str:
        """The stage whose model teaches now; RunError if there is none."""
        here = self.run.stage
        at = self.stages.index(here) if here in self.stages else len(self.stages)
        done = [name for name in self.stages[:at] if self.run.done(name)]
        if not done:
            raise RunError(f"nobody teaches stage {here!r}: of {', '.join(self.stages)} none that comes before it is done")
        return done[-1]

    @property
    def module(self) -> nn.Module:
        """The model that teaches now."""
        return self._now().module

    def tap(self, names: Sequence[str]) -> None:
        """Give these of its layers too, see `Frozen`."""
        self._now().tap(names)

    def __call__(self, batch: Batch, want: frozenset[Kind]) -> Signal:
        """What that model says."""
        return self._now()(batch, want)

    def identity(self) -> dict[str, Any]:
        """What makes its answers what they are now."""
        return self._now().identity()

    def _now(self) -> Frozen:
        name = self.name
        if self._held is None or self._held[0] != name:
            self._held = None  # before the next is loaded
            stage: Any = self.run.recipe.stages[name]
            spec = getattr(stage, "student", None) or self.run.recipe.student
            self._held = name, ModuleTeacher(spec=spec, stage=name).build(self.run)
        return self._held[1]


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """Each of these training stages is taught by the one before it, and every other stage by the last that is done.

    What a stage trains is its own `student`, or the recipe's.
    """

    stages: tuple[str, ...]

    def build(self, run: Run) -> Elder:
        """The teacher; RunError for a stage that the recipe does not have."""
        unknown = [name for name in self.stages if name not in run.recipe.stages]
        if unknown or not self.stages:
            raise RunError(
                f"no stage {unknown[0]!r} to teach; the recipe has {', '.join(run.recipe.stages)}"
                if unknown
                else "a lineage needs at least one stage"
            )
        return Elder(self.stages, run)
