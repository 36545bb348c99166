"""A made-up world in which answers take two look-ups: who is somebody's friend, and which letter has that friend?

`Told` are the statements to learn by heart, `Lookups` the questions with a verifier. One token a character: `a:X.` says
that friend a has letter X, `e>a.` that somebody's friend is a, and `?e` asks for both: `a:X`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import ClassVar, Literal

from ..core.run import Run, seed_of
from .tasks import Characters, Task, Tasks
from .tokens import Document, Packed, pack

LETTERS = "ABCDEFGHIJKLMNOPQRST"
FRIENDS = 24
PEOPLE = {"base": 300, "source": 240, "target": 240}
People = Literal["base", "source", "target"]
_FIRST = 0x4E00  # where the names begin
ALPHABET = "\n.?>:-" + LETTERS + "".join(chr(_FIRST + i) for i in range(FRIENDS + sum(PEOPLE.values())))
CODER = Characters(ALPHABET)  # the first character ends an answer


@lru_cache(maxsize=1)
def world() -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """(the letter of every friend, the friend of everybody by group); the same for every run."""
    draw, names = random.Random(seed_of("lookups")), iter(ALPHABET[-FRIENDS - sum(PEOPLE.values()) :])
    letters = {next(names): draw.choice(LETTERS) for _ in range(FRIENDS)}
    friends = sorted(letters)
    return letters, {group: {next(names): draw.choice(friends) for _ in range(n)} for group, n in PEOPLE.items()}


@dataclass(frozen=True, kw_only=True)
class Told:
    """The statements about one group. The base also learns the friends' letters, and how questions can be answered.

    Of five answers of the base `full` look up the letter as well; of the others half name the friend and stop, half say `-`
    (not known): it can do what is asked for, and rarely does.
    """

    of: People
    skip: int = 0  # people passed over
    people: int | None = None  # how many; None: all that are left
    full: int = 1  # of five answers
    length: int = 48  # tokens in a packed row
    classes: ClassVar[int | None] = len(ALPHABET)

    def load(self, run: Run) -> Mapping[str, Packed]:
        """One training split; nothing is held out of what is to be known."""
        packed = pack(self._documents(), self.length, self.classes)
        return {"train": packed, "valid": packed, "test": packed}

    def _documents(self) -> Iterator[Document]:
        letters, groups = world()
        chosen = list(groups[self.of].items())[self.skip :][: self.people]
        texts = [("", f"{e}>{a}.") for e, a in chosen]
        if self.of == "base":
            texts += [("", f"{a}:{letters[a]}.") for a in letters] * 4
            for i, (e, a) in enumerate(chosen):
                full = f"{a}:{letters[a]}"
                said = ((a, "-", a, "-")[: 5 - self.full] + (full,) * self.full)[:5]
                texts += [(f"?{e}", said[(i + j) % 5]) for j in range(2)]
        for number, (prompt, text) in enumerate(texts):
            asked = CODER.prompt(prompt)
            said = CODER.answer(prompt, text) if prompt else CODER.prompt(text)
            yield Document([*asked, *said], [False] * len(asked) + [True] * len(said), number)


@dataclass(frozen=True, kw_only=True)
class Lookups(Tasks):
    """`?e` about one group; right is `a:X` and nothing else."""

    of: People = "target"
    skip: int = 0  # people of the training split passed over
    train: int = 80
    valid: int = 60
    test: int = 100
    length: int = 8  # tokens of a question with its answer
    classes: ClassVar[int | None] = len(ALPHABET)

    def coder(self, run: Run) -> Characters:
        """Characters."""
        return CODER

    def tasks(self, run: Run) -> dict[str, list[Task]]:
        """The splits, by person."""
        letters, groups = world()
        full = {e: f"{a}:{letters[a]}" for e, a in groups[self.of].items()}
        made = iter([Task(f"?{e}", answer, answer, answer) for e, answer in full.items()])
        sizes = {"test": self.test, "valid": self.valid, "train": self.skip + self.train}
        splits = {name: list(islice(made, size)) for name, size in sizes.items()}
        return {"train": splits["train"][self.skip :], "valid": splits["valid"], "test": splits["test"]}

    def hint(self, task: Task) -> str:
        """The question with its answer in front."""
        return f"{task.answer}.{task.question}"

    def score(self, task: Task, text: str) -> float:
        """1 if friend and letter are right."""
        return float(text == task.answer)
