"""Passages in which things are named: a user's own, and a made world that knows every name and its type.

Every spec gives `rows(run)`: the splits as rows of `text` and, where it is known, `entities` (each with name and type), and
`types(run)`: what a student is asked about when it is judged.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..core.run import Run, RunError, seed_of
from .tables import Row, read_rows, split_rows


@dataclass(frozen=True, kw_only=True)
class Passages:
    """A user's file (.jsonl, .csv, .parquet, .txt) with a text in every row; a longer one is cut into several passages.

    A row may say which names it holds, to judge by: `[{"name": "Oslo", "type": "city"}]` or `[["Oslo", "city"]]`, a list or
    JSON. Splits are by the whole text, so no two pieces of one are in two.
    """

    path: str
    text: str = "text"  # columns
    entities: str = "entities"
    words: int = 200  # of a passage, at most; it ends where a sentence does
    valid: float = 0.05  # share of the texts held out to choose
    test: float = 0.05  # share of the texts held out to judge
    limit: int | None = None  # texts, from the first on; None: all

    def __post_init__(self) -> None:
        if self.words < 1:
            raise ValueError("words must be 1 or more")

    def rows(self, run: Run) -> dict[str, list[Row]]:
        """The splits; rows without text are rejected."""
        found: list[Row] = []
        for row in read_rows(self.path, run)[: self.limit]:
            text = row.get(self.text)
            if not isinstance(text, str) or not text.strip():
                run.reject(row, f"nothing in column {self.text!r}")
                continue
            told = entities_in(row.get(self.entities))
            if told is None:
                run.reject(row, f"column {self.entities!r} is no list of names with their types")
                continue
            found.append({"text": text, **({"entities": told} if row.get(self.entities) is not None else {})})
        if not found:
            raise RunError(f"no row of {self.path} has a text in {self.text!r}; name the column with data.text")
        splits = split_rows(found, valid=self.valid, test=self.test, run=run)
        return {name: [piece for row in rows for piece in self._pieces(row)] for name, rows in splits.items()}

    def _pieces(self, row: Row) -> Iterator[Row]:
        for text in pieces_of(row["text"], self.words):
            here = [each for each in row.get("entities", ()) if each["name"] in text]
            yield {"text": text, **({"entities": here} if "entities" in row else {})}

    def types(self, run: Run) -> tuple[str, ...]:
        """The types that held-out rows say; none if they say nothing."""
        rows = self.rows(run)
        return tuple(
            sorted({each["type"] for name in ("valid", "test") for r in rows[name] for each in r.get("entities", ())})
        )

    def load(self, run: Run) -> Mapping[str, Any]:
        """Nothing to train on: that is what a stage makes."""
        return {}


def entities_in(value: Any) -> list[dict[str, str]] | None:
    """Names with types out of a cell, or out of an answer that was read as JSON; None if it is no such list.

    Pairs, objects with `name` (or `entity`, `text`) and `type` (or `label`), or an object of types with their names.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    if value is None:
        return []
    if isinstance(value, Mapping):
        if isinstance(value.get("entities"), list | Mapping):
            return entities_in(value["entities"])
        pairs = [
            (name, kind) for kind, names in value.items() for name in ([names] if isinstance(names, str) else names or [])
        ]
    elif isinstance(value, list):
        pairs = [_pair(each) for each in value]
    else:
        return None
    said = [
        (str(name).strip(), " ".join(str(kind).casefold().replace("_", " ").split()))
        for name, kind in pairs
        if name and kind
    ]
    if pairs and not said:
        return None
    return [{"name": name, "type": kind} for name, kind in dict.fromkeys(said) if name and kind]


def _pair(each: Any) -> tuple[Any, Any]:
    if isinstance(each, Mapping):
        named = next((each[key] for key in ("name", "entity", "text", "mention") if each.get(key)), None)
        return named, next((each[key] for key in ("type", "label", "category") if each.get(key)), None)
    return (each[0], each[1]) if isinstance(each, list | tuple) and len(each) == 2 else (None, None)


def pieces_of(text: str, words: int) -> list[str]:
    """A text in pieces of at most so many words, cut where sentences end, or within one that is longer."""
    pieces, last = list[list[str]](), list[str]()
    for sentence in re.split(r"(?<=[.!?。！？])\s+|\n\s*\n", text.strip()):
        said = sentence.split()
        for at in range(0, len(said), words):
            part = said[at : at + words]
            if len(last) + len(part) > words:
                pieces.append(last)
                last = []
            last = [*last, *part]
    return [" ".join(piece) for piece in [*pieces, last] if piece]


# -- a made world ------------------------------------------------------------------------------------------------------

