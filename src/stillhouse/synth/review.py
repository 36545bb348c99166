"""Rows for a person to look over and change, and the changes back as a step: a new version, with the old one kept."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.files import write_atomically
from ..core.run import Run, RunError, seed_of
from ..data.tables import read_rows
from .steps import Silent, check_file
from .table import Row

KEEP = "keep"  # the column in which a reviewer says no
NO = {"no", "n", "0", "false", "drop"}


def export(rows: Iterable[Row], file: Path, *, columns: Sequence[str] = (), sample: int | None = None) -> int:
    """Write rows to review: `_id`, `keep` and their columns, to .csv or .jsonl; how many they are.

    `sample`: only so many, chosen by the rows' names, so that the same table gives the same ones.
    """
    if file.suffix not in (".csv", ".jsonl"):
        raise RunError(f"a file to review ends in .csv or .jsonl, not {file.suffix or 'in nothing'}")
    if file.exists():
        raise RunError(f"{file} is there already, perhaps with somebody's work in it; give another name")
    chosen = list(rows)
    if sample is not None:
        chosen = sorted(chosen, key=lambda row: seed_of("review", row["_id"]))[:sample]
    if columns and (unknown := set(columns) - {name for row in chosen for name in row}):
        known = sorted({name for row in chosen for name in row if not name.startswith("_")})
        raise RunError(f"no row has a column {sorted(unknown)[0]!r}; they have {', '.join(known)}")
    names = columns or list(dict.fromkeys(name for row in chosen for name in row if not name.startswith("_")))
    told = [{"_id": row["_id"], KEEP: "yes", **{n: row[n] for n in names if n in row}} for row in chosen]
    if file.suffix == ".jsonl":
        write_atomically(file, "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in told))
    else:
        with file.open("w", encoding="utf-8", newline="") as out:
            writer = csv.DictWriter(out, ["_id", KEEP, *names])
            writer.writeheader()
            for row in told:
                writer.writerow({n: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for n, v in row.items()})
    return len(told)


@dataclass(frozen=True, kw_only=True)
class Reviewed(Silent):
    """Rows as a person left them in a file that `stillhouse review` wrote; rows that are not in it pass as they are."""

    path: str

    def check(self, run: Run) -> None:
        """RunError if the file is not there."""
        check_file(self.path)

    def __call__(self, rows: Iterable[Row], run: Run) -> Iterator[Row]:
        """A row whose `keep` says no is lost; in others what was changed is changed."""
        said = {str(row.get("_id")): row for row in read_rows(self.path, run)}
        used = 0
        for row in rows:
            found = said.get(str(row["_id"]))
            used += found is not None
            if found is None:
                yield row
            elif str(found.get(KEEP, "yes")).strip().lower() in NO:
                run.work.lose(row, "taken out in review")
            else:
                yield {**row, **_changes(row, found)}
        if not used:
            raise RunError(f"no row of {self.path} has the _id of a row that comes to this step: it is another table's")
        if used < len(said):
            run.event("warning", text=f"{len(said) - used} rows of {self.path} are none of those that come to this step")


def _changes(row: Row, found: Mapping[str, Any]) -> dict[str, Any]:
    """What the file says other than the row does; a cell of CSV is read as what the row holds there."""
    changed: dict[str, Any] = {}
    for name, value in found.items():
        if name in ("_id", KEEP) or name.startswith("_"):
            continue
        had = row.get(name)
        if isinstance(value, str) and not isinstance(had, str) and name in row:
            try:
                value = json.loads(value)
            except ValueError as error:
                raise RunError(f"row {row['_id']}: {name} was {had!r} and cannot be {value!r}") from error
        if value != had and not (name not in row and value == ""):
            changed[name] = value
    return changed
