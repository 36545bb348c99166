"""FitNets: Hints for Thin Deep Nets (Romero et al. 2014, arXiv 1412.6550).

    L = labels CE(y, q) + soft T² KL(p_T ‖ q_T) + weight ‖u - r(v)‖² / n

u is what the teacher computes at its hint layer, v what the student computes at its guided layer, r a regressor that is
trained with it and thrown away, n how many numbers u has (Equations 3 and 4). The regressor is a 1x1 convolution and a
change of size for maps; tokens are brought to maps, and vectors are maps of one cell.

Differs from the paper / the authors' code: the paper first trains the layers up to the hint and then the whole network with
the distillation term alone; here both terms are trained together from the start, as the tables since RepDistiller do, and
two stages are a recipe's affair (a stage with `labels=0`, then `classics/hinton`). The paper's regressor is a larger
convolution without padding. The squared distance is divided by the numbers in u, so that `weight` does not depend on the
layer's size, and has no 1/2: the weight of 50 is the paper's 1/2 times the 100 of the tables, whose distance has none.
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
from ...objectives.maps import feature_gap
from ..images import against_hinton, images
from ..layers import Beside, Pairs, compared, equation, total

PAPER = Paper(
    id="fitnet",
    title="FitNets: Hints for Thin Deep Nets",
    authors=(
        "Adriana Romero", "Nicolas Ballas", "Samira Ebrahimi Kahou", "Antoine Chassang", "Carlo Gatta", "Yoshua Bengio",
    ),
    year=2014,
    arxiv="1412.6550",
    venue="ICLR 2015",
    modality=("any",),
    data=("labels",),
    claim="A thin deep student that is led by what its teacher computes half-way learns better than from outputs alone.",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class FitNet:
    """Compute, at one layer or several, what the teacher computes there."""

    weight: float = 50.0  # of the hint
    layers: Pairs = Pairs()  # none named: the last stages' ends
    beside: Beside = Beside()
    needs: ClassVar[frozenset[Kind]] = frozenset({"features", "logits"})
    takes_mixed: ClassVar[bool] = True

    @property
    def equation(self) -> str:
        """The objective with its live weights."""
        return equation(self.beside, {"mean (u - r(v))²": self.weight})

    def setup(self, student: nn.Module, run: Run) -> State:
        """The student and a regressor for each pair of layers."""
        return compared(student, run, self.layers, "map", adapt=True, last=1)

    def step(self, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        """One update over all items."""
        seen = s.see(batch, run)
        yield total(seen, self.beside, {"hint": (self.weight, seen.summed(feature_gap))})


def recipe(scale: Scale = "small") -> Recipe:
    """Digits (smoke), MNIST (small), CIFAR-100 as `cifar100.npz` (paper); see `methods.images`."""
    return images("fitnet", scale, FitNet())


def proof() -> Proof:
    """Against the labels alone and against Hinton's distillation."""
    claim = "A student that also learns to compute what its teacher computes at its last stage classifies better than one"
    return against_hinton(
        recipe("small"), f"{claim} that learns from the teacher's outputs, and than one without a teacher."
    )
