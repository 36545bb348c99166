"""How many of a student's answers to held-out tasks have the form that was asked for?"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ..core.report import Finding
from ..core.run import Run
from ..core.stage import Subjects
from ..models.generate import Sampling, generate
from .significance import bootstrap_mean


@dataclass(frozen=True, kw_only=True)
class Form:
    """`well_formed`: the share of answers that ended and that the regular expression fits from end to end."""

    pattern: str  # a dot matches line breaks too
    split: str = "test"
    count: int | None = None  # tasks, at most; None: all
    sampling: Sampling = Sampling(temperature=0.0)
    draws: int = 2000

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"{self.pattern!r} is no regular expression: {error}") from error

    def __call__(self, run: Run, subjects: Subjects) -> Iterator[Finding]:
        """One finding for each subject."""
        tasks: Any = run.recipe.data
        prompts, coder = tasks.prompts(run)[self.split][: self.count], tasks.coder(run)
        fits = re.compile(self.pattern, re.DOTALL).fullmatch
        for name in subjects.names:
            answers = generate(subjects.load(name), prompts, self.sampling, seed=run.seed, ends=tasks.ends(run))
            texts = [coder.text(answer) for answer in answers]
            good = torch.tensor([float(text is not None and fits(text) is not None) for text in texts], dtype=torch.float64)
            found = bootstrap_mean(good, draws=self.draws, seed=run.seed)
            yield Finding(
                name="well_formed", subject=name, value=found.value, low=found.low, high=found.high, n=found.n,
                over="tasks", split=self.split, better="higher",
            )  # fmt: skip
