"""How far a run is: a bar on a terminal, a plain line every few seconds elsewhere. Both go to standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TextIO


class Progress(Protocol):
    """What a run tells while it works."""

    def begin(self, what: str, folder: Path) -> None:
        """The run in `folder` starts, or goes on."""
        ...

    def update(self, stage: str, done: int, total: int, logs: Mapping[str, float], seconds: float) -> None:
        """`done` of `total` steps of a stage are finished, in `seconds` of work over all resumes."""
        ...

    def close(self) -> None:
        """Leave the terminal as it was."""
        ...


def progress(unit: str = "items", stream: TextIO | None = None, *, announce: bool = True) -> Progress:
    """The progress display that fits where the output goes.

    `unit` is what an update's count counts; `announce` says at the start what is run and in which folder.
    """
    out: TextIO = sys.stderr if stream is None else stream
    return Bar(unit, out, announce=announce) if out.isatty() else Lines(unit, out, announce=announce)


class Rate:
    """Items a second and the loss, smoothed over the last steps."""

    def __init__(self, unit: str):
        self.unit = unit
        self.stage = ""
        self.loss = float("nan")
        self.recent: list[tuple[float, float]] = []  # (seconds, items of that step)

    def see(self, stage: str, logs: Mapping[str, float], seconds: float) -> None:
        """Take one step into account."""
        if stage != self.stage:
            self.stage, self.loss, self.recent = stage, float("nan"), []
        loss = next((v for k, v in logs.items() if k.endswith("/loss")), None)
        if loss is not None:
            self.loss = loss if self.loss != self.loss else 0.9 * self.loss + 0.1 * loss
        items = next((v for k, v in logs.items() if k.endswith("/count")), 0.0)
        self.recent = [*self.recent[-49:], (seconds, items)]

    def __str__(self) -> str:
        parts = [f"loss {self.loss:.4g}"] if self.loss == self.loss else []
        taken = self.recent[-1][0] - self.recent[0][0] if len(self.recent) > 1 else 0.0
        items = sum(count for _, count in self.recent[1:])
        if taken > 0 and items:
            parts.append(f"{items / taken:,.0f} {self.unit}/s")
        return "  ".join(parts)


class _Display:
    """What the two displays share."""

    def __init__(self, unit: str, stream: TextIO, announce: bool):
        self.rate, self.stream, self.announce = Rate(unit), stream, announce

    def begin(self, what: str, folder: Path) -> None:
        """Say what is run and where."""
        if self.announce:
            print(f"{what}\n{folder}", file=self.stream, flush=True)

    def say(self, text: str) -> None:
        """One line between the updates."""
        print(text, file=self.stream, flush=True)


class Bar(_Display):
    """A bar with loss, speed and time left."""

    def __init__(self, unit: str, stream: TextIO, *, announce: bool = True):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as RichProgress

        super().__init__(unit, stream, announce)
        columns = (
            TextColumn("[bold]{task.description}"), BarColumn(bar_width=None), MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"), TextColumn("[cyan]{task.fields[left]}"),
        )  # fmt: skip
        self.rich = RichProgress(*columns, console=Console(file=stream), refresh_per_second=4)
        self.task: Any = None

    def update(self, stage: str, done: int, total: int, logs: Mapping[str, float], seconds: float) -> None:
        """Move the bar of `stage`."""
        if self.task is None or stage != self.rate.stage:
            self.rich.start()
            self.task = self.rich.add_task(stage, total=total, rate="", left="")
        self.rate.see(stage, logs, seconds)
        left = f"{clock(seconds / done * (total - done))} left" if done < total else clock(seconds)
        self.rich.update(self.task, completed=done, total=total, rate=str(self.rate), left=left)

    def say(self, text: str) -> None:
        """One line above the bar."""
        self.rich.console.print(text, highlight=False, markup=False)

    def close(self) -> None:
        """Stop drawing."""
        self.rich.stop()


class Lines(_Display):
    """A line at the first and the last step and every `every` seconds between, for logs and pipes."""

    def __init__(self, unit: str, stream: TextIO, *, every: float = 5.0, announce: bool = True):
        super().__init__(unit, stream, announce)
        self.every = every
        self.last = float("-inf")

    def update(self, stage: str, done: int, total: int, logs: Mapping[str, float], seconds: float) -> None:
        """Write a line if one is due."""
        new = stage != self.rate.stage
        self.rate.see(stage, logs, seconds)
        now = time.monotonic()
        if new or done == total or now - self.last >= self.every:
            self.last = now
            left = f"{clock(seconds / done * (total - done))} left" if done < total else f"took {clock(seconds)}"
            print(
                "  ".join(p for p in (f"{stage} {done}/{total}", str(self.rate), left) if p),
                file=self.stream,
                flush=True,
            )

    def close(self) -> None:
        """Nothing to put back."""


def clock(seconds: float) -> str:
    """`48s`, `3m05s` or `2h04m`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
