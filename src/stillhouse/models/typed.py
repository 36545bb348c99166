"""A tiny tagger that is told in words what to look for: which words of a text are the start, or within, a named thing."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.run import Run
from .toys import Kept

OUTSIDE, BEGIN, INSIDE = 0, 1, 2
PARTS = 12  # n-grams of a word, at most


@dataclass(frozen=True, kw_only=True)
class TypedTagger(Kept):
    """Words by their n-grams, some neighbours, and what a word has in common with the words of the question.

    The question is a type's name ("river"), so that a type which no training row asks about can be asked about too: how
    many of its letter triples a word shares is one of the inputs.
    """

    width: int = 48
    reach: int = 2  # words to each side
    buckets: int = 2**13  # vectors; n-grams share one where their hashes agree

    def build(self, run: Run) -> nn.Module:
        """What `read` gives to logits `[B, T, 3]`: outside, begin, inside."""
        return TypedWords(self.width, self.reach, self.buckets)

    def read(self, texts: Sequence[str], types: Sequence[str]) -> Mapping[str, Tensor]:
        """grams `[B, T, n]` of every word, asked `[B, m]` of the type (0 is padding), shared `[B, T]`."""
        words = [[word for word, _, _ in words_of(text)] for text in texts]
        codes = [_codes(name, self.buckets) for name in types]
        long = max(1, max(map(len, words), default=1))
        grams, shared = torch.zeros(len(texts), long, PARTS, dtype=torch.long), torch.zeros(len(texts), long)
        asked = torch.zeros(len(texts), PARTS, dtype=torch.long)
        for row, (found, name, own) in enumerate(zip(words, types, codes, strict=True)):
            if found:
                grams[row, : len(found)] = torch.tensor([_padded(word, self.buckets) for word in found])
                shared[row, : len(found)] = torch.tensor([in_common(word, name) for word in found])
            asked[row, : len(own)] = torch.tensor(own, dtype=torch.long)
        return {"grams": grams, "asked": asked, "shared": shared}

    @torch.no_grad()
    def found(self, module: nn.Module, texts: Sequence[str], types: Sequence[str], batch: int = 256) -> list[list[str]]:
        """What the module finds of each type in each text, as written there."""
        device, answers = next(module.parameters()).device, list[list[str]]()
        for begin in range(0, len(texts), batch):
            some, names = texts[begin : begin + batch], types[begin : begin + batch]
            inputs = {name: value.to(device) for name, value in self.read(some, names).items()}
            tags = module(**inputs).argmax(-1).tolist()
            answers += [spans_in(text, row) for text, row in zip(some, tags, strict=True)]
        return answers


class TypedWords(nn.Module):
    """One convolution over words, and two layers over each word with the question."""

    def __init__(self, width: int, reach: int, buckets: int):
        super().__init__()
        self.vectors = nn.Embedding(buckets + 1, width, padding_idx=0)
        nn.init.normal_(self.vectors.weight, std=width**-0.5)
        with torch.no_grad():
            self.vectors.weight[0] = 0
        self.near = nn.Conv1d(width + 1, width, 2 * reach + 1, padding=reach)
        self.mixed = nn.Linear(4 * width + 1, 2 * width)
        self.head = nn.Linear(2 * width, 3)

    def forward(self, grams: Tensor, asked: Tensor, shared: Tensor) -> Tensor:
        """Logits `[B, T, 3]`."""
        own, name = self._mean(grams), self._mean(asked)
        name = name[:, None].expand_as(own)
        column = shared.to(own.dtype)[..., None]
        near = F.relu(self.near(torch.cat([own, column], -1).transpose(1, 2)).transpose(1, 2))
        hidden = F.relu(self.mixed(torch.cat([near, name, near * name, own, column], -1)))
        return self.head(hidden)

    def _mean(self, codes: Tensor) -> Tensor:
        count = (codes > 0).sum(-1, keepdim=True).clamp(min=1)
        return self.vectors(codes).sum(-2) / count


def words_of(text: str) -> list[tuple[str, int, int]]:
    """The words and signs of a text with where they begin and end."""
    return [(found[0], found.start(), found.end()) for found in re.finditer(r"\w+|[^\w\s]", text)]


def tags_of(text: str, names: Sequence[str]) -> list[int]:
    """A tag for every word of a text in which these names stand; where two overlap the longer one counts."""
    words = [word for word, _, _ in words_of(text)]
    tags = [OUTSIDE] * len(words)
    for name in sorted(set(names), key=lambda name: (-len(name), name)):
        parts = [word for word, _, _ in words_of(name)]
        for at in range(len(words) - len(parts) + 1):
            if parts and words[at : at + len(parts)] == parts and not any(tags[at : at + len(parts)]):
                tags[at : at + len(parts)] = [BEGIN] + [INSIDE] * (len(parts) - 1)
    return tags


def spans_in(text: str, tags: Sequence[int]) -> list[str]:
    """The names that tags mark, in their order; an inside without a beginning begins one."""
    found, begin, end = list[str](), -1, -1
    for (_, left, right), tag in zip(words_of(text), tags, strict=False):
        if tag != INSIDE or begin < 0:
            if begin >= 0:
                found.append(text[begin:end])
            begin = left if tag != OUTSIDE else -1
        end = right
    return [*found, text[begin:end]] if begin >= 0 else found


def in_common(word: str, name: str) -> float:
    """The share of the letter triples of a name that a word has too, 0 to 1."""
    triples = _triples(name)
    return len(triples & _triples(word)) / len(triples) if triples else 0.0


@lru_cache(maxsize=2**16)
def _triples(text: str) -> frozenset[str]:
    words = [f"<{word}>" for word in re.findall(r"\w+", text.casefold())]
    return frozenset(word[i : i + 3] for word in words for i in range(len(word) - 2))


@lru_cache(maxsize=2**16)
def _codes(text: str, buckets: int) -> tuple[int, ...]:
    """The word, what it begins like, its beginnings and endings and then its triples, as numbers from 1 on."""
    plain, first = text.casefold(), text[:1]
    shape = "A" if first.isupper() else "0" if first.isdigit() else "a" if first.isalpha() else "."
    ends = [f"{plain[:n]}-" for n in (2, 3)] + [f"-{plain[-n:]}" for n in (2, 3, 4)]
    parts = dict.fromkeys([f"={plain}", f"/{shape}", *ends, *sorted(_triples(text))])
    return tuple(zlib.crc32(part.encode(errors="replace")) % buckets + 1 for part in list(parts)[:PARTS])


def _padded(word: str, buckets: int) -> list[int]:
    codes = _codes(word, buckets)
    return [*codes, *[0] * (PARTS - len(codes))]
