"""Questions with a few answers whose true odds are known: what calibration can be measured against exactly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.run import Run, seed_of
from .tokens import Document, Packed


@dataclass(frozen=True, kw_only=True)
class Choices:
    """Every symbol of a question speaks for some answers and against others, and the answer is drawn accordingly:

        P(answer | question) = softmax(sum of the evidence of its symbols)

    One question a row, one token a symbol; the answer is one token, the only one that counts. Nobody can be right more
    often than the true odds allow, so whoever is always sure is wrong about that. The held-out questions are the same for
    every run, those of the training split depend on the run's seed and on `name`.
    """

    name: str = "questions"
    symbols: int = 16  # that questions are made of
    answers: int = 4
    words: int = 8  # symbols in a question
    strength: float = 0.7  # standard deviation of one symbol's evidence for one answer, nats
    train: int = 600  # questions
    valid: int = 300
    test: int = 1000

    @property
    def length(self) -> int:
        """Tokens in a row."""
        return self.words + 1

    @property
    def classes(self) -> int:
        """The answers are the last tokens."""
        return self.symbols + self.answers

    def load(self, run: Run) -> Mapping[str, Packed]:
        """The splits."""
        keys = {"train": (self.name, run.seed), "valid": ("valid",), "test": ("test",)}
        return {split: self._rows(getattr(self, split), seed_of("choices", *key)) for split, key in keys.items()}

    def prompts(self, run: Run) -> dict[str, list[list[int]]]:
        """The questions."""
        return {name: packed.prompts() for name, packed in self.load(run).items()}

    def odds(self, questions: Tensor) -> Tensor:
        """The true probability of every answer, `[n, answers]`, for questions `[n, words]`."""
        draw = torch.Generator().manual_seed(seed_of("evidence", self.symbols, self.answers))
        evidence = self.strength * torch.randn(self.symbols, self.answers, generator=draw)
        return evidence[questions].sum(1).softmax(-1)

    def _rows(self, count: int, seed: int) -> Packed:
        draw = torch.Generator().manual_seed(seed)
        questions = torch.randint(self.symbols, (count, self.words), generator=draw)
        chosen = torch.multinomial(self.odds(questions), 1, generator=draw) if count else questions[:, :1]
        counts = [False] * self.words + [True]
        texts = torch.cat([questions, chosen + self.symbols], 1).tolist()
        return Packed(tuple((Document(text, counts, i),) for i, text in enumerate(texts)), self.length, self.classes)
