"""From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized Loss and Customized Soft
Labels (Yang et al. 2023, arXiv 2303.13005): its normalised loss, NKD.

    L = labels CE(y, q) + weight (-p_y log q_y - gamma T² sum_k p'_k log q'_k)

p and q are the teacher's and the student's distributions at temperature 1, y the label; p' and q' are those over the
classes other than y, at temperature T and made to sum to 1. Cross-entropies between parts that do not sum to the same
cannot become equal, so the classes other than y are normalised first.

Sure, from yzd-v/cls_KD: labels = weight = 1; gamma = 1.5 and T = 1 on ImageNet, gamma = 3.5 and T = 3 on CIFAR-100
(ResNet-34 to ResNet-18); the label's part at temperature 1 whatever T is.

Differs from the paper / the authors' code: nothing known of NKD. Its value does not fall to 0 where student and teacher
agree, as it is made of cross-entropies. An item without a label (negative) is left out. A mixed image (mixup, CutMix)
counts as two items with one input, weighted by their shares, where the code takes the larger share's label. USKD, the
same without a teacher, is not here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from ...core.method import State, Update
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Recipe, Scale, pick
from ...core.run import Run
from ...core.signal import Batch, Kind
from ...objectives.decoupled import normalised
from ..images import NOTE, against_hinton, images
from ..outputs import added, check_temperature, outputs, told

PAPER = Paper(
    id="nkd",
    title="From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized Loss and"
    " Customized Soft Labels",
    authors=("Zhendong Yang", "Ailing Zeng", "Chun Yuan", "Yu Li"),
    year=2023,
    arxiv="2303.13005",
    venue="ICCV 2023",
    modality=("any",),
    data=("labels", "documents"),
    claim="Soft targets teach more if what they say of the wrong classes is normalised on both sides.",
)


@dataclass(frozen=True, kw_only=True)
class NKD:
    """Learn the label as surely as the teacher knows it, and the other classes normalised."""

    labels: float = 1.0  # weight of the labels' cross-entropy
    weight: float = 1.0  # of the whole of NKD
    gamma: float = 1.5  # of the classes other than the label, inside of it
    temperature: float = 1.0  # of those classes alone
    needs: ClassVar[frozenset[Kind]] = frozenset({"logits"})
    takes_mixed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_temperature(self.temperature)

    @property
    def equation(self) -> str:
        """The objective with its live weights."""
        others = f"CE(p', q') at T={self.temperature:g}"
        factor = self.weight * self.gamma * self.temperature**2
        return told({"CE(y, q)": self.labels, "p_y CE(y, q)": self.weight, others: factor})

    def setup(self, student: nn.Module, run: Run) -> State:
        """The student alone."""
        return State(student=student)

    def step(self, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        """One update over the items with a label."""
        said = outputs(s, batch, run, self.needs)
        nkd = said.each(
            lambda labels, weight: normalised(
                said.student, said.teacher, labels, gamma=self.gamma, temperature=self.temperature, weight=weight
            )
        )
        yield added({"cross_entropy": (self.labels, said.cross_entropy()), "nkd": (self.weight, nkd)}, said.labelled())


def recipe(scale: Scale = "small") -> Recipe:
    """Digits (smoke), MNIST (small), CIFAR-100 as `cifar100.npz` (paper, with the authors' gamma and T for it).

    See `methods.images`.
    """
    return images("nkd", scale, pick(scale, smoke=NKD(), small=NKD(gamma=3.5), paper=NKD(gamma=3.5, temperature=3.0)))


def proof() -> Proof:
    """Against the labels alone and against Hinton's distillation."""
    claim = "A student that learns the wrong classes normalised, its own and its teacher's, classifies better than one that"
    claim += " learns from soft targets, and than one without a teacher."
    note = f"{NOTE} gamma = 3.5 and T = 1 were chosen among 1.5 and 3.5, 1 and 3, on the validation split of another seed."
    return against_hinton(recipe("small"), claim, note=note)
