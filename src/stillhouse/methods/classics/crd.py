"""Contrastive Representation Distillation (Tian et al. 2020, arXiv 1910.10699).

    L = labels CE(y, q) + soft T² KL(p_T ‖ q_T) + weight · (N(g_s; M_t) + N(g_t; M_s))
    N(g; M) = -log h(g, M_i) / (h(g, M_i) + K/n) - sum_k log (K/n) / (h(g, M_jk) + K/n),     h(g, m) = exp(g·m / tau) / Z

g_s and g_t are what two linear layers, which learn with the student and are thrown away, make of the features in front
of the heads, at length 1. M_s and M_t are memories that hold such a vector for each of the n training items. For item i
its own row M_i is to be told from K rows M_jk of other classes: the student's features then share with the teacher's
what tells items apart (Equations 15 to 19). After a step the rows of its items become momentum · old + (1 - momentum) ·
new, at length 1. Z is a constant of each memory.

Differs from the paper / the authors' code: Z is taken from the first 64 items before the first step (the code: the
first batch), with the same formula; so it does not depend on how a batch is split. Negatives are drawn with repetition,
at most as many as there are other items, and an item whose label is not known has all others for negatives. The code's
weight of 0.8, 16,384 negatives, 128 numbers, tau of 0.07 and momentum of 0.5 are kept; its value of eps (1e-7) is too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...core.engine import to_device
from ...core.method import State, Update
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Recipe, Scale
from ...core.run import Run, RunError
from ...core.signal import Batch, Kind
from ...models.call import weight_of
from ...objectives.contrastive import log_normaliser, memory_nce, remembered
from ...objectives.maps import unit
from ..images import against_hinton, arm, images
from ..layers import Beside, Pairs, compared, equation, total

PAPER = Paper(
    id="crd",
    title="Contrastive Representation Distillation",
    authors=("Yonglong Tian", "Dilip Krishnan", "Phillip Isola"),
    year=2020,
    arxiv="1910.10699",
    venue="ICLR 2020",
    modality=("any",),
    data=("labels",),
    claim="A student whose features tell apart the items that its teacher's do is better than one with soft targets.",
)
FIRST = 64  # items that the constant Z is taken from


@dataclass(frozen=True, kw_only=True)
class CRD:
    """Recognise an item by what the other network remembers of it."""

    weight: float = 0.8
    width: int = 128  # numbers in an embedding
    negatives: int = 16_384  # for each item; at most as many as there are other items
    temperature: float = 0.07  # tau
    momentum: float = 0.5  # of the memories
    layers: Pairs = Pairs()  # none named: the features in front of the heads
    beside: Beside = Beside()
    needs: ClassVar[frozenset[Kind]] = frozenset({"features", "logits"})

    def __post_init__(self) -> None:
        if min(self.width, self.negatives) < 1 or self.temperature <= 0 or not 0 <= self.momentum < 1:
            raise ValueError("width and negatives are 1 or more, temperature is above 0, momentum from 0 to below 1")

    @property
    def equation(self) -> str:
        """The objective with its live weights."""
        return equation(self.beside, {"(NCE(g_s, M_t) + NCE(g_t, M_s))": self.weight})

    def setup(self, student: nn.Module, run: Run) -> State:
        """The student, two embeddings, two memories and their constants; RunError if the data do not number their items."""
        few = range(min(FIRST, len(run.source)))
        batch = to_device(run.source.batch(few, 0), run.device)
        if "items" not in batch:
            raise RunError(
                "a memory has a row for each item, and these data do not say which items a batch holds: take images"
                " or labelled texts"
            )
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            raise RunError("the memories are those of one process: run crd on one device")
        s: Any = compared(student, run, self.layers, "vector", last=1)
        (((mine,), (theirs,)),) = s.shapes
        s.adapters.extend([nn.Linear(mine, self.width), nn.Linear(theirs, self.width)]).to(run.device)
        parts = torch.arange(len(run.source)).split(1024)
        classes = torch.cat([run.source.batch(part.tolist(), 0)["labels"] for part in parts])
        for name, value in (*self._memories(len(classes), run).items(), *_blocks(classes, run).items()):
            s.register_buffer(name, value.to(run.device))
        s.pending = []  # (items, g_s, g_t) of the step's micro-batches, until `advance` writes them down
        was = student.training
        with torch.no_grad():
            g_s, g_t = self._embedded(s.eval(), batch, run)[1:]
        s.train(was)
        index = self._drawn(s, batch["items"], run)
        s.register_buffer("log_z_t", log_normaliser(g_s, s.memory_t, index, temperature=self.temperature))
        s.register_buffer("log_z_s", log_normaliser(g_t, s.memory_s, index, temperature=self.temperature))
        return s

    def step(self, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        """One update over all items."""
        seen, g_s, g_t = self._embedded(s, batch, run)
        there, index = weight_of(batch).sign(), self._drawn(s, batch["items"], run)
        by_student = memory_nce(g_s, s.memory_t, index, s.log_z_t, temperature=self.temperature, weight=there)
        by_teacher = memory_nce(g_t, s.memory_s, index, s.log_z_s, temperature=self.temperature, weight=there)
        s.pending.append([part[there > 0].detach() for part in (batch["items"], g_s, g_t)])
        yield total(seen, self.beside, {"contrast": (self.weight, by_student + by_teacher)})

    def advance(self, s: State, logs: Mapping[str, float], run: Run) -> None:
        """Write the step's embeddings into the memories."""
        items, g_s, g_t = (torch.cat(parts) for parts in zip(*s.pending, strict=True))
        s.pending.clear()
        for memory, query in ((s.memory_s, g_s), (s.memory_t, g_t)):
            memory.index_copy_(0, items, remembered(memory, items, query, momentum=self.momentum))

    def _embedded(self, s: State, batch: Batch, run: Run) -> tuple[Any, Tensor, Tensor]:
        """(what both saw, g_s, g_t), the latter [B, width] at length 1."""
        seen = s.see(batch, run, adapted=False)
        by_student, by_teacher = s.adapters
        theirs = seen.theirs[0].to(next(by_teacher.parameters()).dtype)
        return seen, unit(by_student(seen.mine[0])), unit(by_teacher(theirs))

    def _memories(self, n: int, run: Run) -> dict[str, Tensor]:
        """Two memories [n, width] of about length 1, drawn evenly as in the authors' code."""
        most, draw = math.sqrt(3 / self.width), run.rng("memories")
        return {name: most * (2 * torch.rand(n, self.width, generator=draw) - 1) for name in ("memory_s", "memory_t")}

    def _drawn(self, s: State, items: Tensor, run: Run) -> Tensor:
        """[B, 1 + K] the items, and for each of them K rows of other classes.

        Sorted by class, what may not be drawn is one block, which the draw jumps over. Each item has a generator of its own,
        so that it has the same negatives however a batch is split.
        """
        n = len(s.order)
        count = min(self.negatives, n - 1)
        draws = [torch.randint(2**62, (count,), generator=run.rng("negatives", item)) for item in items.tolist()]
        drawn = torch.stack(draws).to(items.device) if draws else items.new_empty(0, count)
        start, size = s.start[items].unsqueeze(1), s.size[items].unsqueeze(1)
        drawn = drawn % (n - size)  # even to one part in 2^62 / n
        return torch.cat([items.unsqueeze(1), s.order[drawn + size * (drawn >= start)]], 1)


