"""A classifier with several outputs for every class."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..core.run import Run, RunError
from .call import dense, pick_logits
from .toys import sizes_of


@dataclass(frozen=True, kw_only=True)
class Subclasses:
    """A model with `per_class` outputs for every class, that are added up where it classifies.

    `spec` is any model that can be asked for a number of `classes` (those of `models.vision`, `models.toys`); another one
    has to give as many logits by itself. What is saved is that model.
    """

    spec: Any  # ModelSpec
    per_class: int = 4

    def __post_init__(self) -> None:
        if self.per_class < 1:
            raise ValueError(f"per_class must be 1 or more, not {self.per_class}")

    def __getattr__(self, name: str) -> Any:
        if name == "encoder":  # texts are read as the model reads them
            return self.spec.encoder
        raise AttributeError(name)

    def build(self, run: Run) -> nn.Module:
        """Inputs as of `spec` to logits `[B, classes]`."""
        classes = self._classes(run)
        return Summed(self._wide(classes).build(run), classes, self.per_class)

    def save(self, module: nn.Module, folder: Path, run: Run) -> None:
        """The model with all its outputs, as `spec` saves it."""
        self._wide(self._classes(run)).save(module.model, folder, run)

    def load(self, folder: Path, run: Run) -> nn.Module:
        """The inverse."""
        classes = self._classes(run)
        return Summed(self._wide(classes).load(folder, run), classes, self.per_class)

    def _classes(self, run: Run) -> int:
        return getattr(self.spec, "classes", None) or sizes_of(run, (), None)[1]

    def _wide(self, classes: int) -> Any:
        asked = "classes" in getattr(self.spec, "__dataclass_fields__", {})
        return replace(self.spec, classes=classes * self.per_class) if asked else self.spec


class Summed(nn.Module):
    """The logits of classes whose probabilities are the sums of their subclasses'."""

    def __init__(self, model: nn.Module, classes: int, per_class: int):
        super().__init__()
        self.model, self.classes, self.per_class = model, classes, per_class

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """[B, classes]."""
        fine = dense(pick_logits(self.model(*args, **kwargs), type(self.model).__name__))
        self.check(fine)
        return fine.unflatten(-1, (self.classes, self.per_class)).logsumexp(-1)

    def check(self, fine: Tensor) -> None:
        """RunError unless there are `per_class` logits for every class."""
        wanted = self.classes * self.per_class
        if fine.shape[-1] != wanted:
            raise RunError(
                f"{type(self.model).__name__} gives {fine.shape[-1]} logits; {self.per_class} for each of {self.classes} "
                f"classes are {wanted}: let it give as many, or set student.per_class"
            )
