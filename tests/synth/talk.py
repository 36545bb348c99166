"""Rows of a test and a teacher that follows a function, and what every step that asks must keep to."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillhouse.core.recipe import Recipe
from stillhouse.core.run import Run
from stillhouse.core.signal import Completion
from stillhouse.synth.flow import Branch
from stillhouse.synth.synthesize import DataPlan, Synthesize, account_of, lost_rows, made_rows
from stillhouse.teachers.scripted import Scripted
from stillhouse.teachers.text import Ask, Lost

from .lab import go

Function = Callable[[Ask, random.Random], str | Completion | Lost]
FUNCTIONS: dict[str, Function] = {}


@dataclass(frozen=True, kw_only=True)
class Rows:
    """These rows."""

    given: Sequence[Mapping[str, Any]]

    def rows(self, run: Run) -> dict[str, list[Mapping[str, Any]]]:
        return {"train": list(self.given)}

    def load(self, run: Run) -> Mapping[str, Any]:
        return {}


@dataclass(frozen=True, kw_only=True)
class Follow:
    """A script by the name of a function."""

    name: str

    def build(self, run: Run) -> Function:
        return FUNCTIONS[self.name]


def teacher(function: Function) -> Scripted:
    name = getattr(function, "__qualname__", type(function).__name__)
    FUNCTIONS[name] = function
    return Scripted(script=Follow(name=name))


def plan(steps: Any, rows: Sequence[Mapping[str, Any]], **teachers: Any) -> Recipe:
    """A recipe that does one step, or several by name; teachers as functions or as specs."""
    known = {role: each if hasattr(each, "build") else teacher(each) for role, each in teachers.items()}
    stage = Synthesize(steps=steps if isinstance(steps, Mapping) else {"step": steps})
    return Recipe(id="plan", student=None, data=Rows(given=tuple(rows)), teachers=known, stages={"make": stage})


class Seen:
    """A function that remembers what it was asked."""

    def __init__(self, function: Function):
        self.function, self.asked = function, list[Ask]()

    def __call__(self, ask: Ask, rng: random.Random) -> str | Completion | Lost:
        self.asked.append(ask)
        return self.function(ask, rng)


@dataclass
class Outcome:
    run: Run
    rows: list[dict[str, Any]]
    lost: list[dict[str, Any]]
    paid: Mapping[str, Any]

    def column(self, name: str) -> list[Any]:
        return [row.get(name) for row in self.rows]

    def why(self) -> list[str]:
        return sorted(row["_why"] for row in self.lost)


def outcome(recipe: Recipe, folder: Path, seed: int = 0) -> Outcome:
    run = go(recipe, folder, seed)
    rows = [dict(row) for row in made_rows(run, "make")]
    return Outcome(run, rows, [dict(row) for row in lost_rows(run, "make")], account_of(run, "make")["teachers"])


def known(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """As a set, by name."""
    return sorted(rows, key=lambda row: (row.get("_id", ""), str(row)))


def stands(step: Any, rows: Sequence[Mapping[str, Any]], folder: Path, seed: int = 0, **teachers: Any) -> Outcome:
    """The outcome, once nothing depends on the rows' order, no row is no trouble, and no more is asked than was planned."""
    recipe, other = plan(step, rows, **teachers), plan(step, rows[::-1], **teachers)
    found, turned = outcome(recipe, folder / "a" / "run", seed), outcome(other, folder / "b" / "run", seed)
    assert known(found.rows) == known(turned.rows)
    assert known(found.lost) == known(turned.lost)
    needs = DataPlan.of(recipe).needs
    for role, paid in found.paid.items():
        assert paid["calls"] <= needs[role].calls
        assert paid["tokens"] <= needs[role].read + needs[role].wrote, (paid, needs[role])
    nobody = Branch(on="nothing", ways={"at all": {"step": step}})
    empty = outcome(plan({"branch": nobody}, rows, **teachers), folder / "c" / "run")
    assert len(empty.rows) == len({str(row) for row in rows}) and not any(paid["calls"] for paid in empty.paid.values())
    return found
