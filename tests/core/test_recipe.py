"""Recipes: one way to change a field, and errors that name the nearest right one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from stillhouse.core.optim import Optim
from stillhouse.core.recipe import Recipe, RecipeError, nearest, pick, to_plain
from stillhouse.core.stage import Audit, Train
from stillhouse.data.toys import Clusters, Sentences
from stillhouse.methods.classics.hinton import Hinton
from stillhouse.models.toys import MLP
from stillhouse.teachers.module import ModuleTeacher


@pytest.fixture
def recipe() -> Recipe:
    own = Train(method=Hinton(), steps=1, batch=1, student=MLP(width=9))
    return Recipe(
        id="r", student=MLP(), data=Clusters(), teachers={"teacher": ModuleTeacher(spec=MLP(width=64))},
        stages={
            "first": own,
            "train": Train(method=Hinton(), steps=5, batch=4),
            "audit": Audit(subjects=(), checks=()),
        },
    )  # fmt: skip


@pytest.mark.parametrize(("path", "value", "read"), [
    ("seed", 3, lambda r: r.seed),
    ("train.method.temperature", 2.0, lambda r: r.stages["train"].method.temperature),
    ("train.optim.lr", 0.5, lambda r: r.stages["train"].optim.lr),
    ("stages.train.steps", 7, lambda r: r.stages["train"].steps),
    ("student.width", 5, lambda r: r.student.width),
    ("train.student.width", 5, lambda r: r.student.width),  # the stage has none of its own
    ("first.student.width", 5, lambda r: r.stages["first"].student.width),
    ("train.data.train", 99, lambda r: r.data.train),
    ("data", Sentences(), lambda r: r.data),
    ("teachers.teacher.spec.width", 8, lambda r: r.teachers["teacher"].spec.width),
])  # fmt: skip
def test_setting_one_field_leaves_the_rest(recipe: Recipe, path: str, value: Any, read: Any):
    before = recipe.plain()
    changed = recipe.set(path, value)
    assert read(changed) == value
    assert recipe.plain() == before and list(changed.stages) == list(recipe.stages)


@pytest.mark.parametrize(("path", "message"), [
    ("sead", "no 'sead' in recipe 'r'; did you mean 'seed'?"),
    ("tran.steps", "no 'tran' in recipe 'r'; did you mean 'train'?"),
    ("train.method.temprature", "no 'temprature' in 'train.method.temprature'; did you mean 'temperature'?"),
    ("train.optim.learning", "no 'learning' in 'train.optim.learning'; there are 'name', 'lr'"),
    ("teachers.teachr.spec", "no 'teachr' in 'teachers.teachr.spec'; did you mean 'teacher'?"),
    ("train.steps.more", "'train.steps.more' leads into 5, which has no fields"),
])  # fmt: skip
def test_wrong_keys_name_the_nearest(recipe: Recipe, path: str, message: str):
    with pytest.raises(RecipeError) as caught:
        recipe.set(path, 1)
    assert str(caught.value).startswith(message)


def test_checks_are_counted_from_zero(recipe: Recipe):
    with pytest.raises(RecipeError, match="no item '0' in 'audit.checks.0.split'; there are 0, counted from 0"):
        recipe.set("audit.checks.0.split", "valid")


def test_plain_values(recipe: Recipe):
    plain = recipe.plain()
    assert plain["student"]["use"] == "models.toys.MLP" and plain["student"]["width"] == 32
    assert plain["stages"]["train"]["method"] == {
        "use": "methods.classics.hinton.Hinton", "temperature": 4.0, "alpha": 0.9,
    }  # fmt: skip
    assert to_plain({"a": (1, Path("x"), None)}) == {"a": [1, "x", None]}
    assert to_plain(Optim())["betas"] == [0.9, 0.95]


def test_what_cannot_be_written():
    @dataclass(frozen=True)
    class Holds:
        what: Any

    with pytest.raises(RecipeError, match="cannot be written into a recipe file; it can only be used from Python"):
        to_plain(Holds(print))


def test_nearest():
    assert nearest("alpa", ["alpha", "beta"]) == "; did you mean 'alpha'?"
    assert nearest("zzz", ["alpha", "beta"]) == "; there are 'alpha', 'beta'"
    assert nearest("zzz", []) == "; there are none"


def test_pick():
    assert [pick(scale, smoke=1, small=2, paper=3) for scale in ("smoke", "small", "paper")] == [1, 2, 3]
