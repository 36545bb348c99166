"""What a proof ran is told from what changed since; words about the code change nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stillhouse.cli import changed
from stillhouse.core import code
from stillhouse.core.paper import catalogue


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "stillhouse"
    for name, text in {
        "methods/a.py": '"""A."""\nfrom ..core.x import f\n\ndef g():\n    from ..data import late\n    return f\n',
        "core/x.py": "import stillhouse.core.y\n\ndef f():\n    '''Words.'''\n    return 1  # one\n",
        "core/y.py": "Y = 1\n", "data/late.py": "Z = 1\n", "core/unused.py": "U = 1\n", "cli/show.py": "S = 1\n",
    }.items():  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    monkeypatch.setattr(code, "PACKAGE", root)
    return root


def since(package: Path, proof: dict[str, object]) -> list[str]:
    code._tree.cache_clear()
    code._hash.cache_clear()
    return changed.since(proof, package / "methods" / "a.py")


def test_it_reaches_what_is_imported_anywhere_and_nothing_else(package: Path):
    assert list(code.code_of(package / "methods" / "a.py")) == ["core/x.py", "core/y.py", "data/late.py", "methods/a.py"]


def test_a_file_of_the_users_reaches_ours_but_none_of_its_neighbours(package: Path, tmp_path: Path):
    mine = tmp_path / "mine.py"
    mine.write_text("from stillhouse.core.x import f\nimport beside\nfrom . import other\n")
    (tmp_path / "beside.py").write_text("B = 1\n")
    assert list(code.code_of(mine)) == ["mine.py", "core/x.py", "core/y.py"]


def test_comments_docstrings_and_layout_change_nothing(package: Path):
    proof = {"code": code.code_of(package / "methods" / "a.py")}
    (package / "core" / "x.py").write_text('import stillhouse.core.y\n\n\ndef f():\n    """Others."""\n\n    return 1\n')
    assert since(package, proof) == []


def test_a_card_is_no_code(package: Path):
    file = package / "methods" / "a.py"
    proof = {"code": code.code_of(file)}
    file.write_text(file.read_text() + "\nPAPER = Paper(id='a')\n")
    assert since(package, proof) == []
    file.write_text(file.read_text() + "\nOTHER = 1\n")
    assert since(package, proof) == ["methods/a.py"]


def test_other_code_is_named(package: Path):
    proof = {"code": code.code_of(package / "methods" / "a.py")}
    (package / "core" / "y.py").write_text("Y = 2\n")
    (package / "core" / "unused.py").write_text("U = 2\n")
    assert since(package, proof) == ["core/y.py"]
    (package / "core" / "y.py").write_text("Y = 1\n")
    (package / "data" / "late.py").unlink()
    assert since(package, proof) == ["data/late.py"]


def test_a_proof_that_does_not_say(package: Path):
    assert since(package, {}) == ["?"]


def test_real_methods_reach_the_engine_but_not_each_other():
    for entry in catalogue().values():
        files = code.code_of(entry.path)
        assert {"core/engine.py", "core/run.py"} <= set(files)
        assert not any(name.startswith(code.OUTSIDE) for name in files)


def test_the_command_names_them(still: Any, tmp_path: Path):
    (tmp_path / "proofs").mkdir()
    ran = code.code_of(catalogue()["hinton"].path)
    told = {"verdict": "holds", "code": ran, "effects": {}, "metric": "accuracy"}
    (tmp_path / "proofs" / "hinton.json").write_text(json.dumps(told))
    assert still("prove", "--changed", "--list", "hinton").stdout == ""
    (tmp_path / "proofs" / "hinton.json").write_text(json.dumps(told | {"code": ran | {"core/engine.py": "0"}}))
    assert still("prove", "--changed", "--list", "hinton").stdout == "hinton: core/engine.py\n"
    (tmp_path / "proofs" / "hinton.json").write_text(json.dumps({k: v for k, v in told.items() if k != "code"}))
    assert "does not say which code" in still("prove", "--changed", "--list", "hinton").stdout


def test_nothing_named_is_a_mistake(still: Any):
    result = still("prove")
    assert result.exit_code == 2 and "--changed" in result.stderr
