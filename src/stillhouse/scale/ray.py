"""Steps that look at one row at a time, on a Ray cluster.

    make: {use: synth.synthesize.Synthesize, workers: {use: scale.ray.OnRay, address: "ray://head:10001"}, steps: ...}

Rows leave a table in pieces, each piece is a task, and what the tasks say is written down in the order of the rows: names
and chance depend on what is in a row, so the tables are the same to the byte as without a cluster. Steps that compare
rows, and those that ask teachers, stay in the one process that holds the budget and the calls, where hundreds of
requests are under way at a time anyway.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..cli.door import packages_of, spec
from ..core.recipe import to_plain
from ..core.run import Run, RunError
from ..synth.steps import New, Work
from ..synth.table import Piece, Row, Table

INSTALL = "pip install 'stillhouse[ray]'"
AHEAD = 2  # tasks under way or finished, for every one that can run

Said = tuple[dict[str, Any], bool, str | None, Mapping[str, Any]]  # a row, is it new, why it is lost if it is, numbers


@dataclass(frozen=True, kw_only=True)
class OnRay:
    """A cluster, or the cores of this machine if there is no address.

    Files that a step reads must be where all nodes find them: on a shared disk, or in what `runtime_env` sends there.
    """

    address: str | None = None  # "auto", "ray://host:10001"; None: what RAY_ADDRESS says, else this machine
    rows: int = 4096  # in a task
    cores: float = 1.0  # of a task
    runtime_env: Mapping[str, Any] = field(default_factory=dict[str, Any])  # as Ray takes it: working_dir, pip, env_vars

    def __post_init__(self) -> None:
        if self.rows < 1 or self.cores <= 0:
            raise ValueError("rows must be 1 or more, and cores above 0")

    def check(self, run: Run) -> None:
        """RunError if Ray is not installed, or there is no such cluster."""
        self._ray()

    def through(self, step: Any, rows: Table, run: Run) -> Iterator[Row]:
        """What the step makes of the rows, in order; those that it loses are lost to `run.work`."""
        ray, work = self._ray(), run.work
        job = Job(
            to_plain(step),
            frozenset(packages_of(step)),
            tuple(rows.columns),
            run.seed,
            run.stage,
            work.name,
            work.fingerprint,
        )
        task = ray.remote(num_cpus=self.cores, max_retries=3)(_worked)
        most = max(2, int(AHEAD * ray.cluster_resources().get("CPU", 1) / self.cores))
        waiting: deque[Any] = deque()
        try:
            every = iter(rows)
            while piece := [dict(row) for row in islice(every, self.rows)]:
                waiting.append(task.remote(job, piece))
                if len(waiting) >= most:
                    yield from _told(self._found(waiting.popleft(), work), work)
            while waiting:
                yield from _told(self._found(waiting.popleft(), work), work)
        finally:
            for each in waiting:  # of a run that was stopped
                ray.cancel(each, force=True)

    def _found(self, waiting: Any, work: Work) -> Sequence[Said]:
        ray = self._ray()
        try:
            return ray.get(waiting)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, RunError):
                raise RunError(str(error.cause)) from error
            raise
        except ray.exceptions.RayError as error:
            why = str(error).splitlines()[0]
            raise RunError(
                f"the cluster lost a part of step {work.name!r} ({why}); what is done is kept, run it again"
            ) from error

    def _ray(self) -> Any:  # untyped: checkers do not see what its modules bring in
        """Ray, connected."""
        os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # or all pieces behind one that failed print what they did
        try:
            ray: Any = import_module("ray")
        except ImportError as error:
            raise RunError(f"a plan on a cluster needs ray: {INSTALL}, or leave `workers` out") from error
        if not ray.is_initialized():
            try:
                ray.init(
                    address=self.address, runtime_env=dict(self.runtime_env) or None, include_dashboard=False,
                    log_to_driver=False, logging_level="error",
                )  # fmt: skip
            except (ConnectionError, RuntimeError, ValueError) as error:
                where = self.address or "RAY_ADDRESS"
                why = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise RunError(f"no Ray cluster at {where} ({why}); start one, or leave `address` out") from error
        return ray


@dataclass(frozen=True)
class Job:
    """A step and what its chance depends on."""

    step: Any  # as in a recipe
    packages: frozenset[str]  # that its classes are from
    columns: Sequence[str]  # of the table that the rows are from
    seed: int
    stage: str
    name: str
    fingerprint: str


def _worked(job: Job, rows: Sequence[Row]) -> list[Said]:
    """On a node: what the step says of these rows, in the order in which it says it."""
    with TemporaryDirectory() as folder:
        run = Run(Path(folder) / "run", seed=job.seed)
        run.stage = job.stage
        work = _Noting(run, job.name, job.fingerprint, None)  # type: ignore[arg-type]  it asks nobody
        run.work = work
        step = spec(job.step, allow=job.packages)
        for row in step(Piece(rows, job.columns), run):
            work.said.append((dict(row), isinstance(row, New), None, {}))
        return work.said


def _told(said: Iterable[Said], work: Work) -> Iterator[Row]:
    for row, new, why, numbers in said:
        if why is None:
            yield New(row) if new else row
        else:
            work.lose(row, why, **numbers)


@dataclass
class _Noting(Work):
    """Keeps what a step loses beside what it yields."""

    said: list[Said] = field(default_factory=list[Said])

    def lose(self, row: Row, why: str, **numbers: Any) -> None:
        self.said.append((dict(row), False, why, numbers))
