"""DeiT-LT Distillation Strikes Back for Vision Transformer Training on Long-Tailed Datasets (Rangwani et al. 2024,
arXiv 2404.02900).

    L = (1 - alpha) CE(y, z_class) + alpha v CE(t, z_distilled),     t = argmax z_teacher(x)
    w_k = (1 - beta) / (1 - beta^n_k),     v = w_t late in training and 1 before

A vision transformer has two tokens with a head each. The one learns the labels y of the strongly changed, mixed images x;
the other what a convolutional teacher says of those very images, as hard labels t. The teacher has learned from weakly
changed images alone, so that x is strange to it. n_k is how many training images class k has; late, the rare classes
count more (deferred re-weighting), and images are no longer mixed: that is `data.late.Late`. The student classifies by
the mean of both heads. The teacher is trained for long tails too, and towards flat minima: `Balanced` re-weights late and
is trained with sharpness-aware minimisation.

Sure, from val-iisc/DeiT-LT: the two heads and terms, alpha = 0.5, that the teacher sees the student's images, beta =
0.9999, the weights in the second term, re-weighting and an end of mixing in epoch 1,100 of 1,200.

Differs from the paper / the authors' code: the paper's teachers learn with PaCo or LDAM; here it is the weighted
cross-entropy. The weights are divided by their mean over the training images and not by the sum over a batch, so that a
gradient does not depend on how a batch is split. Without a first late epoch, the code weighs from the start; that is
`weighted="always"` here. Its soft variant, which multiplies log-probabilities by weights, is left out, as are attention
distances and ranks of features; `audits.tails.Tails` has the accuracy of both heads by how common a class is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ...audits.tails import Tails
from ...core.method import State, Update
from ...core.optim import Optim
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Recipe, Scale, pick
from ...core.run import Run, RunError
from ...core.signal import Batch, Kind
from ...data.augment import Augment
from ...data.images import Digits, LongTail, Npz, Split, Standard
from ...data.late import Late
from ...data.mild import MILD
from ...models.call import answers, dense, logits_of
from ...models.sharpness import uphill
from ...models.vision import ViT
from ...objectives.balance import effective
from ...objectives.divergences import cross_entropy
from ..classics.supervised import Supervised
from ..images import BEST, alone, arm, images
from ..outputs import told
from ..tokens import two_tokens

PAPER = Paper(
    id="deit_lt",
    title="DeiT-LT Distillation Strikes Back for Vision Transformer Training on Long-Tailed Datasets",
    authors=("Harsh Rangwani", "Pradipto Mondal", "Mayank Mishra", "Ashish Ramayee Asokan", "R. Venkatesh Babu"),
    year=2024,
    arxiv="2404.02900",
    venue="CVPR 2024",
    modality=("image",),
    data=("labels",),
    claim="A vision transformer learns rare classes from a convolutional teacher's hard labels of images strange to it.",
)
Weighted = Literal["late", "always", "never"]


@dataclass(frozen=True, kw_only=True)
class DeiTLT:
    """Learn the labels with one token, and with the other what the teacher says, rare classes counting more late."""

    alpha: float = 0.5  # weight of the teacher's labels
    beta: float = 0.9999  # of the class weights: 0 is none, towards 1 it is one over a class's size
    weighted: Weighted = "late"
    needs: ClassVar[frozenset[Kind]] = frozenset({"logits"})
    takes_mixed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0.0 <= self.alpha <= 1.0:
            raise ValueError(f"alpha must be between 0 and 1, not {self.alpha}")

    @property
    def equation(self) -> str:
        """The objective with its live weights."""
        terms = {"CE(y, z_class)": 1 - self.alpha, "CE(argmax z_teacher, z_distilled)": self.alpha}
        return told(terms) + ("" if self.weighted == "never" else f", the latter weighted by class ({self.weighted})")

    def setup(self, student: nn.Module, run: Run) -> State:
        """The student, and what each class counts."""
        if getattr(student, "head_distilled", None) is None:
            how = "--set 'student={use: models.vision.ViT, distilled: true}'"
            raise RunError(f"the student needs a distillation token: {how}")
        return State(student=student, classes=class_weights(run, self.beta, self.weighted))

    def step(self, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        """One update over all items; one without a label has the teacher's."""
        counts = partial(factors, s.classes, batch=batch, weighted=self.weighted)
        yield two_tokens(s.student, batch, run.teacher, self.alpha, counts=counts)


