"""A teacher that writes as a judge of answers: one of the rewards of `data.rewards`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..core.run import Run, RunError
from ..data.rewards import Answered
from ..synth.parse import number_in
from .text import Ask, Decoding

PROMPT = """Question:
{question}

Reference answer: {truth}

Answer to judge:
{answer}

How good is this answer, from 0 (useless) to 10 (right and clear)? Reply with the number alone."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """The last number that the run's teacher `teacher` replies, over `best`, kept within 0 and 1.

    An answer that did not end earns 0 unasked. A reply without a number, or none, stops the run with the step saved, or
    earns `failing` and is written among the rejects. What is judged is a model's text and may flatter the judge: look at
    what earns most.
    """

    teacher: str = "judge"  # among the recipe's teachers; one that writes
    prompt: str = PROMPT  # with {question}, {truth} and {answer}
    best: float = 10.0
    decoding: Decoding = Decoding(temperature=0.0, max_new=16)
    failing: float | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        if "{answer}" not in self.prompt or self.best <= 0:
            raise ValueError("a judge's prompt shows the {answer}, and best is above 0")

    def __call__(self, answers: Sequence[Answered], run: Run) -> list[float]:
        """Between 0 and 1; the asks go out together."""
        if self.teacher not in run.teachers:
            raise RunError(f"the reward asks teacher {self.teacher!r}; the recipe has {', '.join(run.teachers) or 'none'}")
        ended = [number for number, answer in enumerate(answers) if answer.text is not None]
        asks = [Ask((("user", self._prompt(answers[number])),), self.decoding) for number in ended]
        told = run.teachers[self.teacher]({"asks": asks}, frozenset({"text"})).text if asks else ()
        values = [0.0] * len(answers)
        for number, completions in zip(ended, told or (), strict=True):
            values[number] = self._read(completions[0].text if completions else None, answers[number], run)
        return values

    def _prompt(self, answer: Answered) -> str:
        words = {"{question}": answer.task.question, "{truth}": answer.task.answer, "{answer}": answer.text or ""}
        return re.sub(r"\{(?:question|truth|answer)\}", lambda found: words[found[0]], self.prompt)

    def _read(self, reply: str | None, answer: Answered, run: Run) -> float:
        number = number_in(reply or "")
        if number is not None:
            return min(max(number / self.best, 0.0), 1.0)
        why = (
            f"the judge {self.teacher!r} did not answer" if reply is None else f"the judge replied {reply[:60]!r}, no number"
        )
        if self.failing is None:
            raise RunError(f"{why}; set `failing` to what such an answer earns, or mend the prompt")
        run.reject({"question": answer.task.question, "answer": answer.text}, why)
        return self.failing
