"""Data made up on the spot: the same on every machine, learned in seconds, ragged where real data are."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..core.run import Run, seed_of
from ..core.signal import Batch
from .tokens import Document, Packed, pack


@dataclass(frozen=True)
class Points:
    """Labelled points in memory."""

    inputs: Tensor  # [N, d]
    labels: Tensor  # [N]
    classes: int

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one item."""
        return tuple(self.inputs.shape[1:])

    def batch(self, items: Sequence[int], epoch: int) -> Batch:
        """inputs [B, d] float32, labels [B]."""
        chosen = torch.tensor(items)
        return {"inputs": self.inputs[chosen], "labels": self.labels[chosen]}


@dataclass(frozen=True, kw_only=True)
class Clusters:
    """Every class is a few Gaussian clusters in `inputs` dimensions: no line separates them, a small network does."""

    inputs: int = 8
    classes: int = 4
    clusters: int = 3  # per class
    spread: float = 0.8  # standard deviation; the centres have 1
    train: int = 256
    valid: int = 128
    test: int = 256

    def load(self, run: Run) -> Mapping[str, Points]:
        """The splits, the same for every seed of the run."""
        draw = torch.Generator().manual_seed(seed_of("clusters", self.inputs, self.classes, self.clusters))
        centres = torch.randn(self.classes, self.clusters, self.inputs, generator=draw)
        splits: dict[str, Points] = {}
        for name, n in (("train", self.train), ("valid", self.valid), ("test", self.test)):
            labels = torch.arange(n) % self.classes
            which = torch.randint(self.clusters, (n,), generator=draw)
            noise = self.spread * torch.randn(n, self.inputs, generator=draw)
            splits[name] = Points(centres[labels, which] + noise, labels, self.classes)
        return splits


ALPHABET = "\n abcdefghijklmnopqrstuvwxyz."  # the first one ends a document
_WHO = ("the cat", "a small dog", "my old uncle", "the baker", "nobody", "her sister", "the tall man from the sea")
_DOES = ("sees", "likes", "paints", "has lost", "looks for", "sings about")
_WHAT = ("the moon", "a red boat", "warm bread", "the river", "two birds", "an apple", "the long way home")


@dataclass(frozen=True, kw_only=True)
class Sentences:
    """A language of 294 sentences, one token a character, packed into rows: `the baker paints two birds.`

    Who comes first is the prompt and does not count; what follows is to be learned. Documents and rows are ragged.
    """

    length: int = 96  # tokens in a packed row
    train: int = 160  # sentences; the rest is split between `valid` and `test`
    classes: ClassVar[int | None] = len(ALPHABET)

    def load(self, run: Run) -> Mapping[str, Packed]:
        """The packed splits, the same for every seed of the run."""
        sentences = [(who, f" {does} {what}.\n") for who in _WHO for does in _DOES for what in _WHAT]
        random.Random(seed_of("sentences")).shuffle(sentences)
        half = (self.train + len(sentences)) // 2
        parts = {"train": slice(0, self.train), "valid": slice(self.train, half), "test": slice(half, None)}
        return {name: self._pack(sentences[part]) for name, part in parts.items()}

    def prompts(self, run: Run) -> dict[str, list[list[int]]]:
        """Who does something, as tokens."""
        return {name: packed.prompts() for name, packed in self.load(run).items()}

    def _pack(self, sentences: Sequence[tuple[str, str]]) -> Packed:
        def documents() -> Iterator[Document]:
            for number, (prompt, answer) in enumerate(sentences):
                counts = [False] * len(prompt) + [True] * len(answer)
                yield Document(encode(prompt + answer), counts, number)

        return pack(documents(), self.length, self.classes)


def encode(text: str) -> list[int]:
    """Characters to tokens."""
    return [ALPHABET.index(c) for c in text]


def decode(tokens: Sequence[int]) -> str:
    """Tokens to characters."""
    return "".join(ALPHABET[t] for t in tokens)
