"""Learning from labels alone: the baseline that every way of distilling has to beat.

    L = -sum_i w_i [y_i >= 0] log q(y_i | x_i) / sum_i w_i [y_i >= 0]

q is the student's softmax, y_i the label of item i (an image's class, or the token that follows in a text), w_i its
weight (0 on prompts and padding). A negative label means that nobody knows it: the item is left out. A mixed image (mixup,
CutMix) counts as two items with one input, weighted by their shares.

The maximum-likelihood estimate is Fisher's; as a loss for networks with a softmax it is due to Bridle, "Probabilistic
Interpretation of Feedforward Classification Network Outputs, with Relationships to Statistical Pattern Recognition".

Differs from the paper / the authors' code: nothing known. The loss is a sum over the labelled items of the whole batch
divided by their number, however the batch is split, where common trainers average means of unequal parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from ...audits.classification import Classification
from ...core.method import State, Update
from ...core.optim import Optim
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Recipe, Scale, pick
from ...core.run import Run, RunError
from ...core.signal import Batch, Kind
from ...core.stage import Audit, Train
from ...data.images import Digits, Npz
from ...data.toys import Clusters
from ...models.call import answers, logits_of
from ...models.toys import MLP
from ...objectives.divergences import cross_entropy

PAPER = Paper(
    id="supervised",
    title="Probabilistic Interpretation of Feedforward Classification Network Outputs, with Relationships to "
    "Statistical Pattern Recognition",
    authors=("John S. Bridle",),
    year=1990,
    venue="Neurocomputing: Algorithms, Architectures and Applications (NATO ASI Series F68)",
    url="https://doi.org/10.1007/978-3-642-76153-9_28",
    modality=("any",),
    data=("labels", "documents"),
    claim="A network trained on labelled examples predicts labels that it has not seen.",
)


@dataclass(frozen=True, kw_only=True)
class Supervised:
    """Cross-entropy with the labels; no teacher."""

    needs: ClassVar[frozenset[Kind]] = frozenset()
    takes_mixed: ClassVar[bool] = True

    def setup(self, student: nn.Module, run: Run) -> State:
        """The student alone; RunError if nothing in the data is labelled."""
        if run.source is not None and "labels" not in run.source.batch([0], 0):
            raise RunError(
                f"stage {run.stage!r} learns from labels, and the data have none: leave it out with "
                f"--set stages.{run.stage}=null, or give labelled data"
            )
        return State(student=student)

    def step(self, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        """One update over the labelled items."""
        logits = logits_of(s.student, batch)
        known = [(labels, weight * (labels >= 0)) for labels, weight in answers(batch)]
        losses = [cross_entropy(logits, labels, weight=weight).sum() for labels, weight in known]
        yield Update(torch.stack(losses).sum(), count=torch.stack([weight.sum() for _, weight in known]).sum())


def recipe(scale: Scale = "small") -> Recipe:
    """A small network on clusters (smoke), scikit-learn's digits (small), MNIST as `mnist.npz` (paper)."""
    return Recipe(
        id="supervised",
        student=pick(scale, smoke=MLP(width=16), small=MLP(width=32), paper=MLP(width=800)),
        data=pick(scale, smoke=Clusters(), small=Digits(), paper=Npz(path="mnist.npz")),
        stages={
            "train": Train(
                method=Supervised(),
                steps=pick(scale, smoke=60, small=400, paper=20_000),
                batch=pick(scale, smoke=32, small=64, paper=128),
                optim=Optim(lr=pick(scale, smoke=1e-2, small=3e-3, paper=1e-3)),
            ),
            "audit": Audit(subjects=("start", "train"), checks=(Classification(),)),
        },
    )


def proof() -> Proof:
    """Trained against untrained; a sanity check of the whole chain rather than a discovery."""
    ours = recipe("small")
    return Proof(
        claim="A small network trained on the digits' labels recognises digits that it has not seen better than the"
        " same network before training.",
        arms={"ours": ours, "untrained": ours.set("train.optim.lr", 0.0)},
        metric="accuracy",
        beats=("untrained",),
        seeds=(0, 1, 2, 3, 4),
        minutes=1.0,
        note="The untrained arm takes the same steps with learning rate 0.",
    )
