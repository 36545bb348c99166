"""Programs that can only take away: what a text loses, in calls that a small model can learn and a machine can check.

    remove_lines(3, 5)              lines 3 to 5, the first line being 1
    remove_str(7, "Click here")     that text in line 7; the one place where it stands
    remove_str(7, "ha", 2)          the place number 2 of those where it stands, counted from 0
    keep_all()                      nothing

A line ends at a line feed. All calls speak of the text as it was, so their order does not matter. Whatever a program says,
what is left is a subsequence of the text: a call that cannot be read or does not fit takes nothing away.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

Span = tuple[int, int]  # characters from .. to


@dataclass(frozen=True, slots=True)
class Executed:
    """What a program left."""

    text: str
    kept: tuple[bool, ...]  # of every character of the text as it was
    invalid: int  # calls that could not be read or did not fit


def execute(text: str, program: str) -> Executed:
    """Follow a program, call by call; nothing in it is ever evaluated but names and constants are compared."""
    lines, kept = line_spans(text), [True] * len(text)
    gone, invalid = set[int](), 0
    for call in filter(str.strip, program.split("\n")):
        name, values = _read(call)
        if name == "remove_lines" and _fits(values, int, int) and 1 <= values[0] <= values[1] <= len(lines):
            gone.update(range(values[0] - 1, values[1]))
        elif name == "remove_str" and (_fits(values, int, str) or _fits(values, int, str, int)):
            span = _found(text, lines, *values)
            if span is None:
                invalid += 1
            else:
                kept[slice(*span)] = [False] * (span[1] - span[0])
        elif not (name == "keep_all" and not values):
            invalid += 1
    for start, end in _with_breaks(lines, gone):
        kept[start:end] = [False] * (end - start)
    return Executed("".join(c for c, keep in zip(text, kept, strict=True) if keep), tuple(kept), invalid)


def program_of(text: str, kept: Sequence[bool]) -> str | None:
    """The program that leaves exactly the kept characters; None if there is none, as lines that stay cannot be joined."""
    if all(kept):
        return "keep_all()"
    kept = settled(text, kept)
    lines = line_spans(text)
    if not any(kept):
        return f"remove_lines(1, {len(lines)})"
    gone, calls = set[int](), list[tuple[int, str]]()
    for group in _groups(lines, kept):
        full = [i for i in group if any(kept[slice(*lines[i])])]
        if len(full) > 1:
            return None
        empty = [i for i in group if lines[i][0] == lines[i][1]]
        stays = (full or empty or group[-1:])[0]  # a group leaves one line, though it be empty
        gone.update(i for i in group if i != stays)
        calls += [(stays, _remove(text, lines, stays, span)) for span in _runs(kept, *lines[stays])]
    for first, last in _ranges(sorted(gone)):
        calls.append((first, f"remove_lines({first + 1}, {last + 1})"))
    return "\n".join(call for _, call in sorted(calls, key=lambda pair: pair[0]))


def settled(text: str, kept: Sequence[bool]) -> list[bool]:
    """The same text left over, with whole lines taken away where that is possible.

    A gap may be moved along the text as long as what is left stays the same: in `a b\\na c` the gap `b\\na ` leaves `a c`,
    and so does the whole first line. Of equal lines the last is the one that goes.
    """
    found = list(kept)
    for start, end in list(_runs(found, 0, len(text))):
        if "\n" not in text[start:end]:
            continue
        right, left = [0, *_right(text, found, start, end)], _left(text, found, start, end)
        shift = next((each for each in (*right[::-1], *left) if _whole(text, start + each, end + each)), 0)
        found[start:end] = [True] * (end - start)
        found[start + shift : end + shift] = [False] * (end - start)
    return found


def expressible(text: str, kept: Sequence[bool]) -> list[bool]:
    """The mask with as many line ends kept as it takes for lines that stay not to be joined."""
    found, lines = list(kept), line_spans(text)
    for group in _groups(lines, found):
        full = [i for i in group if any(found[slice(*lines[i])])]
        for line in full[1:]:
            found[lines[line][0] - 1] = True
    return found


def line_spans(text: str) -> list[Span]:
    """From where to where every line goes, its end not included."""
    spans, start = list[Span](), 0
    for line in text.split("\n"):
        spans.append((start, start + len(line)))
        start += len(line) + 1
    return spans


def is_subsequence(short: str, long: str) -> bool:
    """Whether the one can be made of the other by taking away."""
    rest = iter(long)
    return all(any(c == d for d in rest) for c in short)


def _read(call: str) -> tuple[str, list[Any]]:
    """Name and constant arguments; ("", []) if it is no such call."""
    try:
        found = ast.parse(call.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return "", []
    if not isinstance(found, ast.Call) or not isinstance(found.func, ast.Name) or found.keywords:
        return "", []
    if not all(isinstance(value, ast.Constant) for value in found.args):
        return "", []
    return found.func.id, [value.value for value in found.args if isinstance(value, ast.Constant)]


def _fits(values: Sequence[Any], *kinds: type) -> bool:
    return len(values) == len(kinds) and all(type(v) is kind for v, kind in zip(values, kinds, strict=True))


def _found(text: str, lines: Sequence[Span], line: int, part: str, number: int | None = None) -> Span | None:
    """Where a part stands; None if nowhere, or in several places and none is named."""
    if not part or not 1 <= line <= len(lines):
        return None
    places = _places(text[slice(*lines[line - 1])], part)
    if (number is None and len(places) != 1) or not 0 <= (number or 0) < len(places):
        return None
    start = lines[line - 1][0] + places[number or 0]
    return start, start + len(part)


def _places(line: str, part: str) -> list[int]:
    """Where a part begins, places that overlap included."""
    found, at = list[int](), line.find(part)
    while at >= 0:
        found.append(at)
        at = line.find(part, at + 1)
    return found


def _with_breaks(lines: Sequence[Span], gone: set[int]) -> Iterator[Span]:
    """Lines that go, each with the line end behind it; those at the end of the text with the one before them instead."""
    last = len(lines)
    while last - 1 in gone:
        last -= 1
    for i in sorted(gone):
        start, end = lines[i]
        if i < last:
            yield start, end + 1
        else:
            yield (start - 1 if i else start), end


def _remove(text: str, lines: Sequence[Span], line: int, span: Span) -> str:
    start = lines[line][0]
    part = text[slice(*span)]
    places = _places(text[slice(*lines[line])], part)
    number = "" if len(places) == 1 else f", {places.index(span[0] - start)}"
    return f"remove_str({line + 1}, {json.dumps(part, ensure_ascii=False)}{number})"


def _groups(lines: Sequence[Span], kept: Sequence[bool]) -> Iterator[list[int]]:
    """Lines that become one, because the ends between them go."""
    group = [0]
    for i in range(1, len(lines)):
        if kept[lines[i][0] - 1]:
            yield group
            group = []
        group.append(i)
    yield group


def _runs(kept: Sequence[bool], start: int, end: int) -> Iterator[Span]:
    """The gaps between two places."""
    begin = None
    for i in range(start, end):
        if not kept[i] and begin is None:
            begin = i
        elif kept[i] and begin is not None:
            yield begin, i
            begin = None
    if begin is not None:
        yield begin, end


def _ranges(numbers: Sequence[int]) -> Iterator[Span]:
    """Numbers that follow one another, as the first and the last."""
    for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        found = [number for _, number in run]
        yield found[0], found[-1]


def _whole(text: str, start: int, end: int) -> bool:
    """Whether a gap is made of whole lines, each with one line end."""
    behind = (start == 0 or text[start - 1] == "\n") and text[end - 1 : end] == "\n"
    before = text[start : start + 1] == "\n" and (end == len(text) or text[end] == "\n")
    return behind or before or (start, end) == (0, len(text))


def _right(text: str, kept: Sequence[bool], start: int, end: int) -> Iterator[int]:
    """How far a gap can be moved to the right, step by step."""
    shift = 0
    while end + shift < len(text) and kept[end + shift] and text[start + shift] == text[end + shift]:
        shift += 1
        yield shift


def _left(text: str, kept: Sequence[bool], start: int, end: int) -> Iterator[int]:
    shift = 0
    while start - shift > 0 and kept[start - shift - 1] and text[start - shift - 1] == text[end - shift - 1]:
        shift += 1
        yield -shift
