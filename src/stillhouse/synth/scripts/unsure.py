"""A script for `teachers.scripted.Scripted` that names the class of a text and knows how far to trust itself."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ...core.run import Run, RunError, seed_of
from ...core.signal import Completion, Kind
from ...models.text import n_grams
from ...teachers.scripted import Answers
from ...teachers.text import Ask
from .imitator import NaiveBayes


@dataclass(frozen=True, kw_only=True)
class Unsure:
    """Naive Bayes over the training rows, each judged by the half of them that it is not in: its errors are real ones,
    and more frequent near the border of two classes.

    Its confidence is the winner's probability at the temperature at which confidence and success agree on average over
    all rows; that takes the truth, which a script has. It answers `travel: 85%` if asked how sure it is, else the class
    alone, with the logarithm of that probability as its token's. At a decoding temperature above 0 it draws the class from
    its probabilities. The truth that it tells about an answer is the row's label.
    """

    data: Any  # a DataSpec of labelled texts, all of whose training rows it knows
    gives: ClassVar[frozenset[Kind]] = frozenset({"logprobs"})

    def build(self, run: Run) -> Answers:
        """Read the data, count, and find the temperature."""
        return Judge(self.data.rows(run)["train"])


class Judge:
    """What the script has counted."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]):
        if len(rows) < 4:
            raise RunError("a script that judges texts by others needs four labelled rows or more")
        self.truth = {row["text"]: row["label"] for row in rows}
        parts: list[dict[str, list[str]]] = [{}, {}]
        for text, label in self.truth.items():
            parts[self.half(text)].setdefault(label, []).append(text)
        names = sorted(set(self.truth.values()))
        for part in parts:  # a class that one half lacks is known there by a text without words
            for name in names:
                part.setdefault(name, [""])
        self.models = [NaiveBayes(parts[1]), NaiveBayes(parts[0])]  # of a text's half: made of the other one
        self.temperature = self._calibrated(names)

    @staticmethod
    def half(text: str) -> int:
        """Which half a text is in, by its content."""
        return seed_of("half", text) % 2

    def probabilities(self, text: str, names: Sequence[str], temperature: float | None = None) -> list[float]:
        """Of the classes `names`."""
        scores = self._scores(text, names)
        return _softmax(scores, self.temperature if temperature is None else temperature)

    def __call__(self, ask: Ask, rng: random.Random) -> Completion:
        about = ask.about
        if "names" not in about:
            raise RunError("this script names the class of a text, and was asked something else")
        names: Sequence[str] = about["names"]
        p = self.probabilities(about["text"], names)
        drawn = rng.choices(range(len(names)), p)[0] if ask.decoding.temperature else p.index(max(p))
        said = f"{names[drawn]}: {100 * p[drawn]:.1f}%" if about.get("stated") else names[drawn]
        truth = {"label": self.truth[about["text"]]} if about["text"] in self.truth else None
        logprobs = [math.log(max(p[drawn], 1e-12))] if ask.decoding.logprobs else None
        return Completion(said, read=ask.size, wrote=6, truth=truth, logprobs=logprobs)

    def _scores(self, text: str, names: Sequence[str]) -> list[float]:
        grams, logs = n_grams(text), self.models[self.half(text)].logs
        return [logs[name][0] + sum(logs[name][1].get(gram, logs[name][2]) for gram in grams) for name in names]

    def _calibrated(self, names: Sequence[str]) -> float:
        """Where mean confidence is the share of right answers: confidence falls with temperature, so halving finds it."""
        scored = [(self._scores(text, names), names.index(label)) for text, label in self.truth.items()]
        right = sum(scores.index(max(scores)) == truth for scores, truth in scored) / len(scored)
        low, high = 0.0, 20.0  # logarithms of the temperature
        for _ in range(40):
            middle = (low + high) / 2
            sure = sum(max(_softmax(scores, math.exp(middle))) for scores, _ in scored) / len(scored)
            low, high = (middle, high) if sure > right else (low, middle)
        return math.exp(high)


def _softmax(scores: Sequence[float], temperature: float) -> list[float]:
    top = max(scores)
    weights = [math.exp((score - top) / temperature) for score in scores]
    return [weight / sum(weights) for weight in weights]
