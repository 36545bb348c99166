"""Rows that a teacher has labelled and said how sure it is, as data to learn from beside the few that were given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.run import Run, RunError, seed_of
from ..core.signal import Batch
from ..data.labelled import LabelledTexts, as_source, names_of
from .synthesize import made_rows


@dataclass(frozen=True)
class PseudoLabelled(LabelledTexts):
    """Labelled texts that say how sure their teacher was, and the truth where somebody knows it."""

    confidence: Tensor  # [N] in 0..1; 1 of rows whose label was given
    truth: Tensor  # [N], -1 where nobody knows it

    def batch(self, items: Sequence[int], epoch: int) -> Batch:
        """As labelled texts, with confidence [B] and truth [B]."""
        rows = torch.tensor(items, dtype=torch.long)
        more = {"confidence": self.confidence[rows], "truth": self.truth[rows]}
        return {**super().batch(items, epoch), **more}


@dataclass(frozen=True, kw_only=True)
class Pseudo:
    """The recipe's own rows with those that stage `stage` has labelled (columns `label`, `confidence`); a stage's `data`."""

    stage: str
    given: bool = True  # the recipe's own rows too
    share: float = 1.0  # of the labelled rows, drawn by their content and the run's seed

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share must be above 0 and at most 1, not {self.share}")

    def load(self, run: Run) -> Mapping[str, LabelledTexts]:
        """`train` with what was labelled; the other splits as they are."""
        base = run.recipe.data
        names, splits = names_of(base, run), base.rows(run)
        given = [{**row, "confidence": 1.0, "_truth": row["label"]} for row in splits["train"]] if self.given else []
        rows: list[Any] = [*given, *(row for row in made_rows(run, self.stage) if self._drawn(row, run))]
        unknown = {row["label"] for row in rows} - set(names)
        if unknown:
            raise RunError(f"stage {self.stage!r} made rows of the class {sorted(unknown)[0]!r}, which the data do not have")
        if any("confidence" not in row for row in rows):
            raise RunError(f"stage {self.stage!r} made rows without a confidence; label them with synth.classify.Classify")
        number = {name: i for i, name in enumerate(names)}
        plain = as_source(rows, names, run)
        train = PseudoLabelled(
            plain.texts, plain.labels, plain.names, plain.encode,
            torch.tensor([float(row["confidence"]) for row in rows]),
            torch.tensor([number.get(row.get("_truth") or "", -1) for row in rows], dtype=torch.long),
        )  # fmt: skip
        return {**{name: as_source(found, names, run) for name, found in splits.items()}, "train": train}

    def _drawn(self, row: Mapping[str, Any], run: Run) -> bool:
        return seed_of(run.seed, "share of the labelled", row["text"]) < self.share * 2**63
