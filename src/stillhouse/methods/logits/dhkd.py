"""Dual-Head Knowledge Distillation: Enhancing Logits Utilization with an Auxiliary Head (Yang et al. 2024, arXiv
2411.08937).

    L = labels CE(y, softmax(z1)) + weight T² sum_k KL(Bernoulli(1/2) ‖ Bernoulli(sigmoid((z2_k - t_k) / T)))
    z1 = W h,   z2 = g(h)

h are the student's features in front of its head W, t the teacher's logits, y the label. The second term asks for the
teacher's logits themselves, which say more than their softmax; on the head W it would work against the first one, so a
second head g has it, and is thrown away after training. With `aligned`, what opposes the first term's gradient is taken
out of the second's, over all parameters: h - min(0, <g, h> / |g|²) g for gradients g of the first and h of the second.

Sure, from penghui-yang/DHKD: both terms and their heads, T = 2, labels = 1, weight = 1 and the alignment on CIFAR-100,
weight = 0.1 without it on ImageNet; no KL term on the first head; g is linear, or (`hidden`) a linear layer to 200, dropout
of 0.1, batch norm, ReLU and a linear layer, for pairs of unlike networks.

Differs from the paper / the authors' code: the code clamps the sigmoid, which stops the gradient of large differences; here
it goes on. The alignment is that of a micro-batch where a batch is split. A mixed image (mixup, CutMix) has both its labels,
weighted by their shares.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from ...core.engine import to_device
from ...core.method import State, Update
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Recipe, Scale
from ...core.run import Run
from ...core.signal import Batch, Kind
from ...models.adapters import Adapted
from ...models.call import answers, dense, weight_of
from ...models.taps import layers, penultimate, shape_at, tapped
from ...objectives.alignment import opposed
from ...objectives.decoupled import bernoulli_gap
from ...teachers.local import same_classes
from ..images import NOTE, WIDER, against_hinton, arm, images
from ..outputs import Outputs, added, check_temperature, told

PAPER = Paper(
    id="dhkd",
    title="Dual-Head Knowledge Distillation: Enhancing Logits Utilization with an Auxiliary Head",
    authors=("Penghui Yang", "Chen-Chen Zong", "Sheng-Jun Huang", "Lei Feng", "Bo An"),
    year=2024,
    arxiv="2411.08937",
    modality=("any",),
    data=("labels",),
    claim="The teacher's logits and the labels teach more together if each has a head of its own.",
)


@dataclass(frozen=True, kw_only=True)
class DHKD:
    """Learn the labels with the head, and the teacher's logits with a second head on the same features."""

    labels: float = 1.0  # weight of the labels' cross-entropy
    weight: float = 1.0  # of the logits' term
    temperature: float = 2.0
    aligned: bool = True  # take out of the logits' gradient what opposes the labels'
    hidden: int | None = None  # width of the second head's hidden layer (theirs: 200); None: a linear head
    shared: bool = False  # both terms on one head: what the paper warns of
    needs: ClassVar[frozenset[Kind]] = frozenset({"logits"})
    takes_mixed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_temperature(self.temperature)

    @property
    def compares_items(self) -> bool:
        """Two gradients are compared, each that of all items together."""
        return self.aligned

    @property
    def equation(self) -> str:
        """The objective with its live weights."""
        gap = f"KL(1/2 ‖ sigmoid((z{1 if self.shared else 2} - t)/{self.temperature:g}))"
        plain = told({"CE(y, q)": self.labels, gap: self.weight * self.temperature**2})
        return plain + (", the second's gradient without what opposes the first's" if self.aligned else "")

    def setup(self, student: nn.Module, run: Run) -> State:
        """The student and its second head."""
        batch = to_device(run.source.batch(range(min(2, len(run.source))), 0), run.device)
        found = layers(student, batch)
        tap = penultimate(found, run.source.classes)
        heads = [] if self.shared else [_head(shape_at(found, tap)[-1], self.hidden, run.source.classes)]
        run.event("layers", text=f"the second head is on {tap}")
        return TwoHeads(student, heads, tap)

    def step(self, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        """One update over all items; one without a label has no cross-entropy and keeps the rest."""
        weight = weight_of(batch)
        here = weight != 0
        logits, seen = tapped(s.student, batch, [s.tap])
        first, teacher = same_classes(logits, run.teacher(batch, self.needs).need("logits"))
        known = [(labels[here], share[here]) for labels, share in answers(batch)]
        said = Outputs(dense(first[here]), dense(teacher[here]), weight[here], known)
        second = s.adapters[0](seen[s.tap][here]) if len(s.adapters) else said.student
        nll = said.cross_entropy()
        gap = bernoulli_gap(second, said.teacher, temperature=self.temperature, weight=said.weight).sum()
        factor = self.weight * self.temperature**2
        made = added({"cross_entropy": (self.labels, nll), "logits": (factor, gap)}, weight.sum())
        if self.aligned:
            c, cosine = opposed(self.labels * nll, factor * gap, s.groups()["student"].parameters())
            made.loss = made.loss - c * self.labels * nll
            made.logs = {**made.logs, "cosine": cosine * weight.sum()}
        yield made


class TwoHeads(Adapted):
    """A student, and a head on what its own head is called with."""

    def __init__(self, student: nn.Module, heads: list[nn.Module], tap: str):
        super().__init__(student, heads)
        self.tap = tap


def _head(width: int, hidden: int | None, classes: int) -> nn.Module:
    if hidden is None:
        return nn.Linear(width, classes)
    return nn.Sequential(
        nn.Linear(width, hidden), nn.Dropout(0.1), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, classes)
    )


def recipe(scale: Scale = "small") -> Recipe:
    """Digits (smoke), MNIST (small), CIFAR-100 as `cifar100.npz` (paper); see `methods.images`."""
    return images("dhkd", scale, DHKD())


def proof() -> Proof:
    """Against the labels alone, soft targets, and the same two terms on one head; without the alignment beside it."""
    ours = recipe("small")
    arms = {
        "one_head": arm(ours.set("train.method.shared", True)),
        "unaligned": arm(ours.set("train.method.aligned", False)),
    }
    claim = (
        "A student with a second head for its teacher's logits classifies better than one that learns both terms on one"
        " head, than one that learns from softened outputs, and than one without a teacher."
    )
    note = (
        f"{NOTE} `one_head` has both terms, aligned, on one head. `unaligned` is ours without the alignment, and not in the"
        " claim. The alignment's two further backward passes come on top."
    )
    return against_hinton(ours, claim, arms=arms, beats=("hinton", "alone", "one_head"), tune=WIDER, note=note)
