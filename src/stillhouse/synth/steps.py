"""A step makes or judges data: rows in, rows out. Here is what every step is lent: teachers, chance, ids, rejects.

What a row is says `synth/table.py`. A step yields a row it was given (changed or not: `{**row, "label": new}`), or a new
one from `work.child`; it hands a row that it drops to `work.lose`, with the reason.
"""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from ..core.code import code_of
from ..core.files import file_hash
from ..core.recipe import to_plain
from ..core.run import Run, RunError, seed_of
from ..core.signal import Completion, Kind
from ..teachers.text import Ask, Lost
from .calls import Calls
from .table import Row, Table, Writing, hash_of

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
    """A frozen dataclass whose fields are its settings. Its rows may depend on nothing else than what it is given.

    One that asks names whom: its `teacher`, or its `teachers`, of which none named means all of the recipe's.
    One that reads files names them (`files`, paths); one that consists of others names those (`parts`, by name); one that
    needs something on the machine has a `check(run)`, which raises RunError before anything is asked; one that looks at
    each row by itself says so (`row_by_row`), so that the rows may be worked on in several places.
    """

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


def roles_of(step: Any, known: Iterable[str]) -> tuple[str, ...]:
    """Whom a step asks; `known`: the recipe's teachers."""
    if hasattr(step, "teachers"):
        return tuple(step.teachers) or tuple(known)
    return (step.teacher,) if hasattr(step, "teacher") else ()


class Silent:
    """What steps have in common that ask no teacher and, as far as can be known before, leave as many rows."""

    needs: ClassVar[frozenset[Kind]] = frozenset()
    row_by_row: ClassVar[bool] = False

    def estimate(self, rows: Sequence[Row], run: Run) -> Mapping[str, Need]:
        """Nothing."""
        return {}

    def sketch(self, rows: Sequence[Row], run: Run) -> Sequence[Row]:
        """As many, if nothing is lost."""
        return rows


@dataclass
class Work:
    """One step at work."""

    run: Run
    name: str  # of the step, below the steps that it is a part of: `rounds/2/rewrite`
    fingerprint: str
    calls: Calls
    within: Callable[[str, Mapping[str, Any], Iterable[Row]], Table] | None = None  # what makes rows with further steps
    total: int = 0  # calls that it will make, for the progress
    done: int = 0
    began: float = 0.0
    lost: Writing | None = None
    reasons: Counter[str] = field(default_factory=Counter[str])

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
        """A new row with these columns that comes from these rows; its name depends on both.

        Two rows with the same parents and content are told apart by their order, which is all that differs.
        """
        names = sorted({str(parent["_id"]) for parent in parents})
        key = [self.fingerprint, self.name, names, _plain(columns)]
        return New({"_id": hash_of(key), "_from": names, **columns})

    def lose(self, row: Row, why: str, **numbers: Any) -> None:
        """Put a row aside, with the reason and the numbers that decided it."""
        self.reasons[why] += 1
        if self.lost is not None:
            told = {"_id": str(row.get("_id", "")), "_from": row.get("_from", []), "_why": why}
            self.lost.add({**told, "numbers": numbers, "row": dict(row)})

    def inside(self, name: str, steps: Mapping[str, Any], rows: Iterable[Row]) -> Table:
        """The rows that further steps make of these: what a step that consists of others does. All are kept."""
        if self.within is None:
            raise RunError("steps within a step need a stage that makes data")
        return self.within(f"{self.name}/{name}", steps, rows)

    def rng(self, *key: object) -> random.Random:
        """Chance that depends on the run's seed, this step's name and the key, and on nothing else."""
        return random.Random(self.seed(*key))

    def seed(self, *key: object) -> int:
        """The number behind `rng`: what tells samples of the same words apart."""
        return seed_of(self.run.seed, self.run.stage, self.name, *key)


class New(dict[str, Any]):
    """A row that `child` has made and nobody has changed."""


def step_fingerprint(step: Any, teachers: Mapping[str, str]) -> str:
    """What a step's rows depend on beside the rows it is given: its settings, its code, the files that it reads, and the
    teachers that it asks."""
    files = [file_hash(path) if path.is_file() else None for path in getattr(step, "files", ())]
    return hash_of([settings_print(step), _code(type(step)), files, dict(teachers)])


def check_file(path: str | Path) -> None:
    """RunError if there is no such file: told before the steps in front of the one that reads it have cost anything."""
    if not Path(path).expanduser().is_file():
        raise RunError(f"no file {path}; mend the path in the step that reads it")


def settings_print(spec: Any) -> str:
    """The settings of a step or data spec, and the content of the files that they name."""
    plain = to_plain(spec)
    return hash_of([plain, [file_hash(path) if path.is_file() else None for path in _files(plain)]])


def _files(plain: Any) -> Iterator[Path]:
    """The files among the settings: what is called `path`, or ends so."""
    if isinstance(plain, Mapping):
        for name, value in plain.items():
            if isinstance(value, str) and name.endswith("path"):
                yield Path(value).expanduser()
            else:
                yield from _files(value)
    elif isinstance(plain, list | tuple):
        for value in plain:
            yield from _files(value)


def given(row: Row) -> dict[str, Any]:
    """A row from outside with its name: the hash of its content."""
    plain = _plain(row)
    return {"_id": hash_of(plain), "_from": [], **plain}


def _plain(row: Row) -> dict[str, Any]:
    return {name: value for name, value in row.items() if not name.startswith("_")}


@lru_cache(maxsize=256)
def _code(kind: type) -> str:
    """The code of the file that a step is written in, and of all of ours that it reaches."""
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    return hash_of(code_of(Path(file).resolve())) if file else ""
