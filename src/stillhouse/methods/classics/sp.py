"""Similarity-Preserving Knowledge Distillation (Tung and Mori 2019, arXiv 1907.09682).

    L = labels CE(y, q) + soft T² KL(p_T ‖ q_T) + weight · 1/B² sum_ij (G_s,ij - G_t,ij)²
    G = A A^T with every row scaled to length 1,     A [B, C H W]

A holds what a layer computes for each of the B items of a batch, laid out flat; G_ij says how alike i and j are to that
layer. The student need not compute what its teacher (G_t) computes: pairs of items that are alike there must be alike here.
Channels and sizes may differ. Item i has 1/B sum_j (.)², so that the mean over items is the paper's 1/B² (Equation 4).

Differs from the paper / the authors' code: nothing known of the loss; it agrees with RepDistiller's, which says that the
author has verified it. The weight of 3,000 is that of the paper and of the tables. Rows have length 1, so that a row's
squared difference does not grow with B and the mean over j shrinks as 1/B: at another batch size than 64 the same strength
needs weight · B / 64. The paper names the layer before the last pooling; here the end of the last stage is found.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from ...core.method import State, Update
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Recipe, Scale
from ...core.run import Run
from ...core.signal import Batch, Kind
from ...models.call import weight_of
from ...objectives.relations import relation_loss
from ..images import against_hinton, images
from ..layers import Beside, Pairs, compared, equation, total

PAPER = Paper(
    id="sp",
    title="Similarity-Preserving Knowledge Distillation",
    authors=("Frederick Tung", "Greg Mori"),
    year=2019,
    arxiv="1907.09682",
    venue="ICCV 2019",
    modality=("any",),
    data=("labels",),
    claim="A student to which the same inputs are alike as to its teacher classifies better than one with soft targets.",
)


@dataclass(frozen=True, kw_only=True)
class SP:
    """Find those items alike that the teacher finds alike."""

    weight: float = 3000.0  # at 64 items a batch
    layers: Pairs = Pairs()  # none named: the last stages' ends
    beside: Beside = Beside()
    needs: ClassVar[frozenset[Kind]] = frozenset({"features", "logits"})
    takes_mixed: ClassVar[bool] = True
    compares_items: ClassVar[bool] = True

    @property
    def equation(self) -> str:
        """The objective with its live weights."""
        return equation(self.beside, {"mean (Gs - Gt)²": self.weight})

    def setup(self, student: nn.Module, run: Run) -> State:
        """The student; nothing else learns."""
        return compared(student, run, self.layers, "map", last=1)

    def step(self, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        """One update over all items; those of weight 0 are not compared with."""
        seen, there = s.see(batch, run), weight_of(batch).sign()
        gap = seen.summed(relation_loss, kind="sample_gram", weight=there)
        yield total(seen, self.beside, {"similarity": (self.weight, gap)})


def recipe(scale: Scale = "small") -> Recipe:
    """Digits (smoke), MNIST (small), CIFAR-100 as `cifar100.npz` (paper); see `methods.images`."""
    return images("sp", scale, SP())


def proof() -> Proof:
    """Against the labels alone and soft targets."""
    ours = recipe("small")
    claim = "A student to which the images of a batch are alike as they are to its teacher classifies better than one that"
    claim += " learns from the teacher's outputs, and than one without a teacher."
    return against_hinton(ours, claim)
