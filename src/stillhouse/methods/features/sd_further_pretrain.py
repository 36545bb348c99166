"""Self-Distillation for Further Pre-training of Transformers (Lee et al. 2022, arXiv 2210.02871).

    L = mean over hidden patches of (x - x̂)² + weight · ‖c_S - c_T‖²

A model was pre-trained on images of many kinds. It is pre-trained further on the images at hand, without labels, and then
teaches: the student begins again where the first pre-training ended, tells hidden pixels of the same images, and computes of
the whole image what the teacher computes of it: c is the class token after the last norm. Then the student is fine-tuned.
x are the normalised pixels of a patch, x̂ what the student's decoder says. Further pre-training alone overfits where images
are few; what its result knows, learned again from the start, stays nearer to that start (shown for a linear model).

More rounds are more stages: name the earlier ones in `teachers.teacher.stages`, and each learns from the one before.

Differs from the paper / the authors' code: seanie12/self-distillation propagates the two losses one after the other, here
they are one sum; the gradient is the same. Without a class token c is the mean of the patches. Text, where words are hidden
in place of patches, is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import nn

from ...audits.validation import Validation
from ...core.method import State, Update
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Recipe, Scale, pick
from ...core.run import Run, RunError
from ...core.signal import Batch, Kind
from ...data.images import Augment, Split
from ...models.earlier import Continued
from ...models.masked import Pretrained
from ..masked import (
    MAE,
    RATES,
    WHOLE,
    MaskedTeacher,
    both,
    data,
    judged,
    pretraining,
    seen,
    share,
    student,
    summed,
    tuning,
)  # fmt: skip

PAPER = Paper(
    id="sd_further_pretrain",
    title="Self-Distillation for Further Pre-training of Transformers",
    authors=("Seanie Lee", "Minki Kang", "Juho Lee", "Sung Ju Hwang", "Kenji Kawaguchi"),
    year=2022,
    arxiv="2210.02871",
    venue="ICLR 2023",
    modality=("image",),
    data=("unlabelled", "labels"),
    claim="A transformer that is pre-trained further with itself as teacher classifies better than one that is so without.",
)


@dataclass(frozen=True, kw_only=True)
class SelfDistil:
    """Tell hidden pixels, and see whole images as the teacher does."""

    weight: float = 1.0  # of the class token's squared distance
    ratio: float = 0.75  # of the patches that are hidden
    normalised: bool = True  # every patch's pixels at mean 0 and variance 1
    needs: ClassVar[frozenset[Kind]] = frozenset({"features"})
    takes_mixed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        share(self.ratio)

    @property
    def equation(self) -> str:
        """The objective with its live weights."""
        return f"mean (x - x̂)² + {self.weight:g} ‖c_S - c_T‖²"

    def setup(self, student: nn.Module, run: Run) -> State:
        """The student alone; RunError if the teacher is wider or narrower."""
        own, theirs = both(student, run)
        if own.into.in_features != theirs.into.in_features:
            raise RunError(
                f"a model that teaches itself has one width, and student and teacher are {own.into.in_features} and "
                f"{theirs.into.in_features} wide"
            )
        return State(student=own)

    def step(self, s: Any, batch: Batch, run: Run) -> Iterator[Update]:
        """One update over all items."""
        own, images = s.student, batch["inputs"]
        kept = seen(own, batch, run, self.ratio)
        decoded = own.decode(own.encode(images, kept)[-1], kept)[-1]
        with torch.no_grad():
            theirs = run.teacher.module.summary(images)  # type: ignore[attr-defined]
        gap = (own.summary(images).float() - theirs.float()).square().sum(-1)
        pixels = own.pixel_gap(images, decoded, kept, normalised=self.normalised)
        yield summed(batch, pixels=(1.0, pixels), summary=(self.weight, gap))


def recipe(scale: Scale = "small") -> Recipe:
    """From distorted images to plain ones: digits (smoke), MNIST, 500 images of which 5 of each digit have a label (small).

    `paper` begins with ViT-B on the folder `imagenet` and goes on with a folder `pets`; 20,000 steps of 64 images.
    """
    return Recipe(
        id="sd_further_pretrain",
        student=student(scale),
        data=_target(scale),
        teachers={"teacher": MaskedTeacher(stages=("further",))},
        stages={
            "generic": pretraining(scale, MAE(), data=_generic(scale)),
            "further": _again(scale, MAE()),
            "train": _again(scale, SelfDistil()),
            "tuned_further": _tuning(scale, "further"),
            "tuned": _tuning(scale, "train"),
            "audit": judged("start", "tuned_further", "tuned"),
        },
    )


def _target(scale: Scale) -> Any:
    return replace(WHOLE, path="pets", split=Split(valid=0.1, test=0.2)) if scale == "paper" else data(scale, train=500)


def _generic(scale: Scale) -> Any:
    """Images of more kinds than those at hand."""
    other = Augment(operations=3, magnitude=1.0)
    found = data(scale)
    return found if scale == "paper" else replace(found, augment=other)


def _again(scale: Scale, method: MAE | SelfDistil) -> Any:
    """A stage that begins where generic pre-training ended."""
    made = pretraining(scale, method, student=Continued(stage="generic"))
    lr = pick(scale, smoke=2e-3, small=1e-3, paper=1.5e-4)
    steps, batch = pick(scale, smoke=30, small=300, paper=20_000), pick(scale, smoke=32, small=64, paper=64)
    decay = pick(scale, smoke=0.05, small=0.05, paper=0.01)
    return replace(made, steps=steps, batch=batch, optim=replace(made.optim, lr=lr, weight_decay=decay))


def _tuning(scale: Scale, stage: str) -> Any:
    made = tuning(scale, Pretrained(stage=stage))
    return replace(made, data=None) if scale == "paper" else made


def proof() -> Proof:
    """Against further pre-training, as long and twice as long, and against fine-tuning at once."""
    made = recipe("small")
    ours = replace(made, stages={**made.stages, "audit": judged("start", "tuned")})
    ours = replace(ours, stages={name: stage for name, stage in ours.stages.items() if name != "tuned_further"})
    rest = {name: ours.stages[name] for name in ("tuned", "audit")}
    generic, further = made.stages["generic"], made.stages["further"]
    plain = replace(ours, teachers={}, stages={"generic": generic, "train": further, **rest})
    longer = plain.set("train.steps", 2 * further.steps)
    at_once = replace(ours, teachers={}, stages={"generic": generic, **rest}).set("tuned.student.stage", "generic")
    return Proof(
        claim="A masked autoencoder that is pre-trained further on 500 images with itself as teacher and then fine-tuned"
        " classifies better than one that is pre-trained further as long, than one that is twice as long, and than one that"
        " is fine-tuned at once.",
        arms={"ours": ours, "further": plain, "longer": longer, "generic": at_once},
        metric="accuracy",
        judge=Validation(quantity="accuracy"),
        subject="tuned",
        beats=("further", "longer", "generic"),
        seeds=(0, 1, 2, 3, 4),
        minutes=10.0,
        tune={"tuned.optim.lr": RATES},
        note="MNIST at 14 x 14 pixels. A masked autoencoder whose encoder has 53,000 parameters is pre-trained for 400 steps"
        " of 64 on 2,000 images that are distorted (three random operations), then on 500 plain ones, 5 of each digit with"
        " a label. The 500 are among the 2,000, distorted. `ours` takes 300 further steps as teacher and 300 as student,"
        " `further` 300 and `longer` 600. A step with the teacher also takes the whole image through both, where the other"
        " passes see a quarter of its patches: so `ours` costs more than `longer`. All are fine-tuned for 150 steps of 32"
        " images; the rate that is tuned is that one. 1,000 images to choose by, 10,000 to judge.",
    )
