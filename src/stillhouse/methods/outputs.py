"""What methods share that compare a student's logits with its teacher's: one pass, its terms, and their sum.

The logits are written down for the items that count: a batch of `n` answer tokens takes 4 n V bytes on either side and a
few times that in between, where `classics/hinton` takes chunks. Shorter batches or `accumulate` keep that small.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.method import State, Update
from ..core.run import Run
from ..core.signal import Batch, Kind
from ..models.call import answers, dense, logits_of, weight_of
from ..objectives.divergences import cross_entropy
from ..teachers.local import same_classes

Labelled = Callable[[Tensor, Tensor], Tensor]  # (labels, weight) [n] -> weighted values [n]


@dataclass(frozen=True, slots=True)
class Outputs:
    """What student and teacher say of the `n` items of a batch that count: those of weight other than 0."""

    student: Tensor  # [n, V]
    teacher: Tensor  # [n, V], without gradient
    weight: Tensor  # [n]
    answers: list[tuple[Tensor, Tensor]]  # (labels, weight) [n], see `models.call.answers`

    def each(self, values: Labelled) -> Tensor:
        """The sum of what depends on labels, over the items and, where images are mixed, over both labels."""
        return torch.stack([values(labels, weight).sum() for labels, weight in self.answers]).sum()

    def cross_entropy(self) -> Tensor:
        """The sum of the labels' cross-entropy; an item without a label has none."""
        return self.each(lambda labels, weight: cross_entropy(self.student, labels, weight=weight))

    def labelled(self) -> Tensor:
        """How much the items with a label count, in all."""
        return torch.stack([(weight * (labels >= 0)).sum() for labels, weight in self.answers]).sum()


def outputs(s: State, batch: Batch, run: Run, needs: frozenset[Kind]) -> Outputs:
    """Ask both about the batch."""
    weight = weight_of(batch)
    here = weight != 0
    student, teacher = same_classes(logits_of(s.student, batch), run.teacher(batch, needs).need("logits"))
    known = [(labels[here], share[here]) for labels, share in answers(batch)]
    return Outputs(dense(student[here]), dense(teacher[here]), weight[here], known)


def added(terms: Mapping[str, tuple[float, Tensor]], count: Tensor, group: str = "student") -> Update:
    """One update down the sum of factor times term."""
    loss = torch.stack([factor * value for factor, value in terms.values()]).sum()
    return Update(loss, count=count, group=group, logs={name: value.detach() for name, (_, value) in terms.items()})


def told(terms: Mapping[str, float]) -> str:
    """An objective with its live weights: `0.1 CE(y, q) + 14.4 KL(p ‖ q)`."""
    return " + ".join(f"{factor:g} {name}" for name, factor in terms.items() if factor)


def warmed(share: float, run: Run) -> float:
    """How much a term counts that grows evenly over the first `share` of the run: above 0 at the first step, then 1."""
    return min(1.0, (run.step + 1) / (share * run.horizon)) if share else 1.0


def check_warmup(share: float) -> None:
    """An error unless it is a share."""
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"warmup is a share of the run between 0 and 1, not {share}")


def check_temperature(temperature: float) -> None:
    """An error unless a softmax can be taken at it."""
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, not {temperature}")
