"""Progress: a bar on a terminal, plain lines elsewhere, and numbers that mean what they say."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from stillhouse.cli.progress import Bar, Lines, Rate, clock, progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def logs(loss: float, count: float = 100.0) -> dict[str, float]:
    return {"student/gradient_norm": 1.0, "student/count": count, "student/loss": loss}


def test_the_display_fits_the_output() -> None:
    assert isinstance(progress("tokens", io.StringIO()), Lines)
    assert isinstance(progress("tokens", Terminal()), Bar)


def test_lines_are_few_plain_and_complete() -> None:
    out = io.StringIO()
    lines = Lines("tokens", out, every=1000.0)
    for step in range(1, 101):
        lines.update("train", step, 100, logs(2.0), seconds=0.5 * step)
    lines.update("alone", 1, 10, logs(3.0), seconds=2.0)
    lines.close()
    assert out.getvalue().splitlines() == [
        "train 1/100  loss 2  50s left",
        "train 100/100  loss 2  200 tokens/s  took 50s",
        "alone 1/10  loss 3  18s left",
    ]


def test_lines_come_every_few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("stillhouse.cli.progress.time.monotonic", lambda: now[0])
    out = io.StringIO()
    lines = Lines("items", out, every=5.0)
    for step in range(1, 31):
        now[0] += 1.0
        lines.update("train", step, 100, logs(2.0), seconds=float(step))
    assert [line.split()[1] for line in out.getvalue().splitlines()] == [
        "1/100",
        "6/100",
        "11/100",
        "16/100",
        "21/100",
        "26/100",
    ]


def test_the_bar_shows_loss_speed_and_time_left() -> None:
    out = Terminal()
    bar = Bar("tokens", out)
    bar.rich.console._width = 120
    for step in range(1, 51):
        bar.update("train", step, 100, logs(2.5, count=400.0), seconds=0.1 * step)
    bar.rich.refresh()
    bar.close()
    shown = out.getvalue()
    for part in ("train", "50/100", "loss 2.5", "4,000 tokens/s", "5s left"):
        assert part in shown


def test_the_rate_is_of_the_last_steps_and_starts_anew_with_a_stage() -> None:
    rate = Rate("items")
    for step in range(100):
        rate.see("train", logs(1.0, count=1.0 if step < 50 else 50.0), seconds=float(step))
    assert str(rate) == "loss 1  50 items/s"
    rate.see("next", logs(7.0), seconds=0.0)
    assert str(rate) == "loss 7"
    rate.see("next", {}, seconds=1.0)
    assert str(rate) == "loss 7"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0s"), (59.4, "59s"), (59.6, "1m00s"), (185, "3m05s"), (7440, "2h04m"), (3599.7, "1h00m")],
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_what_is_run_is_said_once_or_not_at_all() -> None:
    out = io.StringIO()
    progress("items", out).begin("hinton, seed 0", Path("runs/x"))
    progress("items", out, announce=False).begin("hinton, seed 1", Path("runs/y"))
    assert out.getvalue() == "hinton, seed 0\nruns/x\n"
