"""A file as the rows that a plan begins with, whatever its size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..core.run import Run, RunError
from ..data.tables import stream_rows
from .table import Row


@dataclass(frozen=True, kw_only=True)
class File:
    """The rows of a file as they are (.jsonl, .csv, .parquet, .txt), all of them in the split `train`.

    JSONL, CSV and Parquet are read a piece at a time: the file need not fit into memory. Nothing is held out; a plan whose
    rows teach a student needs a data spec with splits, such as `data.labelled.Labelled`.
    """

    path: str
    limit: int | None = None  # rows from the first on; None: all

    def stream(self, run: Run, split: str) -> Iterator[Row]:
        """The rows; RunError for another split than `train`."""
        if split != "train":
            raise RunError(f"{self.path} is read whole, as the split 'train'; there is no split {split!r}")
        for number, row in enumerate(stream_rows(self.path, run)):
            if number == self.limit:
                return
            yield row

    def rows(self, run: Run) -> dict[str, list[Row]]:
        """The same, all at once."""
        return {"train": list(self.stream(run, "train"))}

    def load(self, run: Run) -> Mapping[str, Any]:
        """No splits to train on."""
        return {}
