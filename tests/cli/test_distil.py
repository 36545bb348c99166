"""`stillhouse distil` and `plan`: options reach the Python functions, and mistakes get one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import stillhouse
from stillhouse.cli import door, launch

Still = Callable[..., Any]
NEEDED = ("--teacher", "big", "--student", "shrink:layers=2", "--data", "my.jsonl")


class Estimate:
    """A plan that remembers whether it was checked."""

    def __init__(self) -> None:
        self.checked = False

    def __str__(self) -> str:
        return "time      about 3 min in all"

    def check(self) -> None:
        self.checked = True


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """Stand-ins for the two functions; what they were called with."""
    seen: dict[str, Any] = {"estimate": Estimate()}

    def plan(**asked: Any) -> Estimate:
        seen["plan"] = asked
        return seen["estimate"]

    def distil(**asked: Any) -> Any:
        seen["distil"] = asked
        recipe = door.override(door.of_method("hinton", "smoke"), ["train.steps=2", "teacher.steps=2", "alone.steps=2"])
        return launch.launch(recipe, runs=tmp_path / "runs")

    monkeypatch.setattr(stillhouse, "plan", plan, raising=False)
    monkeypatch.setattr(stillhouse, "distil", distil, raising=False)
    return seen


def test_options_reach_the_function(still: Still, called: dict[str, Any]) -> None:
    options = [
        "--steps",
        "7",
        "--batch",
        "2",
        "--length",
        "64",
        "--column",
        "body",
        "--seed",
        "5",
        "--adapt",
        "3",
        "--signal",
        "topk:8",
    ]
    result = still(
        "distil",
        *NEEDED,
        *options,
        "--method",
        "gkd",
        "--out",
        "there",
        "--runs",
        "those",
        "--set",
        "train.optim.lr=1e-4",
    )
    assert result.exit_code == 0, result.stderr
    asked = called["distil"]
    assert asked.pop("progress") is not None
    assert asked == called["plan"] | {"out": Path("there"), "runs": Path("those")}
    assert called["plan"] == {
        "teacher": "big", "student": "shrink:layers=2", "data": "my.jsonl", "method": "gkd", "steps": 7,
        "minutes": None, "batch": 2,
        "length": 64, "column": "body", "adapt": 3, "signal": "topk:8", "seed": 5, "settings": ["train.optim.lr=1e-4"],
    }  # fmt: skip
    lines = result.stdout.splitlines()
    assert lines[0] == "time      about 3 min in all" and called["estimate"].checked
    assert lines[-1] == "student: there" and any(line.startswith("report: ") for line in lines)


def test_plan_takes_the_same_line_and_trains_nothing(still: Still, called: dict[str, Any]) -> None:
    result = still("plan", *NEEDED, "--out", "there", "--minutes", "2.5", "--yes")
    assert result.exit_code == 0 and result.stdout == "time      about 3 min in all\n"
    assert called["plan"]["minutes"] == 2.5 and "distil" not in called


@pytest.mark.parametrize(
    "args", [NEEDED[:4], [*NEEDED, "--steps", "0"], [*NEEDED, "--minutes", "x"], [*NEEDED, "--nonsense"]]
)
def test_wrong_options_have_status_2(still: Still, called: dict[str, Any], args: Any) -> None:
    assert still("distil", *args).exit_code == 2
    assert "distil" not in called


@pytest.mark.parametrize("command", ["distil", "plan"])
def test_a_teacher_that_is_not_there_gets_one_line(still: Still, tmp_path: Path, command: str) -> None:
    (tmp_path / "my.jsonl").write_text(json.dumps({"text": "some text"}) + "\n")
    result = still(command, "--teacher", "./nowhere", "--student", "shrink:layers=2", "--data", "my.jsonl")
    assert result.exit_code == 1
    assert result.stderr.startswith("stillhouse: ") and "nowhere" in result.stderr
    assert len(result.stderr.splitlines()) == 1 and "unexpected" not in result.stderr
    assert not (tmp_path / "runs").exists() and not (tmp_path / "student").exists()
