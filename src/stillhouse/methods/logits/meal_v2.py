"""MEAL V2: Boosting Vanilla ResNet-50 to 80%+ Top-1 Accuracy on ImageNet without Tricks (Shen and Savvides 2020, arXiv
2009.08453).

    student:         L = CE(p, q) + labels CE(y, q) + critic BCE(D(log q), "teacher")
    discriminator:   L = 1/2 BCE(D(log q), "student") + 1/2 BCE(D(log p), "teacher")
    p = 1/M sum_m softmax(t_m),   q = softmax(s)

p is the mean of what M teachers say (`teachers.ensemble`), at temperature 1. The student has been trained on the labels
before, and then hears of them no more (labels = 0). D is a small network that tells who spoke, from the output alone, with
two answers whose binary cross-entropies are averaged; the student learns to be taken for the teachers.

Sure, from szq0214/MEAL-V2: the mean of probabilities, no labels, a student that is trained already, no weight decay, SGD
with momentum 0.9 from 0.01, D with hidden layers of K/8 and K/64 for K classes, ReLU, and a learning rate of 1e-4.

Differs from the paper / the authors' code: in the code, student and discriminator go down the same loss together, which
pushes the student to be told apart; the paper means the opposite, which is done here (`adversarial=False` is the code's). D
has no ReLU after its last layer, which could not say "rather not"; at least 8 hidden units, as K/64 is nothing for few
classes; and it reads log-probabilities, for a constant added to all logits says nothing. The student's part of the BCE is
its own mean, not half of a common one. The code's step schedule is a cosine here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...core.method import State, Update
from ...core.optim import Optim
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Recipe, Scale, pick
from ...core.run import Run
from ...core.signal import Batch, Kind
from ...models.earlier import Continued
from ...models.toys import MLP, ConvNet
from ...models.vision import ResNet
from ...objectives.divergences import log_softmax
from ...teachers.ensemble import Ensemble
from ...teachers.module import ModuleTeacher
from ..classics.hinton import Hinton
from ..images import BEST, RATES, arm, images
from ..outputs import added, outputs, told

PAPER = Paper(
    id="meal_v2",
    title="MEAL V2: Boosting Vanilla ResNet-50 to 80%+ Top-1 Accuracy on ImageNet without Tricks",
    authors=("Zhiqiang Shen", "Marios Savvides"),
    year=2020,
    arxiv="2009.08453",
    modality=("any",),
    data=("labels", "unlabelled"),
    claim="A network that is trained already gains from several teachers' averaged probabilities alone, without labels.",
)

LEAST = 8  # hidden units of the discriminator


@dataclass(frozen=True, kw_only=True)
class MealV2:
    """Say what the teachers say on average, so that nobody can tell who spoke."""

    labels: float = 0.0  # weight of the labels' cross-entropy; theirs: none
    critic: float = 1.0  # of being taken for the teachers; 0: there is no discriminator
    adversarial: bool = True  # False: the student helps the discriminator, as the released code does
    needs: ClassVar[frozenset[Kind]] = frozenset({"logits"})
    takes_mixed: ClassVar[bool] = True

    @property
    def equation(self) -> str:
        """The objective with its live weights."""
        taken = "teacher" if self.adversarial else "student"
        return told({"CE(p, q)": 1.0, "CE(y, q)": self.labels, f'BCE(D(log q), "{taken}")': self.critic})

    def setup(self, student: nn.Module, run: Run) -> State:
        """The student, and a discriminator if it has a say."""
        return State(student=student, critic=Critic(run.source.classes)) if self.critic else State(student=student)

    def step(self, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        """The discriminator's update, then the student's; an item without a label has no cross-entropy with it."""
        said = outputs(s, batch, run, self.needs)
        log_q, log_p, weight = log_softmax(said.student), log_softmax(said.teacher), said.weight
        if self.critic:
            own, other = s.critic(log_q.detach()), s.critic(log_p)
            loss = 0.5 * (_bce(own, teacher=False) + _bce(other, teacher=True))
            right = 0.5 * ((own[:, 0] > own[:, 1]).float() + (other[:, 1] > other[:, 0]).float())
            logs = {"right": (weight * right).sum()}
            yield Update((weight * loss).sum(), count=weight.sum(), group="critic", logs=logs)
        terms = {"soft": (1.0, -(weight * (log_p.exp() * log_q).sum(-1)).sum())}
        if self.labels:
            terms["cross_entropy"] = self.labels, said.cross_entropy()
        if self.critic:
            told_apart = _bce(s.critic(log_q), teacher=self.adversarial)
            terms["taken"] = self.critic, (weight * told_apart).sum()
        yield added(terms, weight.sum())


class Critic(nn.Module):
    """Log-probabilities [B, K] to two logits [B, 2]: it was the student, it was a teacher."""

    def __init__(self, classes: int):
        super().__init__()
        first, second = max(classes // 8, LEAST), max(classes // 64, LEAST)
        self.layers = nn.Sequential(
            nn.Linear(classes, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU(), nn.Linear(second, 2)
        )

    def forward(self, said: Tensor) -> Tensor:
        """At least float32."""
        return self.layers(said.to(next(self.parameters()).dtype)).to(said.dtype)


def _bce(logits: Tensor, *, teacher: bool) -> Tensor:
    """The binary cross-entropies of both logits [B, 2] with who it was, averaged: [B]."""
    truth = torch.tensor([0.0, 1.0] if teacher else [1.0, 0.0], device=logits.device, dtype=logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, truth.expand_as(logits), reduction="none").mean(-1)


def recipe(scale: Scale = "small") -> Recipe:
    """Digits (smoke), MNIST (small), CIFAR-100 as `cifar100.npz` (paper).

    Three teachers, and a student that has learned the labels before.
    """
    made = images("meal_v2", scale, MealV2())
    first, alone = made.stages["teacher"], made.stages["alone"]
    others = pick(
        scale, smoke=(MLP(width=32), MLP(width=64, depth=1)), small=(ConvNet(width=24), MLP(width=256)),
        paper=(ResNet(depth=56), ResNet(depth=40, stem=16, widths=(32, 64, 128), preactivated=True)),
    )  # fmt: skip
    taught = {name: replace(first, student=spec) for name, spec in zip(("second", "third"), others, strict=True)}
    sgd = Optim(name="sgd", lr=0.01, weight_decay=0.0, schedule="cosine", warmup=0.0, clip=None)
    again = {"student": Continued(stage="pretrained"), **({"optim": sgd} if scale == "paper" else {})}
    critic = {"critic": Optim(lr=pick(scale, smoke=1e-2, small=1e-3, paper=1e-4))}
    stages = {
        "teacher": first, **taught, "pretrained": alone,
        "train": replace(made.stages["train"], optims=critic, **again), "alone": replace(alone, **again),
        "audit": replace(made.stages["audit"], subjects=("start", "teacher", "pretrained", "alone", "train")),
    }  # fmt: skip
    specs = {"teacher": first.student, "second": others[0], "third": others[1]}
    members = {name: ModuleTeacher(spec=spec, stage=name) for name, spec in specs.items()}
    return replace(made, teachers={"teacher": Ensemble(members=members)}, stages=stages)


def proof() -> Proof:
    """Three teachers against more training on the labels, one teacher, a student that begins anew, and labels beside."""
    made = recipe("small")
    audit = replace(made.stages["audit"], subjects=("start", "pretrained", "train"))
    ours = arm(replace(made, stages={**made.stages, "audit": audit}))
    stages = {"pretrained": made.stages["pretrained"], "train": made.stages["alone"]}
    first = {"teacher": ModuleTeacher(spec=made.stages["teacher"].student, stage="teacher")}
    hinton = replace(ours.stages["train"], method=Hinton(), optims={})
    anew = ours.set("train.student", None).set("train.steps", 2 * made.stages["train"].steps)
    return Proof(
        claim="A student that is trained already and then hears three teachers' mean probabilities, without labels,"
        " classifies better than one that goes on with the labels, than one that hears the first teacher alone, and than one"
        " that begins anew.",
        arms={
            "ours": ours,
            "alone": replace(made, id="continued", teachers={}, stages={**stages, "audit": audit}),
            "single": replace(ours, teachers=first),
            "hinton": replace(ours, teachers=first, stages={**ours.stages, "train": hinton}),
            "anew": anew,
            "with_labels": ours.set("train.method.labels", 1.0),
        },
        metric="accuracy",
        judge=BEST,
        beats=("alone", "single", "anew"),
        seeds=(0, 1, 2, 3, 4),
        minutes=8.0,
        tune={"train.optim.lr": RATES},
        note="MNIST at 14 x 14 pixels, 1,000 images to learn from, 1,000 to choose by, 10,000 to judge. The three"
        " teachers are ConvNets of 73,000 and 37,000 parameters and a perceptron of 119,000, each trained for 600 steps"
        " of 64 shifted images; `single` hears the first, which was not chosen as the best. The student has 10,500, has"
        " learned the labels for 400 steps at a rate of 0.01, and takes 400 more; `anew` takes 800 from the start. All"
        " arms but `alone` and `hinton` have the discriminator, at a rate of 0.001. `hinton` hears the first teacher at a"
        " temperature of 4, a tenth of its loss the labels'. The teachers' training and passes, three times"
        " those of `single`, come on top. The weights and the order depend on the seed, the split does not.",
    )
