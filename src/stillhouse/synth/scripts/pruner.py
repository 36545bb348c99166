"""A script that rewrites worked chains by their difficulty: a rewriter whose every fault is on record."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ...core.run import Run, RunError
from ...core.signal import Completion
from ...data.tasks import Chain
from ...teachers.scripted import Answers
from ...teachers.text import Ask
from .solver import TURN

Form = Literal["last", "values", "steps", "checked"]


@dataclass(frozen=True, kw_only=True)
class Pruner:
    """Rewrites the trace in the row that it is asked about: `3+4=7;~3+4=7;7*2=4#4` to `Difficulty: easy`, then `7;4#4`.

    What was taken back or written once more goes, and what is left is written in the form of the level: its results alone
    (`values`), its `steps`, these and the last of them once more (`checked`), or the `last` step alone. The level is that
    of the number of operators. It may name and take another level (`misjudged`), get the answer wrong (`wrong`), or give
    the trace back as it was (`long`).

    The truth of an answer: `level` as it should be, and whether it was `misjudged`, `wrong` or `long`.
    """

    data: Chain = Chain()
    levels: Mapping[str, int] | None = None  # level -> the most operators; None: easy up to 2, medium up to 4, hard
    forms: Mapping[str, Form] | None = None  # level -> its form; None: easy in values, medium in steps, hard checked
    misjudged: float = 0.0  # shares
    wrong: float = 0.0
    long: float = 0.0
    question: str = "question"  # the row's columns
    trace: str = "trace"

    def __post_init__(self) -> None:
        if not all(0 <= share <= 1 for share in (self.misjudged, self.wrong, self.long)):
            raise ValueError("misjudged, wrong and long are shares, between 0 and 1")
        if set(self._levels) != set(self._forms):
            raise ValueError(f"levels are {', '.join(self._levels)}, but forms are given of {', '.join(self._forms)}")

    @property
    def _levels(self) -> Mapping[str, int]:
        return self.levels or {"easy": 2, "medium": 4, "hard": 10**6}

    @property
    def _forms(self) -> Mapping[str, Form]:
        return self.forms or {"easy": "values", "medium": "steps", "hard": "checked"}

    def build(self, run: Run) -> Answers:
        """It knows arithmetic and needs no data."""
        return self.answer

    def level(self, question: str) -> str:
        """The level of a question."""
        count = sum(question.count(sign) for sign in "+-*")
        ordered = sorted(self._levels, key=lambda name: self._levels[name])
        return next((name for name in ordered if count <= self._levels[name]), ordered[-1])

    def answer(self, ask: Ask, rng: random.Random) -> Completion:
        """The level and the trace rewritten; RunError if the row holds no worked chain."""
        question, trace = (str(ask.about.get(name, "")) for name in (self.question, self.trace))
        body, _, said = trace.partition("#")
        if not body or not said:
            raise RunError(f"this script rewrites worked chains such as 3+4=7#7, and was asked about {trace[:40]!r}")
        steps = necessary(question, [step for step in body.split(";") if step])
        if steps is None:
            raise RunError(f"the steps {body[:60]!r} do not work out {question}")
        right = level = self.level(question)
        others = [name for name in self._levels if name != right]
        if others and rng.random() < self.misjudged:
            level = rng.choice(others)
        changed, kept = rng.random() < self.wrong, rng.random() < self.long
        text = body if kept else formed(steps, self._forms[level])
        end = str((int(said) + rng.randrange(1, self.data.base)) % self.data.base) if changed else said
        words = f"Difficulty: {level}\n{text}#{end}"
        truth = {"level": right, "misjudged": level != right, "wrong": changed, "long": kept}
        return Completion(words, read=ask.size, wrote=len(words), truth=truth)


def necessary(question: str, steps: Sequence[str]) -> list[str] | None:
    """The steps of a trace that were not taken back or written again, one for every operator; None if it has them not.

    `~5+0=5` may take back any step that began with `5+0`: of all readings the first that works the chain out counts, the
    nearest steps being tried first.
    """
    first, *parts = re.findall(r"[+*-]?\d+", question)
    waiting = [(0, [first], list[str]())]  # (steps read, values, steps kept)
    while waiting:
        read, values, kept = waiting.pop()
        if read == len(steps):
            if len(kept) == len(parts):
                return kept
            continue
        step = steps[read].removeprefix(TURN)
        left, _, result = step.rpartition("=")
        places = range(len(kept) + 1) if steps[read].startswith(TURN) else [len(kept)]
        for at in places:
            if at < len(parts) and left == values[at] + parts[at]:
                waiting.append((read + 1, [*values[: at + 1], result], [*kept[:at], step]))
    return None


def formed(steps: Sequence[str], form: Form) -> str:
    """The necessary steps of a chain in a form."""
    if form == "last":
        return steps[-1]
    if form == "values":
        return ";".join(step.rpartition("=")[2] for step in steps)
    return ";".join([*steps, TURN + steps[-1]] if form == "checked" else steps)
