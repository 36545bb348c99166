"""Texts without labels, read as the recipe's student reads labelled ones: a user's file, or Python's documentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ..core.run import Run, RunError
from .labelled import LabelledTexts, names_of
from .stdlib import docstrings
from .tables import read_rows


class _Unlabelled:
    """One split of texts whose label is -1: nobody knows it. None of them is in a split that the recipe judges on."""

    def texts(self, run: Run) -> Sequence[str]:
        raise NotImplementedError

    def load(self, run: Run) -> Mapping[str, LabelledTexts]:
        """The texts as the training split; the classes are those of the recipe's data, which judge."""
        rows = run.recipe.data.rows(run)
        judged = {row["text"] for name in ("valid", "test") for row in rows.get(name, ())}
        texts = tuple(text for text in self.texts(run) if text not in judged)
        if not texts:
            raise RunError("every text without a label is one to judge on; give others to learn from")
        if not hasattr(run.recipe.student, "encoder"):
            raise RunError(f"the student {type(run.recipe.student).__name__} reads no text: take models.text.HubClassifier")
        names, encode = names_of(run.recipe.data, run), run.recipe.student.encoder(run)
        return {"train": LabelledTexts(texts, torch.full((len(texts),), -1), names, encode)}


@dataclass(frozen=True, kw_only=True)
class Texts(_Unlabelled):
    """A user's file of texts (.txt, .jsonl, .csv, .parquet); of equal texts one, empty ones are rejected."""

    path: str
    column: str = "text"
    limit: int | None = None  # use at most so many rows

    def texts(self, run: Run) -> list[str]:
        """The texts; RunError if there are none."""
        found: dict[str, None] = {}
        for row in read_rows(self.path, run)[: self.limit]:
            text = row.get(self.column)
            if isinstance(text, str) and text.strip():
                found.setdefault(text)
            else:
                run.reject(row, f"nothing in column {self.column!r}")
        if not found:
            raise RunError(f"no row of {self.path} has a text in {self.column!r}; name the column")
        return list(found)


@dataclass(frozen=True, kw_only=True)
class LibraryTexts(_Unlabelled):
    """Docstrings of Python's standard library, of any module: their first paragraphs."""

    limit: int = 3000

    def texts(self, run: Run) -> list[str]:
        """The texts."""
        found = dict.fromkeys(" ".join(t.split("\n\n")[0].split()) for _, texts in docstrings() for t in texts)
        return [text for text in found if len(text) >= 20][: self.limit]
