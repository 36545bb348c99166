"""Quotas come out exactly, grounded in rows that take turns."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from stillhouse.cli.door import spec
from stillhouse.core.recipe import to_plain
from stillhouse.core.run import RunError
from stillhouse.synth.generate import Generate
from stillhouse.synth.grid import Grid
from stillhouse.synth.synthesize import DataPlan

from .talk import known, outcome, plan

ROWS = [{"text": f"Text {i} über 🚲"} for i in range(7)]
AXES = {"topic": {"sport": 3, "music": 1, "none": 0}, "level": ["easy", "hard"], "n": [1, 2]}


def quotas(each: int) -> dict[tuple[Any, ...], int]:
    """By hand."""
    return {
        (topic, level, n): each * {"sport": 3, "music": 1}[topic]
        for topic, level, n in itertools.product(("sport", "music"), ("easy", "hard"), (1, 2))
    }


def test_every_combination_has_its_quota(tmp_path: Path) -> None:
    found = outcome(plan(Grid(axes=AXES, each=2), ROWS), tmp_path / "run")
    assert Counter((row["topic"], row["level"], row["n"]) for row in found.rows) == quotas(2)
    grounds = Counter(row["text"] for row in found.rows)
    assert set(grounds) == {row["text"] for row in ROWS}
    assert max(grounds.values()) - min(grounds.values()) <= 1  # they take turns
    assert len({row["_id"] for row in found.rows}) == len(found.rows) == 32 and not found.lost
    assert all(len(row["_from"]) == 1 for row in found.rows)


def test_for_every_row_every_combination(tmp_path: Path) -> None:
    found = outcome(plan(Grid(axes=AXES, per_row=True), ROWS), tmp_path / "run")
    assert Counter((r["text"], r["topic"], r["level"], r["n"]) for r in found.rows) == {
        (row["text"], *cell): quota for row in ROWS for cell, quota in quotas(1).items()
    }


@pytest.mark.parametrize("settings", [{}, {"per_row": True}, {"shown": 3}, {"shown": 0}])
def test_the_order_of_the_rows_changes_nothing(settings: dict[str, Any], tmp_path: Path) -> None:
    step = Grid(axes=AXES, **settings)
    one = outcome(plan(step, ROWS), tmp_path / "a" / "run")
    other = outcome(plan(step, ROWS[::-1]), tmp_path / "b" / "run")
    assert known(one.rows) == known(other.rows)
    single = outcome(plan(step, ROWS[:3]), tmp_path / "c" / "run")
    assert len(single.rows) == (48 if settings.get("per_row") else 16)
    again = outcome(plan(step, ROWS), tmp_path / "d" / "run", seed=1)
    assert (known(again.rows) == known(one.rows)) is (settings.get("per_row", False) or settings.get("shown") == 0)


def test_several_rows_stand_in_a_column_and_none_leaves_the_axes_alone(tmp_path: Path) -> None:
    found = outcome(plan(Grid(axes={"topic": ["a", "b"]}, each=3, shown=2), ROWS), tmp_path / "run")
    texts = Counter(seed["text"] for row in found.rows for seed in row["seeds"])
    assert sum(texts.values()) == 12 and max(texts.values()) == 2 and all(len(row["_from"]) == 2 for row in found.rows)
    assert all("text" not in row for row in found.rows)
    bare = outcome(plan(Grid(axes={"topic": ["a", "b"]}, each=3, shown=0), ROWS), tmp_path / "bare")
    assert [row["topic"] for row in bare.rows] == ["a"] * 3 + ["b"] * 3
    assert len({row["_id"] for row in bare.rows}) == 6 and all(not row["_from"] for row in bare.rows)


def test_a_grid_can_be_written_about(tmp_path: Path) -> None:
    steps = {
        "grid": Grid(axes={"topic": ["a", "b"]}, each=3, shown=2),
        "write": Generate(prompt="{% for s in seeds %}{{ s.text }}\n{% endfor %}On {{ topic }}:", into="new"),
    }
    recipe = plan(steps, ROWS, teacher=lambda ask, rng: "x")
    found, needs = outcome(recipe, tmp_path / "run"), DataPlan.of(recipe).needs["teacher"]
    assert found.paid["teacher"]["calls"] == needs.calls == 6
    assert found.paid["teacher"]["tokens"] <= needs.read + needs.wrote


def test_what_cannot_be_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="the rows have a column 'text' already"):
        outcome(plan(Grid(axes={"text": ["a"]}), ROWS), tmp_path / "a")
    with pytest.raises(RunError, match="grounded in 9 rows each need as many, and there are 7; lower shown"):
        outcome(plan(Grid(axes=AXES, shown=9), ROWS), tmp_path / "b")
    wrong: tuple[Any, ...] = (
        {},
        {"a": []},
        {"a": "abc"},
        {"_a": [1]},
        {"a": {"x": 0}},
        {"a": {"x": -1}},
        {"a": [1, 1]},
        {"a": 3},
    )
    for axes in wrong:
        with pytest.raises(ValueError):
            Grid(axes=axes)
    with pytest.raises(ValueError):
        Grid(axes=AXES, each=0)
    assert spec(to_plain(Grid(axes=AXES))) == spec(to_plain(spec(to_plain(Grid(axes=AXES)))))
