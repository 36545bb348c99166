"""Free text from a model as data: the items of a list, and the label, number or choice that an answer means."""

from __future__ import annotations

import math
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Sequence

_MARKER = re.compile(r"^(?:(?:example|text|sentence|item)\s*)?(?:[-*•](?=\s|$)|#?\(?\d{1,3}[.):](?!\d))\s*", re.IGNORECASE)
_HEADING = re.compile(r"^(?:example|text|sentence|item)\s*\d*\s*:\s*", re.IGNORECASE)
_SHARES = re.compile(r"\s*[\[(][^\])]*\d{1,3}\s?%[^\])]*[\])]\s*")
_NUMBER = r"(?<![\w.,])-?\d+(?:\.\d+)?(?!\w)(?![.,]\d)"
_CHOICE = r"1|2|tie"
_QUOTES = {'"': '"', "'": "'", "“": "”", "«": "»", "`": "`"}


def items_of(answer: str) -> list[str]:
    """The items of a numbered or bulleted list, one a line, without marker, quotes, bold and notes on shares.

    Lines before the first marker are an introduction if a marker follows; without any marker every line is an item.
    """
    lines = [line.strip() for line in answer.splitlines() if line.strip()]
    marked = [bool(_MARKER.match(line)) for line in lines]
    chosen = [line for line, has in zip(lines, marked, strict=True) if has] if any(marked) else lines
    return [item for item in map(_bare, chosen) if item]


def _bare(line: str) -> str:
    text = _HEADING.sub("", _MARKER.sub("", line, count=1), count=1)
    text = _SHARES.sub(" ", text.replace("**", "").replace("__", "")).strip()
    while len(text) > 1 and _QUOTES.get(text[0]) == text[-1]:
        text = text[1:-1].strip()
    return " ".join(text.split())


def plain(text: str) -> str:
    """Lower case, no accents' variants, letters and digits alone: when two texts count as the same."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.findall(r"[^\W_]+", folded))


def nearest_label(answer: str, names: Sequence[str]) -> tuple[str, float]:
    """The label that an answer means, and how alike the two are: 1 where it is that name or holds no other.

    Else the name with the most similar letters (cosine of their triples). Names of classes must differ.
    """
    said = plain(answer)
    found = {plain(name): name for name in names}
    if said in found:
        return found[said], 1.0
    inside = [name for name in found if name and re.search(rf"(?<!\w){re.escape(name)}(?!\w)", said)]
    longest = [name for name in inside if not any(name != other and name in other for other in inside)]
    if len(longest) == 1:
        return found[longest[0]], 1.0
    mine = _triples(said)
    return max(((name, _cosine(mine, _triples(plain(name)))) for name in names), key=lambda pair: pair[1])


def _triples(text: str) -> Counter[int]:
    marked = f"  {text} "
    return Counter(zlib.crc32(marked[i : i + 3].encode()) for i in range(len(marked) - 2))


def _cosine(a: Counter[int], b: Counter[int]) -> float:
    dot = sum(count * b[key] for key, count in a.items())
    size = math.sqrt(sum(v * v for v in a.values()) * sum(v * v for v in b.values()))
    return dot / size if size else 0.0


def number_in(text: str) -> float | None:
    """The number that a reply means: the last one in it, `8/10` and `8 out of 10` being 8; None if there is none.

    A number as part of a word or of a longer number is none.
    """
    bare = re.sub(rf"({_NUMBER})\s*(?:/|out of|von|sur|of)\s*\d+(?:\.\d+)?", r"\1", text.replace("**", ""))
    found = re.findall(_NUMBER, bare)
    return float(found[-1]) if found else None


def choice_in(text: str) -> str | None:
    """Which of `1`, `2` and `tie` a reply means; None if it names several, unless it says `[[1]]` or `answer: 1` at last."""
    said = text.replace("**", "").casefold()
    marked = re.findall(rf"\[\[\s*({_CHOICE})\s*\]\]|(?:verdict|better|winner|answer)\s*(?:is|:|=)\s*({_CHOICE})\b", said)
    if marked:
        return marked[-1][0] or marked[-1][1]
    found = set(re.findall(rf"(?<![\w.,-])({_CHOICE})(?!\w)(?![.,]\d)", said))
    return found.pop() if len(found) == 1 else None
