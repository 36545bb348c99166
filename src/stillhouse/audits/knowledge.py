"""Does a model follow what it is shown where that answers the question, and its own memory where it does not?

    adherence   the answer says what the passage says, true or counterfactual, and not the rivals
    robustness  beside passages about something else the answer is what the model knew before, or that it does not know
    rightly     the mean of the two

`refused` is, of the questions that the base could not answer by heart, the share refused beside irrelevant passages.
Answers are greedy. Intervals are over questions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.files import read_lines
from ..core.report import Finding
from ..core.run import Run, RunError
from ..core.stage import Subjects
from ..models.generate import Sampling, generate
from .significance import bootstrap_mean, paired_bootstrap

METRICS = ("adherence", "robustness", "rightly", "refused")


@dataclass(frozen=True, kw_only=True)
class KnowledgeUse:
    """The four numbers for every subject, on the questions that stage `stage` wrote under `asked`; then differences."""

    stage: str = "conflicts"
    split: str = "test"
    ours: str = "train"
    versus: tuple[str, ...] = ()
    sampling: Sampling = Sampling(temperature=0.0, max_new=48)
    draws: int = 2000

    def __call__(self, run: Run, subjects: Subjects) -> Iterable[Finding]:
        """Findings per subject, then the paired differences."""
        lines = read_lines(run.path(self.stage) / "asked" / f"{self.split}.jsonl")
        if not lines:
            raise RunError(f"stage {self.stage!r} wrote no question of the {self.split} split to judge by")
        coder = run.recipe.data.coder(run)
        found: dict[str, dict[str, Tensor]] = {}
        for name in subjects.names:
            module = subjects.load(name)
            prompts = [line["prompt"] for line in lines]
            answers = generate(module, prompts, self.sampling, seed=run.seed, ends=coder.ends())
            texts = [coder.text(answer) for answer in answers]
            found[name] = of_items(lines, [says(line, text) for line, text in zip(lines, texts, strict=True)])
            for metric, values in found[name].items():
                yield self._finding(metric, name, None, bootstrap_mean(values, draws=self.draws, seed=run.seed))
            del module
        for other in self.versus:
            for metric, values in found[self.ours].items():
                gap = paired_bootstrap(values, found[other][metric], draws=self.draws, seed=run.seed)
                yield self._finding(metric, self.ours, other, gap)

    def _finding(self, metric: str, subject: str, versus: str | None, found: Any) -> Finding:
        return Finding(
            name=metric, subject=subject, versus=versus, value=found.value, low=found.low, high=found.high, n=found.n,
            over="questions", split=self.split, better="higher",
        )  # fmt: skip


def says(line: Mapping[str, Any], text: str | None) -> bool:
    """Whether a finished answer contains what is wanted and none of the rivals; case does not matter."""
    if text is None:
        return False
    said = text.casefold()
    return line["wanted"].casefold() in said and not any(rival.casefold() in said for rival in line["rivals"])


def of_items(lines: Iterable[Mapping[str, Any]], right: Iterable[bool]) -> dict[str, Tensor]:
    """From one verdict per prompt to one number per question; a question without such a prompt is left out."""
    verdicts: dict[int, dict[str, bool]] = {}
    refused: list[bool] = []
    for line, good in zip(lines, right, strict=True):
        verdicts.setdefault(line["example"], {})[line["kind"]] = good
        if line["kind"] == "irrelevant" and not line["known"]:
            refused.append(good)
    whole = [v for v in verdicts.values() if len(v) == 3]
    adherence = torch.tensor([(v["related"] + v["counterfactual"]) / 2 for v in whole], dtype=torch.float64)
    robustness = torch.tensor([float(v["irrelevant"]) for v in whole], dtype=torch.float64)
    values = (adherence, robustness, (adherence + robustness) / 2, torch.tensor(refused, dtype=torch.float64))
    return {name: value for name, value in zip(METRICS, values, strict=True) if len(value)}
