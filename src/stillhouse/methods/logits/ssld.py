"""Beyond Self-Supervision: A Simple Yet Effective Network Distillation Alternative to Improve Backbones
(Cui et al. 2021, arXiv 2103.05959): SSLD.

    L = 1/2 KL(p ‖ m) + 1/2 KL(q ‖ m),     m = (p + q) / 2

p is the teacher's distribution over the classes, q the student's, both at temperature 1. No label is read, so images that
nobody has labelled do as well: a strong teacher goes through a large pool, what looks like a held-out image is left out, and
for every class the images that it is surest of are kept (4,000 in the paper; `data.pools.Mine`). The student learns from
these and the task's own images together (stage `pool`), and at the end a little longer from its own alone (stage `train`),
with the same loss.

Differs from the paper / the authors' code: known are the abstract and PaddleClas's documentation. As we remember that code,
an older version of it computed KL(p ‖ q) + KL(q ‖ p) under the name JS: `form="sum"`. What counts as near a held-out image,
how the steps are divided between the two stages, and the networks and rates of every scale are ours. The paper's strong
augmentation and long schedules are settings of the recipe (`data.augment`, `steps`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from ...core.method import State, Update
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Recipe, Scale, pick
from ...core.run import Run
from ...core.signal import Batch, Kind
from ...data.images import Digits, Known, Split, Standard
from ...data.pools import Mine, Mined, Pictures, Pool, Rest, Strays
from ...models.call import logits_of, weight_of
from ...models.earlier import Continued
from ...objectives.divergences import JSD, ForwardKL, ReverseKL
from ...teachers.local import same_classes
from ..classics.hinton import Hinton
from ..classics.supervised import Supervised
from ..images import BEST, CIFAR, RATES, images

PAPER = Paper(
    id="ssld",
    title="Beyond Self-Supervision: A Simple Yet Effective Network Distillation Alternative to Improve Backbones",
    authors=(
        "Cheng Cui", "Ruoyu Guo", "Yuning Du", "Dongliang He", "Fu Li", "Zewu Wu", "Qiwen Liu", "Shilei Wen", "Jizhou Huang",
        "Xiaoguang Hu", "Dianhai Yu", "Errui Ding", "Yanjun Ma",
    ),
    year=2021,
    arxiv="2103.05959",
    modality=("any",),
    data=("unlabelled", "labels", "documents"),
    claim="A student that only agrees with a strong teacher, on mined images without labels too, beats one with labels.",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SSLD:
    """Agree with the teacher; labels are not read."""

    form: Literal["js", "sum"] = "js"  # Jensen and Shannon's divergence; or both Kullback-Leibler divergences, added
    needs: ClassVar[frozenset[Kind]] = frozenset({"logits"})
    takes_topk: ClassVar[bool] = True
    takes_mixed: ClassVar[bool] = True

    @property
    def equation(self) -> str:
        """The objective with its live weights."""
        return "0.5 KL(p ‖ m) + 0.5 KL(q ‖ m), m = (p + q) / 2" if self.form == "js" else "KL(p ‖ q) + KL(q ‖ p)"

    def setup(self, student: nn.Module, run: Run) -> State:
        """The student alone."""
        return State(student=student)

    def step(self, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        """One update over all items."""
        said = run.teacher(batch, self.needs).distribution()
        student, teacher = same_classes(logits_of(s.student, batch), said)
        weight = weight_of(batch)
        yield Update(self._apart(student, teacher, weight).sum(), count=weight.sum())

    def _apart(self, student: Any, teacher: Any, weight: Tensor) -> Tensor:
        if self.form == "js":
            return JSD(beta=0.5)(student, teacher, weight=weight)
        return ForwardKL()(student, teacher, weight=weight) + ReverseKL()(student, teacher, weight=weight)


def recipe(scale: Scale = "small") -> Recipe:
    """Few labelled images and a pool with strays in it: digits (smoke), MNIST (small), CIFAR-100 and a folder (paper).

    The teacher knows all labels of the task. At `small` the student's owner has 200 images, and the pool holds the other
    2,800 and 1,200 pieces of photographs, of which half are kept. The stage `alone` has the 200 with their labels, as many
    steps, and no teacher.
    """
    few = Split(valid=0.2, test=0.3, labels=20, unlabelled=False)
    own = pick(
        scale,
        smoke=Digits(split=few),
        small=Standard(name="mnist", train=3000, valid=1000, halved=1, split=few, otherwise=Digits(split=few)),
        paper=CIFAR,
    )
    strays = pick(scale, smoke=100, small=1200, paper=0)
    pool: Any = Pool(parts={"rest": Rest(), "strays": Strays(count=strays)})
    if scale == "paper":
        pool = Pictures(path="pool")
    steps = pick(scale, smoke=50, small=360, paper=160_000)
    plain = images("ssld", scale, SSLD(), data=own)
    whole = plain.stages["train"].steps
    mined = replace(plain.stages["train"], data=Mined(), steps=steps, label="On the mined pool")
    slow = replace(plain.stages["train"].optim, lr=plain.stages["train"].optim.lr / 10)
    last = replace(plain.stages["train"], student=Continued(stage="pool"), steps=whole - steps, optim=slow)
    stages = {
        "teacher": replace(plain.stages["teacher"], data=Known()),
        "mine": Mine(pool=pool, count=pick(scale, smoke=40, small=200, paper=4000)),
        "pool": mined,
        "train": last,
    }
    return replace(plain, stages={**stages, **{name: plain.stages[name] for name in ("alone", "audit")}})


def _on(made: Recipe, method: Any, data: Any = None, *, before: tuple[str, ...] = ("teacher",)) -> Recipe:
    """An arm of one training stage that takes all the steps on `data`, the recipe's own if None."""
    train = replace(made.stages["alone"], method=method, data=data)
    audit = replace(made.stages["audit"], subjects=("start", "train"))
    stages = {**{name: made.stages[name] for name in before}, "train": train, "audit": audit}
    return replace(made, teachers=made.teachers if before else {}, stages=stages)


def proof() -> Proof:
    """The mined pool against labels, against Hinton's distillation and SSLD on the labelled images, and the raw pool."""
    made = recipe("small")
    raw = Pool(parts={"own": Known(every=False), "pool": made.stages["mine"].pool})
    return Proof(
        claim="A student of 10,500 parameters that agrees with its teacher on 200 images and on what the teacher mined from"
        " a pool, of which 30 % are strays, classifies better than one with the 200 labels, than Hinton's distillation on"
        " the 200, than agreement on the 200 alone, and than agreement on the pool as it is.",
        arms={
            "ours": _on(made, SSLD(), Mined(), before=("teacher", "mine")),
            "raw": _on(made, SSLD(), raw),
            "few": _on(made, SSLD()),
            "hinton": _on(made, Hinton()),
            "alone": _on(made, Supervised(), before=()),
        },
        metric="accuracy",
        judge=BEST,
        beats=("raw", "few", "hinton", "alone"),
        seeds=(0, 1, 2, 3, 4),
        minutes=6.0,
        tune={"train.optim.lr": RATES},
        note="MNIST at 14 x 14 pixels; the teacher (73,000 parameters, 600 steps) knows the labels of 3,000 images."
        " 10,000 to judge. Every arm takes 400 steps of 64 images, and one stage, where the paper (and the recipe, with"
        " 360 and 40 steps) ends on the task's own images alone: of so few, they are learned by heart. `ours` keeps at"
        " most 200 images of every class, half of the pool; how many digits it holds was not used. `raw` has the same"
        " 200 images and the whole pool. The teacher's pass over the pool comes on top. The loss has no weight to"
        " choose.",
    )
