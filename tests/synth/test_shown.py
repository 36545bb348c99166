"""Demonstrations that change from row to row: which, in which order, never the row itself, whatever the order of rows."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from language import write_jsonl
from stillhouse.core.recipe import Recipe
from stillhouse.core.run import Run, RunError
from stillhouse.core.stage import execute
from stillhouse.synth.alike import alike
from stillhouse.synth.shown import Beside, Shown
from stillhouse.synth.synthesize import Synthesize, made_rows

from .lab import Numbers
from .onestep import named, once, through

POOL = tuple({"question": f"what is {i} plus {i % 7}?", "answer": str(i + i % 7), "more": "x"} for i in range(10))
ROWS = [{"question": f"what is {i} plus {i % 5}?"} for i in range(40)]
COLUMNS = ("question", "answer")


def test_a_random_subset_for_every_row(tmp_path: Path) -> None:
    kept, gone = through(Shown(rows=POOL, columns=COLUMNS, count=3), ROWS, tmp_path)
    assert not gone and len(kept) == len(ROWS)
    counts = Counter(each["question"] for row in kept for each in row["shown"])
    assert set(counts) == {each["question"] for each in POOL} and max(counts.values()) < 3 * min(counts.values())
    for row in kept:
        questions = [each["question"] for each in row["shown"]]
        assert len(set(questions)) == 3 and row["question"] not in questions
        assert all(set(each) == set(COLUMNS) for each in row["shown"])
    assert len({str(row["shown"]) for row in kept}) > 30  # they rotate


@pytest.mark.parametrize("choose", ["nearest", "farthest"])
def test_the_nearest_and_the_farthest_by_brute_force(choose: Any, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "pool.jsonl", POOL)
    step = Shown(path=str(path), columns=COLUMNS, count=4, choose=choose, near="question")
    kept, _ = through(step, ROWS, tmp_path)
    for row in kept:
        fit = [each["question"] for each in POOL if each["question"] != row["question"]]
        likeness = {q: alike(row["question"], q) for q in fit}
        wanted = sorted(likeness.values(), reverse=choose == "nearest")[:4]
        assert [likeness[each["question"]] for each in row["shown"]] == pytest.approx(wanted)
    assert step.files == [path]


def test_those_that_are_done_are_shown_to_those_that_are_not(tmp_path: Path) -> None:
    rows = [{**row, "done": i % 2, "answer": str(i)} for i, row in enumerate(ROWS)]
    step = Shown(done="done", columns=COLUMNS, count=5, choose="nearest", near="question")
    kept, _ = through(step, rows, tmp_path)
    done = {row["question"] for row in rows if row["done"]}
    assert all(("shown" in row) == (not row["done"]) for row in kept)
    assert all({each["question"] for each in row["shown"]} < done for row in kept if not row["done"])
    kept, _ = through(step, [{**row, "done": 0, "answer": ""} for row in rows[:3]], tmp_path)
    assert [row["shown"] for row in kept] == [[], [], []]


def test_unicode_one_row_and_wrong_columns(tmp_path: Path) -> None:
    kept, _ = through(Shown(rows=({"q": "ß ∑"},), columns=("q",)), [{"q": "ü"}], tmp_path)
    assert kept[0]["shown"] == [{"q": "ß ∑"}]
    with pytest.raises(RunError, match="'anwser'.*did you mean 'answer'"):
        once(Shown(rows=POOL, columns=("anwser",)), named(ROWS), tmp_path)
    with pytest.raises(RunError, match="no file .*there"):
        Shown(path=str(tmp_path / "there"), columns=("q",)).check(Run(tmp_path / "run"))


@pytest.mark.parametrize(
    "wrong",
    [{"columns": ()}, {"count": 0}, {"choose": "nearest"}, {"near": "q"}, {"path": "a"}, {"rows": ()}, {"into": "_x"}],
)
def test_settings_that_make_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="count|need|give one|underscore"):
        Shown(**{"columns": ("q",), "rows": ({"q": "a"},), **wrong})


def test_rows_beside_what_a_stage_has_made(tmp_path: Path) -> None:
    beside = Beside(stage="make", columns=("text",), count=2, choose="nearest", near="text", limit=5)
    show = Synthesize(data=beside, steps={"again": Shown(rows=POOL, columns=COLUMNS, into="others")})
    keep = Synthesize(steps={"mark": Shown(rows=POOL, columns=COLUMNS)})
    recipe = Recipe(id="mine", data=Numbers(count=20), stages={"make": keep, "show": show})
    run = Run(tmp_path / "run")
    run.recipe = recipe
    assert beside.rows(run)["train"][0]["shown"] == beside.stand_ins()  # nothing is made yet
    execute(recipe, run)
    made = {row["text"] for row in made_rows(run, "make")}
    rows = list(made_rows(run, "show"))
    assert len(rows) == 5
    for row in rows:
        found = [each["text"] for each in row["shown"]]
        assert len(found) == 2 and set(found) <= made - {row["text"]}
        assert alike(found[0], row["text"]) >= alike(found[1], row["text"])
