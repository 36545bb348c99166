"""Rows from a user's file: JSONL, JSON, CSV, Parquet, plain text. Every lost row keeps its reason."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from ..core.run import Run, RunError

Row = dict[str, Any]


def read_rows(path: str | Path, run: Run | None = None) -> list[Row]:
    """The rows of a file, by its ending; a line of JSONL or CSV that does not parse is rejected with its number.

    A text file is one row per block between blank lines, under `text`. RunError if there is no file or no row.
    """
    rows = list(stream_rows(path, run))
    if not rows:
        raise RunError(f"{path} holds no rows")
    return rows


def stream_rows(path: str | Path, run: Run | None = None) -> Iterator[Row]:
    """The same, one after the other; of JSONL, CSV and Parquet no more than some are held at a time. RunError at once
    if there is no such file."""
    file = Path(path).expanduser()
    if not file.exists():
        raise RunError(f"no data file {path}")
    if file.is_dir():
        raise RunError(f"{path} is a folder; name a file (.jsonl, .json, .csv, .parquet or .txt)")
    ending = "".join(file.suffixes[-2:]) if file.suffix == ".gz" else file.suffix
    reader = _READERS.get(ending.removesuffix(".gz").lower())
    if reader is None:
        raise RunError(f"cannot read {file.name}: give .jsonl, .json, .csv, .parquet or .txt (.gz too)")
    return _guarded(path, reader(file, run))


def _guarded(path: str | Path, rows: Iterator[Row]) -> Iterator[Row]:
    try:
        yield from rows
    except (UnicodeDecodeError, OSError, EOFError, zlib.error, csv.Error, json.JSONDecodeError) as error:
        raise RunError(f"cannot read {path}: {error}") from error


def _open(file: Path, newline: str | None = None) -> IO[str]:
    reader: Any = gzip.open if file.suffix == ".gz" else open
    return reader(file, "rt", encoding="utf-8-sig", newline=newline)  # -sig: spreadsheets put a mark at the start


def _jsonl(file: Path, run: Run | None) -> Iterator[Row]:
    good, bad = 0, _Bad(file, "JSON object", run)
    with _open(file) as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError("not an object")
            except ValueError as error:
                bad.add(number, line, str(error))
                continue
            good += 1
            yield row
    bad.close(good)


def _json(file: Path, run: Run | None) -> Iterator[Row]:
    with _open(file) as text:
        rows = json.load(text)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise RunError(f"{file.name} must hold a JSON list of objects")
    yield from rows


def _csv(file: Path, run: Run | None) -> Iterator[Row]:
    good, bad = 0, _Bad(file, "row as wide as the header", run)
    csv.field_size_limit(2**31 - 1)
    with _open(file, newline="") as lines:
        reader = csv.DictReader(lines, strict=True)
        for row in reader:  # cells stay text: a reader that guesses types makes 7 of 007
            if None in row or None in row.values():
                bad.add(reader.line_num, str(list(row.values())), "wrong number of cells")
                continue
            good += 1
            yield row
    bad.close(good)


def _parquet(file: Path, run: Run | None) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as table:
            for batch in table.iter_batches(4096):
                yield from batch.to_pylist()
    except pa.ArrowException as error:
        raise RunError(f"cannot read {file.name}: {str(error).splitlines()[0]}") from error


def _text(file: Path, run: Run | None) -> Iterator[Row]:
    with _open(file) as text:
        for block in re.split(r"\n[ \t]*\n", text.read()):  # a line of blanks separates as well as an empty one
            if block.strip():
                yield {"text": block.strip("\n")}


class _Bad:
    """The lines of a file that are not what they should be: rejected one by one, warned about once."""

    def __init__(self, file: Path, wanted: str, run: Run | None):
        self.file, self.wanted, self.run = file, wanted, run
        self.count, self.first = 0, ""

    def add(self, number: int, line: str, error: str) -> None:
        """Reject a line."""
        self.count, self.first = self.count + 1, self.first or f"line {number}: {error}"
        if self.run is not None:
            self.run.reject({"line": line[:500]}, f"line {number} of {self.file.name} is not a {self.wanted}")

    def close(self, good: int) -> None:
        """RunError if no line was good."""
        if self.count and not good:
            raise RunError(f"no line of {self.file.name} is a {self.wanted} ({self.first})")
        if self.count and self.run is not None:
            text = f"{self.count} lines of {self.file.name} were left out: not a {self.wanted} ({self.first})"
            self.run.event("warning", text=text)


_READERS = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet, ".txt": _text, ".md": _text}


def content_key(row: Row) -> str:
    """A row's identity: the hash of its content, whatever file or position it came from."""
    return hashlib.sha256(json.dumps(row, sort_keys=True, ensure_ascii=False, default=str).encode()).hexdigest()


def split_rows(rows: Sequence[Row], *, valid: float, test: float, run: Run | None = None) -> dict[str, list[Row]]:
    """Deterministic splits by content: adding rows moves few others, equal rows never land in two splits.

    A share above 0 holds out at least one row.
    """
    unique: dict[str, Row] = {}
    for row in rows:
        key = content_key(row)
        if key in unique and run is not None:
            run.reject(row, "duplicate of an earlier row")
        unique.setdefault(key, row)
    keys = sorted(unique)
    n_test, n_valid = (max(1, round(share * len(keys))) if share else 0 for share in (test, valid))
    if len(keys) - n_test - n_valid < 1:
        raise RunError(f"{len(keys)} different rows are too few to hold out {valid:.0%} and {test:.0%}; give more rows")
    bounds = {"test": keys[:n_test], "valid": keys[n_test : n_test + n_valid], "train": keys[n_test + n_valid :]}
    return {name: [unique[k] for k in chosen] for name, chosen in bounds.items()}
