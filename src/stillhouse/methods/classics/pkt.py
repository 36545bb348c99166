"""Learning Deep Representations with Probabilistic Knowledge Transfer (Passalis and Tefas 2018, arXiv 1803.10837).

    L = labels CE(y, q) + soft T² KL(p_T ‖ q_T) + weight · 1/B² sum_ij P_ij log(P_ij / S_ij)
    P_ij = K(t_i, t_j) / sum_k K(t_i, t_k),     K(a, b) = (1 + cos(a, b)) / 2,     S the same of s

t_i and s_i are the features of item i in the teacher and in the student, P_ij the chance that the teacher picks item j as a
neighbour of item i of the same batch of B. Only cosines are compared, so widths may differ. Item i has 1/B sum_j (.).

Differs from the paper / the authors' code: the paper sums over the pairs; its code takes the mean over all B² of them, adds
1e-7 to P, S and the lengths, and keeps the pairs of an item with itself, and so does this. The mean over j has a second
1/B that a divergence has not, hence the weight of 30,000 (that of the tables, at 64 items): it is 469 times the mean KL,
and at another batch size the same strength needs weight · B / 64. The paper's own tasks are retrieval, and it discusses
other kernels; here it stands beside the labels with the cosine for both sides, as in the tables.
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
from ...objectives.relations import neighbour_gap
from ..images import WIDER, against_hinton, images
from ..layers import Beside, Pairs, compared, equation, total

PAPER = Paper(
    id="pkt",
    title="Learning Deep Representations with Probabilistic Knowledge Transfer",
    authors=("Nikolaos Passalis", "Anastasios Tefas"),
    year=2018,
    arxiv="1803.10837",
    venue="ECCV 2018",
    modality=("any",),
    data=("labels",),
    claim="Matching whom an item has for neighbours transfers a teacher's representation better than matching outputs.",
)


@dataclass(frozen=True, kw_only=True)
class PKT:
    """Give every item the neighbours that it has in the teacher."""

    weight: float = 30000.0  # at 64 items a batch
    layers: Pairs = Pairs()  # none named: the features in front of the heads
    beside: Beside = Beside()
    needs: ClassVar[frozenset[Kind]] = frozenset({"features", "logits"})
    takes_mixed: ClassVar[bool] = True
    compares_items: ClassVar[bool] = True

    @property
    def equation(self) -> str:
        """The objective with its live weights."""
        return equation(self.beside, {"mean P log(P / S)": self.weight})

    def setup(self, student: nn.Module, run: Run) -> State:
        """The student; nothing else learns."""
        return compared(student, run, self.layers, "vector", last=1)

    def step(self, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        """One update over all items; those of weight 0 are nobody's neighbours."""
        seen, there = s.see(batch, run), weight_of(batch).sign()
        yield total(seen, self.beside, {"neighbours": (self.weight, seen.summed(neighbour_gap, weight=there))})


def recipe(scale: Scale = "small") -> Recipe:
    """Digits (smoke), MNIST (small), CIFAR-100 as `cifar100.npz` (paper); see `methods.images`."""
    return images("pkt", scale, PKT())


def proof() -> Proof:
    """Against the labels alone and soft targets."""
    ours = recipe("small")
    claim = "A student that is led to give the images of a batch the neighbours that they have in its teacher classifies"
    claim += " better than one that learns from the teacher's outputs, and than one without a teacher."
    return against_hinton(ours, claim, tune=WIDER)
