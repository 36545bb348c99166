"""Which of the good rows to learn from: the best, as many of each kind, the hard ones, those that differ most.

rate:   {use: synth.select.PassRate, group: question, of: right}
middle: {use: synth.select.Between, by: pass_rate, least: 0.2, most: 0.8}
kinds:  {use: synth.select.Cluster, column: question, count: 50}
best:   {use: synth.select.Top, by: score, k: 4, group: cluster}
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy
from numpy.typing import NDArray

from ..core.run import Run
from .dedup import Embedder, Hashed, Vectors, number_in, vectors_of
from .rules import having, text_in
from .steps import Silent
from .table import Row

Distances = NDArray[Any]  # [N], of all texts to one


@dataclass(frozen=True, kw_only=True)
class Top(Silent):
    """The rows with the most in a column, of all or of each group, pass; the others are lost, with their rank.

    Give one of `k` rows of each group, a `share` of each (rounded up), or `total` rows of all groups together, as many of
    each as can be, the groups that lack rows leaving theirs to the others. `skip` passes over a share at the top first,
    so that `skip: 0.25, share: 0.5` is the middle half. Without `by` the rows are drawn. Among equals the row goes first
    whose `_id` does; rows without a number in `by` are lost. A barrier: it remembers a number and a name of every row.
    """

    by: str | None = None  # the column with a number; None: by chance
    k: int | None = None
    share: float | None = None
    total: int | None = None
    group: str | None = None  # the column; None: all rows are one group
    skip: float = 0.0
    lowest: bool = False  # those with the least instead

    def __post_init__(self) -> None:
        if sum(value is not None for value in (self.k, self.share, self.total)) != 1:
            raise ValueError("give one of k, share and total")
        sizes = [value for value in (self.k, self.total) if value is not None]
        if min(sizes, default=1) < 1 or not 0 < (1 if self.share is None else self.share) <= 1 or not 0 <= self.skip < 1:
            raise ValueError("k and total are 1 or more, share above 0 and at most 1, skip from 0 to below 1")

    def __call__(self, rows: Iterable[Row], run: Run) -> Iterator[Row]:
        """The chosen rows, in the order in which they came."""
        table = having(rows, run, *(column for column in (self.by, self.group) if column))
        groups: dict[str, list[tuple[float, str]]] = {}
        for row in table:
            value = number_in(row, self.by, math.nan)
            if value == value:
                value = run.work.rng(row["_id"]).random() if self.by is None else value if self.lowest else -value
                groups.setdefault(self._group(row), []).append((value, str(row["_id"])))
        ranked = {group: sorted(found) for group, found in sorted(groups.items())}
        begins = {group: int(round(self.skip * len(found), 6)) for group, found in ranked.items()}
        counts = self._counts({group: len(found) for group, found in ranked.items()}, begins)
        rank = {name: i for found in ranked.values() for i, (_, name) in enumerate(found)}
        for row in table:
            group, place = self._group(row), rank.get(str(row["_id"]))
            if place is None:
                run.work.lose(row, f"no number in column {self.by!r}")
            elif begins[group] <= place < begins[group] + counts[group]:
                yield row
            else:
                why = "above those chosen" if place < begins[group] else "not among the first"
                run.work.lose(row, f"{why} of its group" if self.group else why, rank=place + 1, of=len(ranked[group]))

    def _group(self, row: Row) -> str:
        return text_in(row, self.group) if self.group else ""

    def _counts(self, sizes: dict[str, int], begins: dict[str, int]) -> dict[str, int]:
        """How many rows of each group."""
        if self.total is not None:
            return _evenly({group: size - begins[group] for group, size in sizes.items()}, self.total)
        if self.k is not None:
            return dict.fromkeys(sizes, self.k)
        return {group: math.ceil(round((self.share or 0) * size, 6)) for group, size in sizes.items()}

    def sketch(self, rows: Sequence[Row], run: Run) -> Sequence[Row]:
        """As many as it will choose, if groups can be seen by then."""
        if self.total is not None:
            return rows[: self.total]
        groups: dict[str, list[Row]] = {}
        for row in rows:
            groups.setdefault(self._group(row), []).append(row)
        counts = self._counts({group: len(found) for group, found in groups.items()}, {})
        return [row for group, found in groups.items() for row in found[: counts[group]]]


def _evenly(sizes: dict[str, int], total: int) -> dict[str, int]:
    """`total` rows over groups, as equal as their sizes allow; what does not divide goes to the first by name."""
    counts = dict.fromkeys(sizes, 0)
    left, open_ = min(total, sum(sizes.values())), sorted(sizes)
    while left:
        each = max(1, left // len(open_))
        for group in open_:
            more = min(each, sizes[group] - counts[group], left)
            counts[group], left = counts[group] + more, left - more
        open_ = [group for group in open_ if counts[group] < sizes[group]]
    return counts


@dataclass(frozen=True, kw_only=True)
class Between(Silent):
    """Rows whose number in a column lies between two pass, both included; others, and rows without one, are lost."""

    by: str
    least: float | None = None
    most: float | None = None
    row_by_row: ClassVar[bool] = True

    def __call__(self, rows: Iterable[Row], run: Run) -> Iterator[Row]:
        """The rows within."""
        for row in having(rows, run, self.by):
            value = number_in(row, self.by, math.nan)
            if value != value:
                run.work.lose(row, f"no number in column {self.by!r}")
            elif self.least is not None and value < self.least:
                run.work.lose(row, f"{self.by} is below {self.least:g}", value=value)
            elif self.most is not None and value > self.most:
                run.work.lose(row, f"{self.by} is above {self.most:g}", value=value)
            else:
                yield row


@dataclass(frozen=True, kw_only=True)
class PassRate(Silent):
    """Every row with the mean of a column over its group: how easy its question is, if that says which answers are right.

    A row without a number there counts as 0: what could not be judged was not right. It goes through the rows twice.
    """

    group: str  # the column
    of: str = "right"
    into: str = "pass_rate"  # the column; how many rows that is of: INTO_of

    def __call__(self, rows: Iterable[Row], run: Run) -> Iterator[Row]:
        """All rows."""
        table = having(rows, run, self.group, self.of)
        values: dict[str, list[float]] = {}
        for row in table:
            values.setdefault(text_in(row, self.group), []).append(number_in(row, self.of, 0.0))
        means = {group: (math.fsum(found) / len(found), len(found)) for group, found in values.items()}
        for row in table:
            mean, count = means[text_in(row, self.group)]
            yield {**row, self.into: mean, f"{self.into}_of": count}


@dataclass(frozen=True, kw_only=True)
class Apart(Silent):
    """`k` rows as far from each other as can be found: each time the one that is farthest from all that are chosen.

    Farthest first, or greedy k-centre: no row is more than twice as far from a chosen one as the farthest is with the best
    `k` (Gonzalez 1985), by the angle between vectors, which their cosine orders, or by `edits`: letters to insert, delete
    or replace. The first row is that with the most in `by`, or the first by `_id`; among equally far ones the same. A row
    at no distance from a chosen one is never chosen. A barrier that holds texts and vectors; it takes k passes over them.
    """

    k: int
    column: str = "text"
    distance: Literal["cosine", "edits"] = "cosine"
    embed: Embedder = Hashed()  # or synth.dedup.HubEncoder, OwnEmbedder
    by: str | None = None  # the column with a number

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError("k must be 1 or more")

    @property
    def files(self) -> Sequence[Path]:
        """What its rows depend on beside its settings."""
        return getattr(self.embed, "files", [])

    def __call__(self, rows: Iterable[Row], run: Run) -> Iterator[Row]:
        """The chosen rows, in the order in which they came."""
        table = having(rows, run, self.column, *([self.by] if self.by else []))
        order, texts = _ordered(table, self.column, self.by)
        space = Edits(texts) if self.distance == "edits" else Cosines(vectors_of(texts, self.embed, run))
        chosen, left = farthest_first(space, min(self.k, len(texts)))
        places, far = {order[i] for i in chosen}, {order[i]: float(left[i]) for i in range(len(left))}
        for number, row in enumerate(table):
            if number in places:
                yield row
            else:
                run.work.lose(row, "near to rows that were chosen", distance=round(far[number], 4))

    def sketch(self, rows: Sequence[Row], run: Run) -> Sequence[Row]:
        """So many."""
        return rows[: self.k]


@dataclass(frozen=True, kw_only=True)
class Cluster(Silent):
    """Every row with the number of its cluster, by the directions of the texts' vectors; `Top` then takes each one's best.

    k-means on the sphere (Dhillon and Modha 2001), begun with the rows that `Apart` chooses. A barrier that holds vectors.
    """

    count: int  # clusters; fewer if there are not so many different vectors
    column: str = "text"
    embed: Embedder = Hashed()  # or synth.dedup.HubEncoder, OwnEmbedder
    rounds: int = 25  # at most
    into: str = "cluster"

    def __post_init__(self) -> None:
        if self.count < 1 or self.rounds < 1:
            raise ValueError("count and rounds must be 1 or more")

    @property
    def files(self) -> Sequence[Path]:
        """What its rows depend on beside its settings."""
        return getattr(self.embed, "files", [])

    def __call__(self, rows: Iterable[Row], run: Run) -> Iterator[Row]:
        """All rows."""
        table = having(rows, run, self.column)
        order, texts = _ordered(table, self.column, None)
        vectors = vectors_of(texts, self.embed, run)
        chosen, _ = farthest_first(Cosines(vectors), min(self.count, len(texts)))
        which = dict(zip(order, _clusters(vectors, vectors[chosen], self.rounds).tolist(), strict=True))
        for number, row in enumerate(table):
            yield {**row, self.into: which[number]}


def _ordered(table: Sequence[Row], column: str, by: str | None) -> tuple[list[int], list[str]]:
    """The rows' numbers, who has most in `by` first and then by `_id`, and their texts in that order."""
    keys = [(-number_in(row, by), str(row["_id"]), text_in(row, column)) for row in table]
    order = sorted(range(len(keys)), key=lambda number: keys[number][:2])
    return order, [keys[number][2] for number in order]


