"""SimPO: Simple Preference Optimization with a Reference-Free Reward (Meng et al. 2024).

    L = - log sigmoid( beta (s_w - s_l) - gamma ),   s = 1 / |y| sum_t log q(y_t | x, y_<t)              (Eq. 6)

x is a prompt, y_w the chosen and y_l the rejected answer, q the student. A score s is the mean log-probability of the
answer's tokens, so that long answers have no advantage; there is no reference model. gamma is by how much the chosen answer
should win.

Differs from the paper / the authors' code: gamma is the margin itself, as in the equation; their code and TRL's are given
gamma / beta or divide by it. A pair that is too long is rejected, not cut. beta and gamma have to be chosen for every model
(the paper, from memory, tries 2 to 10 and 0.3 to 1.6); the defaults are those of REDI's comparison.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from ...core.method import State, Update
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Recipe, Scale
from ...core.run import Run
from ...core.signal import Batch, Kind
from ...data.pairs import pairs_in
from ...models.call import logits_of, weight_of
from ...objectives.preference import along_scores, simpo
from ..pairs import NOTE, learning_from_pairs, more_text

PAPER = Paper(
    id="simpo",
    title="SimPO: Simple Preference Optimization with a Reference-Free Reward",
    authors=("Yu Meng", "Mengzhou Xia", "Danqi Chen"),
    year=2024,
    arxiv="2405.14734",
    venue="NeurIPS",
    modality=("text",),
    data=("pairs",),
    claim="Preferences are learned without a reference model if answers are scored as they are generated: per token.",
)


@dataclass(frozen=True, kw_only=True)
class SimPO:
    """Raise the chosen answer's mean log-probability above the rejected one's, by a margin."""

    beta: float = 2.0  # scale of the difference
    gamma: float = 1.0  # the margin
    needs: ClassVar[frozenset[Kind]] = frozenset()

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise ValueError(f"beta must be above 0, not {self.beta}")

    def setup(self, student: nn.Module, run: Run) -> State:
        """The student alone."""
        return State(student=student)

    def step(self, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        """One update over the pairs."""
        pairs, weight = pairs_in(batch), weight_of(batch)
        loss, scores = along_scores(
            lambda scores: simpo(*scores.chunk(2), beta=self.beta, gamma=self.gamma),
            logits_of(s.student, batch),
            batch["labels"],
            weight=weight,
            mean=True,
        )
        better, worse = scores.detach().chunk(2)
        logs: dict[str, Tensor | float] = {
            "chosen": better.sum(), "rejected": worse.sum(), "preferred": (better > worse).sum()
        }  # fmt: skip
        yield Update(loss, count=pairs, logs=logs)


def recipe(scale: Scale = "small") -> Recipe:
    """The shared experiment on pairs; batch and learning rate at `paper` are from memory."""
    return learning_from_pairs("simpo", scale, SimPO(), lr=5e-7, batch=128, steps=400)


def proof() -> Proof:
    """Pairs against more of the right answers."""
    ours = recipe("small")
    return Proof(
        claim="A student that has learned all it can from a teacher's right answers solves more unseen questions after SimPO"
        " on pairs of a right and a wrong answer than after more supervised learning on right answers, at equal steps.",
        arms={"ours": ours, "alone": more_text(ours)},
        metric="solved",
        tune={"train.optim.lr": (3e-5, 1e-4, 3e-4, 1e-3)},
        minutes=15.0,
        note=NOTE,
    )
