"""Deep Mutual Learning (Zhang et al. 2017, arXiv 1706.00384): DML.

    L_k = labels CE(y, q_k) + weight / (K - 1) sum_{j != k} KL(q_j ‖ q_k),     k = 1 ... K

K networks that begin differently learn the same batches. q_k is the softmax of network k, y the label. There is no
teacher: each learns what the others say, which has no gradient on its side. In a step network 1 moves first; what it says
then is taken anew before network 2 learns from it, and so on (Algorithm 1).

The student is network 1, and the one that is kept; the others are `peers`, groups of the state, and thrown away. A
network that differs from the student is a spec in `peers`.

Differs from the paper / the authors' code: nothing known of the update. YingZhangDUT/Deep-Mutual-Learning computes all
outputs once and moves all networks by them; here, as in the paper's Algorithm 1, one after the other, which costs a
forward pass more for all but the last. That pass is taken as in training: dropout draws anew, and batch norm counts the
batch again. An item without a label (negative) keeps what the others say of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import nn

from ...core.method import State, Update
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Recipe, Scale, pick
from ...core.run import Run
from ...core.signal import Batch, Kind, Logits
from ...core.stage import Audit
from ...models.call import answers, logits_of, weight_of
from ...models.toys import MLP
from ...models.vision import ResNet
from ...objectives.divergences import ForwardKL, cross_entropy
from ...teachers.local import same_classes
from ..images import NOTE, against_hinton, images
from ..outputs import added, told

PAPER = Paper(
    id="dml",
    title="Deep Mutual Learning",
    authors=("Ying Zhang", "Tao Xiang", "Timothy M. Hospedales", "Huchuan Lu"),
    year=2017,
    arxiv="1706.00384",
    venue="CVPR 2018",
    modality=("any",),
    data=("labels", "unlabelled", "documents"),
    claim="Small networks that teach each other while they learn become better than alone, and than with a large teacher.",
)


@dataclass(frozen=True, kw_only=True)
class DML:
    """Learn the labels, and what the peers say; the peers learn what the student says."""

    peers: tuple[Any, ...] = (None,)  # a ModelSpec each; None: one like the student
    labels: float = 1.0  # weight of the labels' cross-entropy
    weight: float = 1.0  # of the mean divergence from the others; 0: each alone
    needs: ClassVar[frozenset[Kind]] = frozenset()
    takes_mixed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.peers:
            raise ValueError("peers must name at least one network, or null for one like the student")

    @property
    def equation(self) -> str:
        """The objective of each network with its live weights."""
        others = "KL(q_other ‖ q)" if len(self.peers) == 1 else f"mean of {len(self.peers)} KL(q_other ‖ q)"
        return told({"CE(y, q)": self.labels, others: self.weight})

    def setup(self, student: nn.Module, run: Run) -> State:
        """The student and its peers, which begin with other weights."""
        stage: Any = run.recipe.stages[run.stage]
        own = stage.student or run.recipe.student
        peers = {f"peer{n}": (spec or own).build(run).train() for n, spec in enumerate(self.peers, 1)}
        return State(student=student, **peers)

    def step(self, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        """One update of every network, in their order."""
        networks, weight = s.groups(), weight_of(batch)
        last = list(networks)[-1]
        own = {name: logits_of(network, batch) for name, network in networks.items()}
        said = {name: logits.detach() for name, logits in own.items()}
        for name, network in networks.items():
            others = [logits for other, logits in said.items() if other != name]
            kl = [_apart(own[name], other, weight) for other in others]
            hard = [cross_entropy(own[name], labels, weight=share).sum() for labels, share in answers(batch)]
            terms = {"cross_entropy": (self.labels, torch.stack(hard).sum())}
            terms["kl"] = self.weight / len(others), torch.stack(kl).sum()
            yield added(terms, weight.sum(), group=name)
            if name != last:
                with torch.no_grad():  # it has moved
                    said[name] = logits_of(network, batch).detach()


def _apart(mine: Logits, theirs: Logits, weight: torch.Tensor) -> torch.Tensor:
    """The divergence of one network from another, a sum over the items."""
    student, other = same_classes(mine, theirs)
    return ForwardKL()(student, other, weight=weight).sum()


def recipe(scale: Scale = "small") -> Recipe:
    """Two networks, of two kinds on digits (smoke), alike on MNIST (small) and CIFAR-100 (paper); see `methods.images`."""
    return _untaught(_taught(scale))


def _taught(scale: Scale) -> Recipe:
    method = pick(scale, smoke=DML(peers=(MLP(width=16),)), small=DML(), paper=DML())
    return images("dml", scale, method, student=pick(scale, smoke=None, small=None, paper=ResNet(depth=32)))


def _untaught(made: Recipe) -> Recipe:
    """The recipe without its teacher."""
    audit = Audit(subjects=("start", "alone", "train"), checks=made.stages["audit"].checks)
    return replace(made, teachers={}, stages={"train": made.stages["train"], "alone": made.stages["alone"], "audit": audit})


def proof() -> Proof:
    """Two networks that teach each other against one that a large network teaches, and against one alone."""
    taught = _taught("small")
    whole = _untaught(taught)
    judged = replace(whole.stages["audit"], subjects=("start", "train"))
    ours = replace(whole, stages={"train": whole.stages["train"], "audit": judged})
    claim = (
        "A network that learns beside another of its kind, each from what the other says, classifies better than the same"
    )
    claim += " network alone, and than one that learns from a larger teacher's softened outputs."
    note = f"{NOTE} In `ours` two students take those steps, and the first is judged."
    return against_hinton(taught, claim, arms={"ours": ours}, note=note)
