"""New texts out of old ones without a teacher: words swapped, left out and put in again.

As EDA does (Wei and Zou 2019, arXiv 1901.11196), but words that are put in or replaced are drawn from the text itself, not
from a list of synonyms, which would be one language's.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ..core.run import Run
from .asking import check_columns, gone_through
from .parse import plain
from .rules import text_in
from .steps import Silent, Work
from .table import Row


@dataclass(frozen=True, kw_only=True)
class Edits(Silent):
    """The rows, and `quotas` new ones of each class: its texts in turns, each time edited in other places.

    A share of the words (one at least) is edited, each in one of three ways: it changes places with another, goes, or is
    put in once more somewhere. Lost: an edited text that was there before, after some tries. A barrier: it holds the rows
    of the classes that have a quota.
    """

    quotas: Mapping[str, int] = field(default_factory=dict[str, int])  # class -> new rows
    column: str = "text"
    label: str = "label"
    share: float = 0.1  # of the words
    tries: int = 5  # for a text that is not there yet

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1 or self.tries < 1 or any(n < 0 for n in self.quotas.values()):
            raise ValueError("share must be above 0 and at most 1, tries 1 or more, and no quota below 0")

    def __call__(self, rows: Iterable[Row], run: Run) -> Iterator[Row]:
        """The given rows, then the new ones, whose parent is the text that was edited."""
        work: Work = run.work
        rows = gone_through(rows)
        check_columns((self.column, self.label), rows, "the editing")
        classes: dict[str, list[Row]] = {name: [] for name in self.quotas}
        seen: set[str] = set()
        for row in rows:
            seen.add(plain(text_in(row, self.column)))
            if row.get(self.label) in classes and text_in(row, self.column).split():
                classes[row[self.label]].append(row)
            yield row
        for name in sorted(classes):
            found = sorted(classes[name], key=lambda row: str(row["_id"]))
            for number in range(self.quotas[name] if found else 0):
                row = found[number % len(found)]
                for attempt in range(self.tries):
                    rng = work.rng(row["_id"], number // len(found), attempt)
                    text = edited(text_in(row, self.column), self.share, rng)
                    if plain(text) not in seen:
                        break
                if plain(text) in seen:
                    work.lose({**row, self.column: text}, "the same text was there before")
                    continue
                seen.add(plain(text))
                yield work.child(row, **{self.column: text, self.label: name})

    def sketch(self, rows: Sequence[Row], run: Run) -> Sequence[Row]:
        """The rows with as many again as are wanted."""
        some = list(rows)
        return some + [some[n % len(some)] for n in range(sum(self.quotas.values()) if some else 0)]


def edited(text: str, share: float, rng: random.Random) -> str:
    """The text with so many edits as are `share` of its words, one at least; one word stays at least."""
    words = text.split()
    for _ in range(max(1, round(share * len(words)))):
        place, other = rng.randrange(len(words)), rng.randrange(len(words))
        way = rng.choice(("swap", "leave out", "put in") if len(words) > 1 else ("put in",))
        if way == "swap":
            words[place], words[other] = words[other], words[place]
        elif way == "leave out":
            del words[place]
        else:
            words.insert(place, words[other])
    return " ".join(words)
