"""Which texts are most alike, by their n-grams: how a demonstration near to a row is found, and what is not new."""

from __future__ import annotations

import math
import zlib
from array import array
from collections.abc import Iterable

import numpy

from ..models.text import n_grams

BUCKETS = 2**20


class Alike:
    """Texts that can be compared with others: `|A & B| / sqrt(|A| |B|)` over the sets of their hashed n-grams.

    That is the cosine of the sets: 1 for the same n-grams, 0 for none in common. Looking one up takes as long as its
    n-grams are common, not as long as there are texts.
    """

    def __init__(self, texts: Iterable[str] = ()):
        self.places: dict[int, array[int]] = {}  # bucket -> the texts that have it
        self.sizes: list[int] = []
        for text in texts:
            self.add(text)

    def __len__(self) -> int:
        return len(self.sizes)

    def add(self, text: str) -> None:
        """One more; its number is how many there were."""
        found = buckets_of(text)
        for bucket in found:
            self.places.setdefault(bucket, array("L")).append(len(self.sizes))
        self.sizes.append(len(found))

    def to(self, text: str) -> numpy.ndarray:
        """How alike every text is, `[texts]`, float64."""
        found = buckets_of(text)
        same = numpy.zeros(len(self.sizes))
        for bucket in found:
            if bucket in self.places:
                same[numpy.frombuffer(self.places[bucket], dtype=numpy.dtype("L"))] += 1
        return same / numpy.sqrt(numpy.maximum(1, numpy.asarray(self.sizes, dtype=float)) * max(1, len(found)))

    def nearest(self, text: str) -> tuple[int, float]:
        """(its number, how alike it is) of the text most alike, the first of equals; (-1, 0) if there is none."""
        if not self.sizes:
            return -1, 0.0
        alike = self.to(text)
        best = int(alike.argmax())
        return best, float(alike[best])


def buckets_of(text: str) -> set[int]:
    """The hashed n-grams of a text."""
    return {zlib.crc32(gram.encode()) % BUCKETS for gram in n_grams(text)}


def alike(a: str, b: str) -> float:
    """How alike two texts are."""
    one, other = buckets_of(a), buckets_of(b)
    return len(one & other) / math.sqrt(max(1, len(one)) * max(1, len(other)))
