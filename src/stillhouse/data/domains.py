"""Text of several domains: rows that know their domain, from a user's files or made up."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from typing import ClassVar

import torch

from ..core.run import Run, RunError, seed_of
from ..core.signal import Batch
from .stdlib import docstrings
from .tables import Row, read_rows, split_rows
from .tasks import chain_solution, chain_steps
from .tokens import Document, Packed, encode_prompt, example_of, pack_rows
from .toys import ALPHABET, Sentences, decode


@dataclass(frozen=True)
class DomainRows(Packed):
    """Packed rows, no row of two domains; the rows of a domain stand together."""

    names: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()  # rows of each domain

    def domain_of(self, item: int) -> int:
        """The number of a row's domain."""
        return bisect_right(list(accumulate(self.sizes)), item)

    def members(self, domain: int) -> range:
        """The rows of a domain."""
        begin = sum(self.sizes[:domain])
        return range(begin, begin + self.sizes[domain])

    def batch(self, items: Sequence[int], epoch: int) -> Batch:
        """As of `Packed`, with `item` [B], which rows these are, and `domain` [B]."""
        rows = {"item": torch.tensor(list(items)), "domain": torch.tensor([self.domain_of(i) for i in items])}
        return {**super().batch(items, epoch), **rows}


def join(parts: Mapping[str, Packed]) -> DomainRows:
    """The rows of several domains, all of one length, in this order; examples are numbered through."""
    rows: list[tuple[Document, ...]] = []
    for part in parts.values():
        first = 1 + max((d.example for row in rows for d in row), default=-1)
        rows.extend(tuple(Document(d.tokens, d.counts, first + d.example) for d in row) for row in part.rows)
    some = next(iter(parts.values()))
    return DomainRows(tuple(rows), some.length, some.classes, tuple(parts), tuple(len(part) for part in parts.values()))


@dataclass(frozen=True, kw_only=True)
class Domains:
    """A user's text of several domains: one file with a column that names the domain, or one file per domain.

    Rows are as for `data.tokens.Text`: `text`, `prompt` + `completion` or `messages`. Every domain is split by itself, by
    row content, so that each of them can be judged.
    """

    path: str | None = None  # one file
    by: str = "domain"  # its column
    files: Mapping[str, str] = field(default_factory=dict[str, str])  # or: name -> file
    column: str | None = None  # the column to use; None: the first of messages, prompt + completion, text
    length: int = 512  # tokens in a packed row
    valid: float = 0.05  # share of each domain's rows held out to choose, and to measure the student on
    test: float = 0.05  # share of each domain's rows held out to judge
    limit: int | None = None  # use at most so many rows of a domain
    classes: ClassVar[int | None] = None  # the tokenizer's

    def load(self, run: Run) -> Mapping[str, DomainRows]:
        """The packed splits; every split holds every domain."""
        tokenizer = run.recipe.student.tokenizer(run)
        found: dict[str, dict[str, Packed]] = {"train": {}, "valid": {}, "test": {}}
        for name, splits in self._domains(run).items():
            for split, rows in splits.items():
                found[split][name] = pack_rows(rows, tokenizer, self.length, run)
                if not len(found[split][name]) and (split == "train" or getattr(self, split)):
                    raise RunError(f"domain {name!r} has no {split} row that can be learned from; give it more rows")
        return {split: join(parts) for split, parts in found.items()}

    def rows(self, run: Run) -> dict[str, list[Row]]:
        """The splits as rows: what each row teaches."""
        every = self._domains(run).values()
        return {split: [row for splits in every for row in splits[split]] for split in ("train", "valid", "test")}

    def prompts(self, run: Run) -> dict[str, list[list[int]]]:
        """The prompt of every row as tokens."""
        tokenizer = run.recipe.student.tokenizer(run)
        coded = {split: [encode_prompt(row, tokenizer) for row in rows] for split, rows in self.rows(run).items()}
        return {split: [p for p in prompts if 0 < len(p) < self.length] for split, prompts in coded.items()}

    def _domains(self, run: Run) -> dict[str, dict[str, list[Row]]]:
        """Domain -> split -> rows."""
        examples: dict[str, list[Row]] = {}
        for name, row in self._named(run):
            example = example_of(row, self.column)
            if isinstance(example, str):
                run.reject(row, example)
            elif len(examples.setdefault(name, [])) < (self.limit or len(examples[name]) + 1):
                examples[name].append(example)
        if len(examples) < 2:
            raise RunError(f"there is only one domain to learn from ({', '.join(examples) or 'none'}); give two or more")
        return {name: split_rows(rows, valid=self.valid, test=self.test, run=run) for name, rows in sorted(examples.items())}

    def _named(self, run: Run) -> list[tuple[str, Row]]:
        if (self.path is None) == (not self.files):
            raise RunError("domains come from data.path, a file with a column of them, or from data.files, name to file")
        if self.path is None:
            return [(name, row) for name, path in self.files.items() for row in read_rows(path, run)]
        rows = read_rows(self.path, run)
        if not any(row.get(self.by) for row in rows):
            known = ", ".join(map(repr, rows[0]))
            raise RunError(f"{self.path} has no column {self.by!r} of domains; it has {known} (set data.by)")
        for row in rows:
            if not row.get(self.by):
                run.reject(row, f"column {self.by!r} is empty")
        return [(str(row[self.by]), row) for row in rows if row.get(self.by)]


