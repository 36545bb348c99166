"""Relational Knowledge Distillation (Park et al. 2019, arXiv 1904.05068).

    L = labels CE(y, q) + soft T² KL(p_T ‖ q_T) + distance · D + angle · A
    D = mean_ij h(d_s,ij - d_t,ij),                    d_ij = ‖x_i - x_j‖ / mean distance of the batch
    A = mean_ijk h(cos_s,ijk - cos_t,ijk),             cos_ijk = the cosine of the angle at x_i between x_j and x_k

x_i are the features of item i of a batch, in the student (s) and in the teacher (t); h(u) = u²/2 up to 1, |u| - 1/2 beyond
(smooth L1, the Huber loss at 1). D asks for the same distances up to a scale, A for the same angles (Equations 6 and 8).
Widths may differ. The means are over all B² pairs and B³ triplets; item i has those in which it is first, or the vertex.

Differs from the paper / the authors' code: the mean distance is over all pairs of different items, where the code skips
distances of 0. Of the same code are the means (the paper writes sums) with the pairs of an item with itself. The weights 25
and 50 are the paper's for classification and the tables'. They stand before means over pairs and triplets, so that they
mean the same at any batch size.
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
from ...objectives.relations import angle_gap, distance_gap
from ..images import against_hinton, images
from ..layers import Beside, Pairs, compared, equation, total

PAPER = Paper(
    id="rkd",
    title="Relational Knowledge Distillation",
    authors=("Wonpyo Park", "Dongju Kim", "Yan Lu", "Minsu Cho"),
    year=2019,
    arxiv="1904.05068",
    venue="CVPR 2019",
    modality=("any",),
    data=("labels",),
    claim="The distances and angles between a teacher's features teach a student more than the features themselves.",
)


@dataclass(frozen=True, kw_only=True)
class RKD:
    """Keep the teacher's distances and angles between items."""

    distance: float = 25.0
    angle: float = 50.0
    layers: Pairs = Pairs()  # none named: the features in front of the heads
    beside: Beside = Beside()
    needs: ClassVar[frozenset[Kind]] = frozenset({"features", "logits"})
    takes_mixed: ClassVar[bool] = True
    compares_items: ClassVar[bool] = True

    @property
    def equation(self) -> str:
        """The objective with its live weights."""
        return equation(self.beside, {"mean h(ds - dt)": self.distance, "mean h(cos_s - cos_t)": self.angle})

    def setup(self, student: nn.Module, run: Run) -> State:
        """The student; nothing else learns."""
        return compared(student, run, self.layers, "vector", last=1)

    def step(self, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        """One update over all items; those of weight 0 are not compared with."""
        seen, there = s.see(batch, run), weight_of(batch).sign()
        terms = {"distance": (self.distance, distance_gap), "angle": (self.angle, angle_gap)}
        gaps = {name: (weight, seen.summed(gap, weight=there)) for name, (weight, gap) in terms.items() if weight}
        yield total(seen, self.beside, gaps)


def recipe(scale: Scale = "small") -> Recipe:
    """Digits (smoke), MNIST (small), CIFAR-100 as `cifar100.npz` (paper); see `methods.images`."""
    return images("rkd", scale, RKD())


def proof() -> Proof:
    """Against the labels alone and soft targets."""
    ours = recipe("small")
    claim = "A student that is led to the distances and angles between its teacher's features classifies better than one"
    claim += " that learns from the teacher's outputs, and than one without a teacher."
    return against_hinton(ours, claim)
