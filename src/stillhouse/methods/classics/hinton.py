"""Distilling the Knowledge in a Neural Network (Hinton, Vinyals, Dean 2015, arXiv 1503.02531).

    L = alpha T² KL(p_T ‖ q_T) + (1 - alpha) CE(y, q),     p_T = softmax(z_teacher / T),  q_T = softmax(z_student / T)

T is the temperature, y the label where it is known. The factor T² keeps the weight of the soft term when T changes,
since its gradient shrinks as 1/T² (Section 2). Items are images, texts to classify, or the tokens of a language model.

Differs from the paper / the authors' code: KL in place of cross-entropy with the soft targets; they differ by the
teacher's entropy, so the gradient is the same. An item without a label (negative) keeps its soft term and has no hard
one, and still counts in the denominator. A mixed image (mixup, CutMix) has both its labels, weighted by their shares.
The paper publishes no code and no alpha ("a considerably lower weight" for the hard term).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import nn

from ...audits.classification import Classification
from ...audits.validation import Validation
from ...core.method import State, Update
from ...core.optim import Optim
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Expect, Recipe, Scale, pick
from ...core.run import Run
from ...core.signal import Batch, Kind
from ...core.stage import Audit, Train
from ...data.images import Augment, Digits, Known, Npz, Split
from ...data.toys import Clusters
from ...models.call import answers, logits_of, weight_of
from ...models.toys import MLP, ConvNet
from ...objectives.divergences import ForwardKL, mixed
from ...teachers.local import same_classes
from ...teachers.module import ModuleTeacher
from .supervised import Supervised

PAPER = Paper(
    id="hinton",
    title="Distilling the Knowledge in a Neural Network",
    authors=("Geoffrey Hinton", "Oriol Vinyals", "Jeff Dean"),
    year=2015,
    arxiv="1503.02531",
    venue="NIPS Deep Learning and Representation Learning Workshop",
    modality=("any",),
    data=("labels", "unlabelled", "documents"),
    claim="A small network trained on a big one's softened outputs generalises better than one trained on the labels.",
)


@dataclass(frozen=True, kw_only=True)
class Hinton:
    """Match the teacher's tempered distribution, and the labels a little."""

    temperature: float = 4.0
    alpha: float = 0.9  # weight of the soft term
    needs: ClassVar[frozenset[Kind]] = frozenset({"logits"})
    takes_topk: ClassVar[bool] = True
    takes_mixed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above 0, not {self.temperature}")
        if not 0.0 <= self.alpha <= 1.0:
            raise ValueError(f"alpha must be between 0 and 1, not {self.alpha}")

    def setup(self, student: nn.Module, run: Run) -> State:
        """The student alone."""
        return State(student=student)

    def step(self, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        """One update over all items."""
        teacher = run.teacher(batch, self.needs).distribution()
        student, teacher = same_classes(logits_of(s.student, batch), teacher)
        soft = self.alpha * self.temperature**2
        whole = soft + 1 - self.alpha
        terms = [
            mixed(ForwardKL(), student, teacher, labels, soft / whole, temperature=self.temperature, weight=weight)
            for labels, weight in answers(batch)
        ]
        loss, kl, nll = (torch.stack([value.sum() for value in values]).sum() for values in zip(*terms, strict=True))
        yield Update(whole * loss, count=weight_of(batch).sum(), logs={"kl": kl, "cross_entropy": nll})


def recipe(scale: Scale = "small") -> Recipe:
    """Clusters (smoke); digits of which the student's owner knows few labels (small); MNIST, `mnist.npz` (paper).

    In `small` the teacher was trained on every label; the student knows 4 labels of each digit and hears the teacher
    on all training images. The stage `alone` has the same 4 labels, as many steps and items, and no teacher.
    """
    big = pick(scale, smoke=MLP(width=64), small=ConvNet(), paper=MLP(width=1200, dropout=0.5))
    batch = pick(scale, smoke=32, small=64, paper=128)
    steps = pick(scale, smoke=60, small=600, paper=50_000)
    optim = Optim(lr=pick(scale, smoke=1e-2, small=3e-3, paper=1e-3))
    mnist, jittered = Npz(path="mnist.npz"), Npz(path="mnist.npz", augment=Augment(shift=2))
    return Recipe(
        id="hinton",
        student=pick(scale, smoke=MLP(width=8), small=MLP(width=32), paper=MLP(width=800)),
        data=pick(scale, smoke=Clusters(), small=Digits(split=Split(valid=0.2, test=0.3, labels=4)), paper=mnist),
        teachers={"teacher": ModuleTeacher(spec=big, stage="teacher")},
        stages={
            "teacher": Train(
                method=Supervised(), student=big, steps=steps, batch=batch, optim=optim,
                data=pick(scale, smoke=None, small=Known(), paper=jittered),
            ),
            "train": Train(
                method=Hinton(temperature=pick(scale, smoke=2.0, small=4.0, paper=20.0)),
                steps=steps, batch=batch, optim=optim,
            ),
            "alone": Train(
                method=Supervised(), steps=steps, batch=batch, optim=optim,
                data=pick(scale, smoke=None, small=Known(every=False), paper=None),
            ),
            "audit": Audit(subjects=("start", "teacher", "alone", "train"), checks=(Classification(),)),
        },
        expect=EXPECT if scale == "paper" else (),
    )  # fmt: skip


EXPECT = (
    Expect(metric="accuracy", value=0.9926, where="Section 3", setting="train: 74 errors of 10,000, T = 20"),
    Expect(metric="accuracy", value=0.9854, where="Section 3", setting="alone: 146 errors"),
    Expect(metric="accuracy", value=0.9933, where="Section 3", setting="teacher: 67 errors, dropout and shifts"),
)


def proof() -> Proof:
    """With few labels, and against a student that has all of them."""
    ours = recipe("small")
    stages = {"train": ours.stages["alone"], "audit": Audit(subjects=("start", "train"), checks=(Classification(),))}
    alone = replace(ours, teachers={}, stages=stages)
    return Proof(
        claim="A student with 4 labels of each digit and the teacher's soft answers on the other training images beats"
        " the same student with those labels alone, and the same student with every label.",
        arms={"ours": ours, "alone": alone, "all_labels": alone.set("train.data", Known())},
        metric="accuracy",
        judge=Validation(quantity="accuracy"),
        beats=("alone", "all_labels"),
        seeds=(0, 1, 2, 3, 4),
        minutes=6.0,
        tune={"train.optim.lr": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)},
        note="Every arm takes 600 steps of 64 images; the teacher's training and forward passes come on top in `ours`."
        " Which 4 labels are known, the initial weights and the order depend on the seed; the split does not.",
    )
