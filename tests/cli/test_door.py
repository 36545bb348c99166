"""The door lets in exactly what a recipe may hold, and says in one line why not."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.cli import door
from stillhouse.core.optim import Optim
from stillhouse.core.paper import catalogue
from stillhouse.core.recipe import Recipe, RecipeError
from stillhouse.core.stage import Train

# -- YAML ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4), ("3E5", 3e5), (".5", 0.5), ("-.inf", -math.inf), ("5.", 5.0),
        ("007", 7), ("0x1F", 31), ("-3", -3),
        ("true", True), ("no", "no"), ("on", "on"), ("Yes", "Yes"), ("12:30", "12:30"), ("2026-11-22", "2026-11-22"),
        ("~", None), ("", None), ("null", None), ("'1e-4'", "1e-4"), ("1.2.3", "1.2.3"), ("1e", "1e"), ("e5", "e5"),
    ],
)  # fmt: skip
def test_scalars_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    got = door.read_yaml(f"key: {text}")["key"]
    assert got == value and type(got) is type(value)


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(plain)
def test_what_is_written_is_read_back(value: Any) -> None:
    assert door.read_yaml(door.write_yaml(value)) == value


@given(
    st.sampled_from(
        ["1e-4", "no", "12:30", "null", "~", "true", ".5", "0x10", "1_000", "=", "<<", "", " ", "a: b", "- x", "#"]
    )
)
def test_text_that_looks_like_something_else_stays_text(text: str) -> None:
    assert door.read_yaml(door.write_yaml({"key": text, "list": [text]})) == {"key": text, "list": [text]}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\nb: 2\na: 3", "line 3: the key 'a' is there twice"),
        ("a:\n  x: 1\n  x: 2", "line 3: the key 'x' is there twice"),
        ("a: [1, 2", "line 1"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor for the tag"),
        ("? [a]\n: 1", "cannot be a key"),
    ],
)
def test_bad_yaml_is_refused_with_its_line(text: str, says: str) -> None:
    with pytest.raises(RecipeError, match=".*") as caught:
        door.read_yaml(text, "my.yaml")
    assert says in str(caught.value) and str(caught.value).startswith("my.yaml") and "\n" not in str(caught.value)


# -- objects -------------------------------------------------------------------------------------------------------


@pytest.fixture
def recipe() -> Recipe:
    return door.of_method("hinton", "smoke")


def changed(recipe: Recipe, path: str, value: Any, *, drop: bool = False) -> dict[str, Any]:
    """The recipe as plain values with the entry at `path` set, or dropped."""
    whole: Any = recipe.plain()
    at = whole
    *way, last = path.split(".")
    for key in way:
        at = at[key]
    if drop:
        del at[last]
    else:
        at[last] = value
    return whole


@pytest.mark.parametrize("scale", ["smoke", "small", "paper"])
@pytest.mark.parametrize("name", sorted(catalogue()))
def test_every_recipe_survives_yaml(name: str, scale: Any) -> None:
    recipe = door.of_method(name, scale)
    back = door.build(door.read_yaml(door.dump(recipe)))
    assert back == recipe
    assert door.dump(back) == door.dump(recipe)
    assert list(back.stages) == list(recipe.stages)


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("sed", 3, "no 'sed' in the recipe; did you mean 'seed'?"),
        ("seed", "three", "seed should be a valid integer, unable to parse string as an integer, not 'three'"),
        ("seed", 1.5, "seed should be a valid integer"),
        ("stages.train.stepps", 3, "no 'stepps' in train; did you mean 'steps'?"),
        ("stages.train.optim.lr", "fast", "train.optim.lr should be a valid number"),
        ("stages.train.optim.name", "adam", "train.optim.name should be 'adamw' or 'sgd', not 'adam'"),
        ("stages.train.optim.betas", [0.9], "train.optim.betas.1"),
        ("stages.train.optim", 3, "train.optim should be a Optim"),
        ("stages.train.optim", {"lrr": 1}, "no 'lrr' in train.optim; did you mean 'lr'?"),
        ("stages.train.method.temperature", -1, "train.method: temperature must be above 0"),
        ("stages.train.method", {"temperature": 1}, "train.method should be a Method"),
        ("stages.train.method.use", "core.optim.Optim", "no 'temperature' in train.method"),
        ("stages.train.method", {"use": "core.optim.Optim"}, "train.method should be a Method with needs, setup, step"),
        ("stages.train", {"steps": 3}, "train is not a stage"),
        ("stages", [], "stages should be a valid dictionary"),
        ("student", None, "the recipe needs 'student', which has no default where"),
        ("data", {"use": "core.optim.Optim"}, "data is a Optim; give it a `use:` that names a class with `load`"),
        ("student.use", "models.toys.MPL", "no 'MPL' in stillhouse.models.toys; did you mean 'MLP'?"),
        ("student.use", "os.system", "stillhouse has no `os.system`; classes of another package need --allow os"),
        ("student.use", "core.run.Run", "is not a frozen dataclass"),
        ("student.use", "core.run.Path", "is not a frozen dataclass"),
        ("student.use", "core.run.shutil", "no 'shutil' in stillhouse.core.run"),
        ("student.use", "core.run.write_atomically", "no 'write_atomically' in stillhouse.core.run"),
        ("student.use", "..x", "is not an import path"),
        ("student.use", 3, "is not an import path"),
        ("student.use", "MLP", "is not an import path"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(recipe: Recipe, path: str, value: Any, says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        door.build(changed(recipe, path, value))
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("student", "the recipe needs 'student', which has no default"),
        ("stages.train.steps", "train needs 'steps', which has no default"),
    ],
)
def test_a_missing_field_is_named(recipe: Recipe, path: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        door.build(changed(recipe, path, None, drop=True))


@pytest.mark.parametrize("name", ["../../etc", "a/b", "", ".hidden", "a b"])
def test_a_stage_is_a_folder_so_its_name_is_one(recipe: Recipe, name: str) -> None:
    whole: Any = recipe.plain()
    whole["stages"] = {name: whole["stages"]["train"]}
    with pytest.raises(RecipeError, match="letters, digits"):
        door.build(whole)


def test_defaults_may_be_left_out_and_dataclasses_need_no_use(recipe: Recipe) -> None:
    whole: Any = recipe.plain()
    whole["stages"]["train"]["optim"] = {"lr": 0.5}
    del whole["seed"]
    built = door.build(whole)
    assert built.stages["train"].optim == Optim(lr=0.5)
    assert built.seed == 0


def test_a_list_where_a_recipe_should_be_is_refused() -> None:
    with pytest.raises(RecipeError, match="a recipe is a mapping with the keys id, student"):
        door.build([1, 2])


def test_other_packages_only_when_allowed(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_for_tests.py").write_text(
        "from dataclasses import dataclass\n\n\n@dataclass(frozen=True)\nclass Net:\n    width: int = 3\n\n"
        "    def build(self, run):\n        return None\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    whole = changed(recipe, "student", {"use": "mine_for_tests.Net", "width": 5})
    with pytest.raises(RecipeError, match="need --allow mine_for_tests"):
        door.build(whole)
    built = door.build(whole, allow=["mine_for_tests"])
    assert built.student.width == 5
    assert door.build(door.read_yaml(door.dump(built)), allow=["mine_for_tests"]) == built
    assert door.override(built, ["student.width=6"]).student.width == 6  # let in once: no need to allow it again


# -- --set ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "path", "value"),
    [
        ("seed=7", "seed", 7),
        ("train.optim.lr=3e-5", "train.optim.lr", 3e-5),
        ("train.steps=5", "train.steps", 5),
        ("train.optim.clip=null", "train.optim.clip", None),
        ("train.optim.betas=[0.8, 0.99]", "train.optim.betas", (0.8, 0.99)),
        ("audit.checks.0.draws=10", "audit.checks.0.draws", 10),
        ("student.width=4", "student.width", 4),
        ("data.train=64", "data.train", 64),
        ("teachers.teacher.stage=null", "teachers.teacher.stage", None),
    ],
)
def test_set_is_the_same_as_in_python(recipe: Recipe, setting: str, path: str, value: Any) -> None:
    assert door.override(recipe, [setting]) == recipe.set(path, value) != recipe


def test_set_replaces_whole_objects(recipe: Recipe) -> None:
    built = door.override(recipe, ["train.method={use: methods.classics.supervised.Supervised}", "train.steps=2"])
    assert type(built.stages["train"].method).__name__ == "Supervised"
    assert built.stages["train"].steps == 2


def test_a_stage_without_a_student_of_its_own_means_the_recipes(recipe: Recipe) -> None:
    assert recipe.stages["train"].student is None
    assert door.override(recipe, ["train.student.width=5"]) == door.override(recipe, ["student.width=5"])
    assert door.override(recipe, ["teacher.student.width=5"]).student == recipe.student


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("train.optim.lrr=1", "no 'lrr' in 'train.optim.lrr'; did you mean 'lr'?"),
        ("trian.steps=1", "no 'trian' in recipe 'hinton'; did you mean 'train'?"),
        ("train.optim.lr=fast", "train.optim.lr should be a valid number"),
        ("train.steps", "write it as key.key=value"),
        ("=1", "write it as key.key=value"),
        ("train.steps=[1", "--set train.steps"),
        ("train.steps.more=1", "leads into 60, which has no fields"),
        ("audit.checks.3.draws=1", "no item '3'"),
        ("student={use: os.path.Path}", "need --allow os"),
    ],
)
def test_a_bad_setting_says_what_is_wrong(recipe: Recipe, setting: str, says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        door.override(recipe, [setting])
    assert says in str(caught.value) and "\n" not in str(caught.value)


# -- files ---------------------------------------------------------------------------------------------------------


def test_an_error_in_a_file_names_the_file(recipe: Recipe, tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text(door.dump(recipe).replace("temperature: 2.0", "temprature: 2.0"))
    with pytest.raises(RecipeError, match=r"my\.yaml: no 'temprature' in train\.method; did you mean 'temperature'\?"):
        door.load(file)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="is not a text file"):
        door.load(file)


def test_what_only_python_can_hold_is_not_written(recipe: Recipe) -> None:
    odd = replace(recipe, student=replace(recipe.student, width=object()))
    with pytest.raises(RecipeError, match="can only be used from Python"):
        door.dump(odd)


def test_stages_keep_their_order_and_type(recipe: Recipe) -> None:
    built = door.build(door.read_yaml(door.dump(recipe)))
    assert isinstance(built.stages["train"], Train)
    assert isinstance(built.stages["audit"].subjects, tuple)
