"""A step makes or judges data: rows in, rows out. Here is what every step is lent: teachers, chance, ids, rejects.

A row is a mapping. `_id` names it by its content or by its ancestors, `_from` names its parents, and whatever begins
with an underscore is the engine's. A step yields a row it was given (changed or not: `{**row, "label": new}`), or a new
one from `work.child`; it hands a row that it drops to `work.lose`, with the reason.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TypeVar

from ..core.recipe import to_plain
from ..core.run import Run, seed_of
from ..core.signal import Completion, Kind
from ..teachers.text import Ask, Lost
from .calls import Calls

Row = Mapping[str, Any]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Need:
    """What a step will ask one teacher for, at most; tokens as far as they can be guessed."""

    calls: int
    read: int
    wrote: int

    def __add__(self, other: Need) -> Need:
        return Need(self.calls + other.calls, self.read + other.read, self.wrote + other.wrote)


class Step(Protocol):
    """A frozen dataclass whose fields are its settings. Its rows may depend on nothing else than what it is given."""

    needs: ClassVar[frozenset[Kind]]  # what it asks of teachers: text, or nothing

    def __call__(self, rows: Iterable[Row], run: Run) -> Iterator[Row]:
        """The rows that come out; `run.work` is the `Work` of this step."""
        ...

    def estimate(self, rows: Sequence[Row], run: Run) -> Mapping[str, Need]:
        """By teacher, what it will ask for with these rows, at most; asks nobody."""
        ...

    def sketch(self, rows: Sequence[Row], run: Run) -> Sequence[Row]:
        """Rows like those that it will make of these, so that what comes after it can be estimated."""
        ...


@dataclass
class Work:
    """One step at work."""

    run: Run
    name: str
    fingerprint: str
    calls: Calls
    total: int = 0  # calls that it will make, for the progress
    done: int = 0
    began: float = 0.0
    reasons: Counter[str] = field(default_factory=Counter[str])
    children: Counter[tuple[str, ...]] = field(default_factory=Counter[tuple[str, ...]])

    def ask(self, role: str, asks: Iterable[tuple[T, Ask]]) -> Iterator[tuple[T, Completion | Lost]]:
        """Every ask with its answer, in order; what was asked before is not asked again."""
        return self.calls.ask(role, asks, self.tell)

    def tell(self, answers: int) -> None:
        """Move the progress bar by so many answers, whatever their order."""
        self.done += answers
        if self.run.progress is not None and answers:
            total = max(self.total, self.done)
            self.run.progress.update(f"{self.run.stage}, {self.name}", self.done, total, {}, time.monotonic() - self.began)

    def child(self, *parents: Row, **columns: Any) -> Row:
        """A new row with these columns that comes from these rows."""
        names = tuple(sorted({str(parent["_id"]) for parent in parents}))
        self.children[names] += 1
        key = [self.fingerprint, names, self.children[names]]
        return {"_id": _hash(key), "_from": list(names), **columns}

    def lose(self, row: Row, why: str, **numbers: Any) -> None:
        """Put a row aside, with the reason and the numbers that decided it."""
        self.reasons[why] += 1
        self.run.reject({**row, **numbers, "_step": self.name}, why)

    def rng(self, *key: object) -> random.Random:
        """Chance that depends on the run's seed, this step's name and the key, and on nothing else."""
        return random.Random(self.seed(*key))

    def seed(self, *key: object) -> int:
        """The number behind `rng`: what tells samples of the same words apart."""
        return seed_of(self.run.seed, self.run.stage, self.name, *key)


def step_fingerprint(step: Any, teachers: Mapping[str, str]) -> str:
    """What a step's rows depend on beside the rows it is given: its settings and the teachers that it asks."""
    return _hash([to_plain(step), dict(teachers)])


def given(row: Row) -> dict[str, Any]:
    """A row from outside with its name: the hash of its content."""
    plain = {k: v for k, v in row.items() if not k.startswith("_")}
    return {"_id": _hash(plain), "_from": [], **plain}


def ids_hash(rows: Iterable[Row]) -> str:
    """One name for a table: its rows with their content, in their order."""
    total = hashlib.blake2b(digest_size=16)
    for row in rows:
        total.update(_hash(row).encode())
    return total.hexdigest()


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
