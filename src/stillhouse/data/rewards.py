"""What answers earn: tasks whose verifier is joined, or replaced, by other rewards.

    data: {use: data.rewards.Rewarded, base: {use: data.tasks.Questions, path: mine.jsonl}, rewards: {
        right: {use: data.rewards.Right}, form: {use: data.rewards.Format, pattern: ".*Answer: .*", weight: 0.2}}}

A reward reads a finished answer and gives one number; an answer is worth the weighted sum. One that did not end has no
text: `Overlong` and `Own` judge it, the others give it 0.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..core.run import Run, RunError
from .own import Failed, asked
from .tasks import OnTop, Task


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer that is to be judged."""

    task: Task
    text: str | None  # None: it did not end, or is no text
    tokens: int  # how long it is
    right: float  # what the task's own verifier says


class Reward(Protocol):
    """A frozen dataclass in a recipe."""

    weight: float

    def __call__(self, answers: Sequence[Answered], run: Run) -> Sequence[float]:
        """One number for each answer."""
        ...


@dataclass(frozen=True, kw_only=True)
class Right:
    """What the task's own verifier says: 1 right, 0 wrong."""

    weight: float = 1.0

    def __call__(self, answers: Sequence[Answered], run: Run) -> list[float]:
        """The verifier's numbers."""
        return [answer.right for answer in answers]


@dataclass(frozen=True, kw_only=True)
class Format:
    """1 if all of the answer matches the regular expression; `.` matches line breaks too."""

    pattern: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"{self.pattern!r} is no regular expression: {error}") from error

    def __call__(self, answers: Sequence[Answered], run: Run) -> list[float]:
        """1 or 0."""
        fits = re.compile(self.pattern, re.DOTALL).fullmatch
        return [float(answer.text is not None and fits(answer.text) is not None) for answer in answers]


@dataclass(frozen=True, kw_only=True)
class Overlong:
    """0 up to `limit - buffer` tokens, then falling to -1 at `limit`, and -1 beyond (DAPO, Yu et al. 2025, Eq. 13)."""

    limit: int  # tokens
    buffer: int
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.buffer <= self.limit:
            raise ValueError("buffer must be above 0 and at most limit")

    def __call__(self, answers: Sequence[Answered], run: Run) -> list[float]:
        """Between -1 and 0."""
        return [-min(max((answer.tokens - self.limit + self.buffer) / self.buffer, 0.0), 1.0) for answer in answers]


@dataclass(frozen=True, kw_only=True)
class Unrepeated:
    """Minus the share of runs of `words` words that were there before in the answer."""

    words: int = 4
    weight: float = 1.0

    def __call__(self, answers: Sequence[Answered], run: Run) -> list[float]:
        """Between -1 and 0."""
        return [-self._repeated((answer.text or "").split()) for answer in answers]

    def _repeated(self, text: Sequence[str]) -> float:
        runs = [tuple(text[i : i + self.words]) for i in range(len(text) - self.words + 1)]
        return 1 - len(set(runs)) / len(runs) if runs else 0.0


@dataclass(frozen=True, kw_only=True)
class Own:
    """A function of yours, `rewards.py:score`: `score(question, answer, truth)` gives a number; `answer` may be None.

    It runs in a process of its own. If it raises, gives no finite number or takes more than `seconds` for an answer, the
    run stops with the step saved, or the answer earns `failing` and is written among the rejects. It is your code and
    not confined: never let it run what a model wrote.
    """

    function: str  # FILE.py:NAME
    seconds: float = 10.0  # for one answer
    failing: float | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not re.fullmatch(r".+\.py:\w+", self.function):
            raise ValueError(f"a function is FILE.py:NAME, not {self.function!r}")

    def __call__(self, answers: Sequence[Answered], run: Run) -> list[float]:
        """What the function gives."""
        return [self._one(answer, run) for answer in answers]

    def _one(self, answer: Answered, run: Run) -> float:
        task = answer.task
        try:
            value = asked(self.function, (task.question, answer.text, task.answer), self.seconds)
            if isinstance(value, bool) or (isinstance(value, (int, float)) and math.isfinite(value)):
                return float(value)
            raise Failed(f"gave {value!r}, which is no finite number")
        except Failed as error:
            if self.failing is None:
                asks = f"the question {task.question[:60]!r}"
                raise RunError(f"the reward {self.function} {error} ({asks}); nothing is lost: mend it and go on") from error
            run.reject({"question": task.question, "answer": answer.text}, f"the reward {self.function} {error}")
            return self.failing


@dataclass(frozen=True, kw_only=True)
class Rewarded(OnTop):
    """Tasks of `base`, whose answers are worth the weighted sum of `rewards`."""

    rewards: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not self.rewards:
            raise ValueError("give at least one reward, such as {right: {use: data.rewards.Right}}")

    def score(self, task: Task, text: str) -> float:
        """The tasks' own verifier: what `Right` gives."""
        return self.base.score(task, text)

    def scores(self, tasks: Sequence[Task], texts: Sequence[str | None]) -> list[float]:
        """The tasks' own verifier."""
        return self.base.scores(tasks, texts)

    def verify_all(self, run: Run, split: str, examples: Sequence[int], answers: Sequence[Sequence[int]]) -> list[float]:
        """The worth of every answer: the weighted sum of all rewards."""
        coder, tasks = self.coder(run), run.sources(self)[split].tasks
        texts = [coder.text(answer) for answer in answers]
        chosen = [tasks[i] for i in examples]
        right = self.scores(chosen, texts)
        told = [Answered(*each) for each in zip(chosen, texts, map(len, answers), right, strict=True)]
        total = [0.0] * len(told)
        for reward in self.rewards.values():
            total = [sum_ + reward.weight * value for sum_, value in zip(total, reward(told, run), strict=True)]
        return total
