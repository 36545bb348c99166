"""Distilling the Knowledge in Data Pruning (Ben-Baruch et al. 2024, arXiv 2403.07854).

    L = (1 - a) CE(y, q) + a T² KL(p_T ‖ q_T),     a(f) = 1 - f (1 - full)

The student sees a share f of the training images; the teacher was trained on all of them. p_T and q_T are the teacher's
and the student's softmax at temperature T. The paper's finding: with a teacher it matters little which images stay, a
random part does as well as one chosen by how hard its images are, and the fewer stay, the more the teacher should count,
above all where what stays is hard or noisy. `data.pruned.Pruned` makes the part; `models.scored.Scores` says how hard
each image is (EL2N, forgetting, margin, entropy, GraNd, distance from the class's prototype).

Sure, from the abstract: the teacher on all data, the loss, the two findings, and that a teacher smaller than the student
can be the better one where few images stay. Ours: T = 4 and the rule a(f), which is `full` where nothing was pruned and
rises to 1 as f falls; `alpha` sets a by hand.

Differs from the paper / the authors' code: GraNd's gradient is that of the last layer. Forgetting is counted between
looks at all images, not between an image's own turns. The paper's theory (ridge regression, where learning from a teacher
that saw more lowers the bias) is not here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import nn

from ...core.method import State, Update
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Recipe, Scale, pick
from ...core.run import Run
from ...core.signal import Batch, Kind
from ...core.stage import Audit
from ...data.pruned import Pruned
from ...models.scored import Scores
from ..classics.hinton import Hinton
from ..classics.supervised import Supervised
from ..images import BEST, RATES, SMALL, alone, arm, images
from ..outputs import check_temperature

PAPER = Paper(
    id="kd_data_pruning",
    title="Distilling the Knowledge in Data Pruning",
    authors=("Emanuel Ben-Baruch", "Adam Botach", "Igor Kviatkovsky", "Manoj Aggarwal", "Gérard Medioni"),
    year=2024,
    arxiv="2403.07854",
    modality=("any",),
    data=("labels",),
    claim="With a teacher that saw all the data, a random part of them teaches as well as one chosen with care.",
)


@dataclass(frozen=True, kw_only=True)
class PrunedKD:
    """Hinton's loss, in which the teacher counts the more, the fewer data were kept."""

    temperature: float = 4.0
    alpha: float | None = None  # weight of the soft term; None: by the share that was kept
    full: float = 0.5  # that weight where all data were kept
    needs: ClassVar[frozenset[Kind]] = frozenset({"logits"})
    takes_mixed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_temperature(self.temperature)
        for name in ("alpha", "full"):
            if not 0.0 <= (getattr(self, name) or 0.0) <= 1.0:
                raise ValueError(f"{name} must be between 0 and 1, not {getattr(self, name)}")

    def soft(self, share: float) -> float:
        """a, where this share of the data was kept."""
        return min(1.0, max(0.0, 1 - share * (1 - self.full))) if self.alpha is None else self.alpha

    def setup(self, student: nn.Module, run: Run) -> State:
        """The student alone."""
        share = getattr(run.source, "share", 1.0)
        run.event("pruned", share=share, alpha=self.soft(share))
        return State(student=student)

    def step(self, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        """One update over all items; those without a label keep the soft term."""
        alpha = self.soft(getattr(run.source, "share", 1.0))
        yield from Hinton(temperature=self.temperature, alpha=alpha).step(s, batch, run)


LARGE = replace(SMALL, train=5000)


def recipe(scale: Scale = "small") -> Recipe:
    """Half of the digits (smoke), of 5,000 images of MNIST (small), of CIFAR-100 as `cifar100.npz` (paper).

    `train` learns from a random half with the teacher, `hardest` from the half with the largest EL2N with the teacher,
    `alone` from the random half without, and `everything` from all images without.
    """
    made = images("kd_data_pruning", scale, PrunedKD(), data=LARGE if scale == "small" else None)
    train, plain = made.stages["train"], made.stages["alone"]
    steps = pick(scale, smoke=20, small=200, paper=15_640)
    count = pick(scale, smoke=1, small=3, paper=10)
    probes = Scores(method=Supervised(), steps=steps, batch=train.batch, optim=train.optim, probes=count)
    stages = {
        "teacher": made.stages["teacher"],
        "score": probes,
        "train": replace(train, data=Pruned()),
        "hardest": replace(train, data=Pruned(stage="score"), label="Distilled on the hardest half"),
        "alone": replace(plain, data=Pruned()),
        "everything": replace(plain, label="No teacher, all images"),
        "audit": replace(made.stages["audit"], subjects=("start", "teacher", "everything", "alone", "hardest", "train")),
    }
    return replace(made, stages=stages)


def proof() -> Proof:
    """A random half with a teacher, against all images and the random half without one; beside the hardest half, and all."""
    whole = recipe("small")
    unpruned = images("everything", "small", PrunedKD(), data=LARGE)

    def only(*names: str, judged: str = "train", id: str = "kd_data_pruning") -> Recipe:
        audit: Audit = replace(whole.stages["audit"], subjects=("start", "train"))
        kept = {"train" if name == judged else name: whole.stages[name] for name in names}
        teachers = whole.teachers if "teacher" in names else {}
        return replace(whole, id=id, teachers=teachers, stages={**kept, "audit": audit})

    return Proof(
        claim="A student that learns from a random half of the images, with a teacher that learned from all of them,"
        " classifies better than one with all images and no teacher, and than one with the random half and no teacher.",
        arms={
            "ours": only("teacher", "train"),
            "hardest": only("teacher", "score", "hardest", judged="hardest"),
            "everything": alone(unpruned),
            "alone": only("alone", judged="alone"),
            "everything_taught": arm(unpruned, PrunedKD(), name="kd_data_pruning"),
        },
        metric="accuracy",
        judge=BEST,
        beats=("everything", "alone"),
        seeds=(0, 1, 2, 3, 4),
        minutes=6.0,
        tune={"train.optim.lr": RATES},
        note="MNIST at 14 x 14 pixels: 2,500 of 5,000 images to learn from, 1,000 to choose by, 10,000 to judge. Which are"
        " drawn depends on the seed; the hardest have the largest EL2N over three probes of 200 steps, at their first three"
        " looks of ten. Every arm takes 400 steps of 64 images; the teacher's training (600 steps on all 5,000, shifted),"
        " its forward passes and the probes come on top. The weight of the soft term is that of the rule, 0.75 for a half."
        " 5,000 images were chosen after a run of 1,000 (seed 100, validation split), where pruning cost more than a teacher"
        " gave.",
    )
