"""What a paper file says about itself, and the catalogue. The folder is the registry: files are read, not imported."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

DATA = {  # what somebody has to learn from; a method names all that it can begin with
    "labels": "inputs with their class",
    "unlabelled": "inputs alone",
    "documents": "text to predict: plain text, prompts with answers, chats",
    "prompts": "prompts that a teacher has to answer",
    "pairs": "a better and a worse answer to each prompt",
    "tasks": "questions whose answers can be checked",
}
METHODS = Path(__file__).parent.parent / "methods"


@dataclass(frozen=True, kw_only=True)
class Paper:
    """The card at the top of a paper's file; literals only, so that it can be read without importing the file."""

    id: str  # the file's name
    title: str
    authors: tuple[str, ...]
    year: int
    arxiv: str | None = None
    venue: str | None = None
    url: str | None = None
    modality: tuple[str, ...] = ("any",)  # text, image, graph, table, any
    data: tuple[str, ...] = ()  # keys of DATA
    claim: str = ""  # in one sentence

    @property
    def link(self) -> str:
        """Where to read it."""
        return f"https://arxiv.org/abs/{self.arxiv}" if self.arxiv else (self.url or "")

    def bibtex(self) -> str:
        """A BibTeX entry."""
        lines = [f"title = {{{self.title}}}", f"author = {{{' and '.join(self.authors)}}}", f"year = {{{self.year}}}"]
        if self.venue:
            lines.append(f"booktitle = {{{self.venue}}}")
        if self.arxiv:
            lines += [f"eprint = {{{self.arxiv}}}", "archivePrefix = {arXiv}"]
        if self.url:
            lines.append(f"url = {{{self.url}}}")
        kind = "inproceedings" if self.venue else "misc"
        return f"@{kind}{{{self.id},\n  " + ",\n  ".join(lines) + "\n}"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One paper file as the catalogue shows it."""

    paper: Paper
    family: str  # its folder
    path: Path
    summary: str  # first line of the file's docstring
    doc: str
    needs: tuple[str, ...]  # signals that its method asks of a teacher
    takes_topk: bool  # a top k will do where it asks for logits
    asks_about_own: bool  # it asks its teacher about what the student makes, whatever its settings
    methods: tuple[str, ...]  # classes with a `step`
    fields: dict[str, str] = field(default_factory=dict[str, str])  # hyper-parameter -> "type = default"

    @property
    def module(self) -> str:
        """Its import path."""
        return f"stillhouse.methods.{self.family}.{self.paper.id}"


class UnknownMethod(LookupError):
    """No paper file has that id; the message names the nearest."""


@cache
def catalogue() -> dict[str, Entry]:
    """Every paper file by id. Imports nothing, so it costs milliseconds."""
    entries = [_read(path) for path in sorted(METHODS.glob("*/*.py")) if path.name != "__init__.py"]
    return {e.paper.id: e for e in entries}


def find(name: str) -> Entry:
    """The entry called `name`."""
    entries = catalogue()
    if name not in entries:
        from .recipe import nearest  # recipe has no torch either

        raise UnknownMethod(f"no method {name!r}{nearest(name, entries)} (all: `stillhouse list`)")
    return entries[name]


def _read(path: Path) -> Entry:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    doc = ast.get_docstring(tree) or ""
    paper: Paper | None = None
    needs: set[str] = set()
    topk = own = False
    methods: list[str] = []
    fields: dict[str, str] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "PAPER":
            assert isinstance(node.value, ast.Call), path
            paper = Paper(**{str(k.arg): ast.literal_eval(k.value) for k in node.value.keywords})
        if isinstance(node, ast.ClassDef) and any(getattr(n, "name", "") in ("step", "__call__") for n in node.body):
            methods.append(node.name)
            for part in node.body:
                if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
                    if part.target.id == "takes_topk":
                        topk = True
                    elif part.target.id == "asks_about_own":
                        own = True
                    elif part.target.id == "needs":
                        needs |= {
                            c.value for c in ast.walk(part) if isinstance(c, ast.Constant) and isinstance(c.value, str)
                        }
                    elif part.value is not None and "ClassVar" not in ast.unparse(part.annotation):
                        fields[part.target.id] = f"{ast.unparse(part.annotation)} = {ast.unparse(part.value)}"
    if paper is None:
        raise ValueError(f"{path} has no `PAPER = Paper(...)`")
    kinds: Any = {"logits", "topk", "features", "text", "score", "reward"}
    return Entry(
        paper=paper,
        family=path.parent.name,
        path=path,
        summary=doc.split("\n", 1)[0],
        doc=doc,
        needs=tuple(sorted(needs & kinds)),
        takes_topk=topk,
        asks_about_own=own,
        methods=tuple(methods),
        fields=fields,
    )
