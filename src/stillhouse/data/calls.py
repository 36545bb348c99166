"""Sequences of tool calls that a question asks for in a code nobody explains: easy when shown, hard to come upon."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from ..core.run import Run, RunError, seed_of
from .tasks import Characters, Task, Tasks

TOOLS, ARGUMENTS = "ABCDEF", "0123"
CODE = "abcdefghijklmnopqrstuvwx"  # one letter for each of the 24 calls


@dataclass(frozen=True, kw_only=True)
class Calls(Tasks):
    """`qbd=` wants three calls, such as `D1F0A2`: each letter stands for one call, the same one in all tasks.

    All calls have to be right, so that guessing succeeds once in `24 ** calls` tries. A hint shows the calls:
    `qbd~D1F0A2=`. One token a character; the splits are the same for every seed of the run.
    """

    calls: int = 3
    letters: int = 24  # of the code that are in use, at most 24
    train: int = 1000
    valid: int = 100
    test: int = 200
    skip: int = 0  # training tasks passed over first, so that two stages can learn from different ones
    length: int = 64  # tokens of a prompt with its solution, at most
    alphabet: ClassVar[str] = f"\n{TOOLS}{ARGUMENTS}{CODE}~="
    classes: ClassVar[int | None] = len(alphabet)

    def __post_init__(self) -> None:
        if self.calls < 1 or not 2 <= self.letters <= len(CODE):
            raise ValueError(f"there are at least one call and from 2 to {len(CODE)} letters")

    def coder(self, run: Run) -> Characters:
        """Characters."""
        return Characters(self.alphabet)

    def tasks(self, run: Run) -> dict[str, list[Task]]:
        """Different sequences of letters, drawn from a generator of their own."""
        sizes = {"test": self.test, "valid": self.valid, "train": self.skip + self.train}
        if sum(sizes.values()) > self.letters**self.calls // 2:
            raise RunError(f"there are only {self.letters**self.calls:,} such tasks; ask for half of them at most")
        draw = random.Random(seed_of("calls", self.calls, self.letters))
        seen: dict[str, None] = {}
        while len(seen) < sum(sizes.values()):
            seen["".join(draw.choices(CODE[: self.letters], k=self.calls))] = None
        made = iter(seen)
        splits = {name: [self.task(next(made)) for _ in range(size)] for name, size in sizes.items()}
        return {"train": splits["train"][self.skip :], "valid": splits["valid"], "test": splits["test"]}

    def task(self, letters: str) -> Task:
        """The task of a sequence of letters."""
        every = [tool + argument for tool in TOOLS for argument in ARGUMENTS]
        random.Random(seed_of("code")).shuffle(every)
        wanted = "".join(every[CODE.index(letter)] for letter in letters)
        return Task(f"{letters}=", wanted, wanted, wanted)

    def hint(self, task: Task) -> str:
        """`qbd~D1F0A2=`."""
        return f"{task.question.removesuffix('=')}~{task.shown}="

    def score(self, task: Task, text: str) -> float:
        """1 if these are the calls."""
        return float(text == task.answer)
