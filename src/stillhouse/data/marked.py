"""Made-up texts in which one word counts: the one behind the mark. Its kind is the label, and has to be known by heart.

    lomi * teka sori nabe kulo ...   ->   the kind of `teka`

To be right one has to find the word and to know the kind of every word, so few labels, which show few words, teach little.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

from ..core.run import Run, seed_of
from .labelled import Labels
from .tables import Row

MARK = "*"


@lru_cache(maxsize=8)
def kinds(words: int, classes: int) -> dict[str, str]:
    """The kind of every word; the same for every run."""
    draw = random.Random(seed_of("marked", words, classes))
    syllables = ["".join(s) for s in product("bdfgklmnprstvz", "aeiou")]
    every = ["".join(pair) for pair in product(syllables, syllables)]
    return {word: f"kind {i % classes}" for i, word in enumerate(draw.sample(every, words))}


@dataclass(frozen=True, kw_only=True)
class Marked(Labels):
    """Texts of `each` words, one of them marked."""

    words: int = 100  # that there are, divided evenly among the kinds
    classes: int = 5
    each: int = 10  # words of a text
    train: int = 3000  # texts
    valid: int = 400
    test: int = 1000
    shots: int | None = None  # labelled texts of every class to learn from; None: all

    def all_rows(self, run: Run) -> dict[str, list[Row]]:
        """The splits as rows; the same for every run, and no text twice."""
        known, draw = kinds(self.words, self.classes), random.Random(seed_of("marked texts", self.words, self.classes))
        rows: dict[str, Row] = {}
        while len(rows) < self.train + self.valid + self.test:
            drawn, at = draw.choices(sorted(known), k=self.each), draw.randrange(self.each)
            text = " ".join([*drawn[:at], MARK, *drawn[at:]])
            rows[text] = {"text": text, "label": known[drawn[at]]}
        every, ends = list(rows.values()), (self.train, self.train + self.valid)
        return {"train": every[: ends[0]], "valid": every[ends[0] : ends[1]], "test": every[ends[1] :]}
