"""How far from the teacher is a student on the text that it writes itself?

On given text every next token is judged behind words that somebody else wrote. In use a student reads its own words,
and what it cannot do there is not seen on given text (exposure bias). Here each student answers the same prompts, and
teacher and student are compared on every token of those answers.
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
from ..models.call import cast, logits_of, weight_of
from ..models.generate import Sampling, answered, generate
from ..objectives.fused import compare
from ..teachers.local import same_classes
from .significance import bootstrap_mean, paired_bootstrap

UNIT = "nats/token"


@dataclass(frozen=True, kw_only=True)
class OwnAnswers:
    """KL(student || teacher) and the teacher's surprise, on answers that each student draws to held-out prompts.

    Both are means over an answer's tokens, then over answers. The first, times the length, estimates the divergence
    between whole answers that on-policy methods lower. `versus` names subjects that `ours` is compared with, prompt by
    prompt.
    """

    split: str = "test"
    ours: str = "train"
    versus: tuple[str, ...] = ()
    teacher: str = "teacher"  # of the recipe
    count: int = 200  # prompts, at most
    sampling: Sampling = Sampling()
    batch: int = 16  # answers read at a time
    precision: Literal["float32", "bfloat16"] = "float32"  # of the students while they are judged
    draws: int = 2000

    def __call__(self, run: Run, subjects: Subjects) -> Iterable[Finding]:
        """Findings per student, then the paired differences."""
        prompts = run.recipe.data.prompts(run)[self.split][: self.count]
        if not prompts:
            raise RunError(f"the {self.split} split holds no prompt; hold out a larger share (data.{self.split})")
        if not hasattr(run.teachers[self.teacher], "module"):
            run.event("note", text="what students write was not judged: the teacher's signals are stored, for given text")
            return
        measured: dict[str, dict[str, Tensor]] = {}
        sure: dict[str, Any] = {"draws": self.draws, "seed": run.seed}
        for name in subjects.names:
            if name == "teacher":
                continue
            module = cast(subjects.load(name), getattr(torch, self.precision))
            measured[name] = self._measure(module, run.teachers[self.teacher], prompts, run)
            for metric, means in measured[name].items():
                yield self._finding(metric, name, None, bootstrap_mean(means, **sure))
            del module
        for other in self.versus:
            for metric, means in measured[self.ours].items():
                yield self._finding(metric, self.ours, other, paired_bootstrap(means, measured[other][metric], **sure))

    @torch.no_grad()
    def _measure(self, module: Any, teacher: Any, prompts: list[list[int]], run: Run) -> dict[str, Tensor]:
        """Means over the tokens of each answer."""
        answers = generate(module, prompts, self.sampling, seed=run.seed)
        means: dict[str, list[Tensor]] = {"own_reverse_kl": [], "own_teacher_nll": []}
        for begin in range(0, len(prompts), self.batch):
            some = slice(begin, begin + self.batch)
            batch = to_device(answered(prompts[some], answers[some]), run.device)
            student, answer = same_classes(logits_of(module, batch), teacher(batch, frozenset({"logits"})).need("logits"))
            weight = weight_of(batch)
            found = compare(student, answer, batch["labels"], weight=weight)
            for name, values in (("own_reverse_kl", found["reverse_kl"]), ("own_teacher_nll", found["teacher_nll"])):
                means[name].append(values.double().sum(-1).cpu() / (weight > 0).sum(-1).cpu())
            if run.progress is not None:
                run.progress.update(run.stage, min(begin + self.batch, len(prompts)), len(prompts), {}, 0.0)
        return {name: torch.cat(values) for name, values in means.items()}

    def _finding(self, metric: str, subject: str, versus: str | None, found: Any) -> Finding:
        return Finding(
            name=metric, subject=subject, versus=versus, value=found.value, low=found.low, high=found.high, n=found.n,
            over="prompts", split=self.split, better="lower", unit=UNIT,
        )  # fmt: skip
