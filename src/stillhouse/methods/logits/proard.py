"""ProARD: progressive adversarial robustness distillation: provide wide range of robust students
(Mousavi et al. 2025, arXiv 2506.07666).

    L = mean over the members drawn of  attacked KL(p ‖ q_m(x')) + (1 - attacked) KL(p ‖ q_m(x))
    x' = argmax KL(p ‖ q_m(x')),   |x' - x| <= radius

p is what a robust teacher says of the image x as it is, q_m what member m of the student says: the student is a network that
contains others, narrower ones, shallower ones, and ones with thinner blocks (`models.elastic`). x' is found for each member
by projected gradient ascent from x plus a little noise. Members join as training goes on: at first the largest alone learns,
then narrower ones, then shallower ones, then thinner ones. The teacher is trained with TRADES (`methods.robust.Trades`).

Sure, from hamidmousavi0/ProARD: the loss (RSLAD's) with 5/6 on x', the order, the widths, skips and ratios, the radius
0.031 and the step 0.0078, ten steps, and that one member is drawn for a whole pass over the data, a few for each of its
later phases. The paper says that drawing members at random from the first step on fails.

Differs from the paper / the authors' code: the abstract calls the student's own largest member the teacher; here, as in
the code's loss, it is another network trained before. KL is a sum over the classes and a mean over the images, where the
code divides by the number of classes as well (a rate ten times smaller at ten classes). When members join is a share of
the run, ours. Draws are kept for `hold` steps; `sandwich` adds the largest and the smallest member that may be drawn. The
search over members with a predictor of their accuracy is not here: `audits.robustness` judges every member, which at a
few dozen is affordable. Blocks have a plain shortcut.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random
from typing import Any, ClassVar

import torch
from torch import nn

from ...audits.robustness import Robustness
from ...core.method import State, Update
from ...core.optim import Optim
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Recipe, Scale, pick
from ...core.run import Run, RunError, seed_of
from ...core.signal import Batch, Kind
from ...core.stage import Audit
from ...models.attacks import Attack
from ...models.call import dense, weight_of
from ...models.elastic import Elastic, Family, Member, logits_by
from ...models.toys import ConvNet
from ...models.vision import ResNet
from ...objectives.divergences import ForwardKL
from ..images import WIDER, images
from ..robust import Trades, fooled, images_light

PAPER = Paper(
    id="proard",
    title="ProARD: progressive adversarial robustness distillation: provide wide range of robust students",
    authors=("Seyedhamidreza Mousavi", "Seyedali Mousavi", "Masoud Daneshtalab"),
    year=2025,
    arxiv="2506.07666",
    modality=("image",),
    data=("labels", "unlabelled"),
    claim="One training of a network that contains many gives robust students of many sizes.",
)


@dataclass(frozen=True, kw_only=True)
class ProARD:
    """Every member says under attack what the teacher says in peace; members join one kind after the other."""

    attacked: float = 5 / 6  # weight of the term at x'
    attack: Attack = Attack()
    narrow: float = 0.25  # share of the run after which narrower members learn too
    shallow: float = 0.5  # with one block skipped in every stage
    shallower: float = 0.625  # with more
    thin: float = 0.75  # with thinner blocks
    draws: int = 1  # members drawn at a time
    hold: int = 1  # steps that a draw is kept
    sandwich: bool = False  # the largest and the smallest that may be drawn learn at every step
    needs: ClassVar[frozenset[Kind]] = frozenset({"logits"})

    def __post_init__(self) -> None:
        if not 0 <= self.attacked <= 1 or self.draws < 0 or self.hold < 1 or not (self.draws or self.sandwich):
            raise ValueError("attacked is between 0 and 1, hold 1 or more, and draws 1 or more unless sandwich is true")

    @property
    def equation(self) -> str:
        """The objective with its live weights."""
        return f"{self.attacked:g} KL(p ‖ q_m(x')) + {1 - self.attacked:g} KL(p ‖ q_m(x))"

    def setup(self, student: nn.Module, run: Run) -> State:
        """The student alone; RunError if it is no family or the data are no images."""
        images_light(run)
        if not isinstance(student, Family):
            raise RunError("the student has no members: set it to {use: models.elastic.Elastic, channels: [64, 128]}")
        return State(student=student)

    def step(self, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        """One update over all items: the mean of the members that are drawn."""
        told = dense(run.teacher(batch, self.needs).need("logits"))
        weight = weight_of(batch)
        light = images_light(run)
        loss, logs = torch.zeros((), device=weight.device), {"attacked": 0.0, "clean": 0.0}
        chosen = self.drawn(s.student.members, run)
        for member in chosen:
            for name, share in (("attacked", self.attacked), ("clean", 1 - self.attacked)):
                if not share:
                    continue
                x = batch["inputs"]
                if name == "attacked":
                    x = fooled(s.student, member, batch, told, self.attack, light, run)
                said = logits_by(s.student, {**batch, "inputs": x}, member)
                value = ForwardKL()(said, told, weight=weight).sum() / len(chosen)
                loss, logs[name] = loss + share * value, logs[name] + float(value.detach())
        yield Update(loss, count=weight.sum(), logs=logs)

    def allowed(self, members: tuple[Member, ...], done: float) -> list[int]:
        """The numbers of the members that learn when this share of the run is done; the largest always does."""
        widest, thickest = max(m.width for m in members), max(m.ratio for m in members)
        fewest = min(m.skipped for m in members)
        kept = [
            i
            for i, m in enumerate(members)
            if (m.width == widest or done >= self.narrow)
            and (m.skipped == fewest or done >= (self.shallow if m.skipped == fewest + 1 else self.shallower))
            and (m.ratio == thickest or done >= self.thin)
        ]
        return kept or [0]

    def drawn(self, members: tuple[Member, ...], run: Run) -> list[int]:
        """The numbers of the members that learn at this step, the same in every micro-batch."""
        kept = self.allowed(members, run.step / run.horizon)
        some = Random(seed_of(run.seed, "member", run.step // self.hold)).choices(kept, k=self.draws)
        return sorted({*some, kept[0], kept[-1]} if self.sandwich else set(some))


def recipe(scale: Scale = "small") -> Recipe:
    """Six networks in one: digits (smoke), MNIST with a radius of 0.05 (small). CIFAR-100 and 27 networks (paper).

    The stage `apart` trains as many networks that share nothing, for as many steps in all, alone.
    """
    attack = pick(
        scale, smoke=Attack(radius=0.03, stride=0.015, steps=3), small=Attack(radius=0.05, stride=0.02, steps=4),
        paper=Attack(radius=0.031, stride=0.0078),
    )  # fmt: skip
    few: dict[str, Any] = {"widths": (0.5, 0.75, 1.0), "ratios": (1.0,), "kernels": (3, 3), "divisor": 4}
    student = pick(
        scale,
        smoke=Elastic(channels=(8, 16), blocks=2, skips=(0, 1), norm="group", **few),
        small=Elastic(channels=(16, 32), blocks=3, skips=(0, 2), **few),
        paper=Elastic(channels=(256, 512, 1024), blocks=4),
    )
    big = pick(
        scale, smoke=ConvNet(width=8), small=ConvNet(width=16, depth=2), paper=ResNet(depth=32, widths=(64, 128, 256))
    )
    method = ProARD(attack=attack)
    made = images("proard", scale, method, student=student, teacher=big)
    stages = dict(made.stages)
    optim = pick(scale, smoke=Optim(lr=5e-3), small=Optim(lr=1e-2), paper=stages["train"].optim)
    steps = pick(scale, smoke=80, small=300, paper=187_500)
    stages["teacher"] = replace(
        stages["teacher"], method=Trades(attack=attack, beta=pick(scale, smoke=2.0, small=6.0, paper=6.0)), steps=steps
    )
    stages["train"] = replace(stages["train"], steps=steps, optim=optim)
    apart = replace(stages["train"], method=replace(method, **AT_ONCE), student=replace(student, apart=True))
    looked = replace(attack, steps=pick(scale, smoke=5, small=20, paper=20), stride=attack.radius / 4)
    items = pick(scale, smoke=100, small=300, paper=1000)
    audit = Audit(subjects=("start", "teacher", "apart", "train"), checks=(Robustness(attack=looked, items=items),))
    return replace(made, stages={"teacher": stages["teacher"], "train": stages["train"], "apart": apart, "audit": audit})


AT_ONCE: dict[str, Any] = {"narrow": 0.0, "shallow": 0.0, "shallower": 0.0, "thin": 0.0}


def _arm(made: Recipe, method: ProARD, student: Any = None) -> Recipe:
    """The recipe without its baseline, with this method and student."""
    train = replace(made.stages["train"], method=method, student=student)
    audit = replace(made.stages["audit"], subjects=("start", "train"))
    return replace(made, stages={"teacher": made.stages["teacher"], "train": train, "audit": audit})


def proof() -> Proof:
    """One network for six against six networks, against members that all learn from the start, and without an attack."""
    made = recipe("small")
    method: ProARD = made.stages["train"].method
    every = replace(method, **AT_ONCE)
    return Proof(
        claim="Six networks in one, whose members join one kind after the other, are right on more attacked images, on"
        " average over the six, than six that share nothing and are trained for as many steps in all, than six in one that"
        " all learn from the first step on, and than six in one that learn from the robust teacher without an attack.",
        arms={
            "ours": _arm(made, method),
            "apart": _arm(made, every, made.stages["apart"].student),
            "at_once": _arm(made, every),
            "unattacked": _arm(made, replace(method, attacked=0.0)),
        },
        metric="robust_accuracy",
        beats=("apart", "at_once", "unattacked"),
        seeds=(0, 1, 2, 3, 4),
        minutes=12.0,
        tune=WIDER,
        note="MNIST at 14 x 14 pixels; 300 test images, 20 steps of attack on each network, 0.05 of the light at most. Every"
        " arm takes 300 steps of 64 images, one network at a step, so `apart` takes about 50 for each of its six; the robust"
        " teacher (300 steps) comes on top in all of them. `unattacked` spends less on a step, as it makes no attack.",
    )
