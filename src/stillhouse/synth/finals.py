"""What a text says in the end, and whether that is right: for steps that must judge texts while they make them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..data.tasks import Check, Questions, Task
from .asking import check_pattern, taken


@dataclass(frozen=True, kw_only=True)
class Final:
    """How the end of a text is read and compared with the truth; the checks are those of `data.tasks.Questions`."""

    check: Check = "number"
    pattern: str | None = None  # a regular expression: its last match (the first group of it) is the answer, and a text
    # without one has none; None: what stands in the last `\boxed{}`, behind the last `Answer:` or `####`, or all of it

    def __post_init__(self) -> None:
        check_pattern(self.pattern)

    def right(self, text: str, truth: str) -> bool:
        """Whether the text says in the end what is true; one that says nothing is wrong."""
        said = taken(text, self.pattern) or ""
        if not said.strip():
            return False
        reader = Questions(path="", check=self.check)
        gold = taken(truth, self.pattern) if self.pattern and re.search(self.pattern, truth) else truth
        return reader.score(Task("", "", str(gold), ""), said) >= 1.0
