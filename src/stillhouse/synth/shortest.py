"""What a rewriting did to a text: a shortest list of edits (Levenshtein 1966), for every part whether it was kept.

The distance is computed column by column in the bits of long integers (Hyyrö 2003, after Myers 1999), whose vectors are
kept; a shortest way is then read back from them. `difflib`, which looks for long blocks first, is not minimal.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

Unit = Literal["characters", "words"]
_PARTS = re.compile(r"\w+|\n|[^\S\n]+|[^\w\s]")


@dataclass(frozen=True, slots=True)
class Alignment:
    """A shortest way from one sequence to another."""

    kept: tuple[bool, ...]  # of the first: is the part also in the second?
    deleted: tuple[bool, ...]  # of the first: is it gone, with nothing in its place?
    inserted: int  # parts of the second that are new
    replaced: int  # parts of the first that have another in their place

    @property
    def distance(self) -> int:
        """Insertions, deletions and replacements."""
        return self.inserted + self.replaced + sum(self.deleted)


def parts_of(text: str, unit: Unit) -> list[str]:
    """A text in pieces that make it up again: its characters, or words, blanks, line ends and signs."""
    return list(text) if unit == "characters" else _PARTS.findall(text)


def aligned(one: Sequence[Hashable], other: Sequence[Hashable]) -> Alignment:
    """A shortest list of edits from `one` to `other`, of several always the same; about len(one) * len(other) / 4 bytes."""
    begin, shorter = 0, min(len(one), len(other))
    while begin < shorter and one[begin] == other[begin]:  # equal ends are on some shortest way
        begin += 1
    end = 0
    while end < shorter - begin and one[-1 - end] == other[-1 - end]:
        end += 1
    kept, deleted = [True] * len(one), [False] * len(one)
    inserted = replaced = 0
    a, b = one[begin : len(one) - end], other[begin : len(other) - end]
    ups, downs = _vectors(a, b)
    i, j = len(a), len(b)
    while i and j:
        if ups[j - 1] >> (i - 1) & 1:  # D[i, j] = D[i - 1, j] + 1
            i -= 1
            kept[begin + i], deleted[begin + i] = False, True
        elif j > 1 and downs[j - 2] >> (i - 1) & 1:  # D[i, j - 1] = D[i - 1, j - 1] - 1, so D[i, j] = D[i, j - 1] + 1
            j -= 1
            inserted += 1
        else:
            i, j = i - 1, j - 1
            if a[i] != b[j]:
                kept[begin + i] = False
                replaced += 1
    for left in range(begin, begin + i):
        kept[left], deleted[left] = False, True
    return Alignment(tuple(kept), tuple(deleted), inserted + j, replaced)


def _vectors(a: Sequence[Hashable], b: Sequence[Hashable]) -> tuple[list[int], list[int]]:
    """For every item of b, where the column D[., j] goes up by one from row to row, and where down, as bits."""
    places: dict[Hashable, int] = {}
    for i, item in enumerate(a):
        places[item] = places.get(item, 0) | 1 << i
    full = (1 << len(a)) - 1
    up, down = full, 0
    ups, downs = list[int](), list[int]()
    for item in b:
        same = places.get(item, 0)
        diagonal = ((((same & up) + up) ^ up) | same | down) & full
        right_up, right_down = down | ~(diagonal | up) & full, up & diagonal
        right_up, right_down = (right_up << 1 | 1) & full, right_down << 1 & full
        up, down = right_down | ~(diagonal | right_up) & full, right_up & diagonal
        ups.append(up)
        downs.append(down)
    return ups, downs