# type -> (the endings that its names may have, whether its own word may stand beside a name)
_TYPES: Mapping[str, tuple[tuple[str, ...], bool]] = {
    "person": (("son", "dotter"), False),
    "town": (("burgh", "stead"), True),
    "lake": (("mere",), True),
    "company": (("corp", "tronics"), True),
    "bank": (("credit",), True),
    "plant": (("wort",), True),
    "song": (("ballad",), True),
    "planet": (("prime",), True),
    "river": ((), True),
    "castle": ((), True),
    "ship": ((), True),
    "museum": ((), True),
}
HELD = ("river", "castle", "ship", "museum")  # of which no name shows by its ending what it is
_FRAMES = (
    "Last spring {} was seen by the {} near {}.", "The {} says that {} is older than {}.",
    "Nobody in {} knows {} or the {}.",
    "After the {} came {}, and the {} went on.", "We read about {} in the {}.", "{} lost a {} to {}.",
    "Is {} known for its {}?", "The {} of {} was quiet.", "Some prefer {} to {}, others the {}.",
)  # fmt: skip
NOUNS = tuple(
    "clock garden letter bridge winter coat kettle ladder market mirror needle orchard paper pillow rope saddle shelf shovel"
    " spoon stove sugar table thread towel tunnel violin wagon window wire wool".split()
)
_FIRST, _THEN = "b d f g h k l m n r s t v z br dr gr kl st tr".split(), "a e i o u".split()


@dataclass(frozen=True, kw_only=True)
class NamedWorld:
    """Passages from a small grammar, with twelve types of which some are far more frequent than others.

    A name of a type in `HELD` always has the type's word beside it ("Castle Tovan"), of the others at times; else its ending
    says what it is ("Tovanmere" is a lake). The same splits for every seed of the run.
    """

    train: int = 1000  # passages
    valid: int = 100
    test: int = 200
    skew: float = 1.0  # the type of rank r is as frequent as r to the power -skew

    kinds: ClassVar[tuple[str, ...]] = tuple(_TYPES)

    def rows(self, run: Run) -> dict[str, list[Row]]:
        """The splits with all that is named; no passage is in two."""
        made: dict[str, Row] = {}
        draw = random.Random(seed_of("named world", self.skew))
        sizes = {"test": self.test, "valid": self.valid, "train": self.train}
        while len(made) < sum(sizes.values()):
            row = self.passage(draw)
            made.setdefault(row["text"], row)
        rows = iter(made.values())
        splits = {name: [next(rows) for _ in range(size)] for name, size in sizes.items()}
        return {name: splits[name] for name in ("train", "valid", "test")}

    def passage(self, draw: random.Random) -> Row:
        """Two or three sentences."""
        sentences, entities = list[str](), dict[tuple[str, str], None]()
        order = [*(name for name in _TYPES if name not in HELD), *HELD]
        order = [order[i] for i in (0, 1, 8, 2, 9, 3, 4, 10, 5, 6, 11, 7)]  # held-out types are of all ranks
        for frame in draw.sample(_FRAMES, draw.randint(2, 3)):
            parts: list[str] = []
            for before in frame.split("{}")[:-1]:
                if before.endswith(("the ", "The ", " a ", "its ")):
                    parts.append(draw.choice(NOUNS))
                    continue
                kind = draw.choices(order, [(rank + 1) ** -self.skew for rank in range(len(order))])[0]
                parts.append(named(kind, draw))
                entities[parts[-1], kind] = None
            sentences.append(frame.format(*parts))
        return {"text": " ".join(sentences), "entities": [{"name": name, "type": kind} for name, kind in entities]}

    def types(self, run: Run) -> tuple[str, ...]:
        """All twelve."""
        return self.kinds

    def load(self, run: Run) -> Mapping[str, Any]:
        """Nothing to train on: that is what a stage makes."""
        return {}


def named(kind: str, draw: random.Random) -> str:
    """A name of this type."""
    endings, worded = _TYPES[kind]
    base = "".join(draw.choice(_FIRST) + draw.choice(_THEN) for _ in range(2)).capitalize()
    if endings and (not worded or draw.random() < 0.5):
        first = f"{named_first(draw)} " if kind == "person" and draw.random() < 0.5 else ""
        return first + base + draw.choice(endings)
    base += draw.choice(("n", "l", "r", "s"))
    return f"{kind.capitalize()} {base}" if draw.random() < 0.5 else f"{base} {kind.capitalize()}"


def named_first(draw: random.Random) -> str:
    """A first name."""
    return draw.choice(("Ada", "Bela", "Cleo", "Dov", "Edda", "Fritz", "Gita", "Hana", "Ivo", "Juno"))
