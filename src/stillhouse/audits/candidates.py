"""Does a model order the answers of held-out sets as their scores do?

`ranked` is the share of a set's pairs with different scores whose better answer the model finds likelier per token, and
`best_first` how often its likeliest answer has the highest score. Intervals are over sets.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..core.engine import to_device
from ..core.report import Finding
from ..core.run import Run, RunError
from ..core.stage import Subjects
from ..data.candidates import CandidateSource
from ..models.call import cast, logits_of, weight_of
from ..objectives.preference import sequence_logp
from .significance import bootstrap_mean, paired_bootstrap

NOTES = {
    "ranked": "share of the pairs of a set whose better answer is the likelier one, per token",
    "best_first": "share of sets whose likeliest answer, per token, has the highest score",
}


@dataclass(frozen=True, kw_only=True)
class SetScores:
    """How the subjects order held-out sets of scored answers; `versus` names subjects that `ours` is compared with."""

    split: str = "test"
    data: Any = None  # DataSpec of sets; None: the recipe's
    ours: str = "train"
    versus: tuple[str, ...] = ()
    batch: int = 4  # sets read at a time
    precision: Literal["float32", "bfloat16"] = "float32"  # of the students while they are judged
    draws: int = 2000

    def __call__(self, run: Run, subjects: Subjects) -> Iterable[Finding]:
        """Findings per subject, then the paired differences."""
        source = run.sources(self.data)[self.split]
        if not isinstance(source, CandidateSource) or not len(source):
            raise RunError(f"the {self.split} split holds no sets of scored answers; leave SetScores out of the audit")
        found: dict[str, dict[str, Tensor]] = {}
        for name in subjects.names:
            module = cast(subjects.load(name), getattr(torch, self.precision))
            found[name] = self._orders(module, source, run)
            for metric, values in found[name].items():
                yield self._finding(metric, name, None, bootstrap_mean(values, draws=self.draws, seed=run.seed))
            del module
        for metric in NOTES:
            for other in self.versus:
                gap = paired_bootstrap(found[self.ours][metric], found[other][metric], draws=self.draws, seed=run.seed)
                yield self._finding(metric, self.ours, other, gap)

    @torch.no_grad()
    def _orders(self, module: Any, source: CandidateSource, run: Run) -> dict[str, Tensor]:
        """Per set: the two numbers."""
        values: dict[str, list[float]] = {name: [] for name in NOTES}
        for begin in range(0, len(source), self.batch):
            batch = to_device(source.batch(range(begin, min(begin + self.batch, len(source))), 0), run.device)
            logp = sequence_logp(logits_of(module, batch), batch["labels"], weight=weight_of(batch), mean=True)
            for s, truth in zip(logp.split(batch["sizes"]), batch["scores"].split(batch["sizes"]), strict=True):
                above = truth[:, None] > truth
                values["ranked"].append(float((s[:, None] > s)[above].double().mean()))
                values["best_first"].append(float(truth[s.argmax()] == truth.max()))
            if run.progress is not None:
                run.progress.update(run.stage, min(begin + self.batch, len(source)), len(source), {}, 0.0)
        return {name: torch.tensor(found, dtype=torch.float64) for name, found in values.items()}

    def _finding(self, metric: str, subject: str, versus: str | None, found: Any) -> Finding:
        return Finding(
            name=metric, subject=subject, versus=versus, value=found.value, low=found.low, high=found.high, n=found.n,
            over="sets", split=self.split, better="higher", note=NOTES[metric],
        )  # fmt: skip
