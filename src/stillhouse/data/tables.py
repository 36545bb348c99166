"""Rows from a user's file: JSONL, JSON, CSV, Parquet, plain text. Every lost row keeps its reason."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from ..core.run import Run, RunError

Row = dict[str, Any]


def read_rows(path: str | Path, run: Run | None = None) -> list[Row]:
    """The rows of a file, by its ending; a JSONL line that does not parse is rejected with its number.

    A text file is one row per block between blank lines, under `text`. RunError if there is no file or no row.
    """
    file = Path(path).expanduser()
    if not file.exists():
        raise RunError(f"no data file {path}")
    if file.is_dir():
        raise RunError(f"{path} is a folder; name a file (.jsonl, .json, .csv, .parquet or .txt)")
    ending = "".join(file.suffixes[-2:]) if file.suffix == ".gz" else file.suffix
    reader = _READERS.get(ending.removesuffix(".gz").lower())
    if reader is None:
        raise RunError(f"cannot read {file.name}: give .jsonl, .json, .csv, .parquet or .txt (.gz too)")
    try:
        rows = list(reader(file, run))
    except (UnicodeDecodeError, OSError, json.JSONDecodeError) as error:
        raise RunError(f"cannot read {path}: {error}") from error
    if not rows:
        raise RunError(f"{path} holds no rows")
    return rows


def _open(file: Path) -> IO[str]:
    return gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8")


def _jsonl(file: Path, run: Run | None) -> Iterator[Row]:
    bad, first = 0, ""
    with _open(file) as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError("not an object")
            except ValueError as error:
                bad, first = bad + 1, first or f"line {number}: {error}"
                if run is not None:
                    run.reject({"line": line[:500]}, f"line {number} of {file.name} is not a JSON object")
                continue
            yield row
    if bad and run is not None:
        run.event("warning", text=f"{bad} lines of {file.name} are not JSON objects and were left out ({first})")


def _json(file: Path, run: Run | None) -> Iterator[Row]:
    with _open(file) as text:
        rows = json.load(text)
    if not isinstance(rows, list):
        raise RunError(f"{file.name} must hold a JSON list of objects")
    yield from rows


def _arrow(file: Path, run: Run | None) -> Iterator[Row]:
    import pyarrow as pa

    try:
        if file.name.endswith(".parquet"):
            import pyarrow.parquet as pq

            table = pq.read_table(file)
        else:
            from pyarrow import csv

            table = csv.read_csv(file)
    except pa.ArrowInvalid as error:
        raise RunError(f"cannot read {file.name}: {str(error).splitlines()[0]}") from error
    for batch in table.to_batches(max_chunksize=4096):
        yield from batch.to_pylist()


def _text(file: Path, run: Run | None) -> Iterator[Row]:
    with _open(file) as text:
        for block in text.read().split("\n\n"):
            if block.strip():
                yield {"text": block.strip("\n")}


_READERS = {".jsonl": _jsonl, ".json": _json, ".csv": _arrow, ".parquet": _arrow, ".txt": _text, ".md": _text}


def content_key(row: Row) -> str:
    """A row's identity: the hash of its content, whatever file or position it came from."""
    return hashlib.sha256(json.dumps(row, sort_keys=True, ensure_ascii=False, default=str).encode()).hexdigest()


def split_rows(rows: Sequence[Row], *, valid: float, test: float, run: Run | None = None) -> dict[str, list[Row]]:
    """Deterministic splits by content: adding rows moves few others, equal rows never land in two splits."""
    unique: dict[str, Row] = {}
    for row in rows:
        key = content_key(row)
        if key in unique and run is not None:
            run.reject(row, "duplicate of an earlier row")
        unique.setdefault(key, row)
    keys = sorted(unique)
    n_test, n_valid = round(test * len(keys)), round(valid * len(keys))
    if len(keys) - n_test - n_valid < 1:
        raise RunError(f"{len(keys)} different rows are too few to hold out {valid:.0%} and {test:.0%}; give more rows")
    bounds = {"test": keys[:n_test], "valid": keys[n_test : n_test + n_valid], "train": keys[n_test + n_valid :]}
    return {name: [unique[k] for k in chosen] for name, chosen in bounds.items()}
