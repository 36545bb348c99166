"""PLD: A Choice-Theoretic List-Wise Knowledge Distillation.

    L = sum_k a_k [ log sum_{l >= k} exp(s_l / U) - s_k / U ],     a_k = softmax(t / T) at the class of place k

t are the teacher's logits, s the student's, both in the order of `objectives.choices.label_first`: the label first, then the
other classes as t falls. Each bracket is the cross-entropy of choosing the class of place k among those that are left
(Plackett and Luce), and counts by the teacher's probability of that class. There is no cross-entropy with the label beside
it: that is the first bracket. T is the teacher's temperature, U the student's.

Sure, from the paper: the order, the brackets, their weights without gradient, that the loss stands alone, T = 4 on
CIFAR-100, AdamW at 1e-3 with a weight decay of 0.5 and a cosine for 250 epochs of batches of 128. Inferred: U = 1.

Differs from the paper / the authors' code: an item without a label (negative) keeps the teacher's own order. A mixed image
(mixup, CutMix) counts as two items with one input, weighted by their shares.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from ...core.method import State, Update
from ...core.optim import Optim
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Recipe, Scale
from ...core.run import Run
from ...core.signal import Batch, Kind
from ...objectives.choices import ranked
from ..images import WIDER, against_hinton, arm, images
from ..outputs import added, check_temperature, outputs

PAPER = Paper(
    id="pld",
    title="PLD: A Choice-Theoretic List-Wise Knowledge Distillation",
    authors=("Ejafa Bassam", "Dawei Zhu", "Kaigui Bian"),
    year=2025,
    arxiv="2506.12542",
    venue="NeurIPS 2025",
    modality=("any",),
    data=("labels", "unlabelled", "documents"),
    claim="Learning the teacher's ranking with the label on top as a chain of choices beats soft targets and has no weight.",
)


@dataclass(frozen=True, kw_only=True)
class PLD:
    """Choose the classes one after the other, the label first, as the teacher would."""

    temperature: float = 4.0  # of the teacher's probabilities, which weigh the places
    own_temperature: float = 1.0  # of the student's logits
    needs: ClassVar[frozenset[Kind]] = frozenset({"logits"})
    takes_mixed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_temperature(self.temperature)
        check_temperature(self.own_temperature)

    @property
    def equation(self) -> str:
        """The objective with its live temperatures."""
        left = f"CE(k, q over the classes that are left) at T={self.own_temperature:g}"
        return f"sum of p_k at T={self.temperature:g} times {left}"

    def setup(self, student: nn.Module, run: Run) -> State:
        """The student alone."""
        return State(student=student)

    def step(self, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        """One update over all items."""
        said = outputs(s, batch, run, self.needs)
        both: dict[str, Any] = {"temperature": self.temperature, "own_temperature": self.own_temperature}

        def choices(labels: Tensor, weight: Tensor) -> Tensor:
            return ranked(said.student, said.teacher, labels, weight=weight, **both)

        yield added({"choices": (1.0, said.each(choices))}, said.weight.sum())


def recipe(scale: Scale = "small") -> Recipe:
    """Digits (smoke), MNIST (small), CIFAR-100 as `cifar100.npz` (paper, by its own optimizer); see `methods.images`."""
    adamw = Optim(lr=1e-3, weight_decay=0.5, schedule="cosine", warmup=0.0, clip=None)
    settings: dict[str, Any] = {"optim": adamw, "batch": 128, "steps": 97_750} if scale == "paper" else {}
    return images("pld", scale, PLD(), **settings)


def proof() -> Proof:
    """Against the labels alone and soft targets; with every place counting the same (ListMLE) as a further arm."""
    ours = recipe("small")
    even = arm(ours.set("train.method.temperature", 1e6))
    claim = (
        "A student that learns its teacher's ranking, the label first, as choices weighed by the teacher classifies better"
        " than one that learns from softened outputs, and than one without a teacher."
    )
    return against_hinton(ours, claim, arms={"even": even}, beats=("hinton", "alone"), tune=WIDER)
