"""The node-classification experiment that the papers on graphs share, so that their numbers compare."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..audits.nodes import NodeClassification
from ..core.method import Method
from ..core.optim import Optim
from ..core.recipe import Recipe, Scale, pick
from ..core.stage import Audit, Train
from ..data.graphs import Blocks, GraphFile, Labelled, NodeSplit
from ..models.graph import NodeMLP
from ..teachers.graph import NodeTeacher
from .classics.supervised import Supervised

SUBJECTS = ("start", "teacher", "alone", "train")
NOTE = (
    "Cora, 1,000 test nodes, the same for every seed; half of them (which, the seed draws) arrive after training and are"
    " judged in the whole graph. The labelled and validation nodes, the weights and the order depend on the seed."
)


def nodes(id: str, scale: Scale, method: Method, *, teacher: Any, student: NodeMLP, steps: int, batch: int) -> Recipe:
    """A teacher on the graph, a student on features that learns from it, and the same student on the labels alone.

    smoke: a block model; small: Cora if it is found (see `GraphFile`), else a block model, inductive; paper: `cora.npz`
    of the CPF collection, transductive, split anew for every seed. `steps` and `batch` are the student's at `paper`.
    """
    few = NodeSplit(labels=10, valid=10, test=100)
    data = pick(
        scale,
        smoke=Blocks(nodes=300, classes=4, inputs=24, split=few),
        small=GraphFile(setting="inductive", split=NodeSplit(unseen=0.5), otherwise=Blocks()),
        paper=GraphFile(path="cora.npz", split=NodeSplit(test=0), largest=True),
    )
    steps = pick(scale, smoke=60, small=400, paper=steps)
    batch = pick(scale, smoke=32, small=256, paper=batch)
    optim = Optim(lr=1e-2, weight_decay=pick(scale, smoke=0.0, small=0.1, paper=0.1))
    taught = Train(
        method=Supervised(), student=teacher, data=Labelled(), steps=pick(scale, smoke=60, small=200, paper=200),
        batch=pick(scale, smoke=40, small=140, paper=140), optim=replace(optim, weight_decay=1.0),
    )  # fmt: skip
    check = NodeClassification(draws=pick(scale, smoke=200, small=1000, paper=2000))
    return Recipe(
        id=id,
        student=pick(scale, smoke=NodeMLP(width=16), small=student, paper=student),
        data=data,
        teachers={"teacher": NodeTeacher(spec=teacher, stage="teacher")},
        stages={
            "teacher": taught,
            "train": Train(method=method, steps=steps, batch=batch, optim=optim),
            "alone": Train(method=Supervised(), data=Labelled(), steps=steps, batch=batch, optim=optim),
            "audit": Audit(subjects=SUBJECTS, checks=(check,)),
        },
    )


def alone(recipe: Recipe) -> Recipe:
    """The student on the labels alone, at equal steps and nodes, and nothing else; its stage is called `train` too."""
    audit = replace(recipe.stages["audit"], subjects=("start", "train"))
    return replace(recipe, teachers={}, stages={"train": recipe.stages["alone"], "audit": audit})


def taught(recipe: Recipe) -> Recipe:
    """The teacher and its student without the baseline, for a proof that has it as an arm."""
    audit = replace(recipe.stages["audit"], subjects=("start", "teacher", "train"))
    return replace(recipe, stages={"teacher": recipe.stages["teacher"], "train": recipe.stages["train"], "audit": audit})
