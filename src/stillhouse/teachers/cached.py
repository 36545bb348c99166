"""A teacher that was asked before: stored signals in place of the model, which is not loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.run import Run, RunError
from ..core.teacher import TeacherMismatch
from ..signals.reader import StoredTeacher
from ..signals.store import Store
from ..signals.tokenizers import tokenizer_hash


@dataclass(frozen=True, kw_only=True)
class Cached:
    """The signals in a folder that `stillhouse label` made, or that stage `stage` of this run did."""

    path: str | None = None
    stage: str | None = None
    live: Any = None  # the spec of the model behind them, for audits that show it; loaded only when they ask

    def build(self, run: Run) -> StoredTeacher:
        """Opens the store, every byte checked; TeacherMismatch if the student has another tokenizer."""
        if (self.path is None) == (self.stage is None):
            raise RunError("stored signals need a path or a stage, and only one of them")
        folder = Path(self.path) if self.path is not None else run.path(str(self.stage))
        store = Store(folder)
        made = store.header.get("tokenizer")
        student = run.recipe.student
        if made is not None and hasattr(student, "tokenizer") and tokenizer_hash(student.tokenizer(run)) != made:
            raise TeacherMismatch(
                f"the signals in {folder} were made with another tokenizer than the student's, so their ids mean other "
                "tokens: take a student of the teacher's family, or label with a teacher of the student's"
            )
        return StoredTeacher(store, None if self.live is None else lambda: self.live.build(run).module)