# -- made up, and from Python's own library ----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Worlds:
    """Short texts of up to five domains as bytes, the same for every seed of the run; all domains are equally large.

    `brackets` are nested at random, `sums` are arithmetic chains worked in steps, `sentences` a language of 294 of them,
    `docs` docstrings of Python's standard library and `signs` random walks over a small graph of characters.
    """

    domains: tuple[str, ...] = ("brackets", "sums", "sentences", "docs", "signs")
    length: int = 64  # bytes in a row
    train: int = 150  # rows of each domain
    valid: int = 20
    test: int = 60
    classes: ClassVar[int | None] = 128

    def load(self, run: Run) -> Mapping[str, DomainRows]:
        """The splits."""
        for name in self.domains:
            if name not in _MAKERS:
                raise RunError(f"no domain {name!r}; there are {', '.join(_MAKERS)}")
        sizes = {"test": self.test, "valid": self.valid, "train": self.train}
        found: dict[str, dict[str, Packed]] = {}
        for split in ("train", "valid", "test"):
            begin = sum(size for other, size in sizes.items() if list(sizes).index(other) < list(sizes).index(split))
            found[split] = {name: self._rows(_text(name), begin, sizes[split]) for name in self.domains}
        return {split: join(parts) for split, parts in found.items()}

    def prompts(self, run: Run) -> dict[str, list[list[int]]]:
        """The first bytes of every row."""
        return {name: packed.prompts() for name, packed in self.load(run).items()}

    def _rows(self, text: bytes, begin: int, count: int) -> Packed:
        pieces = [text[i * self.length : (i + 1) * self.length] for i in range(begin, begin + count)]
        if any(len(piece) < self.length for piece in pieces):
            raise RunError(f"a domain has only {len(text) // self.length} rows of {self.length} bytes; ask for fewer")
        documents = (Document(list(piece), [True] * len(piece), i) for i, piece in enumerate(pieces))
        return Packed(tuple((document,) for document in documents), self.length, self.classes)


SIZE = 100_000  # bytes of a made-up domain


def _brackets(draw: random.Random) -> str:
    closing, text = "", ""
    while len(text) < 24 or closing:
        if closing and (draw.random() < 0.5 or len(text) > 40 or len(closing) > 6):
            text, closing = text + closing[-1], closing[:-1]
        else:
            kind = draw.randrange(3)
            text, closing = text + "([{"[kind], closing + ")]}"[kind]
    return text + "\n"


def _sums(draw: random.Random) -> str:
    question = "".join(f"{draw.randrange(10)}{draw.choice('+-*')}" for _ in range(2)) + f"{draw.randrange(10)}="
    return f"{question}{chain_solution(chain_steps(question, 10), 'steps')}\n"


def _sentences(draw: random.Random) -> str:
    row = draw.choice(_spoken())
    return decode(row)


@lru_cache(maxsize=1)
def _spoken() -> tuple[tuple[int, ...], ...]:
    made = Sentences(train=290).load(None)["train"]  # type: ignore[arg-type]  # depends on no run
    return tuple(tuple(d.tokens) for row in made.rows for d in row)


def _signs(draw: random.Random) -> str:
    """A walk in which two characters decide about the next one, in one of three ways."""
    text, after = "".join(draw.sample(ALPHABET[2:], 2)), _after()
    for _ in range(400):
        text += draw.choices(after[text[-2:]], (0.7, 0.2, 0.1))[0]
    return text + "\n"


@lru_cache(maxsize=1)
def _after() -> dict[str, list[str]]:
    fixed, signs = random.Random(seed_of("signs")), ALPHABET[2:]
    return {a + b: fixed.sample(signs, 3) for a in signs for b in signs}


_MAKERS: dict[str, Callable[[random.Random], str] | None] = {
    "brackets": _brackets, "sums": _sums, "sentences": _sentences, "docs": None, "signs": _signs,
}  # fmt: skip


@lru_cache(maxsize=8)
def _text(name: str) -> bytes:
    """All of a domain's text."""
    maker = _MAKERS[name]
    if maker is None:
        return "\n".join(text for _, texts in docstrings() for text in texts).encode()[: 10 * SIZE]
    draw, parts, total = random.Random(seed_of("worlds", name)), list[str](), 0
    while total < SIZE:
        parts.append(maker(draw))
        total += len(parts[-1])
    return "".join(parts).encode()
