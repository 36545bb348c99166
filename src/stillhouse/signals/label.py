"""Asking a teacher about every document or image once, and keeping what it says: the stage `Label`."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ..core.engine import to_device
from ..core.files import file_hash
from ..core.recipe import to_plain
from ..core.run import Interrupted, Run, RunError
from ..core.signal import Batch, Signal
from ..core.stage import stop_requests
from . import formats
from .fidelity import measure
from .items import take
from .keys import places_of
from .reader import StoredTeacher
from .store import Store, Writer
from .tokenizers import classes_of, tokenizer_hash
from .topk import KeptTopK


def sample(count: int) -> list[int]:
    """Which of so many batches the finished signals are compared with the live teacher on: one in twenty, at most eight."""
    some = min(8, max(1, count // 20))
    return [i * count // some for i in range(some)]


@dataclass(frozen=True, kw_only=True)
class Label:
    """Keep a teacher's signals for the splits of the data; the artifact is a folder of them, see `signals.store`.

    A killed capture goes on where it stopped, and leaves the same bytes as one that was not.
    """

    format: Any = KeptTopK()  # a signals format
    teacher: Any = None  # a teacher's spec; None: the recipe's only teacher
    data: Any = None  # DataSpec; None: the recipe's
    splits: tuple[str, ...] = ("train", "valid", "test")
    draws: int = 1  # epochs whose augmentation draws are labelled, of the training split
    batch: int = 4  # rows (images) at a time
    to: str | None = None  # a folder outside the run that the signals go to
    kind: ClassVar[str] = "signals"

    def __call__(self, run: Run) -> None:
        """Capture what is missing, compare a sample with the live teacher, leave the end mark."""
        teacher = run.teacher if self.teacher is None else self.teacher.build(run)
        missing = self.format.ask() - teacher.gives
        if missing == self.format.ask():
            raise RunError(
                f"signals of the format {self.format.name} need {' or '.join(sorted(missing))}, and the teacher gives "
                f"{', '.join(sorted(teacher.gives))}"
            )
        folder = Path(self.to) if self.to is not None else run.folder / "state" / run.stage
        began = time.monotonic()
        with stop_requests() as stop:
            self._capture(folder, teacher, run, stop)
        stored = StoredTeacher(Store(folder))
        asked = list(self._batches(run))
        found = measure(stored, teacher, (self._batch(run, *asked[i]) for i in sample(len(asked))), run.device)
        with Writer(folder, stored.store.header) as writer:
            writer.finish({"fidelity": found})
        sources = run.sources(self.data)
        read = sum(getattr(sources[s], "tokens", 0) * (self.draws if s == "train" else 1) for s in self.splits)
        facts = {"seconds": time.monotonic() - began, "teacher_tokens": read, "bytes": stored.store.bytes}
        with run.artifact(run.stage, kind=self.kind, **facts) as place:
            if self.to is None:
                shutil.copytree(folder, place, dirs_exist_ok=True, ignore=shutil.ignore_patterns("lock"))
            else:
                (place / "where.txt").write_text(str(folder.resolve()) + "\n", encoding="utf-8")
        run.drop_checkpoints()

    def _batches(self, run: Run) -> Iterator[tuple[str, int, int]]:
        """(split, epoch, first item) of every batch."""
        sources = run.sources(self.data)
        for split in self.splits:
            for epoch in range(self.draws if split == "train" else 1):
                yield from ((split, epoch, begin) for begin in range(0, len(sources[split]), self.batch))

    def _batch(self, run: Run, split: str, epoch: int, begin: int) -> Batch:
        source = run.sources(self.data)[split]
        return source.batch(range(begin, min(begin + self.batch, len(source))), epoch)

    def _capture(self, folder: Path, teacher: Any, run: Run, stop: Any) -> None:
        jobs = list(self._batches(run))
        if not jobs:
            raise RunError("there is nothing to label: the data are empty")
        writer: Writer | None = None
        seconds = 0.0
        try:
            for number, job in enumerate(jobs):
                began = time.monotonic()
                batch = to_device(self._batch(run, *job), run.device)
                places = places_of(batch)
                known = writer.known if writer is not None else set[bytes]()
                first = {key: i for i, key in reversed(list(enumerate(places.keys)))}
                new = [i for i, key in enumerate(places.keys) if key not in known and first[key] == i]
                if new or writer is None:
                    said: Signal = teacher(batch, self.format.ask() & teacher.gives)
                    if writer is None:
                        writer = self._begin(folder, teacher, take(said, places), run)
                        new = [i for i in new if places.keys[i] not in writer.known]
                    chosen = places.some(new)
                    items = take(said, chosen)
                    blobs = self.format.encode(items, chosen.counts, chosen.keys, writer.header["facts"]) if new else []
                    writer.append(chosen.keys, chosen.counts, blobs)
                seconds += time.monotonic() - began
                if run.progress is not None:
                    logs = {"label/count": float(sum(places.counts))}
                    run.progress.update(run.stage, number + 1, len(jobs), logs, seconds)
                if stop.is_set() and number + 1 < len(jobs):
                    raise Interrupted(
                        f"stopped after {number + 1} of {len(jobs)} batches; go on with: stillhouse run {run.folder}"
                    )
            assert writer is not None
            writer.finish({})
        finally:
            if writer is not None:
                writer.close()

    def _begin(self, folder: Path, teacher: Any, items: Signal, run: Run) -> Writer:
        """Open the folder; a folder of other signals is refused."""
        tokenizer = run.recipe.student.tokenizer(run) if hasattr(run.recipe.student, "tokenizer") else None
        facts = self.format.facts(items, None if tokenizer is None else classes_of(tokenizer))
        data = self.data or run.recipe.data
        told: dict[str, Any] = {"spec": to_plain(data), "splits": list(self.splits), "draws": self.draws}
        path = getattr(data, "path", None)
        if path is not None and Path(path).is_file():
            told["sha256"] = file_hash(Path(path))
        teacher = dict(teacher.identity())
        header = {
            "version": 1,
            "name": teacher.pop("name", ""),
            "format": formats.plain(self.format),
            "facts": facts,
            "teacher": teacher,
            "tokenizer": None if tokenizer is None else tokenizer_hash(tokenizer),
            "data": told,
        }
        writer = Writer(folder, header)
        self.format.prepare(items, folder)
        return writer
