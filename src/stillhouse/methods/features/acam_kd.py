"""ACAM-KD: Adaptive and Cooperative Attention Masking for Knowledge Distillation (Lan and Tian 2025, arXiv 2503.06307).

    L = labels CE(y, q) + soft T² KL(p_T ‖ q_T) + channel · L_c + spatial · L_s + diversity · (D(M_c) + D(M_s))
    L_c = mean_m sum_k M_c,mk mean_p (s_kp - t_kp)² / sum_k M_c,mk
    L_s = mean_m sum_p M_s,mp mean_k (s_kp - t_kp)² / sum_p M_s,mp
    M_c = sigmoid(a v),   M_s = sigmoid(b F),   F = V softmax(Q^T K / sqrt(C/2))^T,   v = mean_p F_p
    D(M) = mean over i != j of 2 M_i·M_j / (‖M_i‖² + ‖M_j‖²)

t [C, H W] is what a layer of the teacher computes, s what the student does, brought to its shape by a 1x1 convolution.
Q comes from t, K and V from s (1x1 convolutions): F is the student's features where the teacher looks for them. From F,
and so for each image and step anew, come M masks of channels (a [M, 1]) and M of positions (b [M, C]), which say what
to compare; D keeps them from looking at the same. All of it learns with the student and is thrown away. Dividing by a
mask's sum keeps masks from closing.

Differs from the paper / the authors' code: the equations are known from a structured note of the paper, but for how L_c
and L_s are divided, which is ours, as are the initial selectors (normal; b by 1/sqrt(C)), and that keys and values of
more than 1,024 positions are averaged down. The paper distils detectors and segmenters, with the number of classes as M
in segmentation; here it is classifiers, with the 6 of its detectors.
"""

from __future__ import annotations

import math
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
from ...objectives.maps import wide
from ...objectives.masks import channel_gap, overlap, position_gap
from ..classics.fitnet import FitNet
from ..images import NOTE, against_hinton, arm, images
from ..layers import Beside, Pairs, compared, equation, total

PAPER = Paper(
    id="acam_kd",
    title="ACAM-KD: Adaptive and Cooperative Attention Masking for Knowledge Distillation",
    authors=("Qizhen Lan", "Qing Tian"),
    year=2025,
    arxiv="2503.06307",
    venue="ICCV 2025",
    modality=("image",),
    data=("labels",),
    claim="Masks that student and teacher make together, anew at each step, say better what to copy than fixed ones.",
)
MOST = 32  # cells a side, of keys and values


@dataclass(frozen=True, kw_only=True)
class ACAM:
    """Copy the teacher's features where masks of both say so."""

    channel: float = 1.0
    spatial: float = 1.0
    diversity: float = 1.0
    groups: int = 6  # masks of either kind, M
    layers: Pairs = Pairs()  # none named: the last stages' ends
    beside: Beside = Beside()
    needs: ClassVar[frozenset[Kind]] = frozenset({"features", "logits"})
    takes_mixed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.groups < 1:
            raise ValueError(f"groups are 1 or more, not {self.groups}")

    @property
    def equation(self) -> str:
        """The objective with its live weights."""
        return equation(self.beside, {"L_c": self.channel, "L_s": self.spatial, "(D(M_c) + D(M_s))": self.diversity})

    def setup(self, student: nn.Module, run: Run) -> State:
        """The student, and for each pair of layers a projection and what makes the masks."""
        s = compared(student, run, self.layers, "map", adapt=True, last=1)
        s.adapters = nn.ModuleList(
            nn.ModuleList([project, Masks(theirs[0], self.groups)])
            for project, (_, theirs) in zip(s.adapters, s.shapes, strict=True)
        )
        return s

    def step(self, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        """One update over all items."""
        seen = s.see(batch, run, adapted=False)
        found: list[tuple[Tensor, ...]] = []
        for (project, masks), own, other in zip(s.adapters, seen.mine, seen.theirs, strict=True):
            mine = project(own)
            channels, positions = masks(mine, other.to(mine.dtype))
            gaps = channel_gap(mine, other, channels), position_gap(mine, other, positions)
            found.append((*gaps, overlap(channels) + overlap(positions)))
        channel, spatial, diversity = (torch.stack(parts).sum(0) for parts in zip(*found, strict=True))
        weights = {
            "channel": (self.channel, channel),
            "spatial": (self.spatial, spatial),
            "overlap": (self.diversity, diversity),
        }
        yield total(seen, self.beside, weights)


class Masks(nn.Module):
    """The student's features where the teacher looks for them, and masks of channels and of positions from these."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        inner = max(channels // 2, 1)
        self.query, self.key = nn.Conv2d(channels, inner, 1), nn.Conv2d(channels, inner, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.of_channels = nn.Parameter(torch.randn(groups, 1))
        self.of_positions = nn.Parameter(torch.randn(groups, channels) / math.sqrt(channels))

    def forward(self, mine: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
        """The logarithms of (masks of channels [B, M, C], masks of positions [B, M, H W]) of maps [B, C, H, W]."""
        fused = self.fused(mine, theirs)
        by_channel = wide(self.of_channels) * fused.mean(2).unsqueeze(1)
        return F.logsigmoid(by_channel), F.logsigmoid(wide(self.of_positions) @ fused)

    def fused(self, mine: Tensor, theirs: Tensor) -> Tensor:
        """F [B, C, H W]: for each position of the teacher's map, a mean of the student's values."""
        size = (min(mine.shape[2], MOST), min(mine.shape[3], MOST))
        near = mine if tuple(mine.shape[2:]) == size else F.adaptive_avg_pool2d(mine, size)
        query, key, value = (wide(f(x)).flatten(2) for f, x in ((self.query, theirs), (self.key, near), (self.value, near)))
        looks = (query.mT @ key / math.sqrt(query.shape[1])).softmax(-1)  # [B, positions, positions]
        return value @ looks.mT


def recipe(scale: Scale = "small") -> Recipe:
    """Digits (smoke), MNIST (small), CIFAR-100 as `cifar100.npz` (paper); see `methods.images`."""
    return images("acam_kd", scale, ACAM())


def proof() -> Proof:
    """Among classifiers: against the labels alone, soft targets, and the same features compared without masks."""
    ours = recipe("small")
    unmasked = arm(ours, FitNet(weight=2.0), name="unmasked")  # as much as both gaps together
    claim = (
        "A student that copies its teacher's features where masks of both say so classifies better than one that copies them"
    )
    claim += " everywhere, than one that learns from the teacher's outputs, and than one without a teacher."
    note = (
        f"{NOTE} `unmasked` has a mean square difference of weight 2 at the same layer and through the same projection,"
        " where `ours` has two of weight 1, each with its masks. The masks' passes come on top. The paper's own claim is"
        " about detection and segmentation, which this does not test."
    )
    return against_hinton(ours, claim, arms={"unmasked": unmasked}, note=note)
