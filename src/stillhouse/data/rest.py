"""The texts to learn from whose labels nobody may see: a user's file, or what `shots` leaves out of labelled data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..core.run import Run, RunError
from .tables import Row, read_rows


@dataclass(frozen=True, kw_only=True)
class Rest:
    """Rows of `text` for a stage that makes data, beside the recipe's labelled ones.

    A text that the recipe's data hold is left out, so that nothing is labelled that is judged by or known already.
    """

    path: str | None = None  # .txt, .jsonl, .csv, .parquet; None: what `shots` of the recipe's data leaves out
    column: str = "text"
    limit: int | None = None  # use at most so many

    def rows(self, run: Run) -> dict[str, list[Row]]:
        """All of them as the split `train`; RunError if there is none."""
        base = run.recipe.data
        if self.path is None and not hasattr(base, "all_rows"):
            raise RunError(f"the data {type(base).__name__} have no labelled texts; give data.rest.Rest a file (path)")
        splits = base.rows(run)
        known = {row["text"] for rows in splits.values() for row in rows}
        found: dict[str, None] = {}
        for row in base.all_rows(run)["train"] if self.path is None else read_rows(self.path, run):
            text = row.get("text" if self.path is None else self.column)
            if not isinstance(text, str) or not text.strip():
                run.reject(row, f"nothing in column {self.column!r}")
            elif text in known:
                if self.path is not None:
                    run.reject(row, "a text that the labelled data hold too")
            else:
                found.setdefault(text)
        if not found:
            where = "data.shots leaves no row without a label" if self.path is None else f"no row of {self.path} is new"
            raise RunError(f"{where}: there is nothing to label; give a file of texts (stages.STAGE.data.path)")
        return {"train": [{"text": text} for text in list(found)[: self.limit]]}

    def load(self, run: Run) -> Mapping[str, Any]:
        """No splits to train on: nobody has labelled them yet."""
        return {}
