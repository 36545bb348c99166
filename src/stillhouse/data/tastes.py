"""Questions of taste: which answer is good is a fixed table that no text shows, so that only verdicts can teach it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

from ..core.run import Run, RunError, seed_of
from .tasks import Characters, Task, Tasks


@dataclass(frozen=True, kw_only=True)
class Tastes(Tasks):
    """A question is `size` digits, an answer as many letters of a to h; every digit likes half of the letters.

    An answer is worth the share of its letters that the digits in the same places like. The solutions to learn the form
    from are letters drawn blindly, worth a half on average. One token a character; the table and the splits are the
    same for every seed of the run, and a larger `train` keeps the other two.
    """

    size: int = 4
    train: int = 1000  # questions
    valid: int = 300
    test: int = 1000
    length: int = 32  # tokens of a question with its answer, at most
    letters: ClassVar[str] = "abcdefgh"
    alphabet: ClassVar[str] = "\n0123456789abcdefgh"  # the first one ends an answer
    classes: ClassVar[int | None] = len(alphabet)

    def coder(self, run: Run) -> Characters:
        """Characters."""
        return Characters(self.alphabet)

    def tasks(self, run: Run) -> dict[str, list[Task]]:
        """Questions drawn from a generator of their own, none twice."""
        sizes = {"test": self.test, "valid": self.valid, "train": self.train}
        if sum(sizes.values()) > 10**self.size // 2:
            raise RunError(f"there are {10**self.size} questions of {self.size} digits; ask for half of them at most")
        made = self._questions()
        splits = {name: [next(made) for _ in range(size)] for name, size in sizes.items()}
        return {name: splits[name] for name in ("train", "valid", "test")}

    def score(self, task: Task, text: str) -> float:
        """The share of the letters that are liked; 0 for anything else than letters, one for each digit."""
        if len(text) != self.size or set(text) - set(self.letters):
            return 0.0
        return sum(a in likes(d) for d, a in zip(task.question, text, strict=True)) / self.size

    def _questions(self) -> Iterator[Task]:
        draw = random.Random(seed_of("tastes", self.size))
        seen: set[str] = set()
        while True:
            question, blind = ("".join(draw.choices(some, k=self.size)) for some in ("0123456789", self.letters))
            if question not in seen:
                seen.add(question)
                yield Task(question, blind, "", "".join(likes(digit)[0] for digit in question))


@lru_cache
def likes(digit: str) -> str:
    """The four letters that a digit likes."""
    return "".join(random.Random(seed_of("likes", digit)).sample(Tastes.letters, 4))
