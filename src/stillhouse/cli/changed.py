"""Which code a proof ran, and what has changed since: `stillhouse prove --changed`. Reads files, runs none."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from ..core.paper import catalogue, find
from .show import proof_of

PACKAGE = Path(__file__).parent.parent
OUTSIDE = ("cli", "reports", "export", "core/paper.py", "core/report.py")  # they show numbers, and change none of them


def code_of(path: Path) -> dict[str, str]:
    """File -> hash of its code, for a module and every module of ours that it reaches by imports."""
    found: dict[Path, str] = {}
    waiting = [path]
    while waiting:
        file = waiting.pop()
        if file not in found:
            found[file] = _hash(file)
            waiting += _imports(file)
    return {file.relative_to(PACKAGE).as_posix(): digest for file, digest in sorted(found.items())}


def since(proof: Mapping[str, Any], path: Path) -> list[str]:
    """The files that are not as they were when the proof ran; `?` if it does not say."""
    then, now = proof.get("code"), code_of(path)
    if not then:
        return ["?"]
    return sorted(name for name in {*then, *now} if then.get(name) != now.get(name))


def stale(names: Sequence[str] | None = None) -> dict[str, list[str]]:
    """Method -> what changed since its proof, for those where something did; methods without a proof count as changed."""
    found: dict[str, list[str]] = {}
    for name in names or sorted(catalogue()):
        entry, proof = find(name), proof_of(name)
        files = ["not proven yet"] if proof is None else since(proof, entry.path)
        if files:
            found[name] = ["its proof does not say which code it ran"] if files == ["?"] else files
    return found


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
    package = ("stillhouse", *file.relative_to(PACKAGE).with_suffix("").parts)
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
