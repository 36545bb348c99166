"""The image-classification experiment that the papers of `classics/`, `logits/` and `features/` share, so that their numbers
compare."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..audits.classification import Classification
from ..audits.validation import Validation
from ..core.method import Method
from ..core.optim import Optim
from ..core.proof import Proof
from ..core.recipe import Recipe, Scale, pick
from ..core.stage import Audit, Train
from ..data.images import Augment, Changed, Digits, Npz, Split, Standard
from ..models.toys import ConvNet
from ..models.vision import ResNet
from ..teachers.module import ModuleTeacher
from .classics.hinton import Hinton
from .classics.supervised import Supervised

CIFAR = Npz(path="cifar100.npz", augment=Augment(shift=4, flip=True))
SMALL = Standard(name="mnist", train=1000, valid=1000, halved=1, otherwise=Digits(split=Split(valid=0.2, test=0.3)))
WIDE = (64, 128, 256)
RATES = (3e-3, 1e-2, 3e-2, 1e-1)
WIDER = {"train.optim.lr": (*RATES, 3e-1)}  # of all arms, where the best rate of one would be the last of those
BEST = Validation(quantity="accuracy")  # whose favourite a proof reports beside the last step
NOTE = (
    "MNIST at 14 x 14 pixels, 1,000 images to learn from, 1,000 to choose by, 10,000 to judge; a ConvNet of 73,000"
    " parameters teaches one of 10,500. Every arm takes 400 steps of 64 images; the teacher's training (600 steps, shifted"
    " images) and forward passes come on top where there is one. The weights and the order depend on the seed, the split"
    " does not. Hinton's temperature (4) and share (0.9) were not searched."
)


def images(
    id: str,
    scale: Scale,
    method: Method,
    *,
    student: Any = None,
    teacher: Any = None,
    data: Any = None,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
    **train: Any,
) -> Recipe:
    """A teacher, a student that learns from it, and the same student on the labels alone.

    smoke: digits of 8 x 8 pixels; small: MNIST if it is found (see `data.images.Standard`), else those digits; paper:
    CIFAR-100 as `cifar100.npz`, resnet32x4 to resnet8x4, 240 epochs of SGD, the setting of most tables. `student`,
    `teacher` and `data` replace the spec of this scale; `before` are stages between the teacher's and the student's,
    `after` those before the audit, `train` further fields of the student's stage.
    """
    big = teacher or pick(
        scale, smoke=ConvNet(width=8), small=ConvNet(width=16, depth=3), paper=ResNet(depth=32, stem=32, widths=WIDE)
    )
    small = student or pick(
        scale, smoke=ConvNet(width=4), small=ConvNet(width=6, depth=3), paper=ResNet(depth=8, stem=32, widths=WIDE)
    )
    found = data or pick(scale, smoke=Digits(), small=SMALL, paper=CIFAR)
    steps = pick(scale, smoke=60, small=400, paper=187_500)
    batch = pick(scale, smoke=32, small=64, paper=64)
    sgd = Optim(name="sgd", lr=0.05, weight_decay=5e-4, schedule="cosine", warmup=0.0, clip=None)
    optim = pick(scale, smoke=Optim(lr=1e-2), small=Optim(lr=1e-2), paper=sgd)
    taught = Train(
        method=Supervised(), student=big, steps=pick(scale, smoke=60, small=600, paper=187_500), batch=batch,
        optim=pick(scale, smoke=Optim(lr=1e-2), small=Optim(lr=3e-3), paper=sgd),
        data=pick(scale, smoke=None, small=Changed(augment=Augment(shift=1)), paper=None),
    )  # fmt: skip
    alone = Train(method=Supervised(), steps=steps, batch=batch, optim=optim)
    return Recipe(
        id=id,
        student=small,
        data=found,
        teachers={"teacher": ModuleTeacher(spec=big, stage="teacher")},
        stages={
            "teacher": taught,
            **(before or {}),
            "train": replace(alone, method=method, **train),
            "alone": alone,
            **(after or {}),
            "audit": Audit(subjects=("start", "teacher", "alone", "train"), checks=(Classification(),)),
        },
    )


def arm(recipe: Recipe, method: Method | None = None, *, name: str = "hinton") -> Recipe:
    """The recipe as an arm of a proof: without the baseline, with another method if one is given. Arms of one name are one
    run for all papers that share the experiment."""
    stages = {key: stage for key, stage in recipe.stages.items() if key != "alone"}
    audit = replace(stages["audit"], subjects=tuple(s for s in stages["audit"].subjects if s != "alone"))
    made = replace(recipe, stages={**stages, "audit": audit})
    if method is None:
        return made
    train = replace(stages["train"], method=method, student=None, data=None, optims={})
    return replace(made, id=name, stages={"teacher": stages["teacher"], "train": train, "audit": audit})


def alone(recipe: Recipe) -> Recipe:
    """The student on the labels alone, at equal steps and items; its stage is called `train` too."""
    audit = replace(recipe.stages["audit"], subjects=("start", "train"))
    return replace(recipe, id="supervised", teachers={}, stages={"train": recipe.stages["alone"], "audit": audit})


def against_hinton(recipe: Recipe, claim: str, *, arms: Mapping[str, Recipe] | None = None, **settings: Any) -> Proof:
    """The proof that most of these papers share: better than the labels alone and than Hinton's distillation."""
    every = {"ours": arm(recipe), "hinton": arm(recipe, Hinton()), "alone": alone(recipe), **(arms or {})}
    usual: dict[str, Any] = {
        "beats": tuple(name for name in every if name != "ours"), "seeds": (0, 1, 2, 3, 4), "minutes": 6.0,
        "tune": {"train.optim.lr": RATES}, "judge": BEST, "note": NOTE,
    }  # fmt: skip
    return Proof(claim=claim, arms=every, metric="accuracy", **{**usual, **settings})
