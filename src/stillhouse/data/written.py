"""Text that the teacher wrote in an earlier stage of this run, as the exact tokens that it drew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..core.files import read_lines
from ..core.run import Run
from .tables import Row
from .tokens import Document, Packed, pack


@dataclass(frozen=True, kw_only=True)
class Written:
    """The splits that stage `stage` wrote answers for, and the other splits of `base` as they are.

    Only the answers' tokens count, or the prompts' too with `prompts_count`.
    """

    stage: str
    base: Any  # DataSpec the prompts came from
    length: int | None = None  # tokens in a packed row; None: as in `base`
    prompts_count: bool = False

    def load(self, run: Run) -> Mapping[str, Packed]:
        """The packed splits."""
        length = self.length or self.base.length
        folder = run.path(self.stage)
        splits = {}
        for path in sorted(folder.glob("*.jsonl")):
            lines = read_lines(path)
            splits[path.stem] = pack((self._document(line) for line in lines), length, self.base.classes)
        rest = {} if {"train", "valid", "test"} <= splits.keys() else self.base.load(run)
        return {**rest, **splits}

    def _document(self, line: Mapping[str, Any]) -> Document:
        prompt, answer = line["prompt"], line["answer"]
        counts = [self.prompts_count] * len(prompt) + [True] * len(answer)
        return Document([*prompt, *answer], counts, line["example"])

    def rows(self, run: Run) -> dict[str, list[Row]]:
        """The rows that the prompts came from."""
        return self.base.rows(run)

    def prompts(self, run: Run) -> dict[str, list[list[int]]]:
        """What the teacher was asked, and the prompts of the other splits."""
        return self.base.prompts(run)
