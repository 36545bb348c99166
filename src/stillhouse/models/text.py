"""Classifiers of texts: hashed n-grams, which learn in seconds, and sequence classifiers from Hugging Face."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..core.run import Run, RunError
from .hub import load_tokenizer, loading, resolve, transformers
from .toys import Kept, sizes_of


@dataclass(frozen=True, kw_only=True)
class NGrams(Kept):
    """The mean of the vectors of a text's words, word pairs and letter triples, and one linear layer on it.

    As fastText's classifier (Joulin et al. 2016, arXiv 1607.01759) with letter triples of the words as well.
    """

    classes: int | None = None  # None: as the recipe's data have
    width: int = 64
    buckets: int = 2**15  # vectors; n-grams share one where their hashes agree

    def build(self, run: Run) -> nn.Module:
        """n-grams `[B, n]` (0 is padding) to logits `[B, classes]`."""
        _, classes = sizes_of(run, (), self.classes)
        return BagOfNGrams(classes, self.width, self.buckets)

    def encoder(self, run: Run) -> Callable[[Sequence[str]], Mapping[str, Tensor]]:
        """Texts to their n-grams."""
        return lambda texts: {"grams": hashed(texts, self.buckets)}


class BagOfNGrams(nn.Module):
    """A mean of vectors and a linear layer."""

    def __init__(self, classes: int, width: int, buckets: int):
        super().__init__()
        self.vectors = nn.EmbeddingBag(buckets + 1, width, mode="mean", padding_idx=0)
        self.head = nn.Linear(width, classes)

    def forward(self, grams: Tensor) -> Tensor:
        """`[B, n]` to `[B, classes]`."""
        return self.head(self.vectors(grams))


def n_grams(text: str) -> list[str]:
    """Words, pairs of neighbouring words, and triples of letters of each word with its edges marked."""
    words = re.findall(r"\w+|[^\w\s]", text.casefold())
    pairs = [f"{a} {b}" for a, b in zip(words, words[1:], strict=False)]
    marked = [f"<{word}>" for word in words if len(word) > 2]
    return [*words, *pairs, *(word[i : i + 3] for word in marked for i in range(len(word) - 2))]


def hashed(texts: Sequence[str], buckets: int) -> Tensor:
    """The numbers of the texts' n-grams, `[B, n]`, from 1 on; 0 is padding."""
    rows = [[zlib.crc32(gram.encode()) % buckets + 1 for gram in n_grams(text)] for text in texts]
    table = torch.zeros(len(rows), max(1, max(map(len, rows), default=1)), dtype=torch.long)
    for row, found in zip(table, rows, strict=True):
        row[: len(found)] = torch.tensor(found, dtype=torch.long)
    return table


@dataclass(frozen=True, kw_only=True)
class HubClassifier:
    """An encoder (or decoder) from Hugging Face with a head for the classes of the recipe's data."""

    path: str  # a folder, or a hub id in the local cache
    classes: int | None = None  # None: as the recipe's data have
    length: int = 128  # tokens of a text, at most
    dtype: Literal["float32", "bfloat16"] = "float32"

    def build(self, run: Run) -> nn.Module:
        """Tokens to logits `[B, classes]`; a head of another size is replaced by a new one."""
        _, classes = sizes_of(run, (), self.classes)
        return self._loaded(self.path, classes)

    def _loaded(self, path: str, classes: int) -> nn.Module:
        with loading(path), _quietly():  # that the head is new is what is wanted
            return SequenceClassifier(
                transformers().AutoModelForSequenceClassification.from_pretrained(
                    resolve(path), num_labels=classes, ignore_mismatched_sizes=True, dtype=getattr(torch, self.dtype)
                )
            )

    def encoder(self, run: Run) -> Callable[[Sequence[str]], Mapping[str, Tensor]]:
        """Texts to padded tokens."""
        tokenizer: Any = load_tokenizer(self.path)
        if tokenizer.pad_token_id is None:
            raise RunError(f"the tokenizer of {self.path} has no padding token, which a classifier of batches needs")

        def encode(texts: Sequence[str]) -> Mapping[str, Tensor]:
            coded = tokenizer(list(texts), padding=True, truncation=True, max_length=self.length, return_tensors="pt")
            return {name: coded[name] for name in ("input_ids", "attention_mask") if name in coded}

        return encode

    def save(self, module: nn.Module, folder: Path, run: Run) -> None:
        """A folder that `AutoModelForSequenceClassification.from_pretrained` loads, the names of the classes in it."""
        assert isinstance(module, SequenceClassifier)
        names = getattr(run.sources()["train"], "names", None)
        if names:
            module.model.config.id2label = dict(enumerate(names))
            module.model.config.label2id = {name: i for i, name in enumerate(names)}
        module.model.save_pretrained(folder)
        load_tokenizer(self.path).save_pretrained(folder)

    def load(self, folder: Path, run: Run) -> nn.Module:
        """A model written by `save`."""
        _, classes = sizes_of(run, (), self.classes)
        return self._loaded(str(folder), classes)


@contextmanager
def _quietly() -> Generator[None]:
    """Without transformers' report of what it did not find."""
    logging = transformers().utils.logging
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


class SequenceClassifier(nn.Module):
    """A Hugging Face sequence classifier that gives its logits."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Tokens `[B, T]` to logits `[B, classes]`."""
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits
