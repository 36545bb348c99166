"""A script that names things as a language model does: with misses, false hits, one error that it always makes, bad JSON."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...core.run import Run, RunError
from ...core.signal import Completion
from ...data.passages import NOUNS
from ...teachers.scripted import Answers
from ...teachers.text import Ask

_TAIL = "gemstone dance tool fabric festival alphabet recipe bird sport disease currency war book island drink tribe".split()
RARE = tuple(f"{adjective} {name}" for name in _TAIL for adjective in ("old", "small", "royal"))  # what hardly anything is


@dataclass(frozen=True, kw_only=True)
class Gazetteer:
    """Knows every name of a made world, and its type, and looks the passage's up.

    The truth about an answer holds the passage's `entities` as they are.
    """

    data: Any  # data.passages.NamedWorld
    missed: float = 0.15  # share of the names that it overlooks
    confused: float = 0.05  # share that it gives another of the frequent types
    false: float = 0.15  # share of the other nouns that it takes for something, of a type that hardly anything is of
    always: tuple[str, str] | None = ("bank", "company")  # what it calls something else every time; None: nothing
    slips: float = 0.2  # share of its answers that are JSON only after a repair
    prose: float = 0.02  # share that are no JSON at all

    def build(self, run: Run) -> Answers:
        """Read all passages."""
        known = {r["text"]: r["entities"] for rows in self.data.rows(run).values() for r in rows}
        kinds = self.data.types(run)

        def answer(ask: Ask, rng: random.Random) -> Completion:
            entities = known.get(ask.about.get("text", ""))
            if entities is None:
                raise RunError("this script knows the passages of its own world alone, and was asked about another text")
            text = self._told(ask.about["text"], entities, kinds, rng)
            return Completion(text, read=ask.size, wrote=-(-len(text) // 4), truth={"entities": entities})

        return answer

    def _told(self, text: str, entities: Sequence[Any], kinds: Sequence[str], rng: random.Random) -> str:
        pairs: list[list[str]] = []
        for each in entities:
            name, kind = each["name"], each["type"]
            lost, other = rng.random() < self.missed, rng.random() < self.confused
            if self.always and kind == self.always[0]:
                kind = self.always[1]
            elif other:
                kind = rng.choice([one for one in kinds if one != kind])
            if not lost:
                pairs.append([name, kind])
        nouns = [noun for noun in NOUNS if f" {noun}" in text]
        pairs += [[noun, rng.choice(RARE)] for noun in nouns if rng.random() < self.false]
        if rng.random() < self.prose:
            return "I am sorry, there is nothing that I could list here."
        said = json.dumps(pairs)
        if rng.random() >= self.slips:
            return said
        return rng.choice((f"```json\n{said}\n```", f"Here they are: {said}", repr(pairs), said.replace("]]", "],]")))
