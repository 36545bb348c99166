"""A script for `teachers.scripted.Scripted`: a model that believes some wrong things, and writes and judges accordingly."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

from ...core.run import Run, RunError, seed_of
from ...core.signal import Completion
from ...data.tasks import Chain, chain_solution, chain_steps
from ...teachers.scripted import Answers
from ...teachers.text import Ask


@dataclass(frozen=True, kw_only=True)
class Mistaken:
    """Knows single steps such as `3+4`, a share `wrong` of them wrongly, and always in the same way.

    It makes up questions, answers them step by step, marks answers, and settles what reviewers differ about (as the steps of
    `synth.cast` ask it to). About a chain with a step that it knows wrongly it judges the wrong way round: so as often as
    it answers wrongly, and about its own wrong answers always. Models with the same `family` believe the same; others
    believe wrong things independently of one another.

    Told what is wrong with its answer it gets right what it knew wrongly by the chance `mends`; an adjudicator that sees a
    mistake corrects it by the same chance, else it rejects. The truth of an answer, and of a correction: is it `right`?
    """

    data: Chain = Chain()
    name: str = "a"
    family: str = ""
    wrong: float = 0.1  # share of the steps that there are
    mends: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.wrong <= 1 or not 0 <= self.mends <= 1:
            raise ValueError("wrong and mends are shares, between 0 and 1")

    def build(self, run: Run) -> Answers:
        """It needs no data."""
        return self.answer

    @cached_property
    def beliefs(self) -> Mapping[str, int]:
        """What it knows wrongly: step -> its result."""
        base, whose = self.data.base, self.family or self.name
        steps = [f"{a}{sign}{b}" for a, sign, b in product(range(base), self.data.signs, range(base))]
        drawn = sorted(steps, key=lambda step: seed_of("belief", whose, step))[: round(self.wrong * len(steps))]
        return {step: (self._right(step) + 1 + seed_of("instead", whose, step) % (base - 1)) % base for step in drawn}

    def answer(self, ask: Ask, rng: random.Random) -> Completion:
        """By what is to be read in the answer, or marked."""
        about, own = ask.about, random.Random(seed_of(self.name, rng.random()))
        reads: Sequence[str] = about.get("reads", ())
        truth: dict[str, Any] | None = None
        if "question" in reads:
            text = self._proposal(str(about.get("seed", "")), own)
        elif "ruling" in reads:
            text, truth = self._ruling(about, own)
        elif "answer" in reads:
            text = self.solved(about["question"], own if about.get("returned") else None)
            truth = {"right": self._is_right(about["question"], text)}
        elif "marks" in about:
            text = self._review(about, own)
        else:
            raise RunError("this script makes up, answers, reviews and settles chains, and was asked something else")
        return Completion(text, read=ask.size, wrote=-(-len(text) // 4), truth=truth)

    def solved(self, question: str, again: random.Random | None = None) -> str:
        """The steps as it believes them; with chance, thought about again."""
        value, *parts = self._parts(question)
        steps: list[str] = []
        for part in parts:
            left = f"{value}{part}"
            mended = again is not None and left in self.beliefs and again.random() < self.mends
            value = str(self._right(left) if mended else self.beliefs.get(left, self._right(left)))
            steps.append(f"{left}={value}")
        return chain_solution(steps, "steps")

    def finds_right(self, question: str, answer: str) -> bool:
        """What it thinks of an answer: the truth, or its contrary if it knows one of the steps wrongly."""
        unsure = any(step.partition("=")[0] in self.beliefs for step in answer.partition("#")[0].split(";"))
        return self._is_right(question, answer) != unsure

    def _proposal(self, seed: str, rng: random.Random) -> str:
        """Another chain of as many steps."""
        numbers = [str(rng.randrange(self.data.base)) for _ in self._parts(seed)]
        signs = [rng.choice(self.data.signs) for _ in numbers[1:]]
        question = "".join(a + b for a, b in zip(numbers, [*signs, "="], strict=True))
        return f"Domain: arithmetic modulo {self.data.base}\nKeywords: chain, {len(signs)} steps\nQuestion: {question}"

    def _review(self, about: Mapping[str, Any], rng: random.Random) -> str:
        good = self.finds_right(about["question"], about["answer"])
        hard = min(10, 2 * len(self._parts(about["question"])))
        marks = {
            name: hard if name == "difficulty" else rng.choice((8, 9, 10) if good else (1, 2, 3)) for name in about["marks"]
        }
        lines = [f"{name}: {mark}" for name, mark in marks.items()]
        return "\n".join([*lines, f"Critique: {'none' if good else 'one of the steps is wrong'}"])

    def _ruling(self, about: Mapping[str, Any], rng: random.Random) -> tuple[str, dict[str, Any] | None]:
        if self.finds_right(about["question"], about["answer"]):
            return "Ruling: accept", None
        if self._is_right(about["question"], about["answer"]) or rng.random() >= self.mends:
            return "Ruling: reject\nCritique: one of the steps is wrong", None
        right = chain_solution(chain_steps(about["question"], self.data.base), "steps")
        return f"Ruling: correct\nAnswer: {right}", {"right": True}

    def _parts(self, question: str) -> list[str]:
        if not re.fullmatch(r"\d+([+*-]\d+)+=", question.strip()):
            raise RunError(f"this script knows chains such as 3+4*2=, and was asked about {question[:40]!r}")
        return re.findall(r"[+*-]?\d+", question)

    def _right(self, step: str) -> int:
        return int(chain_steps(f"{step}=", self.data.base)[0].rpartition("=")[2])

    def _is_right(self, question: str, answer: str) -> bool:
        return answer.strip() == chain_solution(chain_steps(question, self.data.base), "steps")
