"""The conventions that keep many hands' files alike, checked by reading them. docs: CONTRIBUTING.md, "House rules"."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import stillhouse
from stillhouse.core.paper import DATA, catalogue

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "stillhouse"
FILES = sorted(PACKAGE.rglob("*.py"))
PAPERS = sorted(p for p in (PACKAGE / "methods").glob("*/*.py") if p.name != "__init__.py")

# A module may import what has its own rank or a lower one.
RANKS = {
    "core": 0,
    "objectives": 1, "data": 1, "models": 1, "signals": 1,
    "teachers": 2, "synth": 2, "audits": 2,
    "methods": 3,
    "reports": 4, "export": 4, "scale": 4, "track": 4, "cli": 4,
}  # fmt: skip
TOP = 4  # modules directly below the package

FORBIDDEN = {
    "backward": r"\.backward\(", "torch.optim": r"\btorch\.optim\b", ".step()": r"\.step\(\)", "print": r"\bprint\(",
    ".cuda": r"\.cuda\(", "manual_seed": r"\bmanual_seed\b", "torch.save": r"\btorch\.save\b",
    "argparse": r"\bargparse\b", "os.environ": r"\bos\.environ\b",
}  # fmt: skip


def relative(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path, *, typing: bool = False) -> Iterator[str]:
    """The full dotted names that a file imports at run time, anywhere in it; with `typing`, under TYPE_CHECKING too."""
    package = ("stillhouse", *path.relative_to(PACKAGE).with_suffix("").parts)
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and not typing:
            skipped |= {inner for part in node.body for inner in ast.walk(part)}
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level]) if node.level else ""
            module = ".".join(p for p in (base, node.module) if p)
            yield from (f"{module}.{alias.name}" for alias in node.names)


def bare(path: Path) -> str:
    """The code of a file in one normal form: no comments, no docstrings."""
    module = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(module):
        body = getattr(node, "body", None)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and body and ast.get_docstring(node) is not None:
            node.body = body[1:] or [ast.Pass()]
    return ast.unparse(module)


# -- the package ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_imports_go_one_way(path: Path) -> None:
    parts = path.relative_to(PACKAGE).parts
    rank = RANKS[parts[0]] if len(parts) > 1 else TOP
    for name in imports(path):
        below = name.split(".")[1:]
        if name.startswith("stillhouse.") and below[0] in RANKS:
            assert RANKS[below[0]] <= rank, f"{relative(path)} imports {name}"


@pytest.mark.parametrize("path", [p for p in FILES if relative(p).startswith(("core/", "objectives/"))], ids=relative)
def test_the_core_needs_torch_and_python_only(path: Path) -> None:
    known = {*sys.stdlib_module_names, "torch", "stillhouse"}
    assert {name.split(".")[0] for name in imports(path, typing=True)} <= known


@pytest.mark.parametrize("name", ["paper", "recipe", "proof", "report"])
def test_what_list_reads_needs_no_torch(name: str) -> None:
    seen: set[str] = set()
    waiting = [PACKAGE / "core" / f"{name}.py"]
    while waiting:
        for found in imports(waiting.pop()):
            assert found.split(".")[0] != "torch", f"core/{name}.py leads to torch"
            file = PACKAGE / "core" / f"{found.split('.')[2]}.py" if found.startswith("stillhouse.core.") else None
            if file is not None and file.exists() and found not in seen:
                seen.add(found)
                waiting.append(file)


def test_methods_load_no_heavy_library() -> None:
    heavy = (
        "transformers",
        "diffusers",
        "torch_geometric",
        "torchvision",
        "ray",
        "matplotlib",
        "pandas",
        "sklearn",
        "datasets",
    )
    modules = [entry.module for entry in catalogue().values()]
    code = f"import importlib, sys\nfor m in {modules}: importlib.import_module(m)\n"
    code += f"print([h for h in {heavy} if h in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


@pytest.mark.parametrize("path", [p for p in FILES if not relative(p).startswith("cli/")], ids=relative)
def test_only_the_command_line_prints(path: Path) -> None:
    assert not re.search(r"(?<![\w.])print\(", bare(path))


def test_no_public_name_is_a_submodule() -> None:
    """Importing `stillhouse.NAME` would replace what `stillhouse.NAME` is."""
    clashes = [n for n in stillhouse.__all__ if (PACKAGE / n).exists() or (PACKAGE / f"{n}.py").exists()]
    assert not clashes


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_every_module_says_what_it_is(path: Path) -> None:
    assert path.name == "__init__.py" or ast.get_docstring(tree(path)), relative(path)


# -- one paper, one file -------------------------------------------------------------------------------------------


def classes(path: Path) -> list[ast.ClassDef]:
    return [node for node in tree(path).body if isinstance(node, ast.ClassDef)]


def learns(node: ast.ClassDef) -> bool:
    return any(getattr(part, "name", "") in ("step", "__call__") for part in node.body)


@pytest.mark.parametrize("path", PAPERS, ids=relative)
def test_a_paper_file_has_its_four_parts(path: Path) -> None:
    entry = next(e for e in catalogue().values() if e.path == path)
    assert entry.paper.id == path.stem
    functions = {node.name for node in tree(path).body if isinstance(node, ast.FunctionDef)}
    assert {"recipe", "proof"} <= functions
    assert entry.methods, "a class with a `step` (a method) or a `__call__` (a step of data)"
    assert (ROOT / "tests" / "methods" / path.parent.name / f"test_{path.stem}.py").exists(), "a test file of its own"


def test_ids_are_unique() -> None:
    assert len({p.stem for p in PAPERS}) == len(PAPERS) == len(catalogue())


@pytest.mark.parametrize("path", PAPERS, ids=relative)
def test_its_docstring_is_the_paper_in_short(path: Path) -> None:
    entry = next(e for e in catalogue().values() if e.path == path)
    assert entry.paper.title.casefold() in " ".join(entry.doc.split()).casefold(), "the title"
    assert any(line.startswith("    ") and "=" in line for line in entry.doc.splitlines()), "an indented equation"
    assert "Differs from" in entry.doc
    assert entry.paper.claim
    assert entry.paper.data and set(entry.paper.data) <= set(DATA), "what it begins with: PAPER.data"


@pytest.mark.parametrize("path", PAPERS, ids=relative)
def test_a_paper_file_is_short_and_leaves_the_loop_alone(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300
    code = bare(path)
    assert not [name for name, pattern in FORBIDDEN.items() if re.search(pattern, code)]


@pytest.mark.parametrize("path", PAPERS, ids=relative)
def test_its_classes_are_frozen_and_have_defaults(path: Path) -> None:
    for node in filter(learns, classes(path)):
        decorators = [ast.unparse(d) for d in node.decorator_list]
        assert any("dataclass" in d and "frozen=True" in d and "kw_only=True" in d for d in decorators), node.name
        for part in node.body:
            if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
                assert part.target.id not in ("mode", "type", "flag"), f"{node.name}.{part.target.id} names no quantity"


@pytest.mark.parametrize("path", PAPERS, ids=relative)
def test_a_paper_holds_others_but_is_not_built_on_them(path: Path) -> None:
    papers = {f"stillhouse.methods.{p.parent.name}.{p.stem}" for p in PAPERS if p != path}
    taken = {name.rpartition(".")[2] for name in imports(path) if name.rpartition(".")[0] in papers}
    assert all(name[:1].isupper() for name in taken), "only classes, to hold one; shared mathematics goes to objectives/"
    for node in classes(path):
        assert not taken & {ast.unparse(base).split(".")[-1] for base in node.bases}, f"{node.name} extends another paper"


def test_no_two_papers_share_twelve_lines() -> None:
    size = 12
    places: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for path in PAPERS:
        lines = [line.strip() for line in bare(path).splitlines() if line.strip()]
        lines = [line for line in lines if not line.startswith(("import ", "from "))]
        for start in range(len(lines) - size + 1):
            places[tuple(lines[start : start + size])].add(relative(path))
    shared = {tuple(sorted(files)): lines for lines, files in places.items() if len(files) > 1}
    assert not shared, "\n".join(f"{' and '.join(files)}:\n  " + "\n  ".join(lines) for files, lines in shared.items())


# -- the words of the project --------------------------------------------------------------------------------------


def test_the_version_is_written_once_more_only_in_pyproject() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == stillhouse.__version__


def test_constraints_cover_the_requirements() -> None:
    """What the tests ran with is pinned: every direct dependency of the package and its extras."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *sum(project["optional-dependencies"].values(), [])]
    names = {re.split(r"[\[><=]", line)[0] for line in wanted} - {"stillhouse"}
    pinned = {
        line.split("==")[0]
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line and line[0] != "#"
    }
    assert names == pinned
