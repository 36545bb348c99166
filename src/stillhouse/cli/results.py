"""What a run found, read from its folder, and the table of it for a terminal."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from ..core.report import Finding
from .progress import clock


def findings(folder: Path) -> list[Finding]:
    """The findings of every audit of a run, in the order of its stages."""
    found: list[Finding] = []
    marks = sorted((folder / "artifacts").glob("*/done.json"), key=lambda mark: mark.stat().st_mtime_ns)
    for mark in marks:
        if json.loads(mark.read_text(encoding="utf-8")).get("kind") == "findings":
            value = json.loads((mark.parent / "data" / "value.json").read_text(encoding="utf-8"))
            found += [Finding(**row) for row in value if "subject" in row]  # the others are figures
    return found


def tables(found: Iterable[Finding]) -> list[Table]:
    """Every metric of every model; then, where there are any, the paired differences with their intervals."""
    found = list(found)
    values, differences = [f for f in found if f.versus is None], [f for f in found if f.versus is not None]
    drawn = [_grid(values, {f.subject: f.subject for f in values})] if values else []
    if differences:
        drawn.append(_grid(differences, {_pair(f): _pair(f) for f in differences}))
    return drawn


def _grid(found: list[Finding], columns: dict[str, str]) -> Table:
    grid = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    grid.add_column("", no_wrap=True)
    for name in columns:
        grid.add_column(name, no_wrap=True)
    rows: dict[str, dict[str, Text]] = {}
    for f in found:
        name = f.name if f.split in ("", "test") else f"{f.name}, {f.split}"
        rows.setdefault(f"{name} ({f.unit})" if f.unit else name, {})[_pair(f) if f.versus else f.subject] = _cell(f)
    for name, cells in rows.items():
        grid.add_row(Text(name), *(cells.get(column, Text("")) for column in columns))
    return grid


def _pair(f: Finding) -> str:
    return f"{f.subject} - {f.versus}"


def _cell(f: Finding) -> Text:
    text = Text(_short(f.value))
    if f.low is not None and f.high is not None:
        text.append(f" [{_short(f.low)}, {_short(f.high)}]", "dim")
    if f.versus is not None:
        text.append(f" {f.decided}", {"better": "green", "worse": "red", "undecided": "yellow"}[f.decided])
    return text


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def comparison(found: Any) -> Table:
    """A `reports.compare.Comparison` for a terminal."""
    grid = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in (
        "recipe",
        f"{found.metric} ({found.better} is better)",
        f"better than {found.versus} by",
        "training",
        "seeds",
    ):
        grid.add_column(name, overflow="fold")
    for row in found.rows:
        gain = Text("")
        if row.gain is not None:
            gain = _bounded(row.gain)
            gain.append(f" {row.decided}", {"better": "green", "worse": "red", "undecided": "yellow"}[row.decided])
        grid.add_row(
            Text(row.label, "bold"), _bounded(row.quality), gain, Text(clock(row.seconds)), Text(str(row.quality.n))
        )
    for name, bounds in found.references.items():
        grid.add_row(Text(name, "dim"), _bounded(bounds), Text(""), Text(""), Text(""))
    return grid


def _bounded(bounds: Any) -> Text:
    text = Text(_short(bounds.mean))
    if bounds.low is not None:
        text.append(f" [{_short(bounds.low)}, {_short(bounds.high)}]", "dim")
    return text
