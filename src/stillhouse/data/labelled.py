"""Texts with labels: a user's own file, and a set that every Python brings along.

Splits are by content and the same for every run. With `shots` only so many labelled rows of every class may be learned
from, which ones depending on the run's seed: the setting of those who have a few examples and a teacher that writes more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..core.run import Run, RunError, seed_of
from ..core.signal import Batch
from .stdlib import docstrings
from .tables import Row, content_key, read_rows, split_rows

Encoder = Callable[[Sequence[str]], Mapping[str, Tensor]]  # texts to what the student is called with


@dataclass(frozen=True)
class LabelledTexts:
    """One split."""

    texts: tuple[str, ...]
    labels: Tensor  # [N]
    names: tuple[str, ...]  # of the classes
    encode: Encoder

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return len(self.names)

    def batch(self, items: Sequence[int], epoch: int) -> Batch:
        """inputs as the student's encoder makes them, labels [B], items [B]: which rows these are."""
        rows = torch.tensor(items, dtype=torch.long)
        return {"inputs": self.encode([self.texts[i] for i in items]), "labels": self.labels[rows], "items": rows}


class Labels:
    """What data specs of labelled texts share: `all_rows` gives every row, the rest follows."""

    shots: int | None

    def all_rows(self, run: Run) -> dict[str, list[Row]]:
        """The splits as rows of `text` and `label`, all of them."""
        raise NotImplementedError

    def rows(self, run: Run) -> dict[str, list[Row]]:
        """The splits as rows; of the training split what may be learned from."""
        splits = self.all_rows(run)
        if self.shots is not None:
            splits["train"] = _few(splits["train"], self.shots, run)
        return splits

    def names(self, run: Run) -> tuple[str, ...]:
        """The classes, in the order of their numbers."""
        return tuple(sorted({row["label"] for rows in self.all_rows(run).values() for row in rows}))

    def load(self, run: Run) -> Mapping[str, LabelledTexts]:
        """The splits, as the recipe's student reads them."""
        names = self.names(run)
        return {split: as_source(rows, names, run) for split, rows in self.rows(run).items()}


def as_source(rows: Sequence[Row], names: Sequence[str], run: Run) -> LabelledTexts:
    """Rows as a source of batches for the recipe's student."""
    student = run.recipe.student
    if not hasattr(student, "encoder"):
        raise RunError(
            f"the student {type(student).__name__} reads no text; take models.text.NGrams, or models.text.HubClassifier for "
            "a model from Hugging Face"
        )
    number = {name: i for i, name in enumerate(names)}
    labels = torch.tensor([number[row["label"]] for row in rows], dtype=torch.long)
    return LabelledTexts(tuple(row["text"] for row in rows), labels, tuple(names), student.encoder(run))


@dataclass(frozen=True, kw_only=True)
class Labelled(Labels):
    """A user's file (.jsonl, .csv, .parquet) with a text and a label in every row."""

    path: str
    text: str = "text"  # the column of the texts
    label: str = "label"  # the column of the labels; numbers are taken as names
    called: Mapping[str, str] = field(default_factory=dict[str, str])  # label -> a name that says more, for prompts
    test_path: str | None = None  # a file of its own for the test split
    valid: float = 0.1  # share of the rows held out to choose
    test: float = 0.1  # share of the rows held out to judge, if there is no `test_path`
    shots: int | None = None  # labelled rows of every class to learn from; None: all

    def all_rows(self, run: Run) -> dict[str, list[Row]]:
        """The splits; rows without text or label are rejected, and of equal texts all but one."""
        rows = self._read(self.path, run)
        splits = split_rows(rows, valid=self.valid, test=0.0 if self.test_path else self.test, run=run)
        if self.test_path:
            seen = {content_key({"text": row["text"]}) for part in splits.values() for row in part}
            splits["test"] = []
            for row in self._read(self.test_path, run):
                if content_key({"text": row["text"]}) in seen:
                    run.reject(row, "a test text that is in the training file too")
                else:
                    splits["test"].append(row)
        if len({row["label"] for row in splits["train"]}) < 2:
            raise RunError(f"column {self.label!r} of {self.path} holds one label only; there is nothing to tell apart")
        return splits

    def _read(self, path: str, run: Run) -> list[Row]:
        found: dict[str, Row] = {}
        twins: set[str] = set()
        for row in read_rows(path, run):
            text, label = row.get(self.text), row.get(self.label)
            if not isinstance(text, str) or not text.strip() or label is None or str(label).strip() == "":
                missing = self.label if isinstance(text, str) and text.strip() else self.text
                run.reject(row, f"nothing in column {missing!r}")
                continue
            name = self.called.get(str(label), str(label).strip())
            known = found.setdefault(text, {"text": text, "label": name})
            if known["label"] != name:
                twins.add(text)
        for text in twins:
            run.reject(found.pop(text), "the same text has two labels")
        if not found:
            raise RunError(f"no row of {path} has a text in {self.text!r} and a label in {self.label!r}; name the columns")
        return list(found.values())