@dataclass(frozen=True, kw_only=True)
class Balanced:
    """Cross-entropy in which rare classes count more, late or always, with sharpness-aware minimisation: for a
    teacher."""

    beta: float = 0.9999
    weighted: Weighted = "late"
    radius: float = 0.05  # of the step uphill; 0: none
    needs: ClassVar[frozenset[Kind]] = frozenset()
    takes_mixed: ClassVar[bool] = True

    def setup(self, student: nn.Module, run: Run) -> State:
        """The network, and what each class counts."""
        return State(student=student, classes=class_weights(run, self.beta, self.weighted))

    def step(self, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        """One update over the labelled items."""
        pairs = [(labels, share * (labels >= 0)) for labels, share in answers(batch)]

        def loss(logits: Tensor) -> Tensor:
            terms = ((y, share * factors(s.classes, y, batch, self.weighted)) for y, share in pairs)
            return torch.stack([cross_entropy(logits, y, weight=weight).sum() for y, weight in terms]).sum()

        logits = uphill(s.student, batch, loss, self.radius) if self.radius else dense(logits_of(s.student, batch))
        yield Update(loss(logits), count=torch.stack([share.sum() for _, share in pairs]).sum())


def class_weights(run: Run, beta: float, weighted: Weighted) -> Tensor:
    """[C] what an item of each class counts, 1 on average over the training items; RunError if nothing says when."""
    source: Any = run.source
    labels = getattr(source, "labels", None)
    if labels is None:
        raise RunError("classes are weighted by how many training images each has: the data must be images (data.images)")
    if weighted == "late" and "late" not in source.batch([0], 0):
        raise RunError(
            f"no batch says when it is late: --set 'stages.{run.stage}.data={{use: data.late.Late, turn: EPOCHS}}', or "
            "weighted=always"
        )
    counts = labels[labels >= 0].bincount(minlength=source.classes)
    weights = effective(counts, beta)
    return (weights * counts.sum() / (weights * counts).sum()).float()


def factors(classes: Tensor, labels: Tensor, batch: Batch, weighted: Weighted) -> Tensor:
    """[B] what items with these labels count; 1 for an unknown label."""
    late = batch["late"] > 0 if weighted == "late" else torch.full_like(labels, weighted == "always", dtype=torch.bool)
    return torch.where(late & (labels >= 0), classes[labels.clamp(min=0)], 1.0)


def recipe(scale: Scale = "small") -> Recipe:
    """Long tails: digits, factor 10 (smoke), 5,000 images of MNIST, factor 50 (small), CIFAR-100, factor 100 (paper).

    `paper` has the authors' two schedules of 1,200 epochs; the size of its transformer's patches and the batch are ours.
    """
    factor = pick(scale, smoke=10.0, small=50.0, paper=100.0)
    split = Split(valid=0.2, test=0.3, tail=LongTail(factor=factor))
    strong = pick(
        scale, smoke=Augment(shift=1, mixup=0.8), small=Augment(shift=2, operations=2, kinds=MILD, mixup=0.8, cutmix=1.0),
        paper=Augment(shift=4, flip=True, operations=2, mixup=0.8, cutmix=1.0),
    )  # fmt: skip
    mnist = Standard(name="mnist", train=5000, halved=1, split=split, otherwise=Digits(split=Split(valid=0.2, test=0.3)))
    found = pick(scale, smoke=Digits(split=split), small=mnist, paper=Npz(path="cifar100.npz", split=split))
    vit = pick(
        scale, smoke=ViT(patch=2, width=16, depth=2, heads=2, ratio=2.0, distilled=True),
        small=ViT(patch=2, width=32, depth=2, ratio=2.0, distilled=True),
        paper=ViT(width=768, depth=12, heads=12, distilled=True),
    )  # fmt: skip
    made = images("deit_lt", scale, DeiTLT(), student=vit, data=replace(found, augment=strong))
    steps, batch = pick(scale, smoke=60, small=400, paper=101_700), pick(scale, smoke=32, small=64, paper=128)
    turn = pick(scale, smoke=3, small=15, paper=1100)  # of 5, 18 and 1,200 epochs
    theirs = pick(scale, smoke=3, small=22, paper=1100)  # the teacher's, of 5, 27 and 1,200
    slow = Optim(lr=5e-4, weight_decay=0.05, schedule="cosine")
    adamw = pick(scale, smoke=Optim(lr=1e-2), small=Optim(lr=3e-3), paper=slow)
    weak = Augment(shift=4, flip=True) if scale == "paper" else Augment(shift=1)
    learns: dict[str, Any] = {"steps": steps, "batch": batch, "optim": adamw, "data": Late(turn=turn)}
    flat = replace(made.stages["teacher"], method=Balanced(), data=Late(turn=theirs, augment=weak))
    flat = replace(flat, steps=steps, batch=batch) if scale == "paper" else flat
    stages = {
        "teacher": flat,
        "train": replace(made.stages["train"], **learns),
        "alone": replace(made.stages["alone"], **learns),
        "audit": replace(made.stages["audit"], checks=(*made.stages["audit"].checks, Tails())),
    }
    return replace(made, stages=stages)


def proof() -> Proof:
    """Against DeiT (a teacher of strongly changed images, no re-weighting), no re-weighting, and the labels alone."""
    ours = recipe("small")
    hard = ours.set("train.method.weighted", "never")
    strange = replace(ours.stages["teacher"], method=Supervised(), data=Late(turn=ours.stages["teacher"].data.turn))
    deit = hard.set("stages", {**hard.stages, "teacher": strange})
    return Proof(
        claim="On a long tail, a transformer that hears from a flat, re-weighted convolutional teacher what images"
        " strange to it show, with rare classes counting more late, classifies better than one taught as in DeiT, than one"
        " without the re-weighting, and than one without a teacher.",
        arms={"ours": arm(ours), "deit": arm(deit), "not_weighted": arm(hard), "alone": alone(ours)},
        metric="accuracy",
        judge=BEST,
        beats=("deit", "not_weighted", "alone"),
        seeds=(0, 1, 2, 3, 4),
        minutes=10.0,
        tune={"train.optim.lr": (1e-3, 3e-3, 1e-2)},
        note="MNIST at 14 x 14 pixels: 500 images of the digit 0, 10 of the digit 9, 1,394 in all; 1,000 to choose by,"
        " 10,000 to judge. Every transformer (two tokens, 20,000 parameters) takes 400 steps of 64 changed and mixed"
        " images, unmixed from epoch 15 of 18 on. The teacher's 600 steps, from epoch 22 of 27 on re-weighted, and twice as"
        " dear where they climb, and its forward passes come on top. `not_weighted` differs from `ours` in the second head's"
        " weights alone; in `deit` the teacher also learns from the changed and mixed images, by plain cross-entropy.",
    )
