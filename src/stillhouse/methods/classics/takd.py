"""Improved Knowledge Distillation via Teacher Assistant (Mirzadeh et al. 2019, arXiv 1902.03393): TAKD.

    L_k = (1 - alpha) CE(y, q_k) + alpha T² KL(p_{k-1} ‖ p_k),     k = 1 ... K

A chain of networks from large to small. Network 0 learns the labels; network k learns them and the outputs of network k -
1, as in Hinton's distillation; the last one is the student, those between are the teacher assistants. q_k is the softmax
of network k's logits, p_k that at temperature T, y the label. Where the student is far smaller than the teacher, an
assistant of a size between them is easier to follow than the teacher itself.

Each link is a stage of the recipe, and `teachers.lineage.Lineage` names them in order. How a link learns is `method`, any
that asks one teacher; a longer chain is one more stage.

Differs from the paper / the authors' code: KL is a sum over classes; in
imirzadeh/Teacher-Assistant-Knowledge-Distillation it is also averaged over them, which divides the soft term by their
number. The authors search alpha and T for every link; here they are Hinton's defaults. From memory: on CIFAR-100 the
plain networks of 10, 4 and 2 layers, and ResNets of 110, 20 and 8; `paper` takes the ResNets in the setting of most
tables, which is not the authors'.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import nn

from ...core.method import State, Update, advance
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Recipe, Scale, pick
from ...core.run import Run
from ...core.signal import Batch, Kind
from ...core.stage import Audit
from ...models.toys import ConvNet
from ...models.vision import ResNet
from ...teachers.lineage import Lineage
from ..images import NOTE, WIDER, against_hinton, arm, images
from .hinton import Hinton

PAPER = Paper(
    id="takd",
    title="Improved Knowledge Distillation via Teacher Assistant",
    authors=(
        "Seyed-Iman Mirzadeh", "Mehrdad Farajtabar", "Ang Li", "Nir Levine", "Akihiro Matsukawa", "Hassan Ghasemzadeh",
    ),
    year=2019,
    arxiv="1902.03393",
    venue="AAAI 2020",
    modality=("any",),
    data=("labels",),
    claim="Where the gap is large, a student learns more from an assistant of a size between than from its teacher.",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TAKD:
    """One link of the chain: learn from the stage before as `method` does, and say in the log which that is."""

    method: Any = Hinton()  # any that asks one teacher
    needs: ClassVar[frozenset[Kind]] = frozenset({"logits"})

    @property
    def equation(self) -> str:
        """That of `method`."""
        return getattr(self.method, "equation", "")

    def setup(self, student: nn.Module, run: Run) -> State:
        """As `method` wants it."""
        run.event("taught", by=getattr(run.teacher, "name", "the recipe's teacher"))
        return self.method.setup(student, run)

    def step(self, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        """As `method` does."""
        return self.method.step(s, batch, run)

    def advance(self, s: State, logs: Mapping[str, float], run: Run) -> None:
        """As `method` does."""
        advance(self.method, s, logs, run)


def recipe(scale: Scale = "small") -> Recipe:
    """Teacher, assistant, student: ConvNets on digits (smoke) and MNIST (small), ResNets on CIFAR-100 (paper).

    In `small` they have 73,000, 14,000 and 2,700 parameters.
    """
    plain = _direct(scale)
    between = pick(scale, smoke=ConvNet(width=6), small=ConvNet(width=7, depth=3), paper=ResNet(depth=20))
    link = replace(plain.stages["train"], method=TAKD())
    audit = Audit(subjects=("start", "teacher", "assistant", "alone", "train"), checks=plain.stages["audit"].checks)
    teacher, alone = plain.stages["teacher"], plain.stages["alone"]
    assistant = replace(link, student=between, label="Assistant")
    return replace(
        plain,
        teachers={"teacher": Lineage(stages=("teacher", "assistant"))},
        stages={"teacher": teacher, "assistant": assistant, "train": link, "alone": alone, "audit": audit},
    )


def _direct(scale: Scale) -> Recipe:
    """The same without an assistant."""
    return images(
        "takd", scale, Hinton(),
        student=pick(scale, smoke=ConvNet(width=4), small=ConvNet(width=3, depth=3), paper=ResNet(depth=8)),
        teacher=pick(scale, smoke=None, small=None, paper=ResNet(depth=110)),
    )  # fmt: skip


def proof() -> Proof:
    """With an assistant against without one, and against the labels alone."""
    claim = (
        "A student of 2,700 parameters that learns from an assistant of 14,000, which has learned from a teacher of 73,000,"
    )
    claim += " classifies better than one that learns from that teacher itself, and than one without a teacher."
    note = f"{NOTE} Here the student has 2,700 parameters. The assistant's 400 steps come on top too."
    return against_hinton(recipe("small"), claim, arms={"hinton": arm(_direct("small"), Hinton())}, tune=WIDER, note=note)
