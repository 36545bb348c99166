"""Scripts that judge stories and write tagged solutions: what stands in for a language model that can read."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ...core.run import Run, RunError
from ...core.signal import Completion
from ...data.tasks import last_number
from ...teachers.scripted import Answers
from ...teachers.text import Ask
from ..pools import answer_of, spoiled
from ..stories import chain_in, same_story
from .solver import Solver

LEVELS = ("easy", "medium", "hard")


@dataclass(frozen=True, kw_only=True)
class Examiner:
    """Reads stories (`synth/stories.py`) and answers four kinds of question about them, wrong by the shares given.

    Which of some tests asks the same (`tests` in what it is told about an ask; the number of the first, or 0): `missed`
    and `alarmed` are the shares of same ones that it does not see, and of others that it takes for the same. Which of
    `names` a question belongs to, by its operators where the names are easy, medium and hard. How difficult a question
    is, where the prompt has that word: 3 for each operator, give or take `noise`. Else how good a `response` is: a line
    for each criterion that the prompt lists, or a number, high if its result is right and low if not, give or take
    `noise`.
    """

    base: int = 10
    missed: float = 0.03
    alarmed: float = 0.01
    mistaken: float = 0.05  # share of its labels that are another one
    noise: float = 1.0  # standard deviation of a mark

    def __post_init__(self) -> None:
        if not all(0 <= share <= 1 for share in (self.missed, self.alarmed, self.mistaken)) or self.noise < 0:
            raise ValueError("missed, alarmed and mistaken are shares, and noise is 0 or more")

    def build(self, run: Run) -> Answers:
        """It knows how stories are told and needs no data."""
        return self.answer

    def answer(self, ask: Ask, rng: random.Random) -> str:
        """RunError for a question that is no story."""
        about = ask.about
        if "tests" in about:
            return self._same(about, rng)
        chain = chain_in(str(about.get("question", "")))
        if chain is None:
            raise RunError(f"this script judges stories, and was asked about {str(about.get('question'))[:60]!r}")
        operators = sum(sign in "+-*" for sign in chain)
        if "names" in about:
            return self._label(about["names"], operators, rng)
        if "difficult" in ask.messages[-1][1]:
            return str(self._mark(3.0 * operators, rng))
        said = last_number(str(about.get("response", "")))
        good = said is not None and str(said) == answer_of(chain, self.base)
        middle = 8.0 if good else 3.0
        rubric = re.findall(r"(?m)^- (\w+):", ask.messages[-1][1])
        return "\n".join(f"{name}: {self._mark(middle, rng)}" for name in rubric) or str(self._mark(middle, rng))

    def _same(self, about: Mapping[str, Any], rng: random.Random) -> str:
        for number, test in enumerate(about["tests"], 1):
            chance = 1 - self.missed if same_story(about["question"], test) else self.alarmed / len(about["tests"])
            if rng.random() < chance:
                return str(number)
        return "0"

    def _label(self, names: Any, operators: int, rng: random.Random) -> str:
        names = list(names)
        right = names[min(operators, len(names)) - 1] if tuple(names) == LEVELS else names[0]
        others = [name for name in names if name != right]
        return rng.choice(others) if others and rng.random() < self.mistaken else right

    def _mark(self, middle: float, rng: random.Random) -> float:
        return round(min(10.0, max(1.0, rng.gauss(middle, self.noise))), 1)


@dataclass(frozen=True, kw_only=True)
class Tagger:
    """What a `Solver` says, in the tags `think` and `answer`, which may be broken, or with its steps over and over."""

    solver: Any = Solver(question="short")
    broken: float = 0.0  # share of the answers
    looping: float = 0.0

    def build(self, run: Run) -> Answers:
        """As the solver."""
        return self.answer

    def answer(self, ask: Ask, rng: random.Random) -> Completion:
        """The solver's answer in another form."""
        said: Completion = self.solver.answer(ask, rng)
        text = spoiled(said.text, self.broken, self.looping, rng)
        return replace(said, text=text, wrote=len(text))
