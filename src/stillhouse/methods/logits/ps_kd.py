"""PS-KD: Self-Knowledge Distillation with Progressive Refinement of Targets (Kim et al. 2020, arXiv 2006.12000).

    L = CE((1 - a) e_y + a P_i, q),     a = share (t + 1) / t_end

e_y is the label as a distribution, P_i what the network itself said of item i when it last met it, q what it says now, t the
step of t_end. The network is its own teacher, one pass over the data behind, and hears more of itself the longer it has
learned. Of an item that it has not met yet, P_i is the label.

Sure, from lgcnsai/PS-KD-Pytorch: the bank of softmax outputs by item, written after the forward pass in training mode and of
the augmented image, one-hot at first; temperature 1 and no factor T²; share = 0.8.

Differs from the paper / the authors' code: a grows by the step, not by the epoch. What is said in a step is written down
after it. An item without a label (negative) is left out. A snapshot of the network in place of the bank, which the paper
offers for large data, is not here. `paper` has the setting of the other tables (`methods.images`), not theirs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import nn

from ...core.method import State, Update
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Recipe, Scale
from ...core.run import Run
from ...core.signal import Batch, Kind
from ...models.bank import Bank, items_of
from ...models.call import dense, logits_of, weight_of
from ...objectives.divergences import log_softmax
from ..images import against_hinton, arm, images

PAPER = Paper(
    id="ps_kd",
    title="Self-Knowledge Distillation with Progressive Refinement of Targets",
    authors=("Kyungyul Kim", "ByeongMoon Ji", "Doyoung Yoon", "Sangheum Hwang"),
    year=2020,
    arxiv="2006.12000",
    venue="ICCV 2021",
    modality=("image",),
    data=("labels",),
    claim="A network that mixes its own last predictions into the labels, more and more, is righter and better calibrated.",
)


@dataclass(frozen=True, kw_only=True)
class PSKD:
    """Learn the label, softened by what one said of the same item last time; no teacher."""

    share: float = 0.8  # of one's own prediction in the target, at the end
    needs: ClassVar[frozenset[Kind]] = frozenset()

    def __post_init__(self) -> None:
        if not 0.0 <= self.share <= 1.0:
            raise ValueError(f"share must be between 0 and 1, not {self.share}")

    @property
    def equation(self) -> str:
        """The objective with its live weight."""
        return f"CE((1 - a) y + a P, q), P one's last answer, a growing to {self.share:g}"

    def setup(self, student: nn.Module, run: Run) -> State:
        """The student, and a bank with a row for each training item."""
        items_of(run.source.batch([0], 0), "PS-KD")
        return State(student=student, bank=Bank(len(run.source), run.source.classes))

    def step(self, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        """One update over the labelled items."""
        labels, weight = batch["labels"], weight_of(batch)
        here = (weight != 0) & (labels >= 0)
        items, labels, weight = items_of(batch, "PS-KD")[here], labels[here], weight[here]
        log_q = log_softmax(dense(logits_of(s.student, batch))[here])
        a = self.share * (run.step + 1) / run.horizon
        right = nn.functional.one_hot(labels, log_q.shape[-1]).to(log_q.dtype)
        target = (1 - a) * right + a * s.bank.row(items, right)
        s.bank.note(items, log_q.exp())
        loss = -(weight * (target * log_q).sum(-1)).sum()
        nll = -(weight * (right * log_q).sum(-1)).sum()
        yield Update(loss, count=weight.sum(), logs={"cross_entropy": nll, "share": a * weight.sum()})

    def advance(self, s: State, logs: Mapping[str, float], run: Run) -> None:
        """Write down what was said."""
        s.bank.write()


def recipe(scale: Scale = "small") -> Recipe:
    """Digits (smoke), MNIST (small), CIFAR-100 as `cifar100.npz` (paper); see `methods.images`. There is no teacher."""
    made = images("ps_kd", scale, PSKD())
    stages = {name: stage for name, stage in made.stages.items() if name != "teacher"}
    stages["audit"] = replace(stages["audit"], subjects=("start", "alone", "train"))
    return replace(made, teachers={}, stages=stages)


def proof() -> Proof:
    """Against the labels alone; Hinton's distillation, which has a teacher, is shown beside."""
    claim = (
        "A student that mixes its own last answers into the labels gives the right class more probability than one without."
    )
    base = images("ps_kd", "small", PSKD())
    made = against_hinton(base, claim, arms={"ours": arm(recipe("small"))}, beats=("alone",))
    return replace(made, metric="nll", better="lower")
