"""The JSON in a model's answer: within words and fences, with the slips that models make."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

_OPEN = {"[": "]", "{": "}"}


def json_in(answer: str) -> Any:
    """The first list or object of an answer as Python values; None if there is none that can be read.

    Read as it is, else repaired: trailing commas, Python's quotes and names, `//` comments at the end of a line, and, where
    the answer was cut off, what is whole of it.
    """
    for begin in (found.start() for found in re.finditer(r"[\[{]", answer)):
        part = _balanced(answer[begin:])
        if part is not None:
            value = _read(part)
            if value is not None:
                return value
        elif (value := _cut(answer[begin:])) is not None:
            return value
    return None


def _read(text: str) -> Any:
    bare = re.sub(r"(?m)(?<=[\s,\[{])//[^\n\"']*$", "", text)
    for each in (text, bare, re.sub(r",(\s*[\]}])", r"\1", bare)):
        try:
            return json.loads(each)
        except (ValueError, RecursionError):
            continue
    try:
        value = ast.literal_eval(bare)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return None
    return value if isinstance(value, list | dict) else None


def _balanced(text: str) -> str | None:
    """From a bracket to the one that closes it; None if nothing does."""
    ends = _walk(text)
    return text[: ends[0] + 1] if ends[0] is not None else None


def _cut(text: str) -> Any:
    """What is whole of a list or object that never ends."""
    _, places = _walk(text)
    for place, open_ in reversed(places):
        value = _read(text[:place].rstrip().rstrip(",") + open_)
        if value is not None and value not in ([], {}):
            return value
    return None


def _walk(text: str) -> tuple[int | None, list[tuple[int, str]]]:
    """Where the first bracket is closed, and the places behind a part at which closing what is open might do."""
    waiting, places, quote, skip = list[str](), list[tuple[int, str]](), "", False
    for at, letter in enumerate(text):
        if quote:
            if skip:
                skip = False
            elif letter == "\\":
                skip = True
            elif letter == quote and not (letter == "'" and text[at + 1 : at + 2].isalnum()):
                quote = ""
                places.append((at + 1, "".join(reversed(waiting))))
        elif letter == '"' or (letter == "'" and not text[max(0, at - 1)].isalnum()):
            quote = letter
        elif letter in _OPEN:
            waiting.append(_OPEN[letter])
        elif waiting and letter == waiting[-1]:
            waiting.pop()
            if not waiting:
                return at, places
            places.append((at + 1, "".join(reversed(waiting))))
    return None, places
