"""A language whose truth is known: sequences of a fixed random language model, which can say every probability exactly.

What a teacher gets wrong can only be told where the truth is known. Here it is a small transformer with random weights
that nobody trains, over 32 symbols, its logits sharpened so that there is something to learn. Asked like any teacher, it
answers with its own probabilities, so that distances to it are computed and not guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from ..core.run import Run, RunError, seed_of
from ..core.signal import HeadLogits
from ..models.generate import Sampling, generate
from ..models.toys import KeyValues, Transformer
from .tokens import Document, Packed, pack


class Sharpened(Transformer):
    """A transformer whose logits are multiplied by `sharpness`."""

    def __init__(self, vocabulary: int, width: int, depth: int, heads: int, sharpness: float):
        super().__init__(vocabulary, width, depth, heads, tied=False)
        self.sharpness = sharpness

    def forward(self, tokens: Tensor, position: Tensor | None = None, document: Tensor | None = None) -> HeadLogits:
        """As `Transformer.forward`."""
        return replace(super().forward(tokens, position, document), scale=self.sharpness)

    def read(self, tokens: Tensor, position: Tensor, mask: Tensor, cache: KeyValues) -> HeadLogits:
        """As `Transformer.read`."""
        return replace(super().read(tokens, position, mask, cache), scale=self.sharpness)


@dataclass(frozen=True, kw_only=True)
class RandomLM:
    """The truth: weights that depend on `number` alone, not on the run's seed."""

    symbols: int = 32
    width: int = 32
    depth: int = 2
    heads: int = 2
    gain: float = 2.0  # multiplies the weights of the blocks: how much the words before the last one matter
    sharpness: float = 5.0  # multiplies the logits
    number: int = 0  # which of the many such languages

    def build(self, run: Run) -> nn.Module:
        """The module; it gives `HeadLogits` `[B, T, symbols]`."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of("oracle", self.number))
            module = Sharpened(self.symbols, self.width, self.depth, self.heads, self.sharpness)
        with torch.no_grad():
            for weight in module.blocks.parameters():
                if weight.ndim > 1:
                    weight.mul_(self.gain)
        return module.requires_grad_(False).eval()

    def save(self, module: nn.Module, folder: Path, run: Run) -> None:
        """Nothing has to be kept: the weights follow from the numbers above."""

    def load(self, folder: Path, run: Run) -> nn.Module:
        """The same module again."""
        return self.build(run)


@dataclass(frozen=True, kw_only=True)
class OracleText:
    """Sequences that the oracle writes, `prompt` symbols that do not count and `answer` symbols that do, one a row.

    The held-out sequences are the same for every run; those of the training split depend on the run's seed and on
    `name`, so that teacher and student can be given different ones.
    """

    oracle: RandomLM = RandomLM()
    name: str = "prompts"
    train: int = 300  # sequences
    valid: int = 200
    test: int = 400
    prompt: int = 8  # symbols
    answer: int = 24

    def __post_init__(self) -> None:
        if min(self.prompt, self.answer) < 1:
            raise ValueError(f"a sequence needs a prompt and an answer, not {self.prompt} and {self.answer} symbols")

    @property
    def length(self) -> int:
        """Symbols in a row."""
        return self.prompt + self.answer

    @property
    def classes(self) -> int:
        """How many symbols there are."""
        return self.oracle.symbols

    def load(self, run: Run) -> Mapping[str, Packed]:
        """The splits."""
        return {name: self._pack(texts) for name, texts in self._texts(run).items()}

    def prompts(self, run: Run) -> dict[str, list[list[int]]]:
        """The first `prompt` symbols of every sequence."""
        return {name: [text[: self.prompt] for text in texts] for name, texts in self._texts(run).items()}

    def _texts(self, run: Run) -> dict[str, list[list[int]]]:
        if self.train < 1:
            raise RunError(f"the oracle is asked for {self.train} training sequences; set data.train to 1 or more")
        keys = {"train": (self.name, run.seed), "valid": ("valid",), "test": ("test",)}
        return {
            name: written(self.oracle, getattr(self, name), self.length, seed_of("oracle text", *key))
            for name, key in keys.items()
        }

    def _pack(self, texts: Sequence[list[int]]) -> Packed:
        counts = [False] * self.prompt + [True] * self.answer
        return pack((Document(text, counts, i) for i, text in enumerate(texts)), self.length, self.classes)


@lru_cache(maxsize=32)
@torch.no_grad()
def written(oracle: RandomLM, count: int, length: int, seed: int) -> list[list[int]]:
    """`count` sequences of `length` symbols; the first symbol is drawn evenly."""
    if not count:
        return []
    draw = torch.Generator().manual_seed(seed)
    first = torch.randint(oracle.symbols, (count,), generator=draw).tolist()
    sampling = Sampling(max_new=length - 1, batch=500)
    module = oracle.build(None)  # type: ignore[arg-type]  # its weights depend on no run
    rest = generate(module, [[symbol] for symbol in first], sampling, seed=seed, ends=frozenset())
    return [[symbol, *more] for symbol, more in zip(first, rest, strict=True)]
