"""Rows that hold what a student will be tested on are lost, with the test row that they hold.

decontaminate: {use: synth.decontaminate.Decontaminate, columns: [question], gram: 13}
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from ..core.run import Run, RunError
from ..data.tables import read_rows
from .alike import Alike
from .asking import check_columns
from .dedup import Embedder, grams_of, plain_or_all, vectors_of
from .rules import having, text_in
from .steps import Silent
from .table import Row

Tested = tuple[str, str]  # which test row, and what it says
Hit = tuple[float, int]  # how much, and the number of the test text


@dataclass(frozen=True, kw_only=True)
class Decontaminate(Silent):
    """Rows that share an n-gram of `gram` words with a test text, or are nearly the same as one, are lost; others pass.

    Tests are the test split of the recipe's data, of `data`, or files. A test text of fewer words than `gram` is looked
    for as a whole, one of fewer than `least` not by its words, which may stand anywhere, but only as nearly the same.
    That means that its n-grams of words and letters, or its vector where an Embedder is given, have a cosine of at least
    `alike` with the row's. A row is lost with the test row that it has most of, and what both say. Rows come one by one;
    the tests are held.
    """

    columns: tuple[str, ...] = ("text",)  # of the rows, each on its own
    theirs: tuple[str, ...] = ()  # of the test rows, each on its own; none: the same. Tasks have question, answer, solution
    paths: tuple[str, ...] = ()  # files of tests: .jsonl, .csv, .parquet, ...
    data: Any = None  # a data spec with splits; None, and no paths: the recipe's
    splits: tuple[str, ...] = ("test",)
    gram: int = 13  # words of an n-gram, or letters
    of: Literal["words", "letters"] = "words"  # letters for texts without blanks between words
    share: float = 0.0  # of a test text's n-grams a row must have so many to be lost, and one at least
    least: int = 5  # words, or letters, of a test text that is looked for
    alike: float | None = 0.9  # a sentence with another number in it is above that; None: by n-grams of words alone
    embed: Embedder | None = None  # synth.dedup.HubEncoder, OwnEmbedder
    row_by_row: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.columns or self.gram < 1 or not 0 <= self.share <= 1:
            raise ValueError("give columns, a gram of 1 or more, and a share between 0 and 1")
        if self.alike is not None and not 0 < self.alike <= 1:
            raise ValueError("alike must be above 0 and at most 1")

    @property
    def files(self) -> Sequence[Path]:
        """What its rows depend on beside its settings."""
        own = [self.data.path] if isinstance(getattr(self.data, "path", None), str) else []
        return [*map(Path, [*self.paths, *own]), *getattr(self.embed, "files", [])]

    def check(self, run: Run) -> None:
        """RunError if there are no tests, or not the columns that are named."""
        self.tests(run)

    def __call__(self, rows: Iterable[Row], run: Run) -> Iterator[Row]:
        """The rows that hold no test."""
        tests = self.tests(run)
        grams = _Grams([text for _, text in tests], self.gram, self.of, self.least)
        near = None if self.alike is None else _Near([text for _, text in tests], self.embed, run)
        for row in having(rows, run, *self.columns):
            texts = [text for text in (text_in(row, column) for column in self.columns) if text.strip()]
            share, number = max((grams.most(text) for text in texts), default=(0.0, 0))
            if share > 0 and share >= self.share:
                where, says = tests[-number]
                run.work.lose(row, "it holds words of a test", test=where, says=says[:200], share=round(share, 4))
                continue
            alike, number = max((near.most(text) for text in texts), default=(0.0, 0)) if near else (0.0, 0)
            if self.alike is not None and alike >= self.alike - 1e-6:
                where, says = tests[-number]
                run.work.lose(row, "it is nearly the same as a test", test=where, says=says[:200], alike=round(alike, 4))
            else:
                yield row

    def tests(self, run: Run) -> list[Tested]:
        """All texts of the tests, with the names of their rows, which count from 1."""
        found = [(Path(path).name, row, number) for path in self.paths for number, row in enumerate(read_rows(path, run), 1)]
        if self.data is not None or not self.paths:
            for split, rows in _splits(self.data or run.recipe.data, self.splits, run).items():
                found += [(split, row, number) for number, row in enumerate(rows, 1)]
        if not found:
            raise RunError(f"there is no test row in {', '.join(self.splits)} to compare with")
        columns = self.theirs or self.columns
        check_columns(columns, [row for _, row, _ in found], "Decontaminate, of the tests (set theirs),")
        texts = [(f"{name} row {number}", text_in(row, column)) for name, row, number in found for column in columns]
        return [(where, text) for where, text in texts if text.strip()]


def _splits(spec: Any, names: Sequence[str], run: Run) -> dict[str, list[Row]]:
    if hasattr(spec, "tasks"):
        asked = getattr(spec, "instruction", "") or getattr(getattr(spec, "base", None), "instruction", "")
        splits: dict[str, list[Row]] = {  # what every question ends with is no part of it
            name: [{"question": t.question.removesuffix(asked), "answer": t.answer, "solution": t.solution} for t in tasks]
            for name, tasks in spec.tasks(run).items()
        }
    elif hasattr(spec, "rows"):
        splits = spec.rows(run)
    else:
        raise RunError(f"the data {type(spec).__name__} have no rows of text to compare with: give paths of tests")
    if missing := [name for name in names if name not in splits]:
        raise RunError(f"the data {type(spec).__name__} have no split {missing[0]!r}; they have {', '.join(splits)}")
    return {name: splits[name] for name in names}


class _Grams:
    """Which test text a text has most of, by its n-grams."""

    def __init__(self, texts: Sequence[str], gram: int, of: Literal["words", "letters"], least: int):
        self.of, self.sizes = of, set[int]()
        self.having: dict[str, list[int]] = {}
        self.counts = [0] * len(texts)
        for number, text in enumerate(texts):
            parts = plain_or_all(text).split()
            length = len(parts) if of == "words" else len(" ".join(parts))
            if length >= max(1, least):
                self.sizes.add(min(gram, length))
                found = set(grams_of(text, min(gram, length), of))
                self.counts[number] = len(found)
                for each in found:
                    self.having.setdefault(each, []).append(number)

    def most(self, text: str) -> Hit:
        """(the largest share of a test text's n-grams that the text has, minus the number of that test text)."""
        both: dict[int, int] = {}
        for each in {each for size in self.sizes for each in grams_of(text, size, self.of)}:
            for number in self.having.get(each, ()):
                both[number] = both.get(number, 0) + 1
        return max(((count / self.counts[number], -number) for number, count in both.items()), default=(0.0, 0))


class _Near:
    """Which test text a text is most like."""

    def __init__(self, texts: Sequence[str], embed: Embedder | None, run: Run):
        self.embed, self.run = embed, run
        self.index = Alike(texts) if embed is None else None
        self.vectors = None if embed is None else vectors_of(texts, embed, run)

    def most(self, text: str) -> Hit:
        """(how alike, minus the number of the test text)."""
        if self.index is not None:
            number, alike = self.index.nearest(text)
            return alike, -number
        assert self.vectors is not None and self.embed is not None
        cosines = self.vectors @ vectors_of([text], self.embed, self.run)[0]
        return float(cosines.max()), -int(cosines.argmax())
