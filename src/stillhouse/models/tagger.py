"""A small network that says of every character of a text whether it belongs there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.run import Run
from .toys import Kept

LETTERS = 256  # code points beyond share the upper half


@dataclass(frozen=True, kw_only=True)
class Tagger(Kept):
    """Convolutions over characters, and what the rest of a character's line is like on average.

    Each layer looks twice as far as the one before. It also sees whether the same line stood further up.
    """

    width: int = 48
    depth: int = 4  # layers of five characters each, 1, 2, 4, ... apart

    def build(self, run: Run) -> nn.Module:
        """What `tagged` makes of texts to logits `[B, T, 2]`: it stays, it goes."""
        return CharacterTagger(self.width, self.depth)


class CharacterTagger(nn.Module):
    """The network; padding (letter 0) never touches what is said of the characters, however long the row."""

    def __init__(self, width: int, depth: int):
        super().__init__()
        self.letters = nn.Embedding(LETTERS, width, padding_idx=0)
        self.again = nn.Embedding(2, width)
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(depth)])
        self.layers = nn.ModuleList([nn.Conv1d(width, width, 5, padding=2 * 2**i, dilation=2**i) for i in range(depth)])
        self.mix = nn.Linear(3 * width, width)
        self.head = nn.Linear(width, 2)

    def forward(self, letters: Tensor, again: Tensor, line: Tensor) -> Tensor:
        """All [B, T]: code of the character, whether its line was there before, number of its line in the row."""
        there = (letters > 0).unsqueeze(-1)
        x = (self.letters(letters) + self.again(again)) * there
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = (x + layer(F.gelu(norm(x) * there).transpose(1, 2)).transpose(1, 2)) * there
        mean, most = _over_lines(x, line, there)
        return self.head(F.gelu(self.mix(torch.cat([x, mean, most], -1))))


def _over_lines(x: Tensor, line: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """For every character the mean and the largest of its line, [B, T, width] each."""
    count = int(line.max()) + 1 if line.numel() else 1
    index = line.unsqueeze(-1).expand_as(x)
    shape = (x.shape[0], count, x.shape[2])
    sums = x.new_zeros(shape).scatter_add(1, index, x)
    size = x.new_zeros(x.shape[0], count, 1).scatter_add(1, line.unsqueeze(-1), there.to(x.dtype))
    most = x.new_full(shape, -torch.inf).scatter_reduce(1, index, x, "amax")
    return (sums / size.clamp(min=1)).gather(1, index), most.gather(1, index)


def tagged(texts: Sequence[str], seen: Sequence[Sequence[bool]]) -> Mapping[str, Tensor]:
    """Texts as the network reads them; `seen` says of every line of each text whether it stood further up before."""
    width = max(1, max(map(len, texts), default=1))
    found = {name: torch.zeros(len(texts), width, dtype=torch.long) for name in ("letters", "again", "line")}
    for row, (text, known) in enumerate(zip(texts, seen, strict=True)):
        codes = [ord(c) if 0 < ord(c) < 128 else 128 + ord(c) % 128 for c in text]
        numbers = [number for number, part in enumerate(text.split("\n")) for _ in range(len(part) + 1)][: len(text)]
        found["letters"][row, : len(text)] = torch.tensor(codes, dtype=torch.long)
        found["line"][row, : len(text)] = torch.tensor(numbers, dtype=torch.long)
        found["line"][row, len(text) :] = text.count("\n") + 1  # padding is a line of its own
        found["again"][row, : len(text)] = torch.tensor([known[n] for n in numbers], dtype=torch.long)
    return found
