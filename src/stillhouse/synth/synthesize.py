"""The stage that makes data: steps one after the other over one table, each kept when it is done.

The artifact holds `rows.parquet`, the last table; `account.json`: for every step the rows that went in and came out and
what was lost for which reason, and for every teacher what it was paid; and in `steps/` the tables of every step, its rows
and those that it lost. A stage that is stopped goes on in the step it was in; what its teachers had answered by then is in
`requests.sqlite` (`synth/calls.py`). A step that a run in the same folder has done with the same rows, settings, code,
teachers and seed is not done again.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from .. import __version__
from ..core.files import file_hash, write_atomically
from ..core.recipe import Recipe
from ..core.run import Interrupted, Run, RunError
from ..core.stage import stop_requests
from .budget import Budget
from .calls import Calls
from .flow import estimated
from .steps import Need, New, Work, given, roles_of, settings_print, step_fingerprint
from .table import Row, Table, Writing, hash_of, settled, write

ROWS, ACCOUNT, STEPS = "rows.parquet", "account.json", "steps"


@dataclass(frozen=True, kw_only=True)
class Synthesize:
    """Make rows from the rows of one split."""

    steps: Mapping[str, Any]  # name -> Step, in order; one that is null is left out
    data: Any = None  # a DataSpec with `rows(run)`; None: the recipe's
    split: str = "train"
    budgets: Mapping[str, Budget] = field(default_factory=dict[str, Budget])  # teacher -> what it may cost
    workers: Any = None  # scale.ray.OnRay: where steps work that look at one row at a time; None: here

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", {name: step for name, step in self.steps.items() if step is not None})

    def __call__(self, run: Run) -> None:
        """Do the steps that are not done yet."""
        self.check(run)
        began = time.monotonic()
        with stop_requests() as stop:
            calls = Calls(run, self.budgets, stop)
            try:
                making = Making(run, calls, stop, self.workers)
                rows = making.through("", self.steps, making.given(self.source(run)))
                totals = calls.totals()
            finally:
                calls.close()
                run.work = None
        if not rows:
            reasons = "; ".join(dict.fromkeys(why for told in making.account for why in told["lost"]))
            raise RunError(f"no row is left after the steps of stage {run.stage!r}: {reasons or 'no step yielded any'}")
        tokens = round(sum(each["tokens"] for each in totals.values()))
        facts = {"seconds": time.monotonic() - began, "rows": len(rows), "teacher_tokens": tokens}
        with run.artifact(run.stage, kind="rows", **facts) as folder:
            making.keep(folder / STEPS)
            _same(rows.path, folder / ROWS)
            value = {"steps": making.account, "teachers": totals}
            (folder / ACCOUNT).write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")
        run.drop_checkpoints()

    def source(self, run: Run) -> Iterable[Row]:
        """The rows from outside; a spec that can `stream(run, split)` need not hold them."""
        spec = self.data or run.recipe.data
        return spec.stream(run, self.split) if hasattr(spec, "stream") else spec.rows(run)[self.split]

    def check(self, run: Run) -> None:
        """RunError if a teacher is missing or cannot give what a step needs of it; asks nobody."""
        unknown = set(self.budgets) - set(run.teachers)
        if unknown:
            raise RunError(f"a budget for {sorted(unknown)[0]!r}, but the recipe's teachers are {', '.join(run.teachers)}")
        if self.workers is not None:
            self.workers.check(run)
        for name, step in every(self.steps):
            if hasattr(step, "check"):
                step.check(run)
            for role in roles_of(step, run.teachers) if step.needs else ():
                if role not in run.teachers:
                    known = ", ".join(run.teachers) or "none"
                    raise RunError(f"step {name!r} asks the teacher {role!r}, but the recipe's teachers are {known}")
                lacking = step.needs - run.teachers[role].gives
                if lacking:
                    raise RunError(
                        f"step {name!r} needs {', '.join(sorted(lacking))} of the teacher {role!r}, which gives "
                        f"{', '.join(sorted(run.teachers[role].gives))}; give another teacher or leave the step out"
                    )


def every(steps: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """All steps by name, those within steps too."""
    for name, step in steps.items():
        yield above + name, step
        for inner, more in getattr(step, "parts", dict[str, Any]()).items():
            yield from every(more, f"{above}{name}/{inner}/")


class Making:
    """Steps under way: each one's rows, and those that it lost, are tables in the run's state, written once."""

    def __init__(self, run: Run, calls: Calls, stop: threading.Event, workers: Any = None):
        self.run, self.calls, self.stop, self.workers = run, calls, stop, workers
        self.place = run.folder / "state" / run.stage
        self.account: list[dict[str, Any]] = []  # one line a step, in the order in which they ended
        self.kept: list[Path] = []  # their marks; tables lie beside them

    def given(self, rows: Iterable[Row]) -> Table:
        """Rows from outside as the first table; one that was there before is lost."""
        table = self._made("given", hash_of(["given", self.run.seed]), lambda work: map(given, rows), drop_twins=True)
        if not table:
            raise RunError(f"there is no row to make data from in stage {self.run.stage!r}")
        return table

    def through(self, above: str, steps: Mapping[str, Any], rows: Table) -> Table:
        """The rows after steps, one after the other."""
        for name, step in steps.items():
            rows = self._step(above + name, step, rows)
        return rows

    def keep(self, folder: Path) -> None:
        """All tables, in their order."""
        folder.mkdir(parents=True)
        for number, mark in enumerate(self.kept):
            for ending in (".json", ".parquet", ".lost.parquet"):
                _same(mark.with_suffix(ending), folder / f"{number:03d}_{mark.stem}{ending}")

    def _within(self, above: str, steps: Mapping[str, Any], rows: Iterable[Row]) -> Table:
        outer = self.run.work
        try:
            if not isinstance(rows, Table):
                place = self.place / f"{_plain_name(above)}.parquet"
                rows = write(place, rows)
            return self.through(f"{above}/", steps, rows)
        finally:
            self.run.work = outer

    def _step(self, name: str, step: Any, rows: Table) -> Table:
        run = self.run
        needs: Mapping[str, Need] = step.estimate(rows, run)
        fingerprint = step_fingerprint(step, {role: self.calls.teacher(role)[1] for role in needs})
        beside = settings_print(run.recipe.data)  # a step may look at other splits than the one that its rows are from
        key = hash_of([name, fingerprint, beside, _digest(rows.path), run.stage, run.seed, __version__])

        def made(work: Work) -> Iterator[Row]:
            work.fingerprint, work.total = fingerprint, sum(need.calls for need in needs.values())
            if self.workers is not None and getattr(step, "row_by_row", False):
                return self.workers.through(step, rows, run)
            return step(rows, run)

        return self._made(name, key, made, into=len(rows))

    def _made(
        self, name: str, key: str, make: Callable[[Work], Iterable[Row]], into: int | None = None, drop_twins: bool = False
    ) -> Table:
        """The table of one step, read back if this run or one beside it has made it before."""
        run = self.run
        mark = self.place / f"{_plain_name(name)}_{key[:16]}.json"
        if not mark.exists() and into is not None:
            self._borrow(mark)
        if not mark.exists():
            before = len(self.kept)
            work = Work(run, name, "", self.calls, self._within, began=time.monotonic())
            run.work = work
            work.lost = lost = Writing(mark.with_suffix(".lost.parquet"))
            out = Writing(mark.with_suffix(".parquet"))
            twins = 0

            def twin(row: Row, new: bool, before: int) -> Row | None:
                nonlocal twins
                if new:
                    return {**row, "_id": hash_of([row["_id"], before])}
                twins += 1
                work.lose(row, "the same row is there already")
                return None

            try:
                for row in make(work):
                    out.add(row, isinstance(row, New))
                    if self.stop.is_set():
                        raise Interrupted(f"stopped in stage {run.stage!r}; go on with: stillhouse run {run.folder}")
                count = out.count
                table, digest = settled(out, twin)
                lost.close()
            except BaseException:
                out.drop()
                lost.drop()
                raise
            if twins and not drop_twins:
                raise RunError(f"step {name!r} yielded {twins} rows twice; make new rows with run.work.child")
            line = {"step": name, "given": count if into is None else into, "made": len(table), "lost": dict(work.reasons)}
            line["within"] = [inner.name for inner in self.kept[before:]]  # marks of the steps that it consists of
            write_atomically(mark, json.dumps({**line, "digest": digest}, ensure_ascii=False))  # last: the tables are whole
        else:
            for inner in _told(mark).get("within", ()):
                self._keep(self.place / inner)
        self._keep(mark)
        return Table(mark.with_suffix(".parquet"))

    def _keep(self, mark: Path) -> None:
        told = _told(mark)
        self.account.append({name: told[name] for name in ("step", "given", "made", "lost")})
        self.kept.append(mark)

    def _borrow(self, mark: Path) -> None:
        """Take over what a finished stage of a run in the same folder has made in this step of these rows."""
        pattern = f"*/artifacts/*/data/{STEPS}/*_{mark.name}"
        for found in sorted(self.run.folder.parent.glob(pattern)):
            try:
                for inner in _told(found).get("within", ()):
                    (there,) = found.parent.glob(f"*_{inner}")
                    self._take(there, self.place / inner)
                self._take(found, mark)
            except (OSError, ValueError):
                continue
            return

    def _take(self, found: Path, mark: Path) -> None:
        for ending in (".parquet", ".lost.parquet", ".json"):
            _same(found.with_suffix(ending), mark.with_suffix(ending))


def _told(mark: Path) -> dict[str, Any]:
    return json.loads(mark.read_text(encoding="utf-8"))


def _plain_name(name: str) -> str:
    """The name of a step as that of a file."""
    return re.sub(r"[^\w.-]+", ".", name)


def _digest(table: Path) -> str:
    mark = table.with_suffix(".json")
    if mark.exists():
        return _told(mark)["digest"]
    return file_hash(table)


def _same(one: Path, other: Path) -> None:
    """The same file under another name too; a copy where the disk knows no such thing."""
    other.parent.mkdir(parents=True, exist_ok=True)
    other.unlink(missing_ok=True)
    try:
        os.link(one, other)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(one, other)


def made_rows(run: Run, stage: str) -> Table:
    """The rows that stage `stage` of this run has made."""
    return Table(run.path(stage) / ROWS)


def lost_rows(run: Run, stage: str) -> Iterator[Row]:
    """What its steps lost: `row` as it was, `_why`, the `numbers` that decided it, and the step's name as `_step`."""
    folder = run.path(stage) / STEPS
    for mark in sorted(folder.glob("*.json")):
        step = json.loads(mark.read_text(encoding="utf-8"))["step"]
        for row in Table(mark.with_suffix(".lost.parquet")):
            yield {**row, "_step": step}


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
                    rows = write(run.folder / "given.parquet", map(given, stage.source(run)))
                    for role, need in estimated(stage.steps, rows, run)[0].items():
                        needs[role] = needs.get(role, Need(0, 0, 0)) + need
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
