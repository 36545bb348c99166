"""Understanding the Role of Mixup in Knowledge Distillation: An Empirical Study (Choi et al. 2022, arXiv 2211.03946).

    L = labels CE(y~, softmax(s / std s)) + soft KL(softmax(t / std t) ‖ softmax(s / std s))
    x~ = m x_1 + (1 - m) x_2,   y~ = m e_1 + (1 - m) e_2,   m ~ Beta(1, 1) for each image

s and t are what student and teacher say of the mixed image x~, y~ its mixed label; std is over the classes of one item
(K - 1 below the line) and takes the place of a temperature; the student's has a gradient. Mixing belongs to the data:
`data.mixing` mixes only a part of the images, and the teacher, which saw no mixed one in training, is asked about x~ too.

What the study finds: a teacher trained on mixed images is smoother and teaches worse; a student gains from mixed images
while it is distilled; mixing a tenth of the pairs gives most of that.

Sure, from hchoi71/MIX-KD: the loss without a factor T², labels = 0.1, soft = 0.9, Beta(1, 1), a share for each image.

Differs from the paper / the authors' code: an image is mixed with one drawn out of all training images, not out of its
batch. Every image is mixed with probability `mixed`, drawn anew in every epoch; the code draws those to leave alone with
replacement, so its "10 percent" mixes about 41 percent (`mixed=0.41` is that). A row of equal logits keeps a gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from torch import Tensor, nn

from ...core.method import State, Update
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Recipe, Scale
from ...core.run import Run
from ...core.signal import Batch, Kind
from ...data.augment import Augment
from ...data.images import Changed
from ...data.mixing import Partly
from ...objectives.divergences import cross_entropy
from ...objectives.standardised import standardise, standardised_kl
from ..images import against_hinton, arm, images
from ..outputs import added, outputs, told

PAPER = Paper(
    id="mix_kd",
    title="Understanding the Role of Mixup in Knowledge Distillation: An Empirical Study",
    authors=("Hongjun Choi", "Eun Som Jeon", "Ankita Shukla", "Pavan Turaga"),
    year=2022,
    arxiv="2211.03946",
    venue="WACV 2023",
    modality=("image",),
    data=("labels", "unlabelled"),
    claim="Mixing a tenth of the images while distilling helps the student; a teacher trained on mixed images hurts it.",
)


@dataclass(frozen=True, kw_only=True)
class MixKD:
    """Learn mixed labels and the teacher's answers to mixed images, each in units of its own standard deviation."""

    labels: float = 0.1  # weight of the labels' cross-entropy
    soft: float = 0.9  # of the distillation term
    needs: ClassVar[frozenset[Kind]] = frozenset({"logits"})
    takes_mixed: ClassVar[bool] = True

    @property
    def equation(self) -> str:
        """The objective with its live weights."""
        return told({"CE(y, q)": self.labels, "KL(p ‖ q)": self.soft}) + ", of logits in standard deviations"

    def setup(self, student: nn.Module, run: Run) -> State:
        """The student alone."""
        return State(student=student)

    def step(self, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        """One update over all items; one without a label has no cross-entropy and keeps the rest."""
        said = outputs(s, batch, run, self.needs)
        scaled = standardise(said.student, eps=0.0)

        def nll(labels: Tensor, weight: Tensor) -> Tensor:
            return cross_entropy(scaled, labels, weight=weight)

        kl = standardised_kl(said.student, said.teacher, eps=0.0, weight=said.weight).sum()
        yield added({"cross_entropy": (self.labels, said.each(nll)), "kl": (self.soft, kl)}, said.weight.sum())


def recipe(scale: Scale = "small") -> Recipe:
    """Digits (smoke), MNIST (small), CIFAR-100 as `cifar100.npz` (paper); the student's images, and only they, are mixed."""
    plain = images("mix_kd", scale, MixKD())
    stages = {name: plain.stages[name] for name in ("teacher", "alone")}
    usual = Changed(augment=plain.data.augment or Augment())
    unmixed = {name: replace(stage, data=stage.data or usual) for name, stage in stages.items()}
    mixed = replace(plain.data, augment=_mixing(plain.data.augment))
    return replace(plain, data=mixed, stages={**plain.stages, **unmixed})


def _mixing(augment: Augment | None) -> Partly:
    """The same changes, and a tenth of the images mixed."""
    usual: dict[str, Any] = {} if augment is None else {f.name: getattr(augment, f.name) for f in fields(augment)}
    return Partly(**{**usual, "mixup": 1.0})


def proof() -> Proof:
    """Mixing none, a tenth or all of the student's images, and mixing its teacher's."""
    plain, ours = images("mix_kd", "small", MixKD()), recipe("small")
    arms = {
        "ours": arm(ours),
        "unmixed": arm(plain),
        "full": arm(ours.set("data.augment.mixed", 1.0)),
        "mixed_teacher": arm(ours.set("teacher.data.augment.mixup", 1.0)),
    }
    claim = (
        "A student that is distilled with a tenth of its images mixed classifies better than one without mixing, than one"
        " whose teacher was trained on mixed images, and than one that learns from softened outputs."
    )
    return against_hinton(plain, claim, arms=arms, beats=("hinton", "unmixed", "mixed_teacher"))
