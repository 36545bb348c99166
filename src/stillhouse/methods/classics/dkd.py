"""Decoupled Knowledge Distillation (Zhao et al. 2022, arXiv 2203.08679).

    L = labels CE(y, q) + w T² (alpha TCKD + beta NCKD)
    TCKD = KL((p_y, 1 - p_y) ‖ (q_y, 1 - q_y)),     NCKD = KL(p' ‖ q')

p = softmax(z_teacher / T) and q = softmax(z_student / T), except in CE, where T = 1; y is the label, p' and q' are p and
q over the classes other than y, made to sum to 1 (Equations 4 to 7). Hinton's term is T² (TCKD + (1 - p_y) NCKD): where
the teacher is sure, it hardly says how the other classes compare, which is most of what it knows. Here beta says how much
that counts. w grows evenly from 0 to 1 over the first `warmup` of the run, and multiplies both parts.

Sure, from megvii-research/mdistiller: the factor T², alpha = 1, T = 4, beta = 2, 6 or 8 by the pair of networks, the
warm-up over 20 of 240 epochs, which multiplies the whole of the term.

Differs from the paper / the authors' code: the logarithms are taken in log space, so that logits of any size stay finite,
where the code takes the logarithm of a softmax. w grows by the step, not by the epoch. An item without a label (negative)
is left out: nothing is decoupled there. A mixed image (mixup, CutMix) counts as two items with one input, weighted by
their shares.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from ...core.method import State, Update
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Recipe, Scale, pick
from ...core.run import Run
from ...core.signal import Batch, Kind
from ...objectives.decoupled import decoupled
from ..images import NOTE, against_hinton, images
from ..outputs import added, check_temperature, check_warmup, outputs, told, warmed

PAPER = Paper(
    id="dkd",
    title="Decoupled Knowledge Distillation",
    authors=("Borui Zhao", "Quan Cui", "Renjie Song", "Yiyu Qiu", "Jiajun Liang"),
    year=2022,
    arxiv="2203.08679",
    venue="CVPR 2022",
    modality=("any",),
    data=("labels", "documents"),
    claim="Weighing what the teacher says of the wrong classes apart from how sure it is of the label teaches more than"
    " soft targets.",
)


@dataclass(frozen=True, kw_only=True)
class DKD:
    """Learn how sure the teacher is of the label, and, apart from that, how the other classes compare."""

    labels: float = 1.0  # weight of the labels' cross-entropy
    alpha: float = 1.0  # of the label against the rest
    beta: float = 8.0  # of the other classes among themselves
    temperature: float = 4.0
    warmup: float = 0.0  # share of the run over which the distillation term grows to its full weight
    needs: ClassVar[frozenset[Kind]] = frozenset({"logits"})
    takes_mixed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_temperature(self.temperature)
        check_warmup(self.warmup)

    @property
    def equation(self) -> str:
        """The objective with its live weights."""
        square = self.temperature**2
        at = f"at T={self.temperature:g}"
        terms = {"CE(y, q)": self.labels, f"TCKD {at}": self.alpha * square, f"NCKD {at}": self.beta * square}
        return told(terms) + (f", the last two growing over {self.warmup:.0%} of the run" if self.warmup else "")

    def setup(self, student: nn.Module, run: Run) -> State:
        """The student alone."""
        return State(student=student)

    def step(self, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        """One update over the items with a label."""
        said = outputs(s, batch, run, self.needs)

        def apart(labels: Tensor, weight: Tensor) -> Tensor:
            both = {"alpha": self.alpha, "beta": self.beta, "temperature": self.temperature}
            return decoupled(said.student, said.teacher, labels, weight=weight, **both)

        terms = {"cross_entropy": (self.labels, said.cross_entropy()), "dkd": (warmed(self.warmup, run), said.each(apart))}
        yield added(terms, said.labelled())


def recipe(scale: Scale = "small") -> Recipe:
    """Digits (smoke), MNIST (small), CIFAR-100 as `cifar100.npz` (paper); see `methods.images`.

    `paper` has the authors' beta and warm-up for resnet32x4 to resnet8x4.
    """
    return images("dkd", scale, pick(scale, smoke=DKD(), small=DKD(beta=2.0), paper=DKD(warmup=20 / 240)))


def proof() -> Proof:
    """Against the labels alone and against Hinton's distillation."""
    claim = (
        "A student that learns how the wrong classes compare, however sure its teacher is, classifies better than one that"
    )
    claim += " learns from soft targets, and than one without a teacher."
    note = f"{NOTE} beta = 2 was chosen among 2, 4 and 8 on the validation split of another seed."
    return against_hinton(recipe("small"), claim, note=note)
