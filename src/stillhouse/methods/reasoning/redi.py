"""Harnessing Negative Signals: Reinforcement Distillation from Teacher Data for LLM Reasoning (REDI, Xu et al. 2025).

    stage 1:  L = - log q(y_w | x), supervised, on the teacher's right traces
    stage 2:  L = - s_w + alpha s_l,   s = 1 / |y| sum_t log q(y_t | x, y_<t),   on pairs of a right and a wrong trace

x is a question, y_w a right and y_l a wrong trace of the teacher, q the student; s_w and s_l are the means of their tokens'
log-probabilities. There is no reference model. alpha below 1 pushes wrong traces down less than right ones up. alpha = 1 is
what DPO and SimPO tend to for small beta: at the learning rates that pay off, both log-probabilities fall together and the
student collapses. alpha = 0 is supervised learning with every trace counting the same. `chosen` and `rejected` in the run's
curves are s_w and s_l: a collapse is seen there first.

Sure, from the paper and the authors' code: the two stages, the loss, alpha = 0.8, one wrong trace a question, their learning
rates and batches (the recipe at `paper`), and the factor exp(gamma s_l) of the negative term, which is off and which their
code differentiates (`detached=False`).

Differs from the paper / the authors' code: pairs that are too long are rejected, not cut. The paper samples a question until
a trace is right; here `data.traces.Traces` draws a set number of answers, and learns from every different right one. At
`paper` stage 1 learns from the chosen traces of the same file of pairs; the paper also has questions without a wrong trace.
The task, the sizes and the learning rates at `small` are ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from ...core.method import State, Update
from ...core.optim import Optim
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Recipe, Scale
from ...core.run import Run
from ...core.signal import Batch, Kind
from ...core.stage import Train
from ...data.pairs import pairs_in
from ...models.call import logits_of, weight_of
from ...objectives.preference import along_scores, redi
from ..classics.dpo import DPO
from ..classics.simpo import SimPO
from ..classics.supervised import Supervised
from ..pairs import NOTE, learning_from_pairs, more_text

PAPER = Paper(
    id="redi",
    title="Harnessing Negative Signals: Reinforcement Distillation from Teacher Data for LLM Reasoning",
    authors=("Shuyao Xu", "Cheng Peng", "Jiangxuan Long", "Weidi Xu", "Wei Chu", "Yuan Qi"),
    year=2025,
    arxiv="2505.24850",
    modality=("text",),
    data=("pairs", "tasks"),
    claim="A student learns from the teacher's wrong traces too, if they are pushed down less than right ones are raised.",
)


@dataclass(frozen=True, kw_only=True)
class REDI:
    """Stage 2: right traces up, wrong traces down, less."""

    alpha: float = 0.8  # weight of the wrong traces; 1 is symmetric, 0 leaves them out
    gamma: float = 0.0  # above 0, wrong traces that are unlikely already are pushed less: exp(gamma s_l)
    detached: bool = False  # whether that factor is a constant to the gradient
    needs: ClassVar[frozenset[Kind]] = frozenset()

    def __post_init__(self) -> None:
        if self.alpha < 0 or self.gamma < 0:
            raise ValueError(f"alpha and gamma cannot be below 0: {self.alpha}, {self.gamma}")

    def setup(self, student: nn.Module, run: Run) -> State:
        """The student alone."""
        return State(student=student)

    def step(self, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        """One update over the pairs."""
        pairs = pairs_in(batch)

        def objective(scores: Tensor) -> Tensor:
            return redi(*scores.chunk(2), alpha=self.alpha, gamma=self.gamma, detached=self.detached)

        logits, weight = logits_of(s.student, batch), weight_of(batch)
        loss, scores = along_scores(objective, logits, batch["labels"], weight=weight, mean=True)
        chosen, rejected = scores.chunk(2)
        yield Update(loss, count=pairs, logs={"chosen": chosen.sum(), "rejected": rejected.sum()})


def recipe(scale: Scale = "small") -> Recipe:
    """The shared experiment on pairs, at `paper` with the paper's learning rates, batches and epochs of its data."""
    first = Train(method=Supervised(), steps=3050, batch=128, optim=Optim(lr=5e-5, warmup=0.1, weight_decay=1e-4))
    return learning_from_pairs("redi", scale, REDI(), lr=1e-6, batch=32, steps=1660, first=first)


def proof() -> Proof:
    """The same first stage, then five ways to go on."""
    ours = recipe("small")
    return Proof(
        claim="A student that has learned all it can from a teacher's right answers solves more unseen questions after REDI"
        " on pairs of a right and a wrong answer than after more supervised learning on right answers, after the symmetric"
        " loss (alpha = 1), after DPO and after SimPO, at equal steps.",
        arms={
            "ours": ours,
            "alone": more_text(ours),
            "symmetric": ours.set("train.method.alpha", 1.0),
            "dpo": ours.set("train.method", DPO(beta=1.0)),  # 1 did better than 0.1 on the validation split
            "simpo": ours.set("train.method", SimPO()),
        },
        metric="solved",
        beats=("alone", "symmetric", "dpo", "simpo"),
        tune={"train.optim.lr": (3e-5, 1e-4, 3e-4, 1e-3)},
        minutes=25.0,
        note=NOTE,
    )
