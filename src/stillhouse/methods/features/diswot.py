"""DisWOT: Student Architecture Search for Distillation WithOut Training (Dong et al. 2023, arXiv 2303.15678).

    score(student) = - 1/B² ‖G_t - G_s‖² - weight · semantic_gap
    G = A A^T with every row scaled to length 1,     A [B, C H W]
    semantic_gap = 1/(K d) sum_k ‖E_t,k - E_s,k‖²,     E_k = g_k g_k^T [d, d] with every row scaled to length 1

Student s and teacher t are drawn at random and not trained. A is what the last stage gives for the B items of one labelled
batch, before it is pooled. g_k is row k of the gradient of the cross-entropy in the last layer's weights [K, d], K the
classes. Of a space of students the one with the largest score is distilled: it already finds those items alike, and draws
on its features for those classes, that its teacher does. ‖.‖ is the Frobenius norm.

E needs students as wide as the teacher in front of the head (semantic="channels"). For students of any width the classes
are compared instead (semantic="classes"): products of the rows of the gradient, [K, K], each row at length 1, and
1/K² ‖.‖². One of the two holds for a whole search, since their numbers do not compare. weight=0 leaves both out.

A small space is gone through. In a large one students are drawn by regularised evolution: the parent is one of the best five
of a tournament, one setting of it is changed, the oldest goes.

Differs from the paper / the authors' code: semantic="classes" and the weight are ours; the paper's is 1. The authors' code
sorts the tournament with the worst first before it takes five; here the best come first. The sizes of population and
tournament, the batch of 64, the spaces at every scale, and averaging over several draws of random weights (`search.draws`)
are ours. The student that was chosen is distilled by Hinton's method; the paper also distils with the two distances as
losses, of which the first is `methods.classics.sp.SP` (put it into train.method).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ...audits.proxies import Activity, Chance, GradientNorm, Parameters, Trained, Untrained
from ...audits.search import Search
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Recipe, Scale, pick
from ...core.run import Run, RunError
from ...models.space import Compact, Picked, Space
from ...models.vision import ResNet
from ...objectives.proxies import Semantic, semantic_gap
from ...objectives.relations import relation_loss
from ..classics.hinton import Hinton
from ..images import BEST, RATES, arm, images

PAPER = Paper(
    id="diswot",
    title="DisWOT: Student Architecture Search for Distillation WithOut Training",
    authors=("Peijie Dong", "Lujun Li", "Zimian Wei"),
    year=2023,
    arxiv="2303.15678",
    venue="CVPR 2023",
    modality=("image",),
    data=("labels",),
    claim="Students that resemble their teacher before either is trained distil better, and are found 180 times as fast.",
)


@dataclass(frozen=True, kw_only=True)
class DisWOT:
    """How alike student and teacher are before they are trained; 0 is the most."""

    semantic: Semantic = "channels"  # "classes" where not all students are as wide as the teacher in front of the head
    weight: float = 1.0  # of the semantic gap

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise ValueError(f"weight must be 0 or more, not {self.weight}")

    def __call__(self, student: Untrained, teacher: Untrained, run: Run) -> float:
        """Of one student."""
        mine, theirs = student.look, teacher.look
        relation = relation_loss(mine.features, theirs.features, "sample_gram").mean()
        if not self.weight:
            return -float(relation)
        try:
            gap = semantic_gap(mine.head, theirs.head, self.semantic).mean()
        except ValueError as error:
            raise RunError(str(error)) from error
        return -float(relation + self.weight * gap)


VARIED = {"width": (8, 16, 32), "depth": (1, 2, 3), "kernel": (1, 3), "skip": (False, True)}
WIDTHS = tuple((a, b, 64) for a in (8, 16, 32, 64) for b in (16, 32, 64))
RESNETS = Space(of=ResNet(), values={"widths": WIDTHS, "depth": (8, 14, 20, 26, 32), "stem": (8, 16, 32)})


def recipe(scale: Scale = "small") -> Recipe:
    """Find a student, train the teacher, distil the one into the other: digits (smoke), MNIST (small), CIFAR-100 as
    `cifar100.npz` (paper); see `methods.images`.

    In `small` 28 of 36 convolutional networks that differ in width, depth, kernel and skips have at most 25,000 parameters.
    In `paper` 180 residual networks of up to 300,000 are as wide as their teacher, of 56 layers, at the end.
    """
    digits = Space(of=Compact(features=16), values={"width": (4, 8), "skip": (False, True)})
    search = Search(
        space=pick(scale, smoke=digits, small=Space(of=Compact(features=64), values=VARIED), paper=RESNETS),
        score=DisWOT(),
        parameters=pick(scale, smoke=5000, small=25_000, paper=300_000),
        batch=pick(scale, smoke=16, small=64, paper=64),
        draws=pick(scale, smoke=1, small=4, paper=1),
    )
    teacher = ResNet(depth=56) if scale == "paper" else None
    made = images("diswot", scale, Hinton(), student=Picked(), teacher=teacher)
    return replace(made, stages={"search": search, **made.stages})


def proof() -> Proof:
    """The students of the largest score, of a random one and of the most parameters, distilled alike; and the first of them
    without a teacher. `trained` chooses by training every student, and tells how the scores rank them."""
    whole = recipe("small")
    plain, hinton = arm(whole), whole.stages["train"]

    def chosen(score: Any, *beside: Any, train: Any = hinton) -> Recipe:
        search = replace(whole.stages["search"], score=score, beside=beside)
        # The teacher first, so that all arms of a seed share it; the search looks at its architecture alone.
        stages = {"teacher": plain.stages["teacher"], "search": search, "train": train, "audit": plain.stages["audit"]}
        return replace(plain, stages=stages)

    truth = Trained(method=hinton.method, steps=200, batch=hinton.batch, optim=hinton.optim)
    return Proof(
        claim="Of 36 small convolutional networks the one of at most 25,000 parameters that is most like the teacher before"
        " training is, once distilled, a better classifier than one at random, than the one of the most parameters, and"
        " than itself without a teacher.",
        arms={
            "ours": chosen(DisWOT()),
            "random": chosen(Chance()),
            "parameters": chosen(Parameters()),
            "alone": chosen(DisWOT(), train=whole.stages["alone"]),
            "trained": chosen(truth, DisWOT(), Parameters(), GradientNorm(), Activity()),
        },
        metric="accuracy",
        judge=BEST,
        beats=("random", "parameters", "alone"),
        seeds=(0, 1, 2, 3, 4),
        minutes=25.0,
        tune={"train.optim.lr": RATES},
        note=NOTE,
    )


NOTE = (
    "MNIST at 14 x 14 pixels, 1,000 images to learn from, 1,000 to choose by, 10,000 to judge; the teacher is a ConvNet of"
    " 73,000 parameters. Every arm takes 400 steps of 64 images; the teacher's training (600 steps, shifted images) and"
    " forward passes come on top, and so does each search: seconds, but in `trained` 200 steps of every student within the"
    " cap, judged on the 1,000 images to choose by. The cap is a third of the teacher. Scores are means over 4 draws of"
    " random weights, a number that was chosen after a look at seed 100 (validation images). The weights, the order, the"
    " batch that the search looks at and the random student depend on the seed, the split does not. Hinton's temperature"
    " (4) and share (0.9) were not searched."
)
