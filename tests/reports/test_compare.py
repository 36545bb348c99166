"""Runs side by side: what is one row, what is paired, what is left out and said so."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stillhouse.cli import launch
from stillhouse.core.recipe import Recipe
from stillhouse.methods.classics import hinton
from stillhouse.methods.classics.supervised import Supervised
from stillhouse.reports import compare
from stillhouse.reports.read import ReportError, read

Still = Callable[..., Any]


def made(folder: Path, seed: int, **settings: Any) -> Path:
    recipe: Recipe = hinton.recipe("smoke").set("seed", seed).set("audit.checks.0.draws", 20)
    recipe = recipe.set("stages", {k: v for k, v in recipe.stages.items() if k != "alone"})
    recipe = recipe.set("audit.subjects", ("start", "teacher", "train"))
    for path, value in {"teacher.steps": 20, "train.steps": 20, **settings}.items():
        recipe = recipe.set(path.replace("__", "."), value)
    return launch.launch(recipe, folder=folder).folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds each of: Hinton at two temperatures, and supervised learning."""
    root = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        made(root / f"cold{seed}", seed, train__method__temperature=1.0)
        made(root / f"warm{seed}", seed, train__method__temperature=4.0)
        made(root / f"plain{seed}", seed, train__method=Supervised())
    return root


def test_rows_are_recipes_and_differences_are_paired(runs: Path) -> None:
    found = compare.compare([runs])
    rows = {row.label: row for row in found.rows}
    assert set(rows) == {"hinton, Hinton, temperature 1.0", "hinton, Hinton, temperature 4.0", "hinton, Supervised"}
    assert (found.metric, found.subject, found.versus) == ("accuracy", "train", "hinton, Supervised")
    for name, row in (("cold", rows["hinton, Hinton, temperature 1.0"]), ("plain", rows["hinton, Supervised"])):
        values = {}
        for seed in (0, 1):
            (value,) = [
                f.value for f in read(runs / f"{name}{seed}").findings
                if (f.name, f.subject, f.versus) == ("accuracy", "train", None)
            ]  # fmt: skip
            values[seed] = value
        assert row.values == values and row.quality.mean == pytest.approx(sum(values.values()) / 2)
    gain = rows["hinton, Hinton, temperature 1.0"].gain
    apart = [rows["hinton, Hinton, temperature 1.0"].values[s] - rows["hinton, Supervised"].values[s] for s in (0, 1)]
    assert gain is not None and gain.n == 2 and gain.mean == pytest.approx(sum(apart) / 2)
    assert rows["hinton, Supervised"].gain is None
    means = [row.quality.mean for row in found.rows]
    assert means == sorted(means, reverse=True) and set(found.references) == {"teacher", "start"}
    assert not found.warnings and all(row.seconds > 0 and row.steps == 20 for row in found.rows)


def test_less_is_better_where_it_is(runs: Path) -> None:
    found = compare.compare([runs], metric="nll")
    means = [row.quality.mean for row in found.rows]
    assert found.better == "lower" and means == sorted(means)
    best = found.rows[0]
    if best.gain is not None:
        assert best.gain.mean > 0


def test_what_is_not_alike_is_said(runs: Path, tmp_path: Path) -> None:
    longer = made(tmp_path / "longer", 0, train__steps=21)
    found = compare.compare([runs / "cold0", runs / "cold1", longer])
    assert any("not take equally many steps" in w for w in found.warnings)
    assert any("do not have the same seeds" in w for w in found.warnings)
    shutil.copytree(longer, tmp_path / "again")
    shutil.copytree(longer, tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "artifacts" / "audit")
    warnings = " ".join(compare.compare([runs / "cold0", longer, tmp_path / "again", tmp_path / "cut"]).warnings)
    assert "again has the recipe and the seed of longer" in warnings and "cut is not finished" in warnings


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"metric": "acuracy"}, "no run has 'acuracy' of 'train'; there is accuracy"),
        ({"subject": "nobody"}, "there is nothing about it"),
        ({"versus": "minillm"}, "no run is called 'minillm'; there are hinton, Hinton"),
    ],
)
def test_what_is_not_there_is_one_line(runs: Path, asked: Any, why: str) -> None:
    with pytest.raises(ReportError, match=why):
        compare.compare([runs], **asked)


def test_folders_without_runs(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="is no run, and holds none"):
        compare.compare([tmp_path])
    with pytest.raises(ReportError, match="there is no folder"):
        compare.compare([tmp_path / "nowhere"])


def test_the_command_writes_a_page_and_json(still: Still, runs: Path, tmp_path: Path) -> None:
    result = still("compare", runs, "--out", tmp_path / "c.html")
    assert result.exit_code == 0, result.stderr
    assert "better than hinton, Supervised by" in " ".join(result.stdout.split())
    page = (tmp_path / "c.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 2 and "<script" not in page and "http" not in page.replace("http://www.w3.org", "")
    assert "mathdefault" not in page
    plain = json.loads((tmp_path / "c.json").read_text())
    assert len(plain["rows"]) == 3 and plain["schema"] == "stillhouse.comparison/1"