def _blocks(labels: Tensor, run: Run) -> dict[str, Tensor]:
    """The items in the `order` of their classes, and where the class of each item begins there and its `size`, all [n]."""
    n = len(labels)
    classes = labels.where(labels >= 0, int(labels.max().clamp(min=0)) + 1 + torch.arange(n))  # unknown: one of its own
    order = classes.argsort(stable=True)
    ranked = classes[order]
    start = torch.searchsorted(ranked, classes)
    size = torch.searchsorted(ranked, classes, right=True) - start
    if bool((size == n).any()):
        raise RunError("all training items are of one class, so there is nothing to tell them from")
    return {"order": order, "start": start, "size": size}


def recipe(scale: Scale = "small") -> Recipe:
    """Digits (smoke), MNIST (small), CIFAR-100 as `cifar100.npz` (paper); see `methods.images`."""
    return images("crd", scale, CRD())


def proof() -> Proof:
    """Against the labels alone and soft targets; beside soft targets as a further arm."""
    ours = recipe("small")
    both = arm(ours.set("train.method.beside", Beside(labels=0.1, soft=0.9)))
    claim = "A student that learns to recognise images by what its teacher remembers of them classifies better than one that"
    claim += " learns from the teacher's outputs, and than one without a teacher."
    return against_hinton(ours, claim, arms={"with_hinton": both}, beats=("hinton", "alone"))
