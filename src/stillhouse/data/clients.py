"""Data that several clients hold, and data that all of them see: what federated methods learn from.

The labels of a client are skewed by a Dirichlet distribution (Hsu et al. 2019, arXiv 1909.06335). Who holds what depends
on the run's seed; what is held out to judge is the source's own, the same for every client and seed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy
import torch
from torch import Tensor

from ..core.run import Run, RunError, seed_of
from ..core.signal import Batch
from .images import Digits


@dataclass(frozen=True, kw_only=True)
class Federation:
    """Any labelled source, its training split divided into public items and one private part for each client.

    With `public_source` the public items are all of that one's training split. Classes go by name: those that only one
    of the two sources has become classes of both, so every client can answer with any of them.
    """

    source: Any = Digits()  # any data of images or points whose training split has `labels` [N]
    clients: int = 4
    alpha: float = 0.5  # of the Dirichlet distribution: near 0 a class belongs to one client, `.inf` shares it evenly
    public: float = 0.3  # share of every class that is public; without meaning where there is a `public_source`
    public_source: Any = None  # data of its own that all clients see
    labelled: bool = False  # whether the labels of the public items are known
    public_each: int = 1  # public items in a batch for each item of a client
    per_class: int | None = None  # items of one class that a client keeps at most; None: all

    def __post_init__(self) -> None:
        if self.clients < 1:
            raise ValueError(f"clients must be 1 or more, not {self.clients}")
        if not self.alpha > 0:
            raise ValueError(f"alpha must be above 0, not {self.alpha}")
        if not 0.0 <= self.public < 1.0:
            raise ValueError(f"public must be a share from 0 to below 1, not {self.public}")
        if self.public_each < 1:
            raise ValueError(f"public_each must be 1 or more, not {self.public_each}")
        if self.per_class is not None and self.per_class < 1:
            raise ValueError(f"per_class must be 1 or more, not {self.per_class}")

    def load(self, run: Run) -> Mapping[str, Any]:
        """`train` is Federated; `valid` and `test` are the source's, the same for all clients."""
        splits = run.sources(self.source)
        train = splits["train"]
        labels = _labels_of(train)
        others = None if self.public_source is None else run.sources(self.public_source)["train"]
        names = _names_of(train)
        if others is not None:
            if others.shape != train.shape:
                raise RunError(f"public items are {list(others.shape)}, private ones {list(train.shape)}; make them alike")
            names = tuple(dict.fromkeys([*_names_of(others), *names]))
            public, kept = Part(others, torch.arange(len(others)), names), torch.arange(len(labels))
        else:
            shown, kept = _public_part(labels, self.public, run.seed)
            public = Part(train, shown, names) if len(shown) else None
        parts = dirichlet(labels[kept], self.clients, self.alpha, seed_of(run.seed, "clients"), self.per_class)
        private = tuple(Part(train, kept[part], names) for part in parts)
        held_out = {n: Part(splits[n], torch.arange(len(splits[n])), names) for n in ("valid", "test")}
        return {"train": Federated(private, public, names, self.labelled, self.public_each), **held_out}


@dataclass(frozen=True)
class Part:
    """Some items of a source, with its classes numbered as `names` has them."""

    source: Any
    items: Tensor  # [N]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.items)

    @property
    def mixes(self) -> bool:
        """Whether a batch may hold mixed images."""
        return getattr(self.source, "mixes", False)

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return len(self.names)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one item."""
        return self.source.shape

    @property
    def labels(self) -> Tensor:
        """[N]; negative where it is not known."""
        return self._renumbered(self.source.labels[self.items])

    def batch(self, items: Sequence[int], epoch: int) -> Batch:
        """The source's batch."""
        batch = self.source.batch(self.items[torch.tensor(items, dtype=torch.long)].tolist(), epoch)
        return {**batch, "labels": self._renumbered(batch["labels"])}

    @cached_property
    def _numbers(self) -> Tensor:
        return torch.tensor([self.names.index(name) for name in _names_of(self.source)])

    def _renumbered(self, labels: Tensor) -> Tensor:
        return torch.where(labels >= 0, self._numbers[labels.clamp(min=0)], labels)


