"""A plan on a local cluster gives the same tables, to the byte, as the plan without one."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stillhouse.cli.door import dump, load
from stillhouse.core.recipe import Recipe
from stillhouse.core.run import Run, RunError
from stillhouse.core.stage import execute
from stillhouse.scale.ray import OnRay
from stillhouse.synth.dedup import Dedup
from stillhouse.synth.flow import Apply, Branch
from stillhouse.synth.rules import Rules
from stillhouse.synth.source import File
from stillhouse.synth.synthesize import Synthesize, lost_rows, made_rows
from stillhouse.synth.verify import Verify

ray = pytest.importorskip("ray", reason="ray is not installed (stillhouse[ray])")

MINE = """
def change(row):
    if row["n"] % 7 == 0:
        return "seven"
    if row["n"] % 5 == 0:
        return [{**row, "part": 1}, {**row, "part": 2}]
    return {**row, "text": row["text"].upper()}
"""


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """Two workers on this machine."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    rows = [{"n": i, "text": f"row {i} weiß 🚲", "answer": str(i * i % 11), "truth": str(i % 11)} for i in range(60)]
    rows += [{"n": i, "text": "no answer"} for i in range(60, 83)]  # a piece without a column that others have
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mine.py").write_text(MINE)
    steps: dict[str, Any] = {
        "mine": Apply(function=f"{tmp_path / 'mine.py'}:change"),
        "rules": Rules(longest=40, shortest=3),
        "way": Branch(on="part", ways={"1": {"right": Verify(keep=True)}}),
        "right": Verify(checks=("number",), keep=True),
        "once": Dedup(column="text", by="exact"),
    }
    return Recipe(
        id="plan", student=None, data=File(path=str(tmp_path / "rows.jsonl")), stages={"make": Synthesize(steps=steps)}
    )


def on_ray(recipe: Recipe, **settings: Any) -> Recipe:
    return replace(recipe, stages={"make": replace(recipe.stages["make"], workers=OnRay(rows=8, **settings))})


def files(run: Run) -> dict[str, bytes]:
    folder = run.folder / "artifacts" / "make" / "data"
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def go(recipe: Recipe, folder: Path) -> Run:
    run = Run(folder)
    execute(recipe, run)
    return run


def test_a_cluster_changes_no_byte(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = go(recipe, tmp_path / "a" / "here")
    pieces: list[str] = []
    through = OnRay.through
    monkeypatch.setattr(OnRay, "through", lambda *args: (pieces.append(args[3].work.name), through(*args))[1])
    path = tmp_path / "plan.yaml"
    path.write_text(dump(on_ray(recipe)))
    there = go(load(path), tmp_path / "b" / "there")
    assert pieces == ["mine", "rules", "way/1/right", "right"]
    one, other = files(here), files(there)
    assert one.keys() == other.keys() and one == other
    assert len(list(made_rows(there, "make"))) > 40
    assert {"seven", "column 'truth' is empty"} <= {row["_why"] for row in lost_rows(there, "make")}


def test_an_error_on_a_worker_is_the_users_one_line(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def change(row):\n    return 3\n")
    with pytest.raises(RunError, match="must give a row, a list of rows, a reason or None, not 3") as caught:
        go(on_ray(recipe), tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_a_worker_that_dies_is_told(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stillhouse.scale import ray as module

    def dies(job: Any, rows: Any) -> Any:
        os._exit(1)

    monkeypatch.setattr(module, "_worked", dies)
    with pytest.raises(RunError, match="the cluster lost a part of step 'mine'"):
        go(on_ray(recipe), tmp_path / "run")
    monkeypatch.undo()
    again = go(on_ray(recipe), tmp_path / "run")  # the run goes on
    assert files(again) == files(go(recipe, tmp_path / "other" / "run"))


@pytest.mark.parametrize("settings", [{"rows": 0}, {"cores": 0.0}])
def test_settings_that_cannot_be(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="rows must be 1 or more, and cores above 0"):
        OnRay(**settings)
