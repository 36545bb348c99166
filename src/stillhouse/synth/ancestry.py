"""Where a row comes from and where rows went: what the tables of a finished stage tell."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.run import RunError
from .synthesize import ACCOUNT, STEPS
from .table import Table

LEAST = 4  # letters of a row's name that say which one is meant, if no other begins with them


@dataclass(frozen=True)
class Passed:
    """A step that a row went through: what it set, or why it lost the row."""

    step: str
    columns: Mapping[str, Any]  # those that are new or changed
    lost: str | None = None
    numbers: Mapping[str, Any] = field(default_factory=dict[str, Any])  # what decided that it was lost


@dataclass(frozen=True)
class Ancestry:
    """A row, what happened to it, and the rows it was made of."""

    id: str
    steps: Sequence[Passed]
    parents: Sequence[Ancestry]


@dataclass
class _Past:
    """What the steps so far did to a row."""

    passed: list[Passed] = field(default_factory=list[Passed])
    parents: Sequence[str] = ()
    columns: Mapping[str, Any] = field(default_factory=dict[str, Any])  # as it was last


class Tables:
    """All tables of one stage, in the order in which they were made. `data` is the artifact's folder."""

    def __init__(self, data: Path):
        if not (data / STEPS).is_dir():
            raise RunError(f"{data} holds no steps: it is no stage that made data")
        self.data = data
        marks = sorted((data / STEPS).glob("*.json"))
        self.steps = [json.loads(mark.read_text(encoding="utf-8"))["step"] for mark in marks]
        self.made = [Table(mark.with_suffix(".parquet")) for mark in marks]
        self.lost = [Table(mark.with_suffix(".lost.parquet")) for mark in marks]

    def named(self, name: str) -> str:
        """The whole name of the row whose name begins so; RunError if none does, or several."""
        if len(name) < LEAST:
            raise RunError(f"give at least {LEAST} letters of a row's _id, not {name!r}")
        found = sorted({each for table in (*self.made, *self.lost) for each in table.beginning("_id", name)})
        if not found:
            raise RunError(f"no row has an _id that begins with {name!r} in any step of {self.data}")
        if len(found) > 1:
            raise RunError(f"{len(found)} rows have an _id that begins with {name!r}: {', '.join(found[:4])}, ...")
        return found[0]

    def explain(self, name: str) -> Ancestry:
        """What happened to a row, and to all rows that it comes from."""
        first = self.named(name)
        known, waiting = dict[str, _Past](), {first}
        while waiting:  # a generation after the other, so that every table is read once for each
            found = self._past(waiting)
            known |= found
            waiting = {parent for past in found.values() for parent in past.parents} - known.keys()
        made = dict[str, Ancestry]()

        def ancestry(id: str) -> Ancestry:
            if id not in made:
                made[id] = Ancestry(id, known[id].passed, [ancestry(parent) for parent in known[id].parents])
            return made[id]

        return ancestry(first)

    def _past(self, ids: Collection[str]) -> dict[str, _Past]:
        """What the steps did to these rows."""
        found = {id: _Past() for id in ids}
        for step, made, lost in zip(self.steps, self.made, self.lost, strict=True):
            for row in made.having("_id", ids):
                past = found[row["_id"]]
                past.parents = past.parents or list(row.get("_from", []))
                now = {k: v for k, v in row.items() if k not in ("_id", "_from")}
                gone = {k: None for k in past.columns if k not in now}
                changed = {k: v for k, v in now.items() if past.columns.get(k) != v} | gone
                if changed or not past.passed:
                    past.passed.append(Passed(step, changed))
                past.columns = now
            for row in lost.having("_id", ids):
                past = found[row["_id"]]
                past.parents = past.parents or list(row["_from"])
                columns = {k: v for k, v in row["row"].items() if not k.startswith("_") and past.columns.get(k) != v}
                past.passed.append(Passed(step, columns, row["_why"], row["numbers"]))
        return found


def lines(found: Ancestry, indent: str = "") -> Iterator[str]:
    """An ancestry as text, the row first and what it comes from below it."""
    yield f"{indent}row {found.id}"
    for passed in found.steps:
        told = ", ".join(f"{name}={_short(value)}" for name, value in passed.columns.items())
        if passed.lost is not None:
            numbers = ", ".join(f"{name}={_short(value)}" for name, value in passed.numbers.items())
            yield f"{indent}  lost in {passed.step}: {passed.lost}" + (f" ({numbers})" if numbers else "")
        yield f"{indent}  {passed.step}: {told}" if passed.lost is None else f"{indent}    as it was: {told or 'unchanged'}"
    for parent in found.parents:
        yield from lines(parent, f"{indent}    ")


def waterfall(data: Path) -> list[dict[str, Any]]:
    """For every step, in order: rows that went in, rows that came out, rows lost by reason."""
    return json.loads((data / ACCOUNT).read_text(encoding="utf-8"))["steps"]


def _short(value: Any, most: int = 120) -> str:
    text = " ".join(str(value).split()) if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def stages_of(run: Path) -> list[str]:
    """The finished stages of a run folder that made data."""
    return sorted(path.parent.parent.name for path in run.glob(f"artifacts/*/data/{ACCOUNT}"))


def opened(run: Path, stage: str | None) -> Tables:
    """The tables of a run's stage, of its only one if none is named; RunError if there is none."""
    if not (run / "artifacts").is_dir():
        raise RunError(f"{run} is not a run folder; give one that `stillhouse run` made")
    known = stages_of(run)
    if not known:
        raise RunError(f"no finished stage of {run} made data")
    if stage is None and len(known) > 1:
        raise RunError(f"several stages of {run} made data: name one with --stage ({', '.join(known)})")
    if stage is not None and stage not in known:
        raise RunError(f"no stage {stage!r} of {run} made data; there are {', '.join(known)}")
    return Tables(run / "artifacts" / (stage or known[0]) / "data")
