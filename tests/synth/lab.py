"""A small plan that makes data: two answers to every row, then a filter, then one more question about what is left.

Run as a script it is the process that gets killed: `python -m synth.lab FOLDER URL`.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from stillhouse.core.recipe import Recipe
from stillhouse.core.run import Run
from stillhouse.core.signal import Kind
from stillhouse.core.stage import execute
from stillhouse.synth.budget import Budget
from stillhouse.synth.steps import Need, Row
from stillhouse.synth.synthesize import Synthesize
from stillhouse.teachers.chat import HttpChat, Price
from stillhouse.teachers.text import Ask, Decoding, Lost


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """Rows with a number."""

    count: int = 12
    reverse: bool = False

    def rows(self, run: Run) -> dict[str, list[dict[str, Any]]]:
        found = [{"text": f"row {i}"} for i in range(self.count)]
        return {"train": found[::-1] if self.reverse else found}

    def load(self, run: Run) -> Mapping[str, Any]:
        return {}


@dataclass(frozen=True, kw_only=True)
class Double:
    """Two answers to every row, drawn."""

    each: int = 2
    teacher: str = "teacher"
    needs: ClassVar[frozenset[Kind]] = frozenset({"text"})

    def __call__(self, rows: Iterable[Row], run: Run) -> Iterator[Row]:
        work = run.work

        def asks() -> Iterator[tuple[Row, Ask]]:
            for row in rows:
                for n in range(self.each):
                    yield row, Ask((("user", f"more of {row['text']}"),), Decoding(max_new=16), work.seed(row["_id"], n))

        for row, answer in work.ask(self.teacher, asks()):
            if isinstance(answer, Lost):
                work.lose(row, answer.why)
            else:
                yield work.child(row, text=answer.text, chance=work.rng(row["_id"]).random())

    def estimate(self, rows: Sequence[Row], run: Run) -> Mapping[str, Need]:
        return {self.teacher: Need(2 * len(rows), 20 * len(rows), 32 * len(rows))}

    def sketch(self, rows: Sequence[Row], run: Run) -> Sequence[Row]:
        return [row for row in rows for _ in range(self.each)]


@dataclass(frozen=True, kw_only=True)
class Sieve:
    """Drops rows whose text ends in a digit below `below`."""

    below: int = 3
    needs: ClassVar[frozenset[Kind]] = frozenset()

    def __call__(self, rows: Iterable[Row], run: Run) -> Iterator[Row]:
        for row in rows:
            digit = int(row["text"][-1])
            if digit < self.below:
                run.work.lose(row, "too small", digit=digit)
            else:
                yield {**row, "digit": digit}

    def estimate(self, rows: Sequence[Row], run: Run) -> Mapping[str, Need]:
        return {}

    def sketch(self, rows: Sequence[Row], run: Run) -> Sequence[Row]:
        return rows


@dataclass(frozen=True, kw_only=True)
class Judge:
    """What the teacher says of each row, at temperature 0."""

    teacher: str = "teacher"
    needs: ClassVar[frozenset[Kind]] = frozenset({"text"})

    def __call__(self, rows: Iterable[Row], run: Run) -> Iterator[Row]:
        asks = ((row, Ask((("user", f"judge {row['text']}"),), Decoding(temperature=0, max_new=8))) for row in rows)
        for row, answer in run.work.ask(self.teacher, asks):
            if isinstance(answer, Lost):
                run.work.lose(row, answer.why)
            else:
                yield {**row, "judged": answer.text}

    def estimate(self, rows: Sequence[Row], run: Run) -> Mapping[str, Need]:
        return {self.teacher: Need(len(rows), 10 * len(rows), 8 * len(rows))}

    def sketch(self, rows: Sequence[Row], run: Run) -> Sequence[Row]:
        return rows


def said(words: str, body: Any) -> str:
    """What the server of these tests answers: it depends on the words and the seed, and ends in a digit."""
    number = zlib.crc32(f"{words} {body.get('seed')}".encode()) % 1000
    return f"{words[:40]} {number}"


def made(
    url: str, *, count: int = 12, budget: Budget | None = None, reverse: bool = False, below: int = 3, **http: Any
) -> Recipe:
    """The recipe."""
    teacher = HttpChat(url=url, model="tiny", price=Price(read=1e6, wrote=1e6), **{"concurrency": 4, **http})
    stage = Synthesize(
        steps={"double": Double(), "sieve": Sieve(below=below), "judge": Judge()},
        budgets={} if budget is None else {"teacher": budget},
    )
    data = Numbers(count=count, reverse=reverse)
    return Recipe(id="made", student=None, data=data, teachers={"teacher": teacher}, stages={"make": stage})


def go(recipe: Recipe, folder: Path, seed: int = 0) -> Run:
    """Run it."""
    run = Run(folder, seed=seed)
    execute(recipe, run)
    return run


if __name__ == "__main__":
    from synth.lab import go, made  # under the name that the test knows the steps by

    go(made(sys.argv[2], count=int(sys.argv[3]), retries=8), Path(sys.argv[1]))
