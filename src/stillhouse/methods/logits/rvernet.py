"""Knowledge distillation to effectively attain both region-of-interest and global semantics from an image where multiple
objects appear (Jin 2024, arXiv 2407.08257): RveRNet.

    L_part = 1/2 CE(y, q_class) + 1/2 CE(argmax z_cnn, q_distilled),     L = CE(y, softmax W [z_inside, z_around])

An image comes as two: the region of interest with all else dark, and the rest with the region dark (`data.regions`). A
vision transformer for each learns with a distillation token what a convolutional network says of the same part (L_part;
q_class and q_distilled are the heads of its two tokens, z the mean of both heads' logits). Then both are frozen, and a
perceptron W of one hidden layer of 640 learns from their logits together what the image shows (L).

Sure, from Seonwhee-Genome/RveRNet: the two parts, the frozen modules, the perceptron and its rate of 4e-3. Of the
abstract: that DeiTs make the best modules, and how the region's place matters.

Differs from the paper / the authors' code: the masks come with the data, where the paper asks a segmentation model for
them. The distillation of the parts is DeiT's (Touvron et al. 2020, arXiv 2012.12877), as the paper uses such models ready
made. The networks, steps and rates of every scale are ours, and so is the probe that moves the region
(`audits.regions.Moved`). `paper` takes an NPZ file `regions.npz` of one's own, for the paper's food images are not here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import nn

from ...audits.classification import Classification
from ...audits.regions import Moved
from ...audits.validation import Validation
from ...core.method import State, Update
from ...core.optim import Optim
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Recipe, Scale, pick
from ...core.run import Run, RunError
from ...core.signal import Batch, Kind
from ...core.stage import Audit, Train
from ...data.regions import Regions, Scenes
from ...models.call import logits_of, weight_of
from ...models.toys import ConvNet
from ...models.views import Fused, LateFusion, View
from ...models.vision import ResNet, ViT
from ...objectives.divergences import cross_entropy
from ...teachers.module import ModuleTeacher
from ..classics.supervised import Supervised
from ..tokens import two_tokens

PAPER = Paper(
    id="rvernet",
    title="Knowledge distillation to effectively attain both region-of-interest and global semantics from an image where"
    " multiple objects appear",
    authors=("Seonwhee Jin",),
    year=2024,
    arxiv="2407.08257",
    modality=("image",),
    data=("labels",),
    claim="Two distilled transformers, for the region of interest and for the rest, tell ambiguous images apart together.",
)


@dataclass(frozen=True, kw_only=True)
class TokenTaught:
    """A transformer's class token learns the label, its distillation token what a teacher would choose."""

    teacher: str = "teacher"
    hard: float = 0.5  # weight of the teacher's choice; the label has the rest
    needs: ClassVar[frozenset[Kind]] = frozenset({"logits"})

    @property
    def equation(self) -> str:
        """The objective with its live weights."""
        return f"{1 - self.hard:g} CE(y, q_class) + {self.hard:g} CE(argmax z, q_distilled)"

    def setup(self, student: nn.Module, run: Run) -> State:
        """The student alone; RunError if the teacher is not there."""
        if self.teacher not in run.teachers:
            raise RunError(f"no teacher {self.teacher!r}; there are {', '.join(run.teachers) or 'none'}: set method.teacher")
        return State(student=student)

    def step(self, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        """One update over all items; those without a label have the teacher's choice alone."""
        yield two_tokens(s.student, batch, run.teachers[self.teacher], self.hard)


@dataclass(frozen=True, kw_only=True)
class RveRNet:
    """A perceptron learns the label from what both networks say."""

    needs: ClassVar[frozenset[Kind]] = frozenset()

    def setup(self, student: nn.Module, run: Run) -> State:
        """The student alone; RunError if it does not join networks."""
        if not isinstance(student, Fused):
            raise RunError("the student joins the networks of two stages: {use: models.views.LateFusion, stages: [...]}")
        return State(student=student)

    def step(self, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        """One update over the labelled items."""
        weight = weight_of(batch) * (batch["labels"] >= 0)
        yield Update(cross_entropy(logits_of(s.student, batch), batch["labels"], weight=weight).sum(), count=weight.sum())


def recipe(scale: Scale = "small") -> Recipe:
    """Shapes in surroundings (smoke, small); an NPZ file of images with masks, `regions.npz` (paper).

    Each convolutional network and each transformer sees one part. The stage `alone` is a transformer that sees the whole
    image, without a teacher, for as many steps as both parts' transformers and the perceptron take.
    """
    small = ViT(patch=4, width=32, depth=3, heads=4, distilled=True)
    vit = pick(
        scale, smoke=ViT(patch=4, width=16, depth=2, heads=2, distilled=True), small=small,
        paper=ViT(patch=16, width=384, depth=12, heads=6, distilled=True),
    )  # fmt: skip
    cnn = pick(scale, smoke=ConvNet(width=8), small=ConvNet(width=16), paper=ResNet(depth=56))
    data = pick(scale, smoke=Scenes(count=600), small=Scenes(), paper=Regions(path="regions.npz"))
    batch, steps = pick(scale, smoke=32, small=64, paper=64), pick(scale, smoke=60, small=250, paper=50_000)
    optim = Optim(lr=pick(scale, smoke=5e-3, small=3e-3, paper=5e-4))
    usual = Train(method=Supervised(), steps=steps, batch=batch, optim=optim)
    stages: dict[str, Any] = {}
    for part in ("inside", "around"):
        stages[f"cnn_{part}"] = replace(usual, student=View(of=cnn, part=part), optim=Optim(lr=1e-2))
    for part in ("inside", "around"):
        stages[part] = replace(usual, method=TokenTaught(teacher=f"cnn_{part}"), student=View(of=vit, part=part))
    head = Optim(lr=4e-3)
    stages["train"] = replace(usual, method=RveRNet(), steps=steps // 2, optim=head)
    alone = View(of=replace(vit, distilled=False), part="whole")
    stages["alone"] = replace(usual, student=alone, steps=2 * steps + steps // 2)
    judged = ("start", "inside", "around", "alone", "train")
    stages["audit"] = Audit(subjects=judged, checks=(Classification(), Moved()))
    teachers = {
        f"cnn_{part}": ModuleTeacher(spec=View(of=cnn, part=part), stage=f"cnn_{part}") for part in ("inside", "around")
    }
    return Recipe(id="rvernet", student=LateFusion(), data=data, teachers=teachers, stages=stages)


def _arm(made: Recipe, stages: Mapping[str, Any], **changes: Any) -> Recipe:
    """The recipe with these stages, judged on `start` and the last of them."""
    audit = replace(made.stages["audit"], subjects=("start", "train"))
    return replace(made, stages={**stages, "audit": audit}, **changes)


def proof() -> Proof:
    """Both parts against the region alone, against the whole image, and against parts that nobody taught."""
    made = recipe("small")
    every = {name: stage for name, stage in made.stages.items() if name not in ("alone", "audit")}
    plain = {part: replace(made.stages["alone"], student=View(of=_untaught(made, part), part=part), steps=every[part].steps)
             for part in ("inside", "around")}  # fmt: skip
    region = replace(every["inside"], steps=made.stages["alone"].steps)
    return Proof(
        claim="Where shapes mean one thing or another by what is around them, two transformers of which one sees the region"
        " and one the rest, each taught by a convolutional network, classify better together than one that sees the region,"
        " than one that sees the whole image, and than two that nobody taught.",
        arms={
            "ours": _arm(made, every),
            "untaught": _arm(made, {**plain, "train": every["train"]}, teachers={}),
            "region": _arm(made, {"cnn_inside": every["cnn_inside"], "train": region},
                           teachers={"cnn_inside": made.teachers["cnn_inside"]}, student=region.student),
            "whole": _arm(made, {"train": made.stages["alone"]}, teachers={}, student=made.stages["alone"].student),
        },
        metric="accuracy", judge=Validation(quantity="accuracy"),
        beats=("untaught", "region", "whole"),
        seeds=(0, 1, 2, 3, 4),
        minutes=8.0,
        tune={"train.optim.lr": (1e-3, 3e-3, 1e-2)},
        note="Made images of 16 x 16 pixels, 450 to learn from, 450 to choose by, 900 to judge. Four of the six classes are"
        " told apart by the surroundings alone. Every arm takes 625 steps of 64 images: twice 250 for the parts and 125 for"
        " the perceptron, or 625 for one transformer. The convolutional networks (250 steps each) come on top where there"
        " are any. The rate that is tuned is the perceptron's, or the only transformer's; the parts keep 0.003.",
    )  # fmt: skip


def _untaught(made: Recipe, part: str) -> Any:
    return replace(made.stages[part].student.of, distilled=False)
