"""From how likely each character is to go to what of a text stays: whole words, tidy blanks, no word joined to another."""

from __future__ import annotations

from collections.abc import Sequence

from .deletions import expressible
from .shortest import parts_of


def kept_of(text: str, odds: Sequence[float]) -> list[bool]:
    """Of every character, whether it stays; `odds` above 0 speak for its going.

    A word or sign goes if its characters go on average; a line goes, with its end, if all of its words do, and none else.
    Between words that go the blanks go too, and beside them so that one is left where there was one. What would join two
    words by going stays.
    """
    kept, line, at = list[bool](), list[str](), 0
    ends = list[bool]()  # of every line, whether it stays
    lines: list[tuple[list[str], list[bool]]] = []
    for part in [*parts_of(text, "words"), "\n"]:
        if part != "\n":
            line.append(part)
            continue
        gone = list[bool]()
        for each in line:
            gone.append(not each.isspace() and sum(odds[at : at + len(each)]) > 0)
            at += len(each)
        at += 1
        words = [go for each, go in zip(line, gone, strict=True) if not each.isspace()]
        ends.append(not words or not all(words))
        lines.append((line, _line(line, gone) if ends[-1] else [False] * len(line)))
        line = []
    for number, (parts, stays) in enumerate(lines):
        if number:  # the end of the line before: it goes with that line, or with this one if all before are gone
            kept.append(ends[number - 1] and (ends[number] or any(ends[number + 1 :])))
        kept += [keep for part, keep in zip(parts, stays, strict=True) for _ in part]
    return expressible(text, kept)


def _line(parts: Sequence[str], gone: Sequence[bool]) -> list[bool]:
    """What of the parts of a line stays, of which some words do."""
    kept, i = [True] * len(parts), 0
    while i < len(parts):
        if not gone[i]:
            i += 1
            continue
        end = i + 1  # the gap i .. end: words that go and the blanks between them
        while end < len(parts) and (gone[end] or (parts[end].isspace() and end + 1 < len(parts) and gone[end + 1])):
            end += 1
        left, right = parts[i - 1] if i else "", parts[end] if end < len(parts) else ""
        inner = [j for j in range(i, end) if parts[j].isspace()]
        if not (left and right and _joined(left, right)):
            kept[i:end] = [False] * (end - i)
        elif inner:
            kept[i:end] = [j == inner[0] for j in range(i, end)]
        if right.isspace() and (not left or left.isspace()):
            kept[end] = False
        elif not right and left.isspace():
            kept[i - 1] = False
        i = end + 1
    return kept


def _joined(left: str, right: str) -> bool:
    return all(c.isalnum() or c == "_" for c in (left[-1], right[0]))