# What the standard library's modules are about, by the chapters of its documentation.
_TOPICS = {
    "text": "string re difflib textwrap stringprep locale gettext codecs encodings html csv configparser json",
    "numbers": "numbers cmath decimal _pydecimal fractions random statistics math datetime calendar zoneinfo colorsys",
    "files": "pathlib os posixpath ntpath fileinput filecmp tempfile glob shutil zipfile tarfile gzip bz2 lzma stat"
    " genericpath fnmatch",
    "network": "socket ssl selectors http urllib ftplib poplib imaplib smtplib socketserver xmlrpc ipaddress nntplib"
    " telnetlib wsgiref cgi webbrowser",
    "mail": "email mailbox mimetypes smtpd",
    "concurrency": "threading multiprocessing concurrent subprocess queue sched asyncio",
    "testing": "unittest doctest pdb bdb trace cProfile profile pstats timeit tracemalloc",
    "code": "ast dis inspect tokenize symtable importlib pkgutil pickletools code codeop compileall typing types abc",
    "windows": "tkinter turtle curses",
}


@dataclass(frozen=True, kw_only=True)
class LibraryTopics(Labels):
    """Docstrings of Python's standard library and what their module is about: nine classes of real text.

    Which docstrings there are depends on the Python version, so numbers compare within one machine.
    """

    each: int = 250  # docstrings of every class, at most
    valid: float = 0.2
    test: float = 0.3
    shots: int | None = None  # labelled rows of every class to learn from; None: all

    def all_rows(self, run: Run) -> dict[str, list[Row]]:
        """The splits as rows."""
        topic = {module: name for name, modules in _TOPICS.items() for module in modules.split()}
        found: dict[str, dict[str, None]] = {name: {} for name in _TOPICS}
        for module, texts in docstrings():
            name = topic.get(module.split("/")[0].removesuffix(".py"))
            if name is not None:
                found[name].update(dict.fromkeys(" ".join(text.split("\n\n")[0].split()) for text in texts))
        counts: dict[str, int] = {}
        for texts in found.values():
            for text in texts:
                counts[text] = counts.get(text, 0) + 1
        rows = [
            {"text": text, "label": name}
            for name, texts in found.items()
            for text in [t for t in texts if counts[t] == 1 and len(t) >= 20][: self.each]
        ]
        return split_rows(rows, valid=self.valid, test=self.test, run=run)


def _few(rows: Sequence[Row], shots: int, run: Run) -> list[Row]:
    """So many rows of every class, drawn by the run's seed and each row's content."""
    chosen: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: seed_of(run.seed, "shots", content_key(row))):
        chosen.setdefault(row["label"], []).append(row)
    short = {name: len(found) for name, found in chosen.items() if len(found) < shots}
    if short:
        name, count = next(iter(short.items()))
        raise RunError(f"class {name!r} has {count} rows to learn from, and {shots} were asked for (data.shots)")
    return [row for name in sorted(chosen) for row in chosen[name][:shots]]


def names_of(data: Any, run: Run) -> tuple[str, ...]:
    """The classes of a data spec of labelled texts; RunError for other data."""
    if not hasattr(data, "names"):
        raise RunError(f"the data {type(data).__name__} have no labelled texts; take data.labelled.Labelled")
    return data.names(run)
