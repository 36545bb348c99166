"""Knowledge Distillation from A Stronger Teacher (Huang et al. 2022, arXiv 2205.10536): DIST.

    L = labels CE(y, q) + T² (beta mean_i (1 - r(q_i, p_i)) + gamma mean_k (1 - r(q^k, p^k)))

p_i and q_i are the teacher's and the student's softened distributions over the classes for item i, p^k and q^k their
columns: what they say of class k over the items of a batch. r is Pearson's correlation, which forgets shift and scale:
the student has to prefer as its teacher does, among the classes and among the items, and may be less sure. A stronger
teacher is further away in values than in preferences (Equations 7 to 10).

Sure, from hunto/image_classification_sota: the factor T² on both terms, 1e-8 added to the product of the norms, weights
of 2 for both at labels = 1, T = 1 on ImageNet and 4 on CIFAR-100.

Differs from the paper / the authors' code: nothing known of the loss. The mean over classes is divided among the items,
so that sums over items give it (see `objectives.correlation`). The columns are those of a micro-batch: with `accumulate`
fewer items are compared, and one alone has no column.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from ...core.method import State, Update
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Recipe, Scale, pick
from ...core.run import Run
from ...core.signal import Batch, Kind
from ...objectives.correlation import inter_class, intra_class
from ..images import NOTE, against_hinton, arm, images
from ..outputs import added, check_temperature, outputs, told

PAPER = Paper(
    id="dist",
    title="Knowledge Distillation from A Stronger Teacher",
    authors=("Tao Huang", "Shan You", "Fei Wang", "Chen Qian", "Chang Xu"),
    year=2022,
    arxiv="2205.10536",
    venue="NeurIPS 2022",
    modality=("any",),
    data=("labels", "unlabelled", "documents"),
    claim="A student that keeps its teacher's preferences, and not its values, learns more from a stronger teacher.",
)


@dataclass(frozen=True, kw_only=True)
class Dist:
    """Prefer as the teacher does: among the classes of an item, and among the items of a batch."""

    labels: float = 1.0  # weight of the labels' cross-entropy
    beta: float = 2.0  # among the classes
    gamma: float = 2.0  # among the items; 0: nothing is compared between them
    temperature: float = 1.0
    needs: ClassVar[frozenset[Kind]] = frozenset({"logits"})
    takes_mixed: ClassVar[bool] = True
    compares_items: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_temperature(self.temperature)

    @property
    def equation(self) -> str:
        """The objective with its live weights."""
        square, at = self.temperature**2, f"at T={self.temperature:g}"
        classes, items = f"(1 - r of classes {at})", f"(1 - r of items {at})"
        return told({"CE(y, q)": self.labels, classes: self.beta * square, items: self.gamma * square})

    def setup(self, student: nn.Module, run: Run) -> State:
        """The student alone."""
        return State(student=student)

    def step(self, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        """One update over all items; one without a label has no cross-entropy and keeps the rest."""
        said, square = outputs(s, batch, run, self.needs), self.temperature**2
        both: dict[str, Any] = {"temperature": self.temperature, "weight": said.weight}
        terms = {"cross_entropy": (self.labels, said.cross_entropy())}
        if self.beta:
            terms["inter_class"] = self.beta * square, inter_class(said.student, said.teacher, **both).sum()
        if self.gamma:
            terms["intra_class"] = self.gamma * square, intra_class(said.student, said.teacher, **both).sum()
        yield added(terms, said.weight.sum())


def recipe(scale: Scale = "small") -> Recipe:
    """Digits (smoke), MNIST (small), CIFAR-100 as `cifar100.npz` (paper, at its T = 4); see `methods.images`."""
    return images("dist", scale, pick(scale, smoke=Dist(), small=Dist(temperature=4.0), paper=Dist(temperature=4.0)))


def proof() -> Proof:
    """Against the labels alone and soft targets; without the items' part as a further arm."""
    ours = recipe("small")
    one = arm(ours.set("train.method.gamma", 0.0))
    claim = "A student that prefers among classes and among images as its teacher does classifies better than one that"
    claim += " learns from soft targets, and than one without a teacher."
    note = f"{NOTE} T = 4 was chosen among 1 and 4 on the validation split of another seed."
    return against_hinton(ours, claim, arms={"classes_only": one}, beats=("hinton", "alone"), note=note)
