"""Can this distillation pay? The teacher's loss on the user's text against what a short fine-tuning reaches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from ..core.engine import Loop, Source, fit, to_device
from ..core.method import Method
from ..core.optim import Optim
from ..core.run import Run
from ..models.call import logits_of, weight_of
from ..objectives.divergences import cross_entropy


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A stage that fine-tunes a copy of the student for a few steps and warns if that nears or beats the teacher.

    A teacher that predicts the text no better than a quickly fine-tuned student is a ceiling: imitating it cannot beat
    plain fine-tuning. `reached` extrapolates the probe's last loss by the gain of its second half, so it is a guess.
    """

    method: Method  # plain fine-tuning: a method that needs no teacher
    steps: int = 8
    batch: int = 2  # rows a step
    rows: int = 4  # validation rows that are judged
    lr: float = 1e-4
    kind: ClassVar[str] = "probe"

    def __call__(self, run: Run) -> None:
        """The artifact holds the three losses in nats per token and the warning, if there is one."""
        sources = run.sources()
        held = sources["valid"] if len(sources["valid"]) else sources["test"]
        teacher: Any = run.teacher
        student = run.recipe.student.build(run).to(run.device).train()
        found = {"teacher": nll(teacher.module, held, self.rows, run), "start": nll(student, held, self.rows, run)}
        run.horizon = self.steps
        optim = Optim(lr=self.lr, schedule="constant")
        loop = Loop(self.method, self.method.setup(student, run), run, optim, bfloat16=True)
        half = max(1, self.steps // 2)
        fit(loop, sources["train"], steps=half, size=self.batch, accumulate=self.batch)
        middle = nll(student, held, self.rows, run)
        fit(loop, sources["train"], steps=self.steps, size=self.batch, accumulate=self.batch, start=half)
        loop.close()
        found["tuned"] = nll(student, held, self.rows, run)
        found["reached"] = found["tuned"] - max(0.0, middle - found["tuned"])
        warning = advice(found)
        if warning:
            run.event("warning", text=warning)
        run.save_json(run.stage, {**found, "warning": warning}, kind=self.kind)


def advice(found: dict[str, float]) -> str | None:
    """One line with the remedy if distilling as asked can hardly pay, else None."""
    if found["teacher"] < found["reached"]:
        return None
    return (
        f"the teacher's loss on your text is {found['teacher']:.2f} nats/token, and plain fine-tuning already brings the "
        f"student to {found['tuned']:.2f}: a teacher that does not know the text is a ceiling. Fine-tune the teacher first "
        "(--adapt 50), let it write the text (--method seqkd), or give the labels more say (--set train.method.labels=0.5)"
    )


@torch.no_grad()
def nll(module: nn.Module, source: Source, rows: int, run: Run) -> float:
    """Mean loss in nats per counted token over the first `rows` rows."""
    training = module.training
    module.eval()
    total, count = 0.0, 0.0
    for row in range(min(rows, len(source))):
        batch = to_device(source.batch([row], 0), run.device)
        weight = weight_of(batch)
        total += float(cross_entropy(logits_of(module, batch), batch["labels"], weight=weight).sum())
        count += float(weight.sum())
    module.train(training)
    return total / max(count, 1.0)
