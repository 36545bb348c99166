"""Distilling Knowledge via Knowledge Review (Chen et al. 2021, arXiv 2104.09044).

    L = labels CE(y, q) + soft T² KL(p_T ‖ q_T) + weight · min(1, t / (warmup · steps)) · sum_i HCL(o_i(r_i), u_i)
    r_n = c_n(v_n),     r_i = a_1 · c_i(v_i) + a_2 · up(r_(i+1)),     (a_1, a_2) = sigmoid(conv([c_i(v_i), up(r_(i+1))]))
    HCL(x, u) = sum_l w_l mean (pool_l(x) - pool_l(u))² / sum_l w_l,     w = 1, 1/2, 1/4, 1/8

v_1 .. v_n are what the student computes at the ends of its stages, the last of them in front of the head, u_i what the
teacher computes there. Going back from the deepest layer, r_i mixes a layer with all deeper ones (attention-based
fusion: c_i is a 1x1 convolution, `up` brings a map to the size of v_i, a_1 and a_2 are maps of one channel), and a 3x3
convolution o_i brings it to the teacher's channels. HCL (hierarchical context loss) compares the maps as they are and
averaged to 4x4, 2x2 and 1x1 cells, as far as these are smaller. t is the step. So every layer of the teacher teaches
all deeper layers of the student. The fusion is thrown away.

Differs from the paper / the authors' code: the formula and its constants are those of the code, from memory. Group
norms of one group stand in the fusion in place of batch norms, since those see how a batch is split. HCL averages over
the numbers of an item, as there. The code warms up over 20 of 240 epochs; its weight differs by pair, 5 for most and
0.6 to 8 for others. How wide the fusion is: 512 there, or the width of the deepest layer if that is smaller.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...core.method import State, Update
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Recipe, Scale
from ...core.run import Run
from ...core.signal import Batch, Kind
from ...models.adapters import resized
from ...objectives.maps import feature_gap
from ..images import NOTE, against_hinton, arm, images
from ..layers import Beside, Pairs, compared, equation, matched, total
from ..outputs import check_warmup, warmed
from .fitnet import FitNet

PAPER = Paper(
    id="reviewkd",
    title="Distilling Knowledge via Knowledge Review",
    authors=("Pengguang Chen", "Shu Liu", "Hengshuang Zhao", "Jiaya Jia"),
    year=2021,
    arxiv="2104.09044",
    venue="CVPR 2021",
    modality=("image",),
    data=("labels",),
    claim="Early layers of the teacher that also teach deeper layers of the student make a better student.",
)
CELLS = (4, 2, 1)  # a side, of the pooled maps


@dataclass(frozen=True, kw_only=True)
class ReviewKD:
    """Let each layer of the teacher teach the student's layer there and all deeper ones."""

    weight: float = 5.0
    warmup: float = 1 / 12  # share of the run in which the weight grows evenly
    width: int = 512  # of the fusion, at most; the deepest layer's if that is less
    layers: Pairs = Pairs()  # none named: the ends of all stages, and the features in front of the heads
    beside: Beside = Beside()
    needs: ClassVar[frozenset[Kind]] = frozenset({"features", "logits"})
    takes_mixed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_warmup(self.warmup)
        if self.width < 1:
            raise ValueError(f"width is 1 or more, not {self.width}")

    @property
    def equation(self) -> str:
        """The objective with its live weights."""
        return equation(self.beside, {"sum HCL(o(r), u)": self.weight})

    def setup(self, student: nn.Module, run: Run) -> State:
        """The student and its fusion."""
        layers = self.layers
        if not layers.student:
            stages, head = (matched(student, run, layers, form)[0] for form in ("map", "vector"))
            both = dict.fromkeys((*stages, *head))  # those of a perceptron are the same
            layers = Pairs(student=tuple(own for own, _ in both), teacher=tuple(other for _, other in both))
        s = compared(student, run, layers, "map")
        width = min(self.width, s.shapes[-1][0][0])
        s.adapters.extend(Fusion(mine, theirs, width, i + 1 < len(s.shapes)) for i, (mine, theirs) in enumerate(s.shapes))
        return s

    def step(self, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        """One update over all items."""
        seen = s.see(batch, run, adapted=False)
        gaps: list[Tensor] = []
        deeper: Tensor | None = None
        for fusion, own, other in zip(reversed(s.adapters), reversed(seen.mine), reversed(seen.theirs), strict=True):
            deeper, said = fusion(own, deeper)
            gaps.append(context_gap(said, other))
        weight = self.weight * warmed(self.warmup, run)
        yield total(seen, self.beside, {"review": (weight, torch.stack(gaps).sum(0))})


class Fusion(nn.Module):
    """A layer of the student mixed with what was made of the deeper ones, and what that says of the teacher's layer."""

    def __init__(self, mine: tuple[int, ...], theirs: tuple[int, ...], width: int, mixes: bool):
        super().__init__()
        self.size = (theirs[1], theirs[2])
        self.project = nn.Sequential(nn.Conv2d(mine[0], width, 1, bias=False), nn.GroupNorm(1, width))
        self.attention = nn.Conv2d(2 * width, 2, 1) if mixes else None
        self.out = nn.Sequential(nn.Conv2d(width, theirs[0], 3, padding=1, bias=False), nn.GroupNorm(1, theirs[0]))

    def forward(self, own: Tensor, deeper: Tensor | None) -> tuple[Tensor, Tensor]:
        """(the mixture [B, width, h, w], what it says of the teacher's layer [B, C, H, W]); own is [B, c, h, w]."""
        mixture = self.project(own)
        if self.attention is not None and deeper is not None:
            deeper = F.interpolate(deeper, mixture.shape[-2:], mode="nearest")
            share = self.attention(torch.cat([mixture, deeper], 1)).sigmoid()
            mixture = mixture * share[:, :1] + deeper * share[:, 1:]
        return mixture, self.out(resized(mixture, self.size))


def context_gap(mine: Tensor, theirs: Tensor) -> Tensor:
    """HCL of maps [B, C, H, W]: the mean square difference as they are and pooled, the coarser the less it counts; [B]."""
    gap, share, whole = feature_gap(mine, theirs), 1.0, 1.0
    for side in (side for side in CELLS if side < mine.shape[2]):
        share /= 2
        coarse = [F.adaptive_avg_pool2d(x, (side, min(side, x.shape[3]))) for x in (mine, theirs)]
        gap, whole = gap + share * feature_gap(*coarse), whole + share
    return gap / whole


def recipe(scale: Scale = "small") -> Recipe:
    """Digits (smoke), MNIST (small), CIFAR-100 as `cifar100.npz` (paper); see `methods.images`."""
    return images("reviewkd", scale, ReviewKD())


def proof() -> Proof:
    """Against the labels alone, soft targets, and a hint at each layer without review."""
    ours = recipe("small")
    hints = FitNet(weight=ReviewKD().weight, layers=Pairs(student=("stages.*", "head:in"), teacher=("stages.*", "head:in")))
    claim = (
        "A student whose layers review what all earlier layers of its teacher compute classifies better than one that learns"
    )
    claim += " from the teacher's outputs, than one with a hint at each layer, and than one without a teacher."
    note = (
        f"{NOTE} `hints` has the same layers and the same weight, 5, as `ours`; it has a regressor at each layer in place of"
        " the fusion, compares maps at their full size alone, and its weight does not grow at the beginning. The fusion's"
        " passes come on top."
    )
    return against_hinton(ours, claim, arms={"hints": arm(ours, hints, name="hints")}, note=note)
