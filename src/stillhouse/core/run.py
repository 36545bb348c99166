"""One execution and its folder: seeds, artifacts with done-marks, metrics, events, rejects.

    recipe.yaml  environment.json  metrics.jsonl  events.jsonl  rejects.jsonl
    state/STAGE/step_N.pt          what a killed stage resumes from
    artifacts/NAME/{data/, done.json}

`metrics.jsonl` holds only what is the same whenever the run is repeated; times and machines go to `events.jsonl`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .files import content_hash, file_hash, read_lines, write_atomically
from .teacher import Teacher


class RunError(RuntimeError):
    """The run folder cannot be used as asked; the message says what to do."""


class Interrupted(RunError):
    """The user asked to stop; the run can be resumed."""


def seed_of(*key: object) -> int:
    """A 63-bit seed from any key: what is drawn depends on what it is for, never on the order of drawing."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "big") >> 1


def best_device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")  # type: ignore[return-value]


@dataclass
class Run:
    """The folder of one execution and everything that a stage may ask for."""

    folder: Path
    seed: int = 0
    device: torch.device = field(default_factory=best_device)
    horizon: int = 1  # planned optimizer steps of the current stage; does not move on a resume
    step: int = 0  # the current optimizer step
    stage: str = ""
    teachers: Mapping[str, Teacher] = field(default_factory=dict[str, Teacher])
    progress: Any = None  # something with .update(stage, done, total, logs, seconds), or None
    recipe: Any = None  # the Recipe, once `execute` has begun
    source: Any = None  # the training split of the current stage
    work: Any = None  # what a stage that makes data lends to its step, see synth/steps.py
    _sources: dict[int, tuple[Any, Mapping[str, Any]]] = field(default_factory=dict[int, tuple[Any, Mapping[str, Any]]])
    _rejected: set[int] | None = None

    def __post_init__(self) -> None:
        try:
            for part in ("state", "artifacts"):
                (self.folder / part).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            why = f"cannot write to {self.folder}: {error.strerror}; choose another folder with --runs"
            raise RunError(why) from error

    @property
    def teacher(self) -> Teacher:
        """The only teacher; an error that names them if there are several or none."""
        if len(self.teachers) != 1:
            raise LookupError(f"run.teacher needs exactly one teacher; there are {sorted(self.teachers) or 'none'}")
        return next(iter(self.teachers.values()))

    def sources(self, spec: Any = None) -> Mapping[str, Any]:
        """The splits of a data spec (the recipe's if None), loaded once."""
        spec = self.recipe.data if spec is None else spec
        if id(spec) not in self._sources:
            self._sources[id(spec)] = (spec, spec.load(self))
        return self._sources[id(spec)][1]

    def rng(self, *key: object) -> torch.Generator:
        """A fresh CPU generator for this key at this step; asking twice gives the same numbers twice."""
        return torch.Generator().manual_seed(seed_of(self.seed, *key, self.step))

    # -- numbers -------------------------------------------------------------------------------------------------

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Append one line to `metrics.jsonl`: reproducible numbers only."""
        self._append("metrics.jsonl", {"stage": self.stage, "step": step, **numbers})

    def event(self, kind: str, **facts: Any) -> None:
        """Append one line to `events.jsonl`: anything with a time, a machine or a reason."""
        self._append("events.jsonl", {"time": time.time(), "stage": self.stage, "event": kind, **facts})

    def reject(self, row: Mapping[str, Any], why: str) -> None:
        """Keep a lost row with its reason, once: data are read again by every stage and after a resume."""
        if self._rejected is None:
            self._rejected = {_row_key(r["why"], r["row"]) for r in self.read("rejects.jsonl")}
        key = _row_key(why, dict(row))
        if key not in self._rejected:
            self._rejected.add(key)
            self._append("rejects.jsonl", {"stage": self.stage, "why": why, "row": dict(row)})

    def _append(self, name: str, line: Mapping[str, Any]) -> None:
        with (self.folder / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")

    def read(self, name: str) -> list[dict[str, Any]]:
        """The lines of a JSONL file of the run; a last line that a kill cut short is left out."""
        return read_lines(self.folder / name)

    def forget_metrics(self, stage: str, start: int) -> None:
        """Drop what a killed run logged for `stage` at or after step `start`: it will be logged again."""
        kept = [m for m in self.read("metrics.jsonl") if m["stage"] != stage or m["step"] < start]
        write_atomically(self.folder / "metrics.jsonl", "".join(json.dumps(m, ensure_ascii=False) + "\n" for m in kept))

    # -- artifacts -----------------------------------------------------------------------------------------------

    def path(self, name: str) -> Path:
        """The data of a finished artifact; RunError if there is none."""
        if not self.done(name):
            raise RunError(f"this run has no finished artifact {name!r}; there are {', '.join(self.names()) or 'none'}")
        return self.folder / "artifacts" / name / "data"

    def names(self) -> list[str]:
        """The finished artifacts."""
        return sorted(p.parent.name for p in (self.folder / "artifacts").glob("*/done.json"))

    def done(self, name: str) -> dict[str, Any] | None:
        """The done-mark of an artifact, or None."""
        mark = self.folder / "artifacts" / name / "done.json"
        return json.loads(mark.read_text(encoding="utf-8")) if mark.exists() else None

    @contextmanager
    def artifact(self, name: str, **facts: Any) -> Generator[Path]:
        """A folder to write an artifact into; marked done, with the hash of its content, when the block ends well."""
        folder = self.folder / "artifacts" / name
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "data").mkdir(parents=True)
        yield folder / "data"
        mark = {"name": name, "content": content_hash(folder / "data"), **facts}
        write_atomically(folder / "done.json", json.dumps(mark, indent=1, default=str))

    def save_json(self, name: str, value: Any, **facts: Any) -> None:
        """An artifact that is one JSON value."""
        with self.artifact(name, **facts) as folder:
            (folder / "value.json").write_text(json.dumps(value, indent=1, default=str), encoding="utf-8")

    def load_json(self, name: str) -> Any:
        """The value of an artifact written by `save_json`."""
        return json.loads((self.path(name) / "value.json").read_text(encoding="utf-8"))

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def checkpoint(self, step: int, value: Mapping[str, Any]) -> None:
        """Save what stage `self.stage` needs to go on from `step`; the previous one goes only when this one is safe."""
        folder = self.folder / "state" / self.stage
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / f"step_{step:08d}.pt"
        part = target.with_suffix(".part")
        with part.open("wb") as file:
            torch.save(dict(value), file)
            file.flush()
            os.fsync(file.fileno())
        digest = file_hash(part)
        os.replace(part, target)
        write_atomically(target.with_suffix(".json"), json.dumps({"step": step, "sha256": digest}))
        for old in sorted(folder.glob("step_*.json"))[:-1]:
            old.unlink()
            old.with_suffix(".pt").unlink(missing_ok=True)

    def restore(self) -> tuple[int, dict[str, Any]] | None:
        """(step, value) of the newest checkpoint of stage `self.stage`; RunError if it was damaged."""
        marks = sorted((self.folder / "state" / self.stage).glob("step_*.json"))
        if not marks:
            return None
        path = marks[-1].with_suffix(".pt")
        try:
            mark = json.loads(marks[-1].read_text(encoding="utf-8"))
            step: int | None = mark["step"] if file_hash(path) == mark["sha256"] else None
        except (OSError, ValueError, KeyError):
            step = None
        if step is None:
            raise RunError(f"the checkpoint {path} is damaged; delete {path.parent} to start this stage again")
        return step, torch.load(path, map_location=self.device, weights_only=True)

    def drop_checkpoints(self) -> None:
        """The stage is done; its checkpoints are no longer needed."""
        shutil.rmtree(self.folder / "state" / self.stage, ignore_errors=True)


def _row_key(why: str, row: Mapping[str, Any]) -> int:
    return seed_of(why, json.dumps(row, sort_keys=True, default=str))
