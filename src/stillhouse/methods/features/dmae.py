"""Masked Autoencoders Enable Efficient Knowledge Distillers (Bai et al. 2022, arXiv 2208.12256): DMAE.

    L = mean over hidden patches of (x - x̂)² + weight · mean |u(r(h_S)) - u(h_T)|

Teacher and student are masked autoencoders and see the same few patches of an image. h_S and h_T are what their encoders
compute of those (and of the class token) after three quarters of their blocks, r is a linear layer to the teacher's width
that is thrown away, u brings every token to length 1; the mean is over tokens and channels. x are the normalised pixels of
a patch, x̂ what the student's decoder says. The teacher is pre-trained and has never seen a label, and is run no further
than to those features. Afterwards the student's encoder is fine-tuned on labels, without a teacher.

Differs from the paper / the authors' code: both divide the image into the same patches, and the tables of positions are
learned. In UCSC-VLAA/DMAE the blocks are named (the 9th of 12 and the 18th of 24); here `depth` is a share. Fine-tuning has
no layer decay, which `core.optim` does not know. What the paper's `distil the fine-tuned teacher` does exactly is from
memory: the proof's arm fine-tunes a student that was pre-trained without a teacher, by Hinton's distillation.
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
from ...core.recipe import Recipe, Scale
from ...core.run import Run
from ...core.signal import Batch, Kind
from ...models.adapters import Adapted
from ...models.masked import Pretrained
from ...objectives.maps import feature_gap
from ...teachers.module import ModuleTeacher
from ..classics.hinton import Hinton
from ..masked import (
    MAE,
    NOTE,
    RATES,
    MaskedTeacher,
    both,
    data,
    judged,
    pretraining,
    seen,
    share,
    student,
    summed,
    taught,
    tuned,
    tuning,
)  # fmt: skip

PAPER = Paper(
    id="dmae",
    title="Masked Autoencoders Enable Efficient Knowledge Distillers",
    authors=(
        "Yutong Bai", "Zeyu Wang", "Junfei Xiao", "Chen Wei", "Huiyu Wang", "Alan Yuille", "Yuyin Zhou", "Cihang Xie",
    ),
    year=2022,
    arxiv="2208.12256",
    venue="CVPR 2023",
    modality=("image",),
    data=("unlabelled", "labels"),
    claim="Distilling a pre-trained masked autoencoder while pre-training gives a better student than distilling the"
    " fine-tuned one.",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class DMAE:
    """Tell hidden pixels, and compute of the seen patches what the teacher computes of them."""

    weight: float = 1.0  # of the features
    depth: float = 0.75  # share of the encoders' blocks after which they are compared
    ratio: float = 0.75  # of the patches that are hidden
    normalised: bool = True  # every patch's pixels at mean 0 and variance 1
    needs: ClassVar[frozenset[Kind]] = frozenset({"features"})
    takes_mixed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        share(self.ratio)
        if not 0.0 < self.depth <= 1.0:
            raise ValueError(f"depth must be above 0 and at most 1, not {self.depth}")

    @property
    def equation(self) -> str:
        """The objective with its live weights."""
        return f"mean (x - x̂)² + {self.weight:g} mean |u(r(h_S)) - u(h_T)|"

    def setup(self, student: nn.Module, run: Run) -> State:
        """The student, and the linear layer to the teacher's width."""
        own, theirs = both(student, run)
        return Adapted(own, [nn.Linear(own.into.in_features, theirs.into.in_features)])

    def step(self, s: Any, batch: Batch, run: Run) -> Iterator[Update]:
        """One update over all items."""
        own, theirs, images = s.student, run.teacher.module, batch["inputs"]  # type: ignore[attr-defined]
        kept = seen(own, batch, run, self.ratio)
        encoded = own.encode(images, kept)
        pixels = own.pixel_gap(images, own.decode(encoded[-1], kept)[-1], kept, normalised=self.normalised)
        with torch.no_grad():
            target = theirs.encode(images, kept, blocks=self.blocks(len(theirs.encoder.blocks)))[-1]
        mine = s.adapters[0](encoded[self.blocks(len(encoded)) - 1])
        gap = feature_gap(mine, target, form="l1", normalize="l2")
        yield summed(batch, pixels=(1.0, pixels), features=(self.weight, gap))

    def blocks(self, count: int) -> int:
        """After how many of `count` blocks features are compared."""
        return max(1, round(self.depth * count))


def recipe(scale: Scale = "small") -> Recipe:
    """Digits (smoke), MNIST with 5 labels of each digit (small), ViT-L to ViT-B on the folder `imagenet` (paper)."""
    return Recipe(
        id="dmae",
        student=student(scale),
        data=data(scale),
        teachers={"teacher": MaskedTeacher(stages=("teacher",))},
        stages={
            "teacher": taught(scale),
            "train": pretraining(scale, DMAE()),
            "tuned": tuning(scale, Pretrained(stage="train")),
            "alone": pretraining(scale, MAE()),
            "tuned_alone": tuning(scale, Pretrained(stage="alone")),
            "audit": judged("start", "tuned_alone", "tuned"),
        },
    )


def proof() -> Proof:
    """Against pre-training without a teacher, against distilling the fine-tuned teacher, and against no pre-training."""
    made = recipe("small")
    stages = {name: stage for name, stage in made.stages.items() if not name.endswith("alone")}
    ours = replace(made, stages={**stages, "audit": judged("start", "tuned")})
    plain = tuned("mae", "small", pretraining("small", MAE()), student("small"))
    big = Pretrained(stage="teacher")
    late = replace(
        plain,
        id="distil_the_fine_tuned",
        teachers={"teacher": ModuleTeacher(spec=big, stage="teacher_tuned")},
        stages={
            "teacher": stages["teacher"],
            "teacher_tuned": tuning("small", big),
            "train": plain.stages["train"],
            "tuned": replace(plain.stages["tuned"], method=Hinton()),
            "audit": plain.stages["audit"],
        },
    )
    every = late.set("tuned.data", None)
    return Proof(
        claim="A student that learns from a masked autoencoder while it is pre-trained, and then 5 labels of each digit,"
        " classifies better than one that is pre-trained alone, than one that is pre-trained alone and then distilled from"
        " the fine-tuned teacher on the labelled images, and than one that is not pre-trained.",
        arms={
            "ours": ours,
            "mae": plain,
            "fine_tuned": late,
            "fine_tuned_all_images": every,
            "scratch": tuned("scratch", "small", None, student("small")),
        },
        metric="accuracy",
        judge=Validation(quantity="accuracy"),
        subject="tuned",
        beats=("mae", "fine_tuned", "scratch"),
        seeds=(0, 1, 2, 3, 4),
        minutes=10.0,
        tune={"tuned.optim.lr": RATES},
        note=f"{NOTE} The teacher's training and forward passes come on top of the student's steps. In the arms `fine_tuned`"
        " the student is pre-trained alone, and the teacher has learned the same labels; `fine_tuned_all_images` hears it on"
        " the unlabelled images too, and is not part of the claim. `scratch` takes only the 150 steps.",
    )
