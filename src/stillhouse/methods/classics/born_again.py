"""Born Again Neural Networks (Furlanello et al. 2018, arXiv 1805.04770).

    generation 0:    L = CE(y, q)
    generation k:    L = labels CE(y, q) + KL(p ‖ q)                     target = "teacher"
                     L = sum_i m_i CE(y_i, q_i) / sum_i m_i              target = "confidence" (CWTM)
                     L = labels CE(y, q) + KL(permuted p ‖ q)            target = "permuted" (DKPP)

Every generation has the architecture of the one before and learns from its outputs p, without a temperature; q is the
softmax of its own, y the label. m_i is the largest of the probabilities p_i: CWTM keeps of the teacher only how sure it
is, as a weight of the item within its batch. DKPP keeps the largest of p where it is and shuffles the others among
themselves: what the teacher says of the wrong classes is then true only as a whole. The two tell whether it is weights or
knowledge that helps. The paper also averages all generations as one ensemble.

Each generation is a stage of the recipe, `teachers.lineage.Lineage` names them in order, and `models.together.Together`
is the ensemble.

Differs from the paper / the authors' code: from memory of the paper, which publishes no code. KL in place of
cross-entropy; the gradient is the same. Whether the labels are learned too ("BAN+L") differs between its tables;
`labels=1` does. The shuffle of an item depends on its input, the step and the run's seed alone, so it needs inputs that
are one tensor. An item without a label (negative) has no part in CWTM.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ...core.method import State, Update
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Recipe, Scale, pick
from ...core.run import Run, RunError
from ...core.signal import Batch, Kind
from ...core.stage import Audit, Train
from ...models.together import Together
from ...models.vision import ResNet
from ...objectives.divergences import ForwardKL, cross_entropy
from ...teachers.lineage import Lineage
from ..images import BEST, RATES, alone, images
from ..outputs import Outputs, added, outputs, told
from .hinton import Hinton

PAPER = Paper(
    id="born_again",
    title="Born Again Neural Networks",
    authors=("Tommaso Furlanello", "Zachary C. Lipton", "Michael Tschannen", "Laurent Itti", "Anima Anandkumar"),
    year=2018,
    arxiv="1805.04770",
    venue="ICML 2018",
    modality=("any",),
    data=("labels",),
    claim="A student of its teacher's own architecture becomes better than its teacher.",
)


@dataclass(frozen=True, kw_only=True)
class BornAgain:
    """One generation: learn what the generation before says."""

    labels: float = 0.0  # weight of the labels' cross-entropy
    target: Literal["teacher", "confidence", "permuted"] = "teacher"  # confidence: CWTM, permuted: DKPP
    needs: ClassVar[frozenset[Kind]] = frozenset({"logits"})
    takes_mixed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.target == "confidence" and self.labels:
            raise ValueError("target=confidence is the labels' cross-entropy, weighted: leave labels at 0")

    @property
    def equation(self) -> str:
        """The objective with its live weights."""
        if self.target == "confidence":
            return "mean of CE(y, q), weighted by max p"
        return told({"CE(y, q)": self.labels, "KL(permuted p ‖ q)" if self.target == "permuted" else "KL(p ‖ q)": 1.0})

    def setup(self, student: nn.Module, run: Run) -> State:
        """The student alone, as new as it is built."""
        run.event("taught", by=getattr(run.teacher, "name", "the recipe's teacher"))
        return State(student=student)

    def step(self, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        """One update over all items; over those with a label if the target is the confidence."""
        said = outputs(s, batch, run, self.needs)
        if self.target == "confidence":
            yield self._weighted(said)
            return
        teacher = permuted(said.teacher, batch, run) if self.target == "permuted" else said.teacher
        terms = {"kl": (1.0, ForwardKL()(said.student, teacher, weight=said.weight).sum())}
        if self.labels:
            terms["cross_entropy"] = self.labels, said.cross_entropy()
        yield added(terms, said.weight.sum())

    def _weighted(self, said: Outputs) -> Update:
        """The batch's mean of the labels' cross-entropy, weighted by how sure the teacher is."""
        sure = said.teacher.detach().float().softmax(-1).amax(-1)
        loss = said.each(lambda labels, weight: cross_entropy(said.student, labels, weight=weight * sure))
        count = torch.stack([(weight * sure * (labels >= 0)).sum() for labels, weight in said.answers]).sum()
        return added({"cross_entropy": (1.0, loss)}, count)


def permuted(teacher: Tensor, batch: Batch, run: Run) -> Tensor:
    """The logits `[B, V]` with all but the largest of each item shuffled among themselves."""
    inputs = batch["inputs"]
    if not isinstance(inputs, Tensor) or teacher.shape[:-1] != inputs.shape[:1]:
        raise RunError("target=permuted is for items of one tensor each, such as images, all of which count")
    order = torch.arange(teacher.shape[-1]).repeat(len(teacher), 1)
    for row, item, best in zip(order, inputs.detach().cpu(), teacher.argmax(-1).tolist(), strict=True):
        key = zlib.crc32(item.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        rest = row[row != best]
        row[row != best] = rest[torch.randperm(len(rest), generator=run.rng("permuted", key))]
    return teacher.gather(-1, order.to(teacher.device))


def recipe(scale: Scale = "small") -> Recipe:
    """Generation 0 (`alone`), 1 (`first`) and 2 (`train`), and all three averaged (`together`).

    ConvNets on digits (smoke) and MNIST (small), WRN-28-10 on CIFAR-100 (paper); see `methods.images`.
    """
    wide = ResNet(depth=28, widths=(160, 320, 640), preactivated=True, dropout=0.3)
    method = pick(scale, smoke=BornAgain(labels=1.0), small=BornAgain(), paper=BornAgain())
    made = images("born_again", scale, method, student=pick(scale, smoke=None, small=None, paper=wide))
    train, generations = made.stages["train"], ("alone", "first", "train")
    return replace(
        made,
        teachers={"teacher": Lineage(stages=("alone", "first"))},
        stages={
            "alone": replace(made.stages["alone"], label="Generation 0"),
            "first": replace(train, label="Generation 1"),
            "train": replace(train, label="Generation 2"),
            "together": Together(stages=generations, label="All three averaged"),
            "audit": Audit(subjects=("start", "alone", "first", "together", "train"), checks=made.stages["audit"].checks),
        },
    )


def proof() -> Proof:
    """The second generation against the labels, for as long as one of it and as all of it; both controls and the ensemble
    beside it."""
    ours, once = recipe("small"), alone(recipe("small"))
    generations = sum(isinstance(stage, Train) for stage in ours.stages.values())
    weighted, shuffled = (
        ours.set("first.method.target", how).set("train.method.target", how) for how in ("confidence", "permuted")
    )
    return Proof(
        claim="A network that learns from the outputs of one of its own kind, which has learned so itself, classifies better"
        " than one that learns from the labels for as many steps as one generation, and for as many as all three.",
        arms={
            "ours": ours,
            "alone": once,
            "long": once.set("train.steps", generations * once.stages["train"].steps),
            "cwtm": weighted,
            "dkpp": shuffled,
            "ensemble": ours,
            "hinton": replace(
                ours,
                teachers={"teacher": Lineage(stages=("alone",))},
                stages={
                    "alone": ours.stages["alone"],
                    "train": replace(ours.stages["train"], method=Hinton(), steps=2 * once.stages["train"].steps),
                    "audit": replace(ours.stages["audit"], subjects=("start", "alone", "train")),
                },
            ),
        },
        metric="accuracy",
        judge=BEST,
        subjects={"ensemble": "together"},
        beats=("alone", "long"),
        seeds=(0, 1, 2, 3, 4),
        minutes=6.0,
        tune={"train.optim.lr": RATES},
        note="MNIST at 14 x 14 pixels, 1,000 images to learn from, 1,000 to choose by, 10,000 to judge; every generation"
        " is a ConvNet of 10,500 parameters that takes 400 steps of 64 images, so `ours`, `cwtm` and `dkpp` take 1,200"
        " in all, as `long` does on the labels alone, and the passes of the generation that teaches on top. `alone`"
        " takes 400. The rate is chosen for the last generation, those before it keep 0.01; `ensemble` has a rate of its"
        " own. `hinton` takes 400 steps on the labels and 800 with that network as its teacher, at temperature 4 and a share"
        " of 0.9. The weights and the order depend on the seed, the split does not.",
    )
