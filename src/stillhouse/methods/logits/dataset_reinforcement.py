"""Reinforce Data, Multiply Impact: Improved Model Accuracy and Robustness with Dataset Reinforcement (Faghri et al. 2023,
arXiv 2303.08983).

    L = share KL(P ‖ q) + (1 - share) CE(y, q),     P = spread(top k of 1/M sum_m softmax(t_m(x')))

x' is an image after one of S changes that were drawn once. The teachers' mean probabilities of it were kept once too: the
k largest; `spread` puts what is left evenly on the other classes. Training then costs what it costs without a teacher:
the stage `reinforce` (`signals.label.Label`, `draws=S`) keeps the answers, `Augment(draws=S)` draws the same changes
again, to the bit, and `teachers.cached.Cached` finds each answer by the changed image that it is for. Any other student
can learn from the same folder, with the same seed and data.

Sure, from apple/ml-dr: what is kept, k = 10, S of 100 to 800 for CIFAR-100 and 400 for ImageNet, the even rest, KL at
temperature 1, no labels beside it but in one of a hundred draws (`share` is 0.99), as many steps as without.

Differs from the paper / the authors' code: in the code a coin takes an image with changes of its own and its label
instead, once in a hundred; here the label's cross-entropy counts a hundredth at every image as it stands. An image's
draws follow one another epoch by epoch instead of by chance, so that each is seen equally often. The numbers of a change
need not be kept: they follow from the seed (`Images.sample` gives them, `Images.replay` takes them). The k values are
kept in a byte each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import nn

from ...core.method import State, Update
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Recipe, Scale, pick
from ...core.run import Run
from ...core.signal import Batch, Kind, TopK
from ...data.augment import Augment
from ...data.images import Digits
from ...data.mild import MILD
from ...models.call import answers, dense, logits_of, weight_of
from ...models.toys import MLP, ConvNet
from ...models.vision import ResNet
from ...objectives.divergences import ForwardKL, cross_entropy
from ...objectives.spread import likeliest, spread
from ...signals.label import Label
from ...signals.topk import KeptTopK
from ...teachers.cached import Cached
from ...teachers.ensemble import Ensemble
from ...teachers.module import ModuleTeacher
from ..images import BEST, CIFAR, RATES, SMALL, alone, arm, images
from ..outputs import added, told

PAPER = Paper(
    id="dataset_reinforcement",
    title="Reinforce Data, Multiply Impact: Improved Model Accuracy and Robustness with Dataset Reinforcement",
    authors=(
        "Fartash Faghri", "Hadi Pouransari", "Sachin Mehta", "Mehrdad Farajtabar", "Ali Farhadi", "Mohammad Rastegari",
        "Oncel Tuzel",
    ),
    year=2023,
    arxiv="2303.08983",
    venue="ICCV 2023",
    modality=("any",),
    data=("labels", "unlabelled"),
    claim="What a teacher says of changed images, kept once, makes students better at no cost while they learn.",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Reinforced:
    """Learn the teacher's top k of the changed image, the rest spread evenly."""

    share: float = 0.99  # of the teacher's answer; the labels have what is left
    k: int = 10  # classes that a live teacher is heard on; a stored one gives what was kept
    needs: ClassVar[frozenset[Kind]] = frozenset({"logits"})
    takes_topk: ClassVar[bool] = True
    takes_mixed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0.0 <= self.share <= 1.0 or self.k < 1:
            raise ValueError(f"share must be between 0 and 1 and k 1 or more, not {self.share} and {self.k}")

    @property
    def equation(self) -> str:
        """The objective with its live weights."""
        return told({"KL(P ‖ q)": self.share, "CE(y, q)": 1 - self.share})

    def setup(self, student: nn.Module, run: Run) -> State:
        """The student alone."""
        return State(student=student)

    def step(self, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        """One update over all items; one without a label has the teacher's answer alone."""
        student, weight = dense(logits_of(s.student, batch)), weight_of(batch)
        said = run.teacher(batch, self.needs).distribution()
        top = said if isinstance(said, TopK) else likeliest(dense(said), self.k)
        kl = ForwardKL()(student, spread(top, student.shape[-1]), weight=weight).sum()
        nll = [cross_entropy(student, labels, weight=own).sum() for labels, own in answers(batch)]
        terms = {"kl": (self.share, kl), "cross_entropy": (1 - self.share, torch.stack(nll).sum())}
        yield added(terms, weight.sum())


def recipe(scale: Scale = "small") -> Recipe:
    """Two teachers: live on digits (smoke), kept on MNIST, S = 20 (small), and on CIFAR-100, S = 100 (paper).

    The paper's teachers and its random erasing differ by the data set; the networks of `paper` are those of other tables.
    """
    changes = pick(
        scale, smoke=Augment(shift=1), small=Augment(shift=2, operations=1, kinds=MILD, draws=20),
        paper=Augment(shift=4, flip=True, operations=2, cutout=0.25, draws=100),
    )  # fmt: skip
    found = replace(pick(scale, smoke=Digits(), small=SMALL, paper=CIFAR), augment=changes)
    kept = pick(scale, smoke=5, small=5, paper=10)
    made = images("dataset_reinforcement", scale, Reinforced(k=kept), data=found)
    first = made.stages["teacher"]
    other = pick(scale, smoke=MLP(width=32), small=ConvNet(width=24), paper=ResNet(depth=56))
    live = Ensemble(members={
        "teacher": ModuleTeacher(spec=first.student, stage="teacher"), "second": ModuleTeacher(spec=other, stage="second"),
    })  # fmt: skip
    stages = {"teacher": first, "second": replace(first, student=other), **made.stages}
    if scale == "smoke":
        return replace(made, teachers={"teacher": live}, stages=stages)
    label = Label(format=KeptTopK(k=kept), teacher=live, splits=("train",), draws=changes.draws or 1, batch=64)
    begin = {"teacher": first, "second": stages["second"], "reinforce": label}
    return replace(made, teachers={"teacher": Cached(stage="reinforce", live=live)}, stages={**begin, **made.stages})


def proof() -> Proof:
    """Against the labels with the same changes and without changes; beside a live teacher with new changes in every
    epoch."""
    made = recipe("small")
    ours = arm(made)
    live = made.stages["reinforce"].teacher
    stages = {name: stage for name, stage in ours.stages.items() if name != "reinforce"}
    fresh = replace(made.data, augment=replace(made.data.augment, draws=None))
    plain = replace(images("supervised", "small", Reinforced()), teachers={})
    return Proof(
        claim="A student that learns from two teachers' answers on 20 changes of every image, kept once, classifies better"
        " than one that learns the labels of images changed alike, and than one that learns the labels of the images as"
        " they are.",
        arms={
            "ours": ours,
            "changed": alone(made),
            "alone": alone(plain),
            "live": replace(ours, data=fresh, teachers={"teacher": live}, stages=stages),
        },
        metric="accuracy",
        judge=BEST,
        beats=("changed", "alone"),
        seeds=(0, 1, 2, 3, 4),
        minutes=8.0,
        tune={"train.optim.lr": RATES},
        note="MNIST at 14 x 14 pixels, 1,000 images to learn from, 1,000 to choose by, 10,000 to judge; two ConvNets, of"
        " 73,000 and 37,000 parameters, teach one of 10,500. Every arm takes 400 steps of 64 images. The teachers'"
        " training (600 steps each) and one pass of theirs over 20,000 changed images come on top in `ours`, a pass for"
        " every step in `live`, which draws new changes in every epoch.",
    )
