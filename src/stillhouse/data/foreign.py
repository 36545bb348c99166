"""The documents of a set of log-probabilities that another tool has written, as training data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..core.run import Run, RunError
from .tables import Row, split_rows
from .tokens import Document, Packed, pack


@dataclass(frozen=True, kw_only=True)
class ForeignRows:
    """The very token ids of a DistillKit, axolotl or vLLM set, so that stored signals of it find every document.

    A token counts if the set holds the distribution that it was to be drawn from. Splits are by document content.
    """

    path: str  # a file, or a folder of Parquet, Arrow or JSONL files
    kind: str = "auto"  # distillkit, axolotl, vllm
    length: int | None = None  # tokens in a packed row; None: as long as the longest document
    valid: float = 0.05  # share of the documents held out to choose
    test: float = 0.05  # share of the documents held out to judge
    config: Any = None  # DistillKit's compression config, if it is not beside the set
    classes: ClassVar[int | None] = None  # the tokenizer's

    def load(self, run: Run) -> Mapping[str, Packed]:
        """The packed splits; RunError if a document does not fit into a row, for its pieces would have other keys."""
        splits = self.rows(run)
        longest = max(len(row["tokens"]) for rows in splits.values() for row in rows)
        length = self.length or longest
        if longest > length:
            raise RunError(
                f"a document of {self.path} has {longest:,} tokens and rows have {length:,}: give --length {longest} (cut "
                "into pieces it would not be found among the stored signals)"
            )
        return {
            name: pack((Document(row["tokens"], row["counts"], i) for i, row in enumerate(rows)), length)
            for name, rows in splits.items()
        }

    def rows(self, run: Run) -> dict[str, list[Row]]:
        """The splits as rows of `tokens` and `counts`."""
        from ..signals.foreign import Foreign

        student = run.recipe.student
        if not hasattr(student, "tokenizer"):
            raise RunError(f"{self.path} holds token ids: they need a student with a tokenizer")
        source = Foreign(self.path, self.kind, tokenizer=student.tokenizer(run), config=self.config)
        documents = ({"tokens": d.tokens, "counts": d.counts} for d in source.documents() if any(d.counts[1:]))
        rows = list(documents)
        if not rows:
            raise RunError(f"{self.path} holds no log-probabilities for any of its tokens")
        return split_rows(rows, valid=self.valid, test=self.test, run=run)
