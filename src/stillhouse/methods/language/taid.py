"""TAID: Temporally Adaptive Interpolated Distillation for Efficient Knowledge Transfer in Language Models.

The target moves from the student's own distribution to the teacher's as the student learns (Shing et al. 2025):

    P_t = softmax((1 - t) sg[z_student] + t z_teacher),    L = - sum_v P_t(v) log q(v), averaged over tokens
    d = (J_prev - J) / (J_prev + 1e-15)                    relative improvement of the step's mean loss J
    m <- beta m + (1 - beta) d                             its momentum
    t <- min(t_end, max(t_lin, t + alpha sigmoid(m) (1 - t))),   t_lin = t_start + (t_end - t_start) step / steps

z are logits of the next token, q = softmax(z_student), sg stops the gradient. The first step only sets J_prev.

Differs from the authors' code: t moves once per optimizer step, from the loss of the whole batch over all
micro-batches and ranks, and is part of the checkpoint; theirs moves in every forward pass of the loss, of evaluation
too. The paper's mixture with cross-entropy is `share` (theirs: `distil_ratio`), 1 by default as there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...core.method import State, Update
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Recipe, Scale
from ...core.run import Run
from ...core.signal import Batch, Kind
from ...models.call import logits_of, weight_of
from ...objectives.divergences import cross_entropy
from ...objectives.targets import interpolated
from ...teachers.local import same_classes
from ..settings import alone, language

PAPER = Paper(
    id="taid",
    title="TAID: Temporally Adaptive Interpolated Distillation for Efficient Knowledge Transfer in Language Models",
    authors=("Makoto Shing", "Kou Misaki", "Han Bao", "Sho Yokoi", "Takuya Akiba"),
    year=2025,
    arxiv="2501.16937",
    venue="ICLR",
    modality=("text", "any"),
    data=("documents",),
    claim="A target that moves from the student to the teacher bridges the capacity gap better than a fixed divergence.",
)


@dataclass(frozen=True, kw_only=True)
class TAID:
    """Chase a target that moves from the student to the teacher."""

    t_start: float = 0.4  # authors' code
    t_end: float = 1.0
    alpha: float = 5e-4  # largest part of the way that an adaptive step goes
    beta: float = 0.99  # of the momentum
    adaptive: float = 1.0  # 0: the linear ramp alone (the paper's ablation)
    share: float = 1.0  # of the distillation loss; the rest is cross-entropy with the data's tokens
    needs: ClassVar[frozenset[Kind]] = frozenset({"logits"})

    def setup(self, student: nn.Module, run: Run) -> State:
        """The student, where the target is, and the momentum of the loss."""
        return State(student=student, t=self.t_start, momentum=0.0, previous=math.nan)

    def step(self, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        """One update over the counted tokens."""
        weight = weight_of(batch)
        z, z_teacher = same_classes(logits_of(s.student, batch), run.teacher(batch, self.needs).need("logits"))
        loss = interpolated(z, z_teacher, s.t, weight=weight).sum()
        logs: dict[str, Tensor | float] = {"interpolated": loss, "t": float(s.t) * float(weight.sum())}
        if self.share < 1.0:
            nll = cross_entropy(z, batch["labels"], weight=weight).sum()
            loss = self.share * loss + (1 - self.share) * nll
            logs["nll"] = nll
        yield Update(loss, count=weight.sum(), logs=logs)

    def advance(self, s: State, logs: Mapping[str, float], run: Run) -> None:
        """Move t: never backwards, never behind the linear ramp."""
        loss = logs.get("student/interpolated")
        if loss is None:  # a batch without counted tokens
            return
        previous = float(s.previous)
        if not math.isnan(previous):
            improvement = (previous - loss) / (previous + 1e-15)
            s.momentum.mul_(self.beta).add_((1 - self.beta) * improvement)
            ramp = self.t_start + (self.t_end - self.t_start) * (run.step + 1) / run.horizon
            leap = self.adaptive * self.alpha * float(torch.sigmoid(s.momentum)) * (1 - float(s.t))
            s.t.fill_(min(self.t_end, max(ramp, float(s.t) + leap)))
        s.previous.fill_(loss)


def recipe(scale: Scale = "small") -> Recipe:
    """The shared language experiment."""
    return language("taid", scale, TAID(), lr=1e-4)


def proof() -> Proof:
    """A large teacher and a small student on real text: TAID against the text alone and against forward KL."""
    ours = recipe("small")
    return Proof(
        claim="With a teacher twenty times as large, TAID's student predicts held-out text better than the same student"
        " trained on the text alone and than one trained with forward KL, at equal steps.",
        arms={"ours": ours, "forward_kl": ours.set("train.method", TAID(t_start=1.0)), "alone": alone(ours)},
        metric="nll",
        better="lower",
        beats=("alone", "forward_kl"),
        tune={"train.optim.lr": (3e-3, 1e-2, 3e-2)},
        minutes=60.0,
        note="TAID with t_start = 1 is cross-entropy with the teacher, whose gradient is that of forward KL.",
    )
