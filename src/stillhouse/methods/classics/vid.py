"""Variational Information Distillation for Knowledge Transfer (Ahn et al. 2019, arXiv 1904.05835).

    L = labels CE(y, q) + soft T² KL(p_T ‖ q_T) + weight · sum over pairs of mean ((t - m(s))² / (2 v_c) + log(v_c) / 2)
    v_c = log(1 + exp(a_c)) + 1e-5

s and t are what a layer of the student and one of the teacher compute for an image, m a regressor from s to t that is
trained with the student and thrown away, v_c the variance of t's channel c, whose a_c is learned too; the mean is over all
numbers of t. It is -log N(t; m(s), v) without its constant: a lower bound of the information that the student holds about
its teacher is raised (Equation 5). A channel that cannot be predicted gets a large variance and then counts little.

Differs from the paper / the authors' code: the regressor (three 1x1 convolutions without bias, ReLU between them, as wide
as t) and the variance of 5 to begin with are those of the code that RepDistiller has from the authors; the paper's networks
for it differ by experiment. A map of another size is averaged down to the smaller. The paper sums over the numbers of t and
weighs each layer; this is their mean, as in that code, and the weight of 1 is the tables'.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...core.method import State, Update
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Recipe, Scale
from ...core.run import Run
from ...core.signal import Batch, Kind
from ...objectives.maps import same_size, spread_for, variational_gap
from ..images import NOTE, against_hinton, images
from ..layers import Beside, Pairs, compared, equation, total

PAPER = Paper(
    id="vid",
    title="Variational Information Distillation for Knowledge Transfer",
    authors=("Sungsoo Ahn", "Shell Xu Hu", "Andreas Damianou", "Neil D. Lawrence", "Zhenwen Dai"),
    year=2019,
    arxiv="1904.05835",
    venue="CVPR 2019",
    modality=("image",),
    data=("labels",),
    claim="A student that holds much information about its teacher's layers learns better, most so from few images.",
)


@dataclass(frozen=True, kw_only=True)
class VID:
    """Compute what the teacher's layers can be predicted from."""

    weight: float = 1.0  # of each pair of layers
    variance: float = 5.0  # of every channel, to begin with
    layers: Pairs = Pairs()  # none named: the ends of all stages
    beside: Beside = Beside()
    needs: ClassVar[frozenset[Kind]] = frozenset({"features", "logits"})
    takes_mixed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.variance <= 1e-5:
            raise ValueError(f"variance must be above 1e-5, not {self.variance}")

    @property
    def equation(self) -> str:
        """The objective with its live weights."""
        return equation(self.beside, {"sum mean ((t - m(s))² / 2v + log(v) / 2)": self.weight})

    def setup(self, student: nn.Module, run: Run) -> State:
        """The student, and a regressor with variances for each pair of layers."""
        s = compared(student, run, self.layers, "map")
        s.adapters.extend(Predicted(mine[0], theirs[0], self.variance) for mine, theirs in s.shapes)
        return s

    def step(self, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        """One update over all items."""
        seen = s.see(batch, run, adapted=False)
        pairs = zip(s.adapters, seen.mine, seen.theirs, strict=True)
        gaps = [predicted(*same_size(own, other)) for predicted, own, other in pairs]
        yield total(seen, self.beside, {"information": (self.weight, torch.stack(gaps).sum(0))})


class Predicted(nn.Module):
    """What the student's map makes likely for the teacher's: a mean for every number, a variance for every channel."""

    def __init__(self, mine: int, theirs: int, variance: float):
        super().__init__()
        widths = ((mine, theirs), (theirs, theirs), (theirs, theirs))
        first, second, last = (nn.Conv2d(a, b, 1, bias=False) for a, b in widths)
        self.mean = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last)
        self.spread = nn.Parameter(spread_for(variance, theirs))

    def forward(self, own: Tensor, other: Tensor) -> Tensor:
        """-log N(other; mean, variance) of maps [B, c, H, W] and [B, C, H, W] without its constant, [B]."""
        return variational_gap(self.mean(own), other, self.spread)


def recipe(scale: Scale = "small") -> Recipe:
    """Digits (smoke), MNIST (small), CIFAR-100 as `cifar100.npz` (paper); see `methods.images`."""
    return images("vid", scale, VID())


def proof() -> Proof:
    """Against the labels alone and soft targets."""
    ours = recipe("small")
    claim = "A student that is led to hold information about its teacher's layers classifies better than one that learns"
    claim += " from the teacher's outputs, and than one without a teacher."
    note = f"{NOTE} The weight of 1 is the tables'; 0.1 did as well on seed 100 and the validation split."
    return against_hinton(ours, claim, note=note)
