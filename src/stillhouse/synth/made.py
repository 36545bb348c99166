"""What a stage of this run has made, as training data: labelled texts, or answers to questions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..core.run import Run, RunError
from ..data.labelled import LabelledTexts, as_source, names_of
from ..data.tokens import Document, Packed, pack
from .synthesize import made_rows
from .table import Row


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


@dataclass(frozen=True, kw_only=True)
class Answered:
    """Made questions with their answers as rows of tokens, in place of the worked solutions of the recipe's tasks.

    Only the answers' tokens count, and the one that ends them. The other splits are those of the tasks. Documents share
    rows, so that every step learns from as many tokens, however long the answers are; those too long for a row are lost.
    """

    stage: str
    question: str = "question"  # columns
    answer: str = "answer"
    given: bool = False  # the tasks' own worked solutions too
    packed: bool = True  # False: a row holds one answer, and a step's batch is so many of them
    length: int | None = None  # tokens in a row; None: as the tasks have

    def load(self, run: Run) -> Mapping[str, Packed]:
        """`train` out of what was made; RunError if none of it fits."""
        base, length = run.recipe.data, self.length or run.recipe.data.length
        splits, coder = run.sources(base), base.coder(run)
        documents = [d for row in splits["train"].rows for d in row] if self.given else []
        number = 0
        for number, row in enumerate(made_rows(run, self.stage), 1):
            question, answer = self._words(row, number)
            try:
                prompt, said = coder.prompt(question), coder.answer(question, answer)
            except ValueError as error:  # a character that the tasks do not know
                run.reject(
                    {"question": question, "answer": answer}, f"it cannot be written in the student's tokens: {error}"
                )
                continue
            if len(prompt) + len(said) > length:
                run.reject({"question": question}, f"{len(prompt) + len(said)} tokens, but rows have {length}")
                continue
            counts = [False] * len(prompt) + [True] * len(said)
            documents.append(Document(prompt + said, counts, len(documents)))
        if not documents:
            raise RunError(
                f"none of the {number} rows that stage {self.stage!r} made fits into {length} tokens; raise length"
            )
        return {**splits, "train": pack(documents, length, coder.classes, together=self.packed)}

    def _words(self, row: Row, number: int) -> tuple[str, str]:
        for column in (self.question, self.answer):
            if column not in row:
                known = ", ".join(sorted(name for name in row if not name.startswith("_")))
                raise RunError(f"row {number} of stage {self.stage!r} has no column {column!r}; it has {known}")
        return str(row[self.question]), str(row[self.answer])
