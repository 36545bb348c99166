"""A script that writes programs for problems in words, wrong as often as it is told: a teacher whose errors are known."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...core.run import Run, RunError
from ...core.signal import Completion
from ...data.problems import asked_for, kind_of
from ...teachers.scripted import Answers
from ...teachers.text import Ask

FAULTS = ("another sign", "another number", "no Python", "no program")


@dataclass(frozen=True, kw_only=True)
class Programmer:
    """Answers a question of `data.problems.Problems` in the row that it is asked about with `return  3*12+ 5`.

    It is wrong in a share `wrong` of its drawn answers and `wrong_greedy` of those at temperature 0, in one of four ways:
    another sign, another number, no Python, no program at all. With `shown_alone` it knows nothing by itself: it is right
    if a demonstration of the same kind is shown in the row, else wrong. The truth of an answer: `right`, whether the
    program is the one that was asked for, and `fault`. A faulty program may give the right number by chance.
    """

    wrong: float = 0.5
    wrong_greedy: float = 0.3
    shown_alone: bool = False
    question: str = "question"  # the row's columns
    shown: str = "shown"

    def __post_init__(self) -> None:
        if not (0 <= self.wrong <= 1 and 0 <= self.wrong_greedy <= 1):
            raise ValueError("wrong and wrong_greedy are shares, between 0 and 1")

    def build(self, run: Run) -> Answers:
        """It knows the kinds of problems and needs no data."""
        return self.answer

    def answer(self, ask: Ask, rng: random.Random) -> Completion:
        """A program; RunError if the row holds no such problem."""
        question = str(ask.about.get(self.question, ""))
        right = asked_for(question)
        if right is None:
            raise RunError(f"this script knows problems such as '3 bags of 12, 5 more?', and was asked {question[:40]!r}")
        wrong = rng.random() < (self.wrong if ask.decoding.temperature else self.wrong_greedy)
        if self.shown_alone:
            wrong = not any(kind_of(str(each.get(self.question))) == kind_of(question) for each in self._shown(ask.about))
        fault = rng.choice(FAULTS) if wrong else ""
        text = self._faulty(right, fault, rng) if wrong else f"return {right}"
        truth = {"right": not wrong, "fault": fault}
        return Completion(text, read=ask.size, wrote=-(-len(text) // 4), truth=truth)

    def _shown(self, about: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        return list(about.get(self.shown) or ())

    def _faulty(self, right: str, fault: str, rng: random.Random) -> str:
        if fault == "no program":
            return f"the answer is {rng.randrange(100)}"
        if fault == "no Python":
            return f"return ({right}"
        pattern = r"[+*-]" if fault == "another sign" else r"\d+"
        found = rng.choice(list(re.finditer(pattern, right)))
        others = [sign for sign in "+-*" if sign != found[0]]
        new = rng.choice(others) if fault == "another sign" else str(int(found[0]) + rng.choice((-1, 1)))
        return f"return {right[: found.start()]}{new}{right[found.end() :]}"
