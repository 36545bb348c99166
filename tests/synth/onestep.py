"""One step alone, over rows in both directions: whatever it does, no row may vanish and no order may matter."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stillhouse.cli.door import read_yaml, spec, write_yaml
from stillhouse.core.recipe import Recipe, to_plain
from stillhouse.core.run import Run
from stillhouse.synth.steps import Row, Work, given


@dataclass
class Noted(Work):
    """Keeps what was lost in a list."""

    gone: list[dict[str, Any]] = field(default_factory=list)

    def lose(self, row: Row, why: str, **numbers: Any) -> None:
        self.gone.append({"row": dict(row), "why": why, "numbers": numbers})


def once(step: Any, rows: Sequence[Row], folder: Path, recipe: Any = None) -> tuple[list[Row], list[dict[str, Any]]]:
    """What comes out, and what is lost."""
    run = Run(folder / "run", seed=3)
    run.recipe, run.stage = recipe, "make"
    run.work = work = Noted(run, "step", "", None)  # type: ignore[arg-type]  it asks nobody
    return list(step(rows, run)), work.gone


def named(rows: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Rows with their names, of equal ones all but the first left out, as the engine does."""
    return list({row["_id"]: row for row in map(given, rows)}.values())


def through(
    step: Any, rows: Iterable[Mapping[str, Any]], folder: Path, recipe: Recipe | None = None
) -> tuple[list[Row], list[dict[str, Any]]]:
    """The same, with what holds for every step that makes no rows; the step goes through YAML and back first."""
    step = spec(read_yaml(write_yaml(to_plain(step))))
    table = named(rows)
    kept, gone = once(step, table, folder, recipe)
    assert sorted([row["_id"] for row in kept] + [each["row"]["_id"] for each in gone]) == sorted(r["_id"] for r in table)
    assert [row["_id"] for row in kept] == [r["_id"] for r in table if r["_id"] in {row["_id"] for row in kept}]
    known = {row["_id"]: row for row in table}
    assert all(known[row["_id"]].items() <= row.items() for row in kept)  # nothing that was said is changed
    other, left = once(step, table[::-1], folder, recipe)
    assert content(other) == content(kept) and content(left) == content(gone)
    assert once(step, [], folder, recipe) == ([], [])
    return kept, gone


def content(rows: Iterable[Any]) -> list[str]:
    """Rows as sorted text."""
    return sorted(json.dumps(row, sort_keys=True, ensure_ascii=False, default=str) for row in rows)


def whys(gone: Sequence[Mapping[str, Any]], column: str) -> dict[Any, str]:
    """Why rows were lost, by what they say."""
    return {each["row"].get(column): each["why"] for each in gone}
