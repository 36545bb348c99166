"""Which of two answers does a model find likelier, and how likely does it find each?

Both log-probabilities are means over an answer's tokens. A method that pushes rejected answers down may push chosen ones
down with them, for they have much in common; then both numbers fall, and what the model writes falls apart.
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
from ..data.pairs import PairSource
from ..models.call import cast, logits_of, weight_of
from ..objectives.preference import sequence_logp
from .significance import bootstrap_mean, paired_bootstrap

METRICS: dict[str, Literal["higher", "lower", "neither"]] = {
    "preferred": "higher", "chosen_logp": "higher", "rejected_logp": "neither"
}  # fmt: skip
NOTES = {
    "preferred": "share of held-out pairs whose chosen answer is likelier than the rejected one, per token",
    "chosen_logp": "mean log-probability of a token of the chosen answers",
    "rejected_logp": "mean log-probability of a token of the rejected answers",
}


@dataclass(frozen=True, kw_only=True)
class PairScores:
    """Log-probabilities of held-out pairs, with intervals over pairs; `versus` names subjects to compare `ours` with."""

    split: str = "test"
    data: Any = None  # DataSpec of pairs; None: the recipe's
    ours: str = "train"
    versus: tuple[str, ...] = ()
    batch: int = 16  # pairs read at a time
    precision: Literal["float32", "bfloat16"] = "float32"  # of the students while they are judged
    draws: int = 2000

    def __call__(self, run: Run, subjects: Subjects) -> Iterable[Finding]:
        """Findings per subject, then the paired differences."""
        source = run.sources(self.data)[self.split]
        if not isinstance(source, PairSource) or not len(source):
            raise RunError(f"the {self.split} split holds no pairs to judge by; leave PairScores out of the audit")
        measured: dict[str, dict[str, Tensor]] = {}
        for name in subjects.names:
            module = cast(subjects.load(name), getattr(torch, self.precision))
            measured[name] = self._measure(module, source, run)
            for metric, values in measured[name].items():
                yield self._finding(metric, name, None, bootstrap_mean(values, draws=self.draws, seed=run.seed))
            del module
        for other in self.versus:
            for metric, values in measured[self.ours].items():
                found = paired_bootstrap(values, measured[other][metric], draws=self.draws, seed=run.seed)
                yield self._finding(metric, self.ours, other, found)

    @torch.no_grad()
    def _measure(self, module: Any, source: PairSource, run: Run) -> dict[str, Tensor]:
        chosen: list[Tensor] = []
        rejected: list[Tensor] = []
        for begin in range(0, len(source), self.batch):
            items = range(begin, min(begin + self.batch, len(source)))
            batch = to_device(source.batch(items, 0), run.device)
            scores = sequence_logp(logits_of(module, batch), batch["labels"], weight=weight_of(batch), mean=True)
            for found, part in zip((chosen, rejected), scores.double().cpu().chunk(2), strict=True):
                found.append(part)
            if run.progress is not None:
                run.progress.update(run.stage, items.stop, len(source), {}, 0.0)
        better, worse = torch.cat(chosen), torch.cat(rejected)
        return {"preferred": (better > worse).double(), "chosen_logp": better, "rejected_logp": worse}

    def _finding(self, metric: str, subject: str, versus: str | None, found: Any) -> Finding:
        return Finding(
            name=metric, subject=subject, versus=versus, value=found.value, low=found.low, high=found.high, n=found.n,
            over="pairs", split=self.split, better=METRICS[metric], note=NOTES[metric],
            unit="" if metric == "preferred" else "nats/token",
        )  # fmt: skip
