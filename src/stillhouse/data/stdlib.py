"""Real text that every Python brings along: the documentation topics and docstrings of its own library, as bytes."""

from __future__ import annotations

import ast
import hashlib
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

from ..core.run import Run, RunError
from .tables import Row
from .tokens import Document, Packed, encode_prompt, pack

END = 0  # the byte that ends a document


@dataclass(frozen=True, kw_only=True)
class StandardLibrary:
    """Docstrings of Python's standard library, one token a byte (ASCII), the module's split by its name's hash.

    Which docstrings there are depends on the Python version, so numbers compare within one machine.
    """

    length: int = 128  # tokens in a packed row
    train: int = 4000  # docstrings
    valid: int = 200
    test: int = 400
    classes: ClassVar[int | None] = 128

    def load(self, run: Run) -> Mapping[str, Packed]:
        """The packed splits; a module's docstrings are all in one of them."""
        return {name: self._pack(texts) for name, texts in self._texts().items()}

    def prompts(self, run: Run) -> dict[str, list[list[int]]]:
        """The first bytes of every docstring."""
        return {name: packed.prompts() for name, packed in self.load(run).items()}

    def rows(self, run: Run) -> dict[str, list[Row]]:
        """The splits as rows with a `text`."""
        return {name: [{"text": t} for t in texts] for name, texts in self._texts().items()}

    def _texts(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
        for module, texts in docstrings():
            found[_split(module)].extend(texts)
        return {name: texts[: getattr(self, name)] for name, texts in found.items()}

    def _pack(self, texts: Sequence[str]) -> Packed:
        def documents():
            for number, text in enumerate(texts):
                tokens = [*text.encode(), END]
                yield Document(tokens, [True] * len(tokens), number)

        return pack(documents(), self.length, self.classes)


@lru_cache(maxsize=1)
def docstrings(shortest: int = 60, longest: int = 1200) -> list[tuple[str, list[str]]]:
    """(module, docstrings) over the standard library's modules; ASCII ones of fair length, in a mixed but fixed order."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found: list[tuple[str, list[str]]] = []
    for path in _modules(root):
        texts = [t for _, t in _documented(path) if t.isascii() and "\0" not in t and shortest <= len(t) <= longest]
        found.append((path.relative_to(root).as_posix(), list(dict.fromkeys(texts))))
    return sorted(found, key=lambda pair: _share(pair[0], 1 << 64))


def _modules(root: Path) -> list[Path]:
    left_out = ("site-packages", "test", "tests", "idlelib", "lib2to3")
    return [p for p in sorted(root.glob("*.py")) + sorted(root.glob("*/*.py")) if p.parent.name not in left_out]


def _documented(path: Path) -> Iterator[tuple[str, str]]:
    """(name, docstring) of the module's documented classes and functions; of the module itself under its last name."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError, OSError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            name = getattr(node, "name", path.stem)
            text = ast.get_docstring(node)
            if text and not name.startswith("_"):
                yield name, text


def _share(key: str, whole: int) -> int:
    """A number below `whole` that depends on the key alone."""
    return int(hashlib.sha256(key.encode()).hexdigest(), 16) % whole


def _split(module: str) -> str:
    share = _share(module, 100)
    return "test" if share < 15 else "valid" if share < 25 else "train"


_ASK = (
    "What does Python's {name} do? Its documentation begins: {first}",
    "Explain this line of Python's documentation to a beginner: {first}",
    "When would I use {name} in Python? ({first})",
    "Say in other words: {first}",
)


@dataclass(frozen=True, kw_only=True)
class LibraryQuestions:
    """Questions about Python's standard library, made from its docstrings' first sentences; a teacher has to answer.

    A module's questions are all in one split.
    """

    train: int = 160  # questions
    valid: int = 8
    test: int = 40
    length: int = 256  # tokens in a packed row, once there are answers
    classes: ClassVar[int | None] = None  # the tokenizer's

    def rows(self, run: Run) -> dict[str, list[Row]]:
        """The splits as rows with a `prompt`."""
        found: dict[str, list[Row]] = {"train": [], "valid": [], "test": []}
        for name, rows in _questions().items():
            found[name] = [{"prompt": question} for question in rows[: getattr(self, name)]]
        return found

    def prompts(self, run: Run) -> dict[str, list[list[int]]]:
        """The questions as tokens, rendered by the student's chat template."""
        tokenizer = run.recipe.student.tokenizer(run)
        return {name: [encode_prompt(row, tokenizer) for row in rows] for name, rows in self.rows(run).items()}

    def load(self, run: Run) -> Mapping[str, Packed]:
        """Questions alone cannot be learned from."""
        raise RunError("the library's questions have no answers: let a teacher write them (stage Write)")


@lru_cache(maxsize=1)
def _questions() -> dict[str, list[str]]:
    found: dict[str, list[tuple[str, str]]] = {"train": [], "valid": [], "test": []}
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in _modules(root):
        module = path.relative_to(root).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")
        if "._" in f".{module}" or module.split(".")[0] in ("tkinter", "turtle", "distutils", "turtledemo"):
            continue
        for name, text in _documented(path):
            first = " ".join(text.split("\n\n")[0].split())
            first = first.split(". ")[0].rstrip(".") + "."
            if 40 <= len(first) <= 160 and first.isascii():
                question = _ASK[_share(first, 1 << 16) % len(_ASK)].format(name=f"{module}.{name}", first=first)
                found[_split(module)].append((hashlib.sha256(question.encode()).hexdigest(), question))
    return {name: [question for _, question in sorted(set(rows))] for name, rows in found.items()}
