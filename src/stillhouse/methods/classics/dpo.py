"""Direct Preference Optimization: Your Language Model is Secretly a Reward Model (Rafailov et al. 2023).

    L = - log sigmoid( beta [ log q(y_w | x) / q_0(y_w | x)  -  log q(y_l | x) / q_0(y_l | x) ] )        (Eq. 7)

x is a prompt, y_w the chosen and y_l the rejected answer, q the student, q_0 the student as it was when this stage
began (the reference); log q(y | x) is the sum over the answer's tokens. beta is the strength of the pull towards q_0.

Differs from the paper: the optimizer is the recipe's AdamW (theirs, from memory, is RMSprop). Differs from the authors' and
TRL's code: the reference is always the stage's own beginning, a frozen copy in the same precision, so that the loss begins
at log 2; its scores are computed with the student's, not beforehand. A pair that is too long is rejected, not cut. Label
smoothing and the other losses of TRL are not here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...core.method import State, Update
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Recipe, Scale, pick
from ...core.run import Run
from ...core.signal import Batch, Kind
from ...data.pairs import pairs_in
from ...models.before import before
from ...models.call import logits_of, weight_of
from ...objectives.preference import along_scores, dpo, sequence_logp
from ..pairs import NOTE, learning_from_pairs, more_text

PAPER = Paper(
    id="dpo",
    title="Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
    authors=(
        "Rafael Rafailov", "Archit Sharma", "Eric Mitchell", "Stefano Ermon", "Christopher D. Manning", "Chelsea Finn",
    ),
    year=2023,
    arxiv="2305.18290",
    venue="NeurIPS",
    modality=("text",),
    data=("pairs",),
    claim="A language model learns preferences between answers from a classification loss alone, without a reward model.",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class DPO:
    """Raise the chosen answer above the rejected one, measured from where the student began."""

    beta: float = 0.1  # the paper's default, from memory; 0.5 for summaries
    needs: ClassVar[frozenset[Kind]] = frozenset()

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise ValueError(f"beta must be above 0, not {self.beta}")

    def setup(self, student: nn.Module, run: Run) -> State:
        """The student, and what it was."""
        return State(student=student, reference=before(student, run))

    def step(self, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        """One update over the pairs."""
        pairs, labels, weight = pairs_in(batch), batch["labels"], weight_of(batch)
        with torch.no_grad():
            reference = sequence_logp(logits_of(s.reference, batch), labels, weight=weight)

        def objective(scores: Tensor) -> Tensor:
            return dpo(*scores.chunk(2), *reference.chunk(2), beta=self.beta)

        loss, scores = along_scores(objective, logits_of(s.student, batch), labels, weight=weight)
        chosen, rejected = (scores - reference).chunk(2)
        logs: dict[str, Tensor | float] = {
            "chosen_reward": self.beta * chosen.sum(),
            "rejected_reward": self.beta * rejected.sum(),
            "preferred": (chosen > rejected).sum(),
        }
        yield Update(loss, count=pairs, logs=logs)


def recipe(scale: Scale = "small") -> Recipe:
    """The shared experiment on pairs; learning rate and batch at `paper` are the paper's, from memory; 50,000 pairs once."""
    beta = pick(scale, smoke=0.1, small=1.0, paper=0.1)
    return learning_from_pairs("dpo", scale, DPO(beta=beta), lr=1e-6, batch=64, steps=800)


def proof() -> Proof:
    """Right and wrong answers against more of the right ones."""
    ours = recipe("small")
    return Proof(
        claim="A student that has learned all it can from a teacher's right answers solves more unseen questions after DPO"
        " on pairs of a right and a wrong answer than after more supervised learning on right answers, at equal steps.",
        arms={"ours": ours, "alone": more_text(ours)},
        metric="solved",
        beats=("alone",),
        seeds=(0, 1, 2, 3, 4),
        tune={"train.optim.lr": (1e-4, 3e-4, 1e-3, 3e-3)},
        minutes=20.0,
        note=NOTE,
    )
