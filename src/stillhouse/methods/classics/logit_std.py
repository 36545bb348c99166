"""Logit Standardization in Knowledge Distillation (Sun et al. 2024, arXiv 2403.01427).

    L = labels CE(y, q) + weight T² KL(softmax(Z(z_teacher) / T) ‖ softmax(Z(z_student) / T))
    Z(z) = (z - mean z) / (std z + 1e-7)

mean and std are over the classes of one item; std divides by the number of classes less one. q is the student's softmax
of the logits as they are, y the label. A temperature that both share asks the student for its teacher's range of logits;
a temperature in units of each one's own std asks for the relations alone. With `beta` the KL is that of DKD, TCKD + beta
NCKD, of the standardised logits (see `classics/dkd`). Either grows over the first `warmup` of the run, if that is above 0.

Sure, from sunshangquan/logit-standardization-KD: T = 2 and a weight of 9 beside 0.1 of the labels for KD; 9 times alpha =
1 and beta = 8 beside 1 of the labels for DKD; the student's std has a gradient.

Differs from the paper / the authors' code: a row of equal logits keeps a gradient instead of one of 1e7, so a head may
begin at zero. With `beta` an item without a label (negative) has no distillation term. The authors' further bases (MLKD,
CTKD) are not here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from ...core.method import State, Update
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Recipe, Scale
from ...core.run import Run
from ...core.signal import Batch, Kind
from ...objectives.decoupled import decoupled
from ...objectives.standardised import standardise, standardised_kl
from ..images import WIDER, against_hinton, arm, images
from ..outputs import Outputs, added, check_temperature, check_warmup, outputs, told, warmed

PAPER = Paper(
    id="logit_std",
    title="Logit Standardization in Knowledge Distillation",
    authors=("Shangquan Sun", "Wenqi Ren", "Jingzhi Li", "Rui Wang", "Xiaochun Cao"),
    year=2024,
    arxiv="2403.01427",
    venue="CVPR 2024",
    modality=("any",),
    data=("labels", "unlabelled", "documents"),
    claim="Distillation teaches more if the logits of both sides are standardised before the softmax.",
)


@dataclass(frozen=True, kw_only=True)
class LogitStd:
    """Learn how the teacher's logits compare, whatever their range."""

    labels: float = 0.1  # weight of the labels' cross-entropy; the authors take 1 with `beta`
    weight: float = 9.0  # of the distillation term
    temperature: float = 2.0  # in standard deviations
    beta: float | None = None  # DKD's weight of the classes other than the label (theirs: 8); None: KL
    warmup: float = 0.0  # share of the run over which the distillation term grows to its full weight
    needs: ClassVar[frozenset[Kind]] = frozenset({"logits"})
    takes_mixed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_temperature(self.temperature)
        check_warmup(self.warmup)

    @property
    def equation(self) -> str:
        """The objective with its live weights."""
        factor, at = self.weight * self.temperature**2, f"of standardised logits at T={self.temperature:g}"
        if self.beta is None:
            return told({"CE(y, q)": self.labels, f"KL(p ‖ q) {at}": factor})
        return told({"CE(y, q)": self.labels, f"TCKD {at}": factor, f"NCKD {at}": factor * self.beta})

    def setup(self, student: nn.Module, run: Run) -> State:
        """The student alone."""
        return State(student=student)

    def step(self, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        """One update over all items."""
        said = outputs(s, batch, run, self.needs)
        factor = warmed(self.warmup, run) * self.weight * self.temperature**2
        terms = {"cross_entropy": (self.labels, said.cross_entropy())}
        if self.beta is None:
            both: dict[str, Any] = {"temperature": self.temperature, "weight": said.weight}
            terms["kl"] = factor, standardised_kl(said.student, said.teacher, **both).sum()
        else:
            terms["dkd"] = factor / self.temperature**2, self._apart(said, self.beta)
        yield added(terms, said.weight.sum())

    def _apart(self, said: Outputs, beta: float) -> Any:
        """DKD of the standardised logits, T² included."""
        mine, theirs = standardise(said.student), standardise(said.teacher)
        t = self.temperature
        return said.each(lambda labels, weight: decoupled(mine, theirs, labels, beta=beta, temperature=t, weight=weight))


def recipe(scale: Scale = "small") -> Recipe:
    """Digits (smoke), MNIST (small), CIFAR-100 as `cifar100.npz` (paper); see `methods.images`."""
    return images("logit_std", scale, LogitStd())


def proof() -> Proof:
    """Against the labels alone and soft targets; on top of DKD as a further arm."""
    ours = recipe("small")
    on_dkd = arm(ours.set("train.method", LogitStd(labels=1.0, beta=2.0)))  # the beta of `dkd` at this size
    claim = "A student that learns its teacher's standardised logits classifies better than one that shares its temperature,"
    claim += " and than one without a teacher."
    return against_hinton(ours, claim, arms={"on_dkd": on_dkd}, beats=("hinton", "alone"), tune=WIDER)
