"""How many held-out tasks does each student solve, and in how many tokens?

With n answers to each task, c of them right, `pass@k` is the chance that one of k drawn without replacement is right:
1 - C(n - c, k) / C(n, k) (Chen et al. 2021, arXiv 2107.03374, Eq. 1), which is unbiased. Intervals are over tasks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..core.report import Finding
from ..core.run import Run, RunError
from ..core.stage import Subjects
from ..models.call import cast
from ..models.generate import Sampling, generate
from .significance import bootstrap_mean, paired_bootstrap


@dataclass(frozen=True, kw_only=True)
class Solved:
    """`solved`, `answer_tokens` and, with several answers to a task, `pass@k`; then differences, task by task.

    A task counts as solved if its verifier gives it 1. `versus` names subjects that `ours` is compared with. The
    subjects in `hinted` also answer with the solution shown (`solved_hinted`): what they know as teachers.
    """

    split: str = "test"
    ours: str = "train"
    versus: tuple[str, ...] = ()
    hinted: tuple[str, ...] = ()
    count: int | None = None  # tasks, at most; None: all
    samples: int = 1  # answers to a task
    k: tuple[int, ...] = ()  # of pass@k
    sampling: Sampling = Sampling(temperature=0.0)
    precision: Literal["float32", "bfloat16"] = "float32"  # of the students while they answer
    draws: int = 2000

    def __call__(self, run: Run, subjects: Subjects) -> Iterable[Finding]:
        """Findings per subject, then the paired differences."""
        if self.samples > 1 and self.sampling.temperature == 0:
            raise RunError(f"{self.samples} answers at temperature 0 are one answer: set samples=1 or a temperature")
        if any(not 0 < k <= self.samples for k in self.k):
            raise RunError(f"pass@k needs at least k answers to each task: there are {self.samples}, and k is {self.k}")
        tasks: Any = run.recipe.data
        if not hasattr(tasks, "verify"):
            raise RunError(f"{type(tasks).__name__} has no verifier, so no answer can be judged; see data/tasks.py")
        if not len(run.sources()[self.split]):
            raise RunError(f"the {self.split} split holds no task; hold out a larger share (data.{self.split})")
        measured: dict[str, dict[str, Tensor]] = {}
        for name in subjects.names:
            module = cast(subjects.load(name), getattr(torch, self.precision))
            measured[name] = self._measure(module, tasks, tasks.prompts(run)[self.split], run)
            if name in self.hinted:
                shown = self._measure(module, tasks, tasks.hinted(run, self.split), run)
                measured[name]["solved_hinted"] = shown["solved"]
            for metric, values in measured[name].items():
                yield self._finding(metric, name, None, bootstrap_mean(values, draws=self.draws, seed=run.seed))
            del module
        for other in self.versus:
            for metric, values in measured[self.ours].items():
                if metric in measured[other]:
                    found = paired_bootstrap(values, measured[other][metric], draws=self.draws, seed=run.seed)
                    yield self._finding(metric, self.ours, other, found)

    def _measure(self, module: Any, tasks: Any, prompts: list[list[int]], run: Run) -> dict[str, Tensor]:
        """Means over the answers of each task."""
        prompts = prompts[: self.count]
        asked = [(i, n) for i in range(len(prompts)) for n in range(self.samples)]
        done = 0

        def report(some: int, tokens: int) -> None:
            nonlocal done
            done += some
            if run.progress is not None:
                run.progress.update(run.stage, done, len(asked), {}, 0.0)

        answers = generate(
            module, [prompts[i] for i, _ in asked], self.sampling, seed=run.seed, keys=asked, ends=tasks.ends(run),
            on_batch=report,
        )  # fmt: skip
        right = torch.tensor(tasks.right(run, self.split, [i for i, _ in asked], answers)).view(-1, self.samples) >= 1.0
        lengths = torch.tensor([len(a) for a in answers]).view(-1, self.samples)
        values = {"solved": right.double().mean(-1)}
        for k in self.k:
            chances = [pass_at(k, self.samples, c) for c in right.sum(-1).tolist()]
            values[f"pass@{k}"] = torch.tensor(chances, dtype=torch.float64)
        return values | {"answer_tokens": lengths.double().mean(-1)}

    def _finding(self, metric: str, subject: str, versus: str | None, found: Any) -> Finding:
        tokens = metric == "answer_tokens"
        return Finding(
            name=metric, subject=subject, versus=versus, value=found.value, low=found.low, high=found.high, n=found.n,
            over="tasks", split=self.split, better="neither" if tokens else "higher", unit="tokens" if tokens else "",
        )  # fmt: skip


def pass_at(k: int, n: int, c: int) -> float:
    """The chance that one of k answers, drawn from n of which c are right, is right."""
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)