@dataclass(frozen=True)
class Federated:
    """One item is one item of every client and `public_each` public ones, so a batch can be split without loss.

    A client with fewer items than an epoch has meets each of them equally often, give or take one.
    """

    private: tuple[Part, ...]
    public: Part | None
    names: tuple[str, ...]
    labelled: bool = False
    public_each: int = 1

    def __len__(self) -> int:
        shown = 0 if self.public is None else math.ceil(len(self.public) / self.public_each)
        return max(shown, *(len(part) for part in self.private))

    @property
    def classes(self) -> int:
        """How many classes there are, over all clients and the public data."""
        return len(self.names)

    @property
    def mixes(self) -> bool:
        """Whether a batch may hold mixed images."""
        return self.private[0].mixes

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one item."""
        return self.private[0].shape

    def batch(self, items: Sequence[int], epoch: int) -> Batch:
        """`private`: for each client inputs [B, ...] and labels [B]. `public`: inputs [B * public_each, ...].

        Labels of public items are there only if they are known.
        """
        turns = [epoch * len(self) + item for item in items]
        batch: dict[str, Any] = {
            "private": tuple(part.batch([turn % len(part) for turn in turns], epoch) for part in self.private)
        }
        if self.public is not None:
            numbers = [turn * self.public_each + j for turn in turns for j in range(self.public_each)]
            shown = self.public.batch([number % len(self.public) for number in numbers], epoch)
            batch["public"] = {k: v for k, v in shown.items() if self.labelled or k != "labels"}
        return batch


def federated(run: Run) -> Federated:
    """What the current stage learns from; RunError if it is not divided between clients."""
    stage = run.recipe.stages.get(run.stage)
    source = run.sources(getattr(stage, "data", None))["train"]
    if not isinstance(source, Federated):
        raise RunError("this method needs data that clients hold: give it `data: {use: data.clients.Federation, ...}`")
    return source


def dirichlet(labels: Tensor, clients: int, alpha: float, seed: int, most: int | None = None) -> list[Tensor]:
    """The items of each client, sorted: every class is cut by shares drawn from a symmetric Dirichlet(alpha).

    `most` items of a class stay with a client. A client that would hold nothing is given an item of the one that has the
    most; RunError if there are fewer items than clients.
    """
    if len(labels) < clients:
        raise RunError(f"{len(labels)} items cannot be divided between {clients} clients")
    draw = numpy.random.default_rng(seed)
    held: list[list[int]] = [[] for _ in range(clients)]
    for label in labels.unique().tolist():
        members = (labels == label).nonzero().flatten().numpy()
        draw.shuffle(members)
        cuts = numpy.rint(numpy.cumsum(_shares(draw, clients, alpha))[:-1] * len(members)).astype(int)
        order = draw.permutation(clients)  # an even share rounds in favour of some clients: not always of the same
        for client, part in zip(order, numpy.split(members, cuts), strict=True):
            held[client] += part[:most].tolist()
    for poor in held:
        if not poor:
            poor.append(max(held, key=len).pop())
    return [torch.tensor(sorted(part), dtype=torch.long) for part in held]


def _shares(draw: numpy.random.Generator, n: int, alpha: float) -> Any:
    """[n], sum 1. Gamma(a) is Gamma(a + 1) U^(1/a): as logarithms, so that a small alpha does not underflow."""
    if math.isinf(alpha):
        return numpy.full(n, 1 / n)
    logs = numpy.log(draw.standard_gamma(alpha + 1, n)) + numpy.log1p(-draw.random(n)) / alpha
    shares = numpy.exp(logs - logs.max())
    return shares / shares.sum()


def _public_part(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """(public items, the others): a share of every class, one at least."""
    draw = torch.Generator().manual_seed(seed_of(seed, "public"))
    shown = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique() if share else ():
        members = (labels == label).nonzero().flatten()
        count = max(1, round(share * len(members)))
        shown[members[torch.randperm(len(members), generator=draw)[:count]]] = True
    return shown.nonzero().flatten(), (~shown).nonzero().flatten()


def _labels_of(source: Any) -> Tensor:
    labels: Any = getattr(source, "labels", None)
    if not isinstance(labels, Tensor) or labels.ndim != 1 or not hasattr(source, "classes"):
        raise RunError("clients need labelled items: data.images.Npz, Folder or Digits, or data.toys.Clusters")
    if bool((labels < 0).any()):
        raise RunError("clients need every label of their items; leave `split.labels` out, and set `public` instead")
    return labels


def _names_of(source: Any) -> tuple[str, ...]:
    return getattr(source, "names", None) or tuple(map(str, range(source.classes)))
