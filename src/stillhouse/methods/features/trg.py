"""Knowledge Distillation via Token-level Relationship Graph (Zhang et al. 2023, arXiv 2306.12442).

    L = labels CE(y, q) + soft T² KL(p_T ‖ q_T) + inner · I + local · G + contrast · C
    I = mean over items of mean_mn (softmax(F_s F_s^T / sqrt(d_s)) - softmax(F_t F_t^T / sqrt(d_t)))²
    G = mean_i KL(softmax_j A_t,ij ‖ softmax_j A_s,ij),     A_ij = exp(-‖x_i - x_j‖² / (2 sigma)) if j is near i, else 0
    C = mean_i -log exp(cos(W s_i, t_i) / tau) / sum_j exp(cos(W s_i, t_j) / tau)

F [N, d] are the tokens of one image: those of a transformer, or the cells of a map. Of all tokens of a batch some are
drawn, the same in student and teacher, s_i and t_i. A joins each with its nearest others (x_i is s_i or t_i at length
1; sigma is the mean squared distance to neighbours). W is a linear layer to the teacher's width, thrown away. tau falls
from `hot` to `cold` over the run, as half a cosine. I is the paper's inner-instance term, G its local and C its global
one.

Differs from the paper / the authors' code: the terms are known from notes on the paper; the constants are ours: how
many tokens and neighbours, that tokens are compared at length 1, sigma, the way of tau, and weights of 1. The notes
write G with the student first; here it is the usual direction, teacher first. Where the two have maps of other sizes,
the larger is averaged down. Item i has the terms of those tokens that were drawn from it, divided so that the mean over
items is the mean over tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...core.method import State, Update
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Recipe, Scale, pick
from ...core.run import Run
from ...core.signal import Batch, Kind
from ...data.images import Digits, LongTail, Split
from ...models.call import weight_of
from ...models.taps import as_tokens
from ...objectives.maps import same_size
from ...objectives.tokens import counterpart_gap, graph_gap, inner_gap
from ..classics.rkd import RKD
from ..images import CIFAR, SMALL, against_hinton, arm, images
from ..layers import Beside, Pairs, compared, equation, total

PAPER = Paper(
    id="trg",
    title="Knowledge Distillation via Token-level Relationship Graph",
    authors=("Shuoxi Zhang", "Hanpeng Liu", "Kun He"),
    year=2023,
    arxiv="2306.12442",
    modality=("image",),
    data=("labels",),
    claim="Keeping how a teacher's tokens relate teaches a student more than how whole items do, most so with a long tail.",
)


@dataclass(frozen=True, kw_only=True)
class TRG:
    """Keep how the teacher's tokens relate: within an image, to their neighbours in the batch, and to the student's own."""

    inner: float = 1.0
    local: float = 1.0
    contrast: float = 1.0
    tokens: int = 256  # drawn from a batch
    neighbours: int = 8
    hot: float = 0.5  # tau at the first step
    cold: float = 0.07  # tau at the last
    layers: Pairs = Pairs()  # none named: the last stages' ends
    beside: Beside = Beside(soft=1.0)
    needs: ClassVar[frozenset[Kind]] = frozenset({"features", "logits"})
    compares_items: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if min(self.tokens, self.neighbours) < 1 or min(self.hot, self.cold) <= 0:
            raise ValueError("tokens and neighbours are 1 or more, hot and cold above 0")

    @property
    def equation(self) -> str:
        """The objective with its live weights."""
        terms = {"mean (CSs - CSt)²": self.inner, "KL(A_t ‖ A_s)": self.local, "NCE(W s, t)": self.contrast}
        return equation(self.beside, terms)

    def temperature(self, run: Run) -> float:
        """tau at this step."""
        done = run.step / max(run.horizon - 1, 1)
        return self.cold + (self.hot - self.cold) * (1 + math.cos(math.pi * done)) / 2

    def setup(self, student: nn.Module, run: Run) -> State:
        """The student and W."""
        s = compared(student, run, self.layers, "map", last=1)
        s.adapters.extend(nn.Linear(mine[0], theirs[0]) for mine, theirs in s.shapes)
        return s

    def step(self, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        """One update over all items; those of weight 0 are not compared with."""
        seen, there = s.see(batch, run, adapted=False), weight_of(batch).sign()
        gaps: list[tuple[Tensor, ...]] = []
        for project, *pair in zip(s.adapters, seen.mine, seen.theirs, strict=True):
            own, other = (as_tokens(x) for x in same_size(*pair))  # [B, N, d], [B, N, D]
            drawn = self._drawn(there, own.shape[1], run)
            mine, theirs = own.flatten(0, 1)[drawn], other.flatten(0, 1)[drawn]
            local = graph_gap(mine, theirs, neighbours=self.neighbours)
            contrast = counterpart_gap(project(mine), theirs, temperature=self.temperature(run))
            by_item = [_of_items(each, drawn // own.shape[1], there) for each in (local, contrast)]
            gaps.append((inner_gap(own, other, weight=there), *by_item))
        inner, local, contrast = (torch.stack(parts).sum(0) for parts in zip(*gaps, strict=True))
        terms = {"inner": (self.inner, inner), "local": (self.local, local), "contrast": (self.contrast, contrast)}
        yield total(seen, self.beside, {name: term for name, term in terms.items() if term[0]})

    def _drawn(self, there: Tensor, count: int, run: Run) -> Tensor:
        """The numbers of the tokens drawn, of the B `count` of a batch; none of items that do not count."""
        every = (there > 0).repeat_interleave(count).nonzero().flatten()
        order = torch.randperm(len(every), generator=run.rng("tokens"))[: self.tokens]
        return every[order.to(every.device)]


def _of_items(values: Tensor, items: Tensor, there: Tensor) -> Tensor:
    """Values [S] of tokens as values [B] of their items; the mean over items that are `there` is that over tokens."""
    share = there.sum() / max(len(values), 1)
    return torch.zeros_like(there, dtype=values.dtype).index_add(0, items, values * share.to(values.dtype))


def recipe(scale: Scale = "small") -> Recipe:
    """With a long tail: digits (smoke), MNIST (small), CIFAR-100 as `cifar100.npz` (paper)."""
    split = Split(valid=0.2, test=0.3, tail=LongTail(factor=50.0))
    data = pick(
        scale, smoke=Digits(split=split), small=replace(SMALL, train=4000, split=Split(tail=LongTail(factor=50.0))),
        paper=replace(CIFAR, split=Split(tail=LongTail(factor=100.0))),
    )  # fmt: skip
    return images("trg", scale, TRG(contrast=pick(scale, smoke=0.1, small=0.1, paper=1.0)), data=data)


def proof() -> Proof:
    """On a long tail, against the labels alone, soft targets, and relations of whole items."""
    ours = recipe("small")
    claim = "With few images of some classes, a student that keeps how its teacher's tokens relate classifies better than"
    claim += " one that learns the teacher's outputs, than one that keeps the relations of whole images as well, and than"
    claim += " one without a teacher."
    note = (
        "MNIST at 14 x 14 pixels with a long tail: 400 images of the first class, 8 of the last, about 1,100 in all; of"
        " the 1,000 to choose by and the 10,000 to judge every class has about a tenth. The teacher (73,000 parameters)"
        " takes 600 steps on the same images, shifted; the student has 10,500. Every arm takes 400 steps of 64 images,"
        " and the teacher's training and passes come on top where there is one. `ours` and `rkd` have the labels and"
        " soft targets beside them, both in full. `contrast` is the better of 0.1 and 1 on seed 100 and the validation"
        " split."
    )
    both = arm(ours, RKD(beside=Beside(soft=1.0)), name="rkd")
    return against_hinton(ours, claim, arms={"rkd": both}, note=note)
