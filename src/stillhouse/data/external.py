"""Tasks whose answers are thoughts with an answer in them: only that is judged."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .tasks import OnTop, Task

TAGGED = r"\s*<think>.+</think>\s*<answer>(.+)</answer>\s*"


@dataclass(frozen=True, kw_only=True)
class External(OnTop):
    """Tasks of `base`; of an answer the first group of `pattern` is judged, and one that the pattern does not fit is wrong.

    What is thought before it earns nothing and costs nothing. The worked solutions are those of `base`.
    """

    pattern: str = TAGGED  # fits the whole answer; a dot matches line breaks too

    def __post_init__(self) -> None:
        try:
            groups = re.compile(self.pattern).groups
        except re.error as error:
            raise ValueError(f"{self.pattern!r} is no regular expression: {error}") from error
        if not groups:
            raise ValueError(f"{self.pattern!r} has no group: put what is to be judged in parentheses")

    def score(self, task: Task, text: str) -> float:
        """What the tasks' own verifier says of the part."""
        found = re.compile(self.pattern, re.DOTALL).fullmatch(text)
        return self.base.score(task, found[1].strip()) if found else 0.0
