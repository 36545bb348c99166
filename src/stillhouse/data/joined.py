"""Several data for language models as one: all rows of each, in their splits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..core.run import Run, RunError
from .tokens import Packed


@dataclass(frozen=True, kw_only=True)
class Joined:
    """The rows of all parts, which share a vocabulary; to learn from, in one shuffled pass."""

    parts: Mapping[str, Any]  # name -> DataSpec of packed text

    def load(self, run: Run) -> Mapping[str, Packed]:
        """The splits that all parts have."""
        loaded = [run.sources(part) for part in self.parts.values()]
        if not loaded:
            raise RunError("there is nothing to join: give at least one part")
        splits = [name for name in loaded[0] if all(name in source for source in loaded)]
        return {name: self._join([source[name] for source in loaded]) for name in splits}

    def _join(self, sources: list[Packed]) -> Packed:
        if len({source.classes for source in sources}) > 1:
            raise RunError(f"{', '.join(self.parts)} have different vocabularies, and cannot be joined")
        rows = tuple(row for source in sources for row in source.rows)
        return Packed(rows, max(source.length for source in sources), sources[0].classes)
