"""What a teacher was shown, as keys: a signal is filed under the content that it answers.

A document of a language batch is known by its tokens and by which of them count; anything else (an image after its
augmentation, a graph) by the bytes of its inputs. So a signal is found again in any order, packing, batch or epoch,
and is never given to anything but what it was made for: other text, another tokenizer or another augmentation draw has
another key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy
import torch
from torch import Tensor

from ..core.signal import Batch

KEY_BYTES = 16


@dataclass(frozen=True, slots=True)
class Places:
    """The keys of one batch, and where its items stand."""

    keys: list[bytes]  # one per document (image, graph), 16 bytes each
    counts: list[int]  # items of each: the counted tokens of a document, 1 of an image
    rows: Tensor  # [sum of counts] the items' places on the flattened item axes, key after key
    shape: tuple[int, ...]  # of the item axes: [B, T] or [B]

    def some(self, kept: Sequence[int]) -> Places:
        """Only the keys with these numbers."""
        parts = self.rows.split(self.counts)
        rows = torch.cat([parts[i] for i in kept]) if kept else self.rows[:0]
        return Places([self.keys[i] for i in kept], [self.counts[i] for i in kept], rows, self.shape)


def places_of(batch: Batch) -> Places:
    """The keys of a batch's documents or items. Items that do not count (weight 0) have no place."""
    inputs = batch["inputs"]
    if isinstance(inputs, Mapping) and "document" in inputs:
        return _documents(inputs, batch["weight"])
    parts = {str(k): v for k, v in inputs.items()} if isinstance(inputs, Mapping) else {"": inputs}
    arrays = {name: _array(value) for name, value in sorted(parts.items()) if isinstance(value, Tensor)}
    if not arrays:
        raise TypeError("a batch whose inputs are no tensors cannot be told apart from another one")
    size = len(next(iter(arrays.values())))
    keys = [_hash(_said(name, array[i]) for name, array in arrays.items()) for i in range(size)]
    return Places(keys, [1] * size, torch.arange(size), (size,))


def document_key(tokens: Sequence[int], counts: Sequence[bool]) -> bytes:
    """The key of a document: its tokens, and whether the loss counts at each of them as a target (`Document.counts`)."""
    targets = numpy.zeros(len(tokens), dtype=bool)
    targets[:-1] = numpy.asarray(counts[1:], dtype=bool)
    return _document(numpy.asarray(tokens), targets)


def _documents(inputs: Mapping[str, Tensor], weight: Tensor) -> Places:
    tokens, numbers, targets = _array(inputs["tokens"]), _array(inputs["document"]), _array(weight) > 0
    keys: list[bytes] = []
    counts: list[int] = []
    rows: list[Any] = []
    width = tokens.shape[1]
    for row in range(len(tokens)):
        edges = [0, *(numpy.flatnonzero(numpy.diff(numbers[row])) + 1).tolist(), width] if width else []
        for begin, end in pairwise(edges):
            counted = targets[row, begin:end]
            if numbers[row, begin] < 0 or not counted.any():
                continue
            keys.append(_document(tokens[row, begin:end], counted))
            places = numpy.flatnonzero(counted) + (row * width + begin)
            counts.append(len(places))
            rows.append(places)
    every = numpy.concatenate(rows) if rows else numpy.zeros(0, dtype=numpy.int64)
    return Places(keys, counts, torch.from_numpy(every), tuple(tokens.shape))


def _document(tokens: Any, targets: Any) -> bytes:
    return _hash((b"document", tokens.astype("<i4").tobytes(), numpy.packbits(targets).tobytes()))


def _said(name: str, array: Any) -> bytes:
    return f"{name} {array.dtype.str} {array.shape} ".encode() + numpy.ascontiguousarray(array).tobytes()


def _hash(parts: Iterable[bytes]) -> bytes:
    total = hashlib.blake2b(digest_size=KEY_BYTES)
    for part in parts:
        total.update(len(part).to_bytes(8, "little"))
        total.update(part)
    return total.digest()


def _array(value: Tensor) -> Any:
    value = value.detach().cpu()
    return (value.view(torch.int16) if value.dtype == torch.bfloat16 else value).numpy()
