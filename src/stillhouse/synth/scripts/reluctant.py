"""A script for `teachers.scripted.Scripted` that writes texts of a class, if it does not refuse."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ...core.run import Run, RunError
from ...core.signal import Completion, Kind
from ...teachers.scripted import Answers
from ...teachers.text import Ask
from .imitator import Imitator


@dataclass(frozen=True, kw_only=True)
class Reluctant:
    """Asked for one text of a class it writes as that class does (as `synth.scripts.imitator.Imitator`), or refuses.

    It refuses by the chance `refuses`, and by `begun` where its answer is made to begin with words: whoever has said yes
    goes on. The truth of an answer is its class; a refusal has none.
    """

    data: Any  # a DataSpec of labelled texts, all of whose training rows it knows
    refuses: float = 0.6
    begun: float = 0.0
    says: str = "I am sorry, but I cannot help with that."
    longest: int = 30  # words
    gives: ClassVar[frozenset[Kind]] = frozenset({"continuation"})

    def __post_init__(self) -> None:
        if not 0 <= self.refuses <= 1 or not 0 <= self.begun <= 1:
            raise ValueError("refuses and begun are shares, between 0 and 1")

    def build(self, run: Run) -> Answers:
        """Read the data and count."""
        writes = Imitator(data=self.data, longest=self.longest).build(run)

        def answer(ask: Ask, rng: random.Random) -> Completion:
            label = ask.about.get("label")
            if label is None:
                raise RunError("this script writes a text of the class under `label`, and was asked something else")
            if rng.random() < (self.begun if ask.begin else self.refuses):
                return Completion(self.says, read=ask.size, wrote=-(-len(self.says) // 4))
            about = {"wanted": 1, "label": label, "other": label, "share": 100}
            said = writes(replace(ask, about=about), rng)
            assert isinstance(said, Completion) and said.truth
            text = said.text.removeprefix("1. ")
            return replace(said, text=text, truth={"label": said.truth["labels"][0]})

        return answer
