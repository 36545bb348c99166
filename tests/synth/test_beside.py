"""Rows of a group become one, and nothing of them is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from stillhouse.cli.door import read_yaml, spec, write_yaml
from stillhouse.core.recipe import to_plain
from stillhouse.core.run import RunError
from stillhouse.synth.beside import Beside
from stillhouse.synth.steps import Row

from .onestep import content, named, once

ROWS: list[Row] = named({"q": f"q{i // 3}", "n": i, "solution": f"ü{i}", "same": i // 3, "none": None} for i in range(8))


def test_one_row_a_group(tmp_path: Path) -> None:
    step = spec(read_yaml(write_yaml(to_plain(Beside(group="q")))))
    made, gone = once(step, ROWS, tmp_path)
    assert not gone and len(made) == 3
    for row in made:
        parents = sorted((r for r in ROWS if r["q"] == row["q"]), key=lambda r: r["_id"])
        assert row["_from"] == [r["_id"] for r in parents]
        wanted = {f"solution_{i}": r["solution"] for i, r in enumerate(parents, 1)}
        wanted |= {"q": row["q"], "same": int(row["q"][1]), "none": None}
        assert {k: v for k, v in row.items() if not k.startswith("_")} == wanted  # `n` differs, so it is gone
    other, _ = once(step, ROWS[::-1], tmp_path)
    assert content(other) == content(made)
    assert once(step, [], tmp_path) == ([], [])


def test_by_parents_and_one_alone(tmp_path: Path) -> None:
    rows = [{**row, "_from": [str(i % 2)]} for i, row in enumerate(ROWS)]
    made, _ = once(Beside(), rows, tmp_path)
    assert sorted(len([k for k in row if k.startswith("solution_")]) for row in made) == [4, 4]
    one, _ = once(Beside(group="q"), ROWS[:1], tmp_path)
    assert one[0]["solution_1"] == "ü0" and one[0]["n"] == 0
    missing, _ = once(Beside(group="q"), [*ROWS[:2], {"_id": "z", "_from": [], "q": "q0"}], tmp_path)
    assert len([k for k in missing[0] if k.startswith("solution_")]) == 2
    with pytest.raises(RunError, match="'solution', which no row has"):
        once(Beside(group="q"), [{"_id": "a", "q": "1", "solutions": "x"}], tmp_path)
    with pytest.raises(ValueError, match="columns"):
        Beside(columns=())
