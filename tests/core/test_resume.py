"""A run that was killed, stopped or broken goes on to the same bits."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from stillhouse.core.engine import EngineError
from stillhouse.core.method import State, Update
from stillhouse.core.run import Interrupted, Run, RunError
from stillhouse.core.signal import Batch
from stillhouse.core.stage import execute

from . import lab


def interrupted_process(folder: Path, name: str, number: signal.Signals) -> tuple[int, str, int]:
    """Start a run in a process of its own and send it a signal at a random step; (exit code, output, that step)."""
    command = [sys.executable, lab.__file__, str(folder), name]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    at = random.randrange(2, lab.STEPS - 6)
    metrics = folder / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if metrics.exists() and metrics.read_text().count('"stage": "train"') >= at:
            process.send_signal(number)
            break
        time.sleep(0.002)
    output, _ = process.communicate(timeout=60)
    return process.returncode, output, at


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[bytes, str]]:
    folder = tmp_path_factory.mktemp("straight")
    return {name: lab.outcome(lab.start(folder / name, lab.RECIPES[name])) for name in ("float32", "bfloat16")}


def test_killed_and_resumed_is_straight(tmp_path: Path, straight: dict[str, tuple[bytes, str]]):
    code, _, at = interrupted_process(tmp_path / "run", "float32", signal.SIGKILL)
    assert code == -signal.SIGKILL
    run = Run(tmp_path / "run", device=torch.device("cpu"))
    assert run.done("first") and not run.done("train")
    resumed = lab.start(tmp_path / "run", lab.RECIPES["float32"])
    assert lab.outcome(resumed) == straight["float32"], f"killed at step {at}"
    assert not (tmp_path / "run" / "state" / "train").exists()


def test_ctrl_c_leaves_a_run_that_goes_on(tmp_path: Path, straight: dict[str, tuple[bytes, str]]):
    code, output, at = interrupted_process(tmp_path / "run", "float32", signal.SIGINT)
    assert code == 130
    assert f"of {lab.STEPS}; go on with: stillhouse run {tmp_path / 'run'}" in output
    resumed = lab.start(tmp_path / "run", lab.RECIPES["float32"])
    assert lab.outcome(resumed) == straight["float32"], f"stopped near step {at}"
    events = resumed.read("events.jsonl")
    assert [e["step"] for e in events if e["event"] == "resumed"][0] >= at - 1


class StopAt:
    """A progress bar that asks to stop, as Ctrl-C would, at one step."""

    def __init__(self, step: int):
        self.step = step

    def update(self, stage: str, done: int, total: int, logs: object, seconds: float) -> None:
        if stage == "train" and done == self.step:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(("step", "name"), [
    (1, "float32"), (7, "float32"), (lab.STEPS, "float32"), (7, "bfloat16"),
])  # fmt: skip
def test_stopping_anywhere_changes_nothing(tmp_path: Path, straight: dict[str, tuple[bytes, str]], step: int, name: str):
    run = Run(tmp_path / "run", device=torch.device("cpu"), progress=StopAt(step))
    with pytest.raises(Interrupted, match=f"after step {step} of" if step < lab.STEPS else "after stage 'train'"):
        execute(lab.RECIPES[name], run)
    assert bool(run.done("train")) == (step == lab.STEPS)  # a stage that is all but done is finished first
    assert lab.outcome(lab.start(tmp_path / "run", lab.RECIPES[name])) == straight[name]


def test_another_seed_is_another_run(tmp_path: Path, straight: dict[str, tuple[bytes, str]]):
    other = lab.outcome(lab.start(tmp_path / "run", lab.RECIPE.set("seed", 1)))
    assert other[0] != straight["float32"][0] and other[1] != straight["float32"][1]


def test_training_that_blows_up_stops_with_one_line(tmp_path: Path):
    recipe = lab.RECIPES["broken"].set("train.checkpoint_minutes", 60.0).set("train.optim.warmup", 0.0)
    match = r"is not finite at step \d+; .* look at that batch \(training items \d+, \d+"
    with pytest.raises(EngineError, match=match) as caught:
        lab.start(tmp_path / "run", recipe)
    assert "\n" not in str(caught.value)
    run = Run(tmp_path / "run", device=torch.device("cpu"))
    assert not run.done("train")


@pytest.mark.parametrize("fault", ["error", "nan"])
def test_what_fails_between_two_steps_costs_nothing(
    tmp_path: Path, straight: dict[str, tuple[bytes, str]], monkeypatch: pytest.MonkeyPatch, fault: str
):
    """The steps before a teacher that went away, or before a loss that is not finite, are saved."""
    batch = lab.Slow.batch
    calls = 0

    def fails_once(self: lab.Slow, items: list[int], epoch: int):
        nonlocal calls
        calls += 1
        made = dict(batch(self, items, epoch))
        if calls == 32:  # 4 steps of 2 parts, then the last part of step 11
            if fault == "error":
                raise ConnectionError("the teacher went away")
            made["weight"] = made["weight"] * float("nan")
        return made

    monkeypatch.setattr(lab.Slow, "batch", fails_once)
    recipe = lab.RECIPE.set("train.checkpoint_minutes", 60.0)
    with pytest.raises((ConnectionError, EngineError)):
        lab.start(tmp_path / "run", recipe)
    resumed = lab.start(tmp_path / "run", recipe)
    assert [e["step"] for e in resumed.read("events.jsonl") if e["event"] == "resumed"] == [11]
    assert lab.outcome(resumed) == straight["float32"]


def test_what_fails_within_a_step_goes_back_to_before_it(
    tmp_path: Path, straight: dict[str, tuple[bytes, str]], monkeypatch: pytest.MonkeyPatch
):
    """Its first update has moved the student already: saving that as the step's start would make it twice."""
    inner = lab.Alternating.step

    def breaks(self: lab.Alternating, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        for update in inner(self, s, batch, run):
            yield update
            if run.stage == "train" and run.step == 11:
                raise ConnectionError("the teacher went away")

    recipe = lab.RECIPE.set("train.checkpoint_minutes", 60.0)
    with monkeypatch.context() as patch, pytest.raises(ConnectionError):
        patch.setattr(lab.Alternating, "step", breaks)
        lab.start(tmp_path / "run", recipe)
    assert not list((tmp_path / "run" / "state").glob("train/*"))
    assert lab.outcome(lab.start(tmp_path / "run", recipe)) == straight["float32"]


def stopped(folder: Path) -> Path:
    """A run that was stopped at step 7; the checkpoint's folder."""
    with pytest.raises(Interrupted):
        execute(lab.RECIPE, Run(folder, device=torch.device("cpu"), progress=StopAt(7)))
    return folder / "state" / "train"


@pytest.mark.parametrize("damage", ["bytes", "short", "gone", "mark"])
def test_a_damaged_checkpoint_is_one_clear_line(tmp_path: Path, damage: str):
    state = stopped(tmp_path / "run")
    (checkpoint,) = state.glob("*.pt")
    content = checkpoint.read_bytes()
    if damage == "bytes":
        checkpoint.write_bytes(content[:500] + b"?" + content[501:])
    elif damage == "short":
        checkpoint.write_bytes(content[: len(content) // 2])
    elif damage == "gone":
        checkpoint.unlink()
    else:
        checkpoint.with_suffix(".json").write_text("{")
    with pytest.raises(RunError, match=f"checkpoint .* is damaged; delete {state}") as caught:
        lab.start(tmp_path / "run", lab.RECIPE)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_recipe_is_one_clear_line(tmp_path: Path):
    stopped(tmp_path / "run")
    with pytest.raises(RunError, match="does not fit this recipe .* to start the stage again") as caught:
        lab.start(tmp_path / "run", lab.RECIPE.set("train.student", lab.TinyLM(width=lab.WIDTH, depth=3)))
    assert "\n" not in str(caught.value)


def test_a_half_written_checkpoint_is_not_a_checkpoint(tmp_path: Path):
    state = stopped(tmp_path / "run")
    (state / "step_00000019.part").write_bytes(b"half")
    (state / "step_00000020.pt").write_bytes(b"written, but not marked")
    found = Run(tmp_path / "run", stage="train", device=torch.device("cpu")).restore()
    assert found is not None and found[0] == 7


def test_one_checkpoint_is_kept(tmp_path: Path):
    run = Run(tmp_path / "run", stage="s", device=torch.device("cpu"))
    for step in (1, 2, 10):
        run.checkpoint(step, {"x": torch.tensor(step)})
    assert sorted(p.name for p in (tmp_path / "run/state/s").iterdir()) == ["step_00000010.json", "step_00000010.pt"]
    found = run.restore()
    assert found is not None and found[0] == 10 and int(found[1]["x"]) == 10


def test_a_checkpoint_is_no_pickle(tmp_path: Path):
    run = Run(tmp_path / "run", stage="s", device=torch.device("cpu"))
    run.checkpoint(1, {"x": Path("/")})
    with pytest.raises(Exception, match="(?i)weights.only"):
        run.restore()


def test_metrics_hold_nothing_of_this_machine(tmp_path: Path):
    run = lab.start(tmp_path / "run", lab.RECIPE)
    for line in run.read("metrics.jsonl"):
        assert not {"time", "seconds", "memory"} & set(line)
    events = [json.loads(text) for text in (run.folder / "events.jsonl").read_text().splitlines()]
    assert all("time" in e for e in events)
