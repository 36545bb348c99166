"""One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge Distillation (Hao et al. 2023, arXiv
2310.19444).

    L = labels CE(y, q) + soft E(q, p) + exits · sum_s E(q_s, p)
    E(q, p) = -sum_k [(p_k + e_k)^power - e_k] log q_k

p is the teacher's distribution, q the student's, q_s that of an exit: a small branch from the end of the student's
stage s to logits of its own. e is the one-hot label. So every stage learns from the teacher's answer alone, and nothing
inside a teacher of another kind (a transformer for a convolutional student, say) is compared. Power 1 is the
cross-entropy with the teacher; above 1 the label's part grows, (1 + p_y)^power - 1, and the others shrink to p_k^power.
The exits are thrown away.

Both softmaxes are at `temperature`, and there is no factor T². An item without a label has no E.

Differs from the paper / the authors' code: the stages' ends are found (of a transformer or mixer four blocks), as many
as there are; from memory the code has four. Exits have group norms in place of batch norms. They classify `width`
features: the code takes the wider of student and teacher, here it is the width of the student's last stage unless it is
set, so that stored answers teach as well. A class token that is merged around goes through a linear layer of its own.
Initial weights are torch's own. The code's exponents for student and exits may differ; here they are one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...core.engine import to_device
from ...core.method import State, Update
from ...core.optim import Optim
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Recipe, Scale, pick
from ...core.run import Run, RunError
from ...core.signal import Batch, Kind
from ...models.adapters import Adapted, width
from ...models.call import answers, dense, weight_of
from ...models.exits import exit_from
from ...models.taps import chosen, ends_of_stages, layers, shape_at, tapped
from ...models.vision import Mixer, ViT
from ...objectives.decoupled import enhanced_cross_entropy
from ...objectives.divergences import cross_entropy
from ...teachers.local import same_classes
from ..classics.fitnet import FitNet
from ..images import against_hinton, arm, images
from ..outputs import added, check_temperature, told

PAPER = Paper(
    id="ofa_kd",
    title="One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge Distillation",
    authors=("Zhiwei Hao", "Jianyuan Guo", "Kai Han", "Yehui Tang", "Han Hu", "Yunhe Wang", "Chang Xu"),
    year=2023,
    arxiv="2310.19444",
    venue="NeurIPS 2023",
    modality=("image",),
    data=("labels",),
    claim="A student of another architecture than its teacher learns best when all its stages learn the teacher's answers.",
)


class Exits(Adapted):
    """A student with an exit from each of the `taps`."""

    taps: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class OFA:
    """Give the teacher's answer at every stage."""

    labels: float = 1.0
    soft: float = 1.0  # of the student's own answer
    exits: float = 1.0  # of each exit's
    power: float = 1.0  # 1 to 1.5
    temperature: float = 1.0
    layers: tuple[str, ...] = ()  # of the student, names or globs; none named: the ends of its stages
    width: int | None = None  # of the features that an exit classifies; None: of the student's last stage
    needs: ClassVar[frozenset[Kind]] = frozenset({"logits"})
    takes_mixed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_temperature(self.temperature)
        if self.power <= 0 or (self.width is not None and self.width < 1):
            raise ValueError("power is above 0 (1 to 1.5 is usual), width 1 or more")

    @property
    def equation(self) -> str:
        """The objective with its live weights."""
        return told({"CE(y, q)": self.labels, "E(q, p)": self.soft, "sum E(q_s, p)": self.exits})

    def setup(self, student: nn.Module, run: Run) -> State:
        """The student and its exits."""
        found = layers(student, to_device(run.source.batch(range(min(2, len(run.source))), 0), run.device))
        taps = chosen(found, self.layers) if self.layers else ends_of_stages(found)
        if not taps:
            raise RunError("the student has no stages whose ends could be found: name its layers (method.layers)")
        shapes = [shape_at(found, tap) for tap in taps]
        run.event("layers", text=", ".join(f"{tap} {list(shape)}" for tap, shape in zip(taps, shapes, strict=True)))
        wide = self.width or width(shapes[-1])
        branches = [exit_from(shape, wide, run.source.classes, len(taps) - 1 - i) for i, shape in enumerate(shapes)]
        s = Exits(student, branches)
        s.taps = tuple(taps)
        return s

    def step(self, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        """One update over all items."""
        logits, seen = tapped(s.student, batch, s.taps)
        own, teacher = same_classes(dense(logits), run.teacher(batch, self.needs).need("logits"))
        pairs = answers(batch)

        def learned(said: Tensor) -> Tensor:
            settings = {"power": self.power, "temperature": self.temperature}
            each = [enhanced_cross_entropy(said, teacher, labels, weight=weight, **settings) for labels, weight in pairs]
            return torch.stack(each).sum()

        terms = {"cross_entropy": (self.labels, torch.stack([cross_entropy(own, y, weight=w) for y, w in pairs]).sum())}
        if self.soft:
            terms["soft"] = (self.soft, learned(own))
        if self.exits:
            said = [branch(seen[tap]) for branch, tap in zip(s.adapters, s.taps, strict=True)]
            terms["exits"] = (self.exits, torch.stack([learned(z) for z in said]).sum())
        yield added(terms, weight_of(batch).sum())


def recipe(scale: Scale = "small") -> Recipe:
    """A convolutional network teaches a mixer: digits (smoke), MNIST (small); a transformer: `cifar100.npz` (paper).

    The paper's networks are those of ImageNet at 224 pixels; the pair at the scale of the paper and its optimizer are ours.
    """
    student = pick(
        scale, smoke=Mixer(patch=2, width=16, depth=2), small=Mixer(patch=2, width=32, depth=2),
        paper=ViT(width=192, depth=8, heads=3),
    )  # fmt: skip
    made = images("ofa_kd", scale, OFA(power=pick(scale, smoke=1.0, small=1.0, paper=1.4)), student=student)
    adamw = Optim(lr=5e-4, weight_decay=0.05, schedule="cosine")
    return made.set("train.optim", adamw).set("alone.optim", adamw) if scale == "paper" else made


def proof() -> Proof:
    """A convolutional teacher's mixer against the labels alone, soft targets, and a hint."""
    ours = recipe("small")
    claim = "A mixer of which all stages learn the answers of a convolutional network classifies better than one that learns"
    claim += " them at its end, than one that is led to that network's features, and than one without a teacher."
    note = (
        "MNIST at 14 x 14 pixels, 1,000 images to learn from, 1,000 to choose by, 10,000 to judge; a ConvNet of 73,000"
        " parameters teaches an MLP-Mixer of 21,000. Every arm takes 400 steps of 64 images; the teacher's 600 (shifted"
        " images), its forward passes, and in `ours` the exits come on top. `ours` and `hint` have the labels in full"
        " beside their terms, `hinton` a tenth of them. The weights and the order depend on the seed, the split does"
        " not."
    )
    return against_hinton(ours, claim, arms={"hint": arm(ours, FitNet(), name="hint")}, note=note)
