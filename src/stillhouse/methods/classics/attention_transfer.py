"""Paying More Attention to Attention: Improving the Performance of Convolutional Neural Networks via Attention Transfer
(Zagoruyko and Komodakis 2016, arXiv 1612.03928).

    L = labels CE(y, q) + soft T² KL(p_T ‖ q_T) + weight · sum over pairs of mean_i (Q_s,i - Q_t,i)²
    Q = vec(mean_c |x_c|^power) / ‖vec(mean_c |x_c|^power)‖,     x [C, H, W]

x is what a layer computes, Q its attention map: one number for each of the H W cells i, large where the layer is active,
scaled to length 1. A pair is a layer of the student (Q_s) and one of the teacher (Q_t). Channels may differ, since they
are averaged away, and a map of another size is averaged down to the smaller. `form="paper"` has ‖Q_s - Q_t‖ in place of
mean_i (.)² (Equation 2).

Differs from the paper / the authors' code: `form="code"` is what the authors' code and all tables since minimise, and its
weight of 1,000 is theirs. The paper writes beta/2 times the distance itself and, from memory, speaks of beta about 0.1;
it is orders of magnitude larger, so a weight for one form is none for the other: 0.05 would be the paper's. The mean
over items is the engine's, and the sum over pairs is not divided by their number. Gradient-based attention is not here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from ...core.method import State, Update
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Recipe, Scale, pick
from ...core.run import Run
from ...core.signal import Batch, Kind
from ...objectives.maps import Attention, attention_gap
from ..images import NOTE, WIDER, against_hinton, images
from ..layers import Beside, Pairs, compared, equation, total
from ..maps import with_cells

PAPER = Paper(
    id="attention_transfer",
    title=(
        "Paying More Attention to Attention: "
        "Improving the Performance of Convolutional Neural Networks via Attention Transfer"
    ),
    authors=("Sergey Zagoruyko", "Nikos Komodakis"),
    year=2016,
    arxiv="1612.03928",
    venue="ICLR 2017",
    modality=("image",),
    data=("labels",),
    claim="A student that is active where its teacher is, layer by layer, learns better, alone and beside soft targets.",
)


@dataclass(frozen=True, kw_only=True)
class AttentionTransfer:
    """Be active where the teacher is."""

    weight: float = 1000.0  # of each pair of layers; about 0.05 for form="paper"
    power: float = 2.0  # of the activities
    form: Attention = "code"
    layers: Pairs = Pairs()  # none named: the ends of all stages
    beside: Beside = Beside()
    needs: ClassVar[frozenset[Kind]] = frozenset({"features", "logits"})
    takes_mixed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.power <= 0:
            raise ValueError(f"power must be above 0, not {self.power}")

    @property
    def equation(self) -> str:
        """The objective with its live weights."""
        return equation(self.beside, {"sum " + ("mean (Qs - Qt)²" if self.form == "code" else "‖Qs - Qt‖"): self.weight})

    def setup(self, student: nn.Module, run: Run) -> State:
        """The student; nothing else learns."""
        return with_cells(compared(student, run, self.layers, "map"), "attention transfer")

    def step(self, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        """One update over all items."""
        seen = s.see(batch, run)
        gap = seen.summed(attention_gap, power=self.power, form=self.form)
        yield total(seen, self.beside, {"attention": (self.weight, gap)})


def recipe(scale: Scale = "small") -> Recipe:
    """Digits (smoke), MNIST (small), CIFAR-100 as `cifar100.npz` (paper); see `methods.images`."""
    return images("attention_transfer", scale, AttentionTransfer(weight=pick(scale, smoke=30.0, small=30.0, paper=1000.0)))


def proof() -> Proof:
    """Against the labels alone and soft targets."""
    ours = recipe("small")
    claim = "A student that is also led to be active where its teacher is classifies better than one that learns from the"
    claim += " teacher's outputs, and than one without a teacher."
    note = f"{NOTE} The weight of 30 was chosen among 10, 30, 100 and 1,000 on seed 100 and the validation split."
    return against_hinton(ours, claim, note=note, tune=WIDER)
