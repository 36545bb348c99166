"""The stage that makes data: steps one after the other over one table, each kept when it is done.

The artifact holds `rows.parquet` and `account.json`: for every step the rows that went in and came out and what was lost
for which reason, and for every teacher what it was paid. A stage that is stopped goes on in the step it was in; what
its teachers had answered by then is in `requests.sqlite` (`synth/calls.py`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..core.files import write_atomically
from ..core.recipe import Recipe
from ..core.run import Run, RunError
from ..core.stage import stop_requests
from .budget import Budget
from .calls import Calls
from .steps import Need, Row, Work, given, ids_hash, step_fingerprint

ROWS, ACCOUNT = "rows.parquet", "account.json"


@dataclass(frozen=True, kw_only=True)
class Synthesize:
    """Make rows from the rows of one split."""

    steps: Mapping[str, Any]  # name -> Step, in order
    data: Any = None  # a DataSpec with `rows(run)`; None: the recipe's
    split: str = "train"
    budgets: Mapping[str, Budget] = field(default_factory=dict[str, Budget])  # teacher -> what it may cost

    def __call__(self, run: Run) -> None:
        """Run the steps that are not done yet."""
        rows: Sequence[Row] = self.given(run)
        unknown = set(self.budgets) - set(run.teachers)
        if unknown:
            raise RunError(f"a budget for {sorted(unknown)[0]!r}, but the recipe's teachers are {', '.join(run.teachers)}")
        began, account = time.monotonic(), list[dict[str, Any]]()
        with stop_requests() as stop:
            calls = Calls(run, self.budgets, stop)
            try:
                for name, step in self.steps.items():
                    rows, told = self._step(name, step, rows, run, calls)
                    account.append(told)
                totals = calls.totals()
            finally:
                calls.close()
                run.work = None
        if not rows:
            reasons = "; ".join(dict.fromkeys(why for told in account for why in told["lost"])) or "no step yielded any"
            raise RunError(f"no row is left after the steps of stage {run.stage!r}: {reasons}")
        tokens = round(sum(each["tokens"] for each in totals.values()))
        facts = {"seconds": time.monotonic() - began, "rows": len(rows), "teacher_tokens": tokens}
        with run.artifact(run.stage, kind="rows", **facts) as folder:
            write_rows(folder / ROWS, rows)
            value = {"steps": account, "teachers": totals}
            (folder / ACCOUNT).write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")
        run.drop_checkpoints()

    def given(self, run: Run) -> list[Row]:
        """The rows that the first step gets; RunError if there are none."""
        rows: list[Row] = [given(row) for row in (self.data or run.recipe.data).rows(run)[self.split]]
        if not rows:
            raise RunError(f"the {self.split} split holds no row to make data from")
        return rows

    def _step(self, name: str, step: Any, rows: Sequence[Row], run: Run, calls: Calls) -> tuple[list[Row], dict[str, Any]]:
        """The rows that come out of one step, and its line of the account; read back if it was done before."""
        needs: Mapping[str, Need] = step.estimate(rows, run)
        fingerprint = step_fingerprint(step, {role: calls.teacher(role)[1] for role in needs})
        key = f"{name}_{fingerprint[:12]}_{ids_hash(rows)[:12]}_{run.seed}"
        place = run.folder / "state" / run.stage
        table, told = place / f"{key}.parquet", place / f"{key}.json"
        if told.exists():
            return read_made(table), json.loads(told.read_text(encoding="utf-8"))
        place.mkdir(parents=True, exist_ok=True)
        work = Work(run, name, fingerprint, calls, total=sum(n.calls for n in needs.values()), began=time.monotonic())
        run.work = work
        made: list[Row] = [dict(row) for row in step(rows, run)]
        twins = len(made) - len({row.get("_id") for row in made})
        if twins:
            raise RunError(f"step {name!r} yielded {twins} rows twice; make new rows with run.work.child")
        line = {"step": name, "given": len(rows), "made": len(made), "lost": dict(work.reasons)}
        write_rows(table, made)
        write_atomically(told, json.dumps(line, ensure_ascii=False))  # last: it says that the table is whole
        return read_made(table), line  # as a resumed run finds them


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """A table of rows as Parquet; RunError if a column holds values that do not go together."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = list(dict.fromkeys(name for row in rows for name in row))
    try:
        table = pa.table({name: [row.get(name) for row in rows] for name in names})
        part = path.with_suffix(".part")
        pq.write_table(table, part)
        part.replace(path)
    except (pa.ArrowException, OSError) as error:
        raise RunError(f"cannot write {path.name}: {str(error).splitlines()[0]}") from error


def read_made(path: Path) -> list[Row]:
    """The rows of a table that `write_rows` wrote; a column that a row did not have is left out of it."""
    import pyarrow.parquet as pq

    rows: list[Row] = [{k: v for k, v in row.items() if v is not None} for row in pq.read_table(path).to_pylist()]
    return rows


def made_rows(run: Run, stage: str) -> list[Row]:
    """The rows that stage `stage` of this run has made."""
    return read_made(run.path(stage) / ROWS)


def account_of(run: Run, stage: str) -> dict[str, Any]:
    """What its steps lost and what its teachers were paid."""
    return json.loads((run.path(stage) / ACCOUNT).read_text(encoding="utf-8"))


@dataclass(frozen=True)
class DataPlan:
    """What making data will ask teachers for, at most."""

    needs: Mapping[str, Need]
    money: Mapping[str, float]

    @staticmethod
    def knows(recipe: Recipe) -> bool:
        """Whether the recipe makes data."""
        return any(isinstance(stage, Synthesize) for stage in recipe.stages.values())

    @staticmethod
    def of(recipe: Recipe) -> DataPlan:
        """Reads the data; asks nobody."""
        needs: dict[str, Need] = {}
        with TemporaryDirectory() as folder:
            run = Run(Path(folder) / "plan", seed=recipe.seed)
            run.recipe = recipe
            for stage in recipe.stages.values():
                if isinstance(stage, Synthesize):
                    rows: Sequence[Row] = stage.given(run)
                    for step in stage.steps.values():
                        for role, need in step.estimate(rows, run).items():
                            needs[role] = needs.get(role, Need(0, 0, 0)) + need
                        rows = step.sketch(rows, run)
        prices = {role: getattr(recipe.teachers.get(role), "price", None) for role in needs}
        money = {role: price.of(needs[role].read, needs[role].wrote) for role, price in prices.items() if price is not None}
        return DataPlan(needs, money)

    def __str__(self) -> str:
        lines: list[str] = []
        for role, need in self.needs.items():
            cost = f", about {self.money[role]:,.2f} in money" if self.money.get(role) else ""
            lines.append(
                f"{role}: at most {need.calls:,} calls, about {need.read:,} tokens to read and at most "
                f"{need.wrote:,} to write{cost}; answers that are kept already cost nothing"
            )
        return "\n".join(lines)
