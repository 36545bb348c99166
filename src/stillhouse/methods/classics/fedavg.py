"""Communication-Efficient Learning of Deep Networks from Decentralized Data (McMahan et al. 2017, arXiv 1602.05629): FedAvg.

    w_{t+1} = sum_{k in S_t} n_k / m_t w^k_{t+1},    m_t = sum_{k in S_t} n_k

w^k are the weights of client k after some steps of SGD from w_t on its own items, n_k how many items it has, S_t the
clients that take part in round t: a share C of all, drawn anew each round. All clients have one architecture, and begin
with the same weights.

Known of the paper, but not checked against its text here: Algorithm 1, plain SGD, C = 0.1, batches of 10, 1 to 20 passes a
round, the common start, the 2NN (two hidden layers of 200). Inferred: nothing in the update.

Differs from the paper / the authors' code: a round is counted in steps, the same for every client, where the paper counts
passes over the own items, so that a client with more items takes more steps. Early versions of the paper wrote n_k / n for
n_k / m_t, which shrinks the weights if not all take part. An optimizer with momentum keeps it from round to round; SGD
without it, as here, has none. The paper's clients without i.i.d. data hold two digits each; Dirichlet(0.1) comes near that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import nn

from ...audits.clients import ClientAccuracy
from ...core.method import State, Update
from ...core.optim import Optim
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Expect, Recipe, Scale, pick
from ...core.run import Run, RunError, seed_of
from ...core.signal import Batch, Kind
from ...core.stage import Audit, Train
from ...data.clients import Federation, federated
from ...data.images import Digits, Npz
from ...data.toys import Clusters
from ...models.call import logits_of, weight_of
from ...models.clients import Clients, ClientState, several, weight_bytes
from ...models.toys import MLP
from ...objectives.divergences import cross_entropy
from .fedmd import FedMD

PAPER = Paper(
    id="fedavg",
    title="Communication-Efficient Learning of Deep Networks from Decentralized Data",
    authors=("H. Brendan McMahan", "Eider Moore", "Daniel Ramage", "Seth Hampson", "Blaise Agüera y Arcas"),
    year=2017,
    arxiv="1602.05629",
    venue="AISTATS",
    modality=("image", "table"),
    data=("labels",),
    claim="Averaging the weights of clients that train on their own data learns from all of it without moving it.",
)


@dataclass(frozen=True, kw_only=True)
class FedAvg:
    """Train apart, average the weights, go on from the average."""

    local: int = 10  # steps of a round
    fraction: float = 1.0  # C: the share of the clients that take part in a round, one at least
    needs: ClassVar[frozenset[Kind]] = frozenset()

    def __post_init__(self) -> None:
        if self.local < 1:
            raise ValueError(f"local must be 1 or more, not {self.local}")
        if not 0.0 < self.fraction <= 1.0:
            raise ValueError(f"fraction must be above 0 and at most 1, not {self.fraction}")

    def rounds(self, steps: int) -> int:
        """How often weights were averaged after `steps` steps."""
        return steps // self.local

    def taking_part(self, clients: int, run: Run) -> list[int]:
        """The clients of this step's round, in order."""
        number = run.step // self.local
        drawn = sorted(range(clients), key=lambda client: seed_of(run.seed, "takes part", number, client))
        return sorted(drawn[: max(1, round(self.fraction * clients))])

    def traffic(self, student: nn.Module, *, classes: int, public: int, items: int) -> int:
        """Bytes of one round: every client that takes part receives the weights and sends its own."""
        clients = list(student.children())
        return 2 * max(1, round(self.fraction * len(clients))) * weight_bytes(clients[0])

    def setup(self, student: nn.Module, run: Run) -> ClientState:
        """The clients, all with the first one's weights, and how many items each has."""
        source = federated(run)
        clients = several(student, len(source.private))
        shapes = [{n: v.shape for n, v in client.state_dict().items()} for client in clients.children()]
        if any(shape != shapes[0] for shape in shapes):
            raise RunError("FedAvg averages weights, so all clients need one architecture; FedMD does without")
        first, *others = clients.children()
        for other in others:
            other.load_state_dict(first.state_dict())
        sizes = torch.tensor([float(len(part)) for part in source.private], dtype=torch.float64)
        return ClientState(student=clients, sizes=sizes)

    def step(self, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        """One update of every client that takes part, in their order."""
        for number in self.taking_part(len(s.student), run):
            own = batch["private"][number]
            weight = weight_of(own)
            nll = cross_entropy(logits_of(s.student.get_submodule(f"client{number}"), own), own["labels"], weight=weight)
            yield Update(nll.sum(), count=weight.sum(), group=f"client{number}")

    def advance(self, s: State, logs: Mapping[str, float], run: Run) -> None:
        """At the end of a round, everybody gets the average."""
        if (run.step + 1) % self.local:
            return
        clients = [client.state_dict() for client in s.student.children()]
        chosen = self.taking_part(len(clients), run)
        shares = (s.sizes[chosen] / s.sizes[chosen].sum()).tolist()
        for name, value in clients[0].items():
            if value.dtype in (torch.bfloat16, torch.float16):
                raise RunError("FedAvg averages float32 weights; leave precision at float32")
            parts = [share * clients[number][name].double() for number, share in zip(chosen, shares, strict=True)]
            mean = torch.stack(parts).sum(0).to(value.dtype)
            for client in clients:
                client[name].copy_(mean)


def recipe(scale: Scale = "small") -> Recipe:
    """Clusters (smoke); digits, 4 clients (small); MNIST as `mnist.npz`, 100 clients with the paper's 2NN (paper).

    The stage `alone` has the same clients, steps and batches, and no communication; `fedmd` exchanges class scores on
    the public images, which are in nobody's private part.
    """
    member = pick(scale, smoke=MLP(width=16), small=MLP(width=64), paper=MLP(width=200))
    sgd = Optim(name="sgd", lr=pick(scale, smoke=0.3, small=0.1, paper=0.1), momentum=0.0, schedule="constant", warmup=0.0)
    clients = pick(scale, smoke=3, small=4, paper=100)
    method = pick(scale, smoke=FedAvg(local=5), small=FedAvg(local=10), paper=FedAvg(local=60, fraction=0.1))
    train = Train(
        method=method,
        steps=pick(scale, smoke=80, small=650, paper=60_000),
        batch=pick(scale, smoke=16, small=32, paper=10),
        optim=sgd,
        label="FedAvg",
    )
    scores = FedMD(digest=pick(scale, smoke=2, small=5, paper=20), revisit=pick(scale, smoke=2, small=5, paper=40))
    stages = {  # first the one that may refuse the data
        "fedmd": replace(
            train, method=scores, optim=Optim(lr=pick(scale, smoke=1e-2, small=3e-3, paper=1e-3)), label="FedMD"
        ),
        "alone": replace(train, method=FedMD(digest=0), label="Clients alone"),
        "train": train,
        "audit": Audit(subjects=("start", "alone", "fedmd", "train"), checks=(ClientAccuracy(),)),
    }
    if scale == "paper":  # a hundred clients that never meet are not what the paper compares with
        stages = {"train": train, "audit": Audit(subjects=("start", "train"), checks=(ClientAccuracy(),))}
    return Recipe(
        id="fedavg",
        student=Clients(members=(member,) * clients),
        data=pick(
            scale,
            smoke=Federation(source=Clusters(), clients=3, alpha=0.5),
            small=Federation(source=Digits(), alpha=0.3),
            paper=Federation(source=Npz(path="mnist.npz"), clients=100, alpha=0.1, public=0.0),
        ),
        stages=stages,
        expect=EXPECT if scale == "paper" else (),
    )


EXPECT = (Expect(metric="accuracy", value=0.97, where="Table 1", setting="2NN, the target that rounds are counted to"),)


def proof() -> Proof:
    """Four clients of one architecture: averaging weights, exchanging scores, or neither."""
    whole = recipe("small")

    def arm(stage: str) -> Recipe:
        audit = Audit(subjects=("start", "train"), checks=(ClientAccuracy(),))
        return replace(whole, stages={"train": whole.stages[stage], "audit": audit})

    return Proof(
        claim="Four clients of one architecture, whose digits are divided by Dirichlet(0.3), recognise unseen digits of all"
        " classes better if their weights are averaged every 10 steps than each of them alone.",
        arms={"ours": arm("train"), "alone": arm("alone"), "fedmd": arm("fedmd")},
        metric="accuracy",
        beats=("alone",),
        seeds=(0, 1, 2, 3, 4),
        minutes=5.0,
        tune={"train.optim.lr": (1e-2, 1e-1, 3e-1)},
        note="Accuracy is the mean over the clients. Every client takes 650 gradient steps of 32 images in every arm, by SGD"
        " in `ours` and `alone`, by AdamW in `fedmd`, which spends half of them on public images without labels and is there"
        " to compare bytes, not to be beaten.",
    )
