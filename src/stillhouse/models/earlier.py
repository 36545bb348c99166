"""A student that begins where an earlier stage of the run ended, for methods of several stages."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from ..core.run import Run
from .hub import HubLM


@dataclass(frozen=True, kw_only=True)
class Continued:
    """The model of an earlier stage, trained on; kept and loaded as its own spec does it.

    A language model from the hub gets fresh adapters if its spec has them: the earlier ones were merged.
    """

    stage: str
    spec: Any = None  # ModelSpec of that stage; None: the recipe's student

    def build(self, run: Run) -> nn.Module:
        """The module with the weights that the stage left."""
        spec, folder = self._spec(run), run.path(self.stage)
        return replace(spec, path=str(folder)).build(run) if isinstance(spec, HubLM) else spec.load(folder, run)

    def save(self, module: nn.Module, folder: Path, run: Run) -> None:
        """As the spec does."""
        self._spec(run).save(module, folder, run)

    def load(self, folder: Path, run: Run) -> nn.Module:
        """As the spec does."""
        return self._spec(run).load(folder, run)

    def tokenizer(self, run: Run) -> Any:
        """The tokenizer of the spec, which training does not change."""
        return self._spec(run).tokenizer(run)

    def _spec(self, run: Run) -> Any:
        return run.recipe.student if self.spec is None else self.spec
