"""Which code something ran: the hashes of a module and of all modules of ours that it reaches. Reads files, runs none."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent.parent
OUTSIDE = ("cli", "reports", "export", "core/paper.py", "core/report.py")  # they show numbers, and change none of them


def code_of(path: Path) -> dict[str, str]:
    """File -> hash of its code, for a module and every module of ours that it reaches by imports.

    A module that is not ours is called by its name alone.
    """
    found: dict[Path, str] = {}
    waiting = [path]
    while waiting:
        file = waiting.pop()
        if file not in found:
            found[file] = _hash(file)
            waiting += _imports(file)
    return {(_name(file) or file.name): digest for file, digest in sorted(found.items())}


def _name(file: Path) -> str:
    """The path of a module of ours within the package; empty for others."""
    return file.relative_to(PACKAGE).as_posix() if file.is_relative_to(PACKAGE) else ""


@cache
def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


@cache
def _hash(file: Path) -> str:
    """Of the code alone: comments, docstrings, layout and a paper's card change nothing."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    tree.body = [n for n in tree.body if not (isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == "PAPER")]
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = body[1:] or [ast.Pass()]  # type: ignore[index]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:12]


def _imports(file: Path) -> Iterator[Path]:
    """The modules of ours that a file imports, at its top or inside its functions."""
    package = ("stillhouse", *Path(_name(file)).with_suffix("").parts) if _name(file) else ("",)
    for node in ast.walk(_tree(file)):
        if isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            names = [module, *(f"{module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "stillhouse" and len(parts) > 1:
                target = PACKAGE.joinpath(*parts[1:]).with_suffix(".py")
                if target.is_file() and not {parts[1], target.relative_to(PACKAGE).as_posix()} & set(OUTSIDE):
                    yield target