class Cosines:
    """1 - cosine of vectors of length 1."""

    def __init__(self, vectors: Vectors):
        self.vectors = vectors

    def __call__(self, number: int) -> Distances:
        """From one to all; what is below what rounding loses is 0."""
        found = 1 - self.vectors @ self.vectors[number]
        return numpy.where(found > 1e-6, found, 0)


class Edits:
    """Levenshtein's distance in letters, of one text to all others at once."""

    def __init__(self, texts: Sequence[str]):
        self.lengths = numpy.array([len(text) for text in texts], numpy.int64)
        self.letters = numpy.zeros((len(texts), max(self.lengths, default=0)), numpy.int64)
        for letters, text in zip(self.letters, texts, strict=True):
            letters[: len(text)] = [ord(letter) for letter in text]

    def __call__(self, number: int) -> Distances:
        """From one to all."""
        width = self.letters.shape[1]
        steps = numpy.arange(width + 1)
        costs = numpy.tile(steps, (len(self.lengths), 1))
        for i, letter in enumerate(self.letters[number, : self.lengths[number]], 1):
            new = numpy.empty_like(costs)
            new[:, 0] = i
            numpy.minimum(costs[:, 1:] + 1, costs[:, :-1] + (self.letters != letter), out=new[:, 1:])
            costs = numpy.minimum.accumulate(new - steps, axis=1) + steps  # insertions
        return numpy.take_along_axis(costs, self.lengths[:, None], axis=1)[:, 0]


def farthest_first(space: Any, k: int) -> tuple[list[int], Distances]:
    """The chosen ones, 0 first, and how far every one is from the nearest of them; fewer than `k` if none is apart."""
    if not k:
        return [], numpy.zeros(0)
    chosen, left = [0], space(0)
    while len(chosen) < k and left.max() > 0:
        chosen.append(int(left.argmax()))
        left = numpy.minimum(left, space(chosen[-1]))
    return chosen, left


def _clusters(vectors: Vectors, middles: Vectors, rounds: int) -> NDArray[Any]:
    """The number of the nearest middle of each, once they stay."""
    which = numpy.full(len(vectors), -1)
    for _ in range(rounds if len(vectors) else 0):
        now = (vectors @ middles.T).argmax(axis=1)
        if (now == which).all():
            break
        which = now
        sums = numpy.zeros(middles.shape)
        numpy.add.at(sums, which, vectors)
        lengths = numpy.linalg.norm(sums, axis=1, keepdims=True)
        middles = numpy.where(lengths > 0, sums / numpy.where(lengths > 0, lengths, 1), middles).astype(numpy.float32)
    return which
