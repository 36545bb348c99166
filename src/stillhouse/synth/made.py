"""What a stage of this run has made, as training data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..core.run import Run, RunError
from ..data.labelled import LabelledTexts, as_source, names_of
from .synthesize import made_rows


@dataclass(frozen=True, kw_only=True)
class Made:
    """The recipe's own rows to learn from, with those that stage `stage` of this run has made; a stage's `data`."""

    stage: str
    given: bool = True  # the recipe's own rows too

    def load(self, run: Run) -> Mapping[str, LabelledTexts]:
        """`train` with what was made; the other splits as they are."""
        base = run.recipe.data
        names, splits = names_of(base, run), base.rows(run)
        made = list(made_rows(run, self.stage))
        unknown = {row["label"] for row in made} - set(names)
        if unknown:
            raise RunError(f"stage {self.stage!r} made rows of the class {sorted(unknown)[0]!r}, which the data do not have")
        train = [*splits["train"], *made] if self.given else made
        return {split: as_source(rows, names, run) for split, rows in {**splits, "train": train}.items()}
