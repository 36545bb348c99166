"""Several files as one table: their columns under common names, and where each row is from.

data: {use: synth.union.Union, sources: {books: {use: synth.union.Source, path: books.jsonl, question: problem}}}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..core.recipe import nearest
from ..core.run import Run, RunError
from ..data.tables import stream_rows
from .table import Row


@dataclass(frozen=True, kw_only=True)
class Source:
    """One file and what its columns are called; a column that it does not have is left empty."""

    path: str  # .jsonl, .csv, .parquet, ...
    question: str = "question"
    truth: str = "answer"  # a reference answer
    response: str = "response"  # what somebody has answered
    tests: str = "tests"  # of a program
    limit: int | None = None  # rows from the first on; None: all

    def stream(self, name: str, run: Run) -> Iterator[Row]:
        """Rows of `question`, `source` and what there is of `truth`, `response`, `tests`; one without question is
        rejected."""
        columns = {"question": self.question, "truth": self.truth, "response": self.response, "tests": self.tests}
        known = list[str]()
        count = 0
        for number, row in enumerate(stream_rows(self.path, run)):
            if number == self.limit:
                break
            known = list(row)
            found = {ours: row[theirs] for ours, theirs in columns.items() if row.get(theirs) not in (None, "", [])}
            if "question" in found:
                count += 1
                yield {**found, "source": name}
            else:
                run.reject(row, f"nothing in column {self.question!r} of {name}")
        if not count:
            raise RunError(
                f"no row of {self.path} has a question in column {self.question!r}{nearest(self.question, known)}; it has"
                f" {', '.join(known) or 'no rows'}"
            )


@dataclass(frozen=True, kw_only=True)
class Union:
    """The rows of all sources, one after the other, all of them in the split `train`."""

    sources: Mapping[str, Any] = field(default_factory=dict[str, Source])  # name -> Source

    def stream(self, run: Run, split: str) -> Iterator[Row]:
        """The rows; RunError for another split than `train`."""
        if split != "train":
            raise RunError(f"the sources are read whole, as the split 'train'; there is no split {split!r}")
        if not self.sources:
            raise RunError("the union has no sources: give sources={NAME: {use: synth.union.Source, path: FILE}}")
        for name, source in self.sources.items():
            yield from source.stream(name, run)

    def rows(self, run: Run) -> dict[str, list[Row]]:
        """The same, all at once."""
        return {"train": list(self.stream(run, "train"))}

    def load(self, run: Run) -> Mapping[str, Any]:
        """No splits to train on."""
        return {}
