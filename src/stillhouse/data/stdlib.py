"""Real text that every Python brings along: the documentation topics and docstrings of its own library, as bytes."""

from __future__ import annotations

import ast
import hashlib
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ..core.run import Run
from .tables import Row
from .tokens import Document, Packed, pack

END = 0  # the byte that ends a document
CLASSES = 128


@dataclass(frozen=True, kw_only=True)
class StandardLibrary:
    """Docstrings of Python's standard library, one token a byte (ASCII), the module's split by its name's hash.

    Which docstrings there are depends on the Python version, so numbers compare within one machine.
    """

    length: int = 128  # tokens in a packed row
    train: int = 4000  # docstrings
    valid: int = 200
    test: int = 400

    def load(self, run: Run) -> Mapping[str, Packed]:
        """The packed splits; a module's docstrings are all in one of them."""
        return {name: self._pack(texts) for name, texts in self._texts().items()}

    def rows(self, run: Run) -> dict[str, list[Row]]:
        """The splits as rows with a `text`."""
        return {name: [{"text": t} for t in texts] for name, texts in self._texts().items()}

    def _texts(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
        for module, texts in docstrings():
            share = int(hashlib.sha256(module.encode()).hexdigest()[:4], 16) / 0xFFFF
            found["test" if share < 0.15 else "valid" if share < 0.25 else "train"].extend(texts)
        return {name: texts[: getattr(self, name)] for name, texts in found.items()}

    def _pack(self, texts: Sequence[str]) -> Packed:
        def documents():
            for number, text in enumerate(texts):
                tokens = [*text.encode(), END]
                yield Document(tokens, [True] * len(tokens), number)

        return pack(documents(), self.length, CLASSES)


@lru_cache(maxsize=1)
def docstrings(shortest: int = 60, longest: int = 1200) -> list[tuple[str, list[str]]]:
    """(module, docstrings) over the standard library's top-level modules and packages; ASCII ones of fair length."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found: list[tuple[str, list[str]]] = []
    for path in sorted(root.glob("*.py")) + sorted(root.glob("*/*.py")):
        if path.parent.name in ("site-packages", "test", "idlelib", "lib2to3", "tests"):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError, OSError):
            continue
        texts: list[str] = []
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node) or ""
                if text.isascii() and "\0" not in text and shortest <= len(text) <= longest:
                    texts.append(text)
        found.append((path.relative_to(root).as_posix(), list(dict.fromkeys(texts))))
    found.sort(key=lambda pair: hashlib.sha256(pair[0].encode()).hexdigest())
    return found
