"""FedMD: Heterogenous Federated Learning via Model Distillation (Li and Wang 2019, arXiv 1910.03581).

    digest:   min |f_k(x) - F(x)|_1 / C,   F(x) = 1/K sum_k f_k(x)   for x in the round's public items d_j
    revisit:  min CE(y, softmax f_k(x))                              for (x, y) of client k's own

f_k(x) are the C class scores (logits) of client k's network, which may be unlike the others'. A round j is: every client
sends its scores of d_j, the server averages them, every client digests the consensus F and then revisits its own items.
Before the first round comes transfer learning: each client learns the public labels, then its own.

Sure, from the paper: transfer learning, communicate, aggregate, distribute, digest, revisit (Algorithm 1), the plain
average, a random subset d_j of the public items each round. Sure, from diogenes0319/FedMD_clean (226c6bc): scores are
logits, the distance is Keras's mean absolute error, scores are taken without dropout, Adam at 1e-3; 20 rounds, 5000 public
items, one pass over them in batches of 256, 2 (i.i.d.) or 4 passes over the own items in batches of 5. Inferred: nothing
in the update.

Differs from the paper / the authors' code: rounds are counted in steps, `digest` and `revisit`, and d_j is what the digest
steps of the round meet. F is not stored: the state keeps the clients as they were when the round began and asks them for
each batch, which gives the same numbers, whatever the split of a batch, and resumes to the same bits. A client has one
Adam, not one for digesting and another for its own labels. Transfer learning takes a set number of steps, without early
stopping on test data. Where the public items have no labels, `public=0` leaves their lesson out. Weighted averages (the
authors turn down two weak clients on CIFAR) are not in this file. The paper's clients without i.i.d. data hold one writer's
letters, or one subclass of each superclass; a Dirichlet split is what later work made of it. The ten networks at `paper` are
ours, of two and three stages of convolutions, not the authors' ten.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from ...audits.clients import ClientAccuracy
from ...core.method import State, Update
from ...core.optim import Optim
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Recipe, Scale, pick
from ...core.run import Run, RunError
from ...core.signal import Batch, Kind
from ...core.stage import Audit, Train
from ...data.clients import Federation, federated
from ...data.images import Digits, Npz
from ...data.toys import Clusters
from ...models.call import dense, logits_of, weight_of
from ...models.clients import Clients, ClientState, several
from ...models.toys import MLP, ConvNet
from ...objectives.divergences import cross_entropy

PAPER = Paper(
    id="fedmd",
    title="FedMD: Heterogenous Federated Learning via Model Distillation",
    authors=("Daliang Li", "Junpu Wang"),
    year=2019,
    arxiv="1910.03581",
    venue="NeurIPS Workshop on Federated Learning for Data Privacy and Confidentiality",
    modality=("image", "table"),
    data=("labels",),
    claim="Clients with different networks and private data learn from each other through class scores on public items.",
)

Phase = Literal["public", "private", "digest", "revisit"]


@dataclass(frozen=True, kw_only=True)
class FedMD:
    """Approach the clients' average on public items, then go back to one's own; `digest=0` is each client alone."""

    digest: int = 20  # steps towards the consensus in a round
    revisit: int = 8  # steps on the own items in a round
    public: int = 0  # steps on the public labels, before all else
    private: int = 0  # steps on the own items after that, before the first round
    needs: ClassVar[frozenset[Kind]] = frozenset()

    def __post_init__(self) -> None:
        if min(self.digest, self.revisit, self.public, self.private) < 0:
            raise ValueError("digest, revisit, public and private count steps; none can be below 0")
        if self.digest + self.revisit < 1:
            raise ValueError("a round needs a step: digest + revisit must be 1 or more")

    def phase(self, step: int) -> Phase:
        """What step `step` is for."""
        if step < self.public:
            return "public"
        if step < self.public + self.private:
            return "private"
        return "digest" if self._place(step) < self.digest else "revisit"

    def _place(self, step: int) -> int:
        return (step - self.public - self.private) % (self.digest + self.revisit)

    def rounds(self, steps: int) -> int:
        """How often the clients have communicated after `steps` steps."""
        left = max(0, steps - self.public - self.private)
        return math.ceil(left / (self.digest + self.revisit)) if self.digest else 0

    def traffic(self, student: nn.Module, *, classes: int, public: int, items: int) -> int:
        """Bytes of one round: every client sends its scores of the round's public items and receives their average."""
        return 2 * 4 * classes * min(public, self.digest * items) * len(list(student.children()))

    def setup(self, student: nn.Module, run: Run) -> ClientState:
        """The clients, and what they were when they last communicated."""
        source = federated(run)
        clients = several(student, len(source.private))
        if self.digest and source.public is None:
            raise RunError("FedMD needs public items: set data.public above 0, or give data.public_source")
        if self.public and not (source.public and source.labelled):
            raise RunError(
                "method.public counts steps on public labels, but there are none: set data.labelled=true, or it to 0"
            )
        if not self.digest:
            return ClientState(student=clients)
        return ClientState(student=clients, sent=copy.deepcopy(clients).eval().requires_grad_(False))

    def step(self, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        """One update of every client, in their order."""
        phase = self.phase(run.step)
        shown: Any = batch.get("public")
        consensus = None
        if phase == "digest":
            with torch.no_grad():
                consensus = s.sent(shown["inputs"])
        for (name, client), own in zip(s.student.named_children(), batch["private"], strict=True):
            lesson: Batch = own if phase in ("private", "revisit") else shown
            scores = logits_of(client, lesson)
            if consensus is not None:
                gap = (dense(scores) - consensus).abs().mean(-1)
                yield Update(gap.sum(), count=len(gap), group=name, logs={"gap": gap.sum()})
            else:
                weight = weight_of(lesson)
                nll = cross_entropy(scores, lesson["labels"], weight=weight)
                yield Update(nll.sum(), count=weight.sum(), group=name, logs={"cross_entropy": nll.sum()})

    def advance(self, s: State, logs: Mapping[str, float], run: Run) -> None:
        """If the next step begins a round, the clients communicate."""
        following = run.step + 1
        if self.digest and following >= self.public + self.private and self._place(following) == 0:
            for sent, client in zip(s.sent.state_dict().values(), s.student.state_dict().values(), strict=True):
                sent.copy_(client)


def recipe(scale: Scale = "small") -> Recipe:
    """Clusters (smoke); digits, 4 clients of 4 architectures (small); MNIST and FEMNIST's letters, 10 clients (paper).

    In `small` 30 % of the training images are public without their labels, and the others are divided by
    Dirichlet(0.3). The stage `alone` has the same clients, steps and batches, and no communication. `paper` reads
    `mnist.npz` and `femnist.npz`, whose letters a to f are the classes 10 to 15.
    """
    two = [ConvNet(width=width, depth=2, dropout=0.2) for width in (96, 128, 160, 192, 256)]
    three = [ConvNet(width=width, depth=3, dropout=0.2) for width in (48, 64, 80, 96, 128)]
    unlike = (MLP(width=32), MLP(width=64, depth=1), ConvNet(width=8), ConvNet(width=12))
    toys = (MLP(width=16), MLP(width=24, depth=1), MLP(width=12, depth=3))
    method = pick(
        scale,
        smoke=FedMD(digest=2, revisit=2),
        small=FedMD(digest=5, revisit=5, private=50),
        paper=FedMD(digest=20, revisit=8, public=4700, private=90),
    )
    train = Train(
        method=method,
        steps=pick(scale, smoke=80, small=650, paper=4790 + 20 * 28),
        batch=pick(scale, smoke=16, small=32, paper=5),
        optim=Optim(lr=pick(scale, smoke=1e-2, small=3e-3, paper=1e-3), schedule=pick(
            scale, smoke="linear", small="linear", paper="constant")),
    )  # fmt: skip
    letters = Federation(
        source=Npz(path="femnist.npz"), public_source=Npz(path="mnist.npz"), clients=10, alpha=math.inf, per_class=3,
        labelled=True, public_each=51,
    )  # fmt: skip
    return Recipe(
        id="fedmd",
        student=Clients(members=pick(scale, smoke=toys, small=unlike, paper=(*two, *three))),
        data=pick(
            scale,
            smoke=Federation(source=Clusters(), clients=3, alpha=0.5),
            small=Federation(source=Digits(), alpha=0.3),
            paper=letters,
        ),
        stages={
            "alone": replace(train, method=replace(method, digest=0), label="Clients alone"),
            "train": replace(train, label="FedMD"),
            "audit": Audit(subjects=("start", "alone", "train"), checks=(ClientAccuracy(),)),
        },
    )


def proof() -> Proof:
    """Four unlike clients, with communication against without."""
    whole = recipe("small")
    stages = {"train": whole.stages["train"], "audit": Audit(subjects=("start", "train"), checks=(ClientAccuracy(),))}
    ours = replace(whole, stages=stages)
    return Proof(
        claim="Four clients with networks of four kinds, whose digits are divided by Dirichlet(0.3), recognise unseen digits"
        " of all classes better if they exchange class scores on unlabelled public images than each of them alone.",
        arms={"ours": ours, "alone": ours.set("train.method.digest", 0)},
        metric="accuracy",
        beats=("alone",),
        seeds=(0, 1, 2, 3, 4),
        minutes=6.0,
        tune={"train.optim.lr": (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)},
        note="Accuracy is the mean over the clients. Every client takes 650 gradient steps of 32 images in both arms: 300 of"
        " those of `ours` are on public images without labels, which the other arm does not see. Who holds which images, the"
        " initial weights and the order depend on the seed; the test images do not.",
    )
