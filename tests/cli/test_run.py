"""`stillhouse run`: the folder, the recipe in it, resuming, stopping, and one line for each thing that goes wrong."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest

import stillhouse
from stillhouse.cli import door, launch
from stillhouse.core.recipe import RecipeError
from stillhouse.core.run import Interrupted, RunError

Still = Callable[..., Any]
SHORT = (
    "--scale",
    "smoke",
    *(f"--set={s}.steps=4" for s in ("train", "teacher", "alone")),
    "--set=audit.checks.0.draws=50",
)
FOLDER = f"runs/{date.today().isoformat()}_hinton_s"


def ran(result: Any) -> Any:
    assert result.exit_code == 0, result.stdout + result.stderr
    return result


def test_a_run_leaves_a_folder_that_says_everything(still: Still, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SECRET_TOKEN", "hunter2")
    result = ran(still("run", "hinton", *SHORT, "--seed", "3"))
    folder = tmp_path / f"{FOLDER}3"
    assert folder.is_dir() and f"{FOLDER}3" in result.stderr
    assert "accuracy" in result.stdout and "train - alone" in result.stdout
    assert result.stdout.rstrip().endswith(f"report: {FOLDER}3/report.html")
    assert (folder / "report.html").stat().st_size > 1000
    recipe = door.load(folder / "recipe.yaml")
    assert recipe.seed == 3 and recipe.stages["train"].steps == 4
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["versions"]["torch"] and environment["python"] and environment["cores"] >= 1
    assert environment["stillhouse"] == stillhouse.__version__
    assert not any("hunter2" in f.read_text(errors="replace") for f in folder.rglob("*") if f.is_file())
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {s["stage"] for s in steps} == {"teacher", "train", "alone"} and len(steps) == 12


def test_folders_are_numbered_where_the_name_is_taken(tmp_path: Path) -> None:
    names = [launch.new_folder(tmp_path, "taid", 0).name for _ in range(3)]
    assert [re.sub(r"^\d{4}-\d\d-\d\d", "DATE", n) for n in names] == [
        "DATE_taid_s0",
        "DATE_taid_s0-2",
        "DATE_taid_s0-3",
    ]


def test_a_recipe_file_runs_as_it_was_shown(still: Still, tmp_path: Path) -> None:
    shown = ran(still("show", "hinton", *SHORT)).stdout
    (tmp_path / "my.yaml").write_text(shown)
    ran(still("run", "my.yaml"))
    ran(still("run", "hinton", *SHORT))
    first, second = (tmp_path / f"{FOLDER}0{n}" for n in ("", "-2"))
    assert (first / "recipe.yaml").read_text() == shown
    assert (first / "metrics.jsonl").read_bytes() == (second / "metrics.jsonl").read_bytes()
    for stage in ("teacher", "train", "alone"):
        marks = [json.loads((f / "artifacts" / stage / "done.json").read_text()) for f in (first, second)]
        assert marks[0]["content"] == marks[1]["content"]


def test_a_finished_run_is_not_run_again(still: Still, tmp_path: Path) -> None:
    ran(still("run", "hinton", *SHORT))
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / f"{FOLDER}0" / "artifacts").rglob("*")}
    ran(still("run", f"{FOLDER}0"))
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / f"{FOLDER}0" / "artifacts").rglob("*")} == before
    assert len(list((tmp_path / "runs").iterdir())) == 1


def test_ctrl_c_stops_and_the_run_goes_on_to_the_same_bits(still: Still, tmp_path: Path) -> None:
    args = ["run", "hinton", *SHORT, "--set=train.steps=800"]
    ran(still(*args, "--runs", "straight"))
    straight = tmp_path / f"{FOLDER}0".replace("runs/", "straight/")
    stopped = subprocess.Popen([sys.executable, "-m", "stillhouse", *args], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    folder = tmp_path / f"{FOLDER}0"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and '"train"' not in read(folder / "metrics.jsonl"):
        time.sleep(0.02)
    stopped.send_signal(signal.SIGINT)
    _, err = stopped.communicate(timeout=120)
    assert stopped.returncode == 130, err
    last = err.splitlines()[-1]
    assert re.search(rf"stopped after step \d+ of 800; go on with: stillhouse run {FOLDER}0$", last), err
    ran(still("run", last.rpartition(" ")[2]))
    assert (folder / "metrics.jsonl").read_bytes() == (straight / "metrics.jsonl").read_bytes()
    marks = [json.loads((f / "artifacts" / "train" / "done.json").read_text())["content"] for f in (folder, straight)]
    assert marks[0] == marks[1]


def read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def test_an_interrupt_outside_training_names_the_run_too(still: Still, monkeypatch: pytest.MonkeyPatch) -> None:
    from stillhouse.audits.classification import Classification

    def interrupt(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Classification, "__call__", interrupt)
    result = still("run", "hinton", *SHORT)
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == f"stillhouse: stopped in stage 'audit'; go on with: stillhouse run {FOLDER}0"


# -- one line each -------------------------------------------------------------------------------------------------


def refused(result: Any, says: str) -> None:
    assert result.exit_code == 1, result.stdout + result.stderr
    assert says in result.stderr and "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith("stillhouse: ")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["hinton", "--set", "train.optim.lrr=1"], "did you mean 'lr'?"),
        (["hinton", "--scale", "smoke", "--set", "train.batch=many"], "train.batch should be a valid integer"),
        (["my.yaml"], "there is no recipe file my.yaml; `stillhouse show ID --yaml > my.yaml` writes one"),
        (["runs/nothing"], "neither a method, a .yaml file nor a run folder"),
        (["hinton", "--scale", "smoke", "--device", "tpu9"], "no device 'tpu9'"),
        (["hinton", "--scale", "smoke", "--device", "cuda:77"], "no device 'cuda:77'"),
        (["hinton", "--scale", "smoke", "--runs", "file"], "file"),
        (["hinton", "--scale", "smoke", "--runs", "file/runs"], "choose another folder with --runs"),
        (
            ["hinton", "--scale", "smoke", "--set", "train.accumulate=999"],
            "a batch of 32 items cannot be split into 999 parts",
        ),
    ],
)
def test_what_cannot_be_run(still: Still, tmp_path: Path, args: list[str], says: str) -> None:
    (tmp_path / "file").write_text("")
    refused(still("run", *args), says)


def test_a_run_that_has_begun_keeps_its_recipe(still: Still) -> None:
    ran(still("run", "hinton", *SHORT))
    refused(still("run", f"{FOLDER}0", "--set", "train.steps=9"), "its recipe is fixed")
    refused(still("run", f"{FOLDER}0", "--seed", "9"), "its recipe is fixed")


def test_a_damaged_checkpoint_is_refused(still: Still, tmp_path: Path) -> None:
    ran(still("run", "hinton", *SHORT))
    state = tmp_path / f"{FOLDER}0" / "state" / "train"
    (tmp_path / f"{FOLDER}0" / "artifacts" / "train" / "done.json").unlink()
    state.mkdir(parents=True, exist_ok=True)
    (state / "step_00000002.json").write_text(json.dumps({"step": 2, "sha256": "0" * 64}))
    (state / "step_00000002.pt").write_bytes(b"half of it")
    refused(still("run", f"{FOLDER}0"), "is damaged; delete")


def test_a_damaged_recipe_is_refused(still: Still, tmp_path: Path) -> None:
    ran(still("run", "hinton", *SHORT))
    (tmp_path / f"{FOLDER}0" / "recipe.yaml").write_text("id: hinton\nid: again\n")
    refused(still("run", f"{FOLDER}0"), "line 2: the key 'id' is there twice")


def test_out_of_memory_says_what_to_do(still: Still, monkeypatch: pytest.MonkeyPatch) -> None:
    from stillhouse.methods.classics.hinton import Hinton

    def too_much(*_: Any) -> Any:
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: not enough memory: you tried to allocate …"
        )

    monkeypatch.setattr(Hinton, "setup", too_much)
    refused(still("run", "hinton", *SHORT), "out of memory; use a smaller batch")


def test_a_bug_is_one_line_too_and_points_to_debug(still: Still, monkeypatch: pytest.MonkeyPatch) -> None:
    from stillhouse.methods.classics.hinton import Hinton

    def broken(*_: Any) -> Any:
        return {}["a key"]

    monkeypatch.setattr(Hinton, "setup", broken)
    refused(still("run", "hinton", *SHORT), "unexpected KeyError: 'a key' (the same command with --debug shows where)")


# -- in Python -----------------------------------------------------------------------------------------------------


def test_run_from_python(tmp_path: Path) -> None:
    settings = {"train.steps": 4, "teacher.steps": 4, "alone.steps": 4}
    run = stillhouse.run("hinton", scale="smoke", set=settings, seed=2, runs=tmp_path)
    assert run.seed == 2 and run.done("audit") and run.folder.parent == tmp_path
    assert stillhouse.run(run.folder).folder == run.folder
    assert stillhouse.run(run.recipe.set("seed", 5), runs=tmp_path).seed == 5
    with pytest.raises(RecipeError, match="its recipe is fixed"):
        stillhouse.run(run.folder, seed=3)
    with pytest.raises(RunError, match="no device"):
        stillhouse.run(run.recipe, runs=tmp_path, device="tpu9")


def test_a_keyboard_interrupt_keeps_its_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stillhouse.data.toys import Clusters

    def interrupt(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Clusters, "load", interrupt)
    with pytest.raises(Interrupted) as caught:
        stillhouse.run("hinton", scale="smoke", runs=tmp_path)
    assert isinstance(caught.value.__cause__, KeyboardInterrupt)


# -- report --------------------------------------------------------------------------------------------------------


def test_report_is_written_again(still: Still, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import webbrowser

    ran(still("run", "hinton", *SHORT))
    page = tmp_path / f"{FOLDER}0" / "report.html"
    first = page.read_bytes()
    page.unlink()
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    assert ran(still("report", f"{FOLDER}0", "--open")).stdout.strip() == f"{FOLDER}0/report.html"
    assert page.read_bytes() == first
    assert opened == [page.as_uri()]
    refused(still("report", "runs"), "is not a run folder")
    refused(still("report", "nowhere"), "is not a run folder")


def test_a_place_where_no_folder_can_be_made_is_refused(still: Still, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not even root can make a folder below this")
    refused(still("run", "hinton", "--scale", "smoke", "--runs", "file/runs"), "choose another folder with --runs")


def test_what_cannot_start_leaves_no_folder(still: Still, tmp_path: Path) -> None:
    refused(still("run", "hinton", "--scale", "smoke", "--device", "tpu9"), "no device")
    assert not (tmp_path / "runs").exists()


def test_several_processes_do_not_share_a_run_folder(still: Still, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = still("run", "supervised", "--scale", "smoke")
    assert result.exit_code == 1 and "torchrun" in result.stderr and not Path("runs").exists()


def test_a_method_runs_on_images_of_ones_own(still: Still, tmp_path: Path) -> None:
    import numpy

    draw = numpy.random.default_rng(0)
    labels = numpy.arange(90) % 3
    images = (draw.random((90, 6, 6)) * 60 + 80 * labels[:, None, None]).astype("uint8")
    numpy.savez(tmp_path / "mine.npz", images=images, labels=labels)
    steps = [f"--set={stage}.steps=3" for stage in ("teacher", "train", "alone")]
    result = still("run", "hinton", "--set", "data={use: data.images.Npz, path: mine.npz}", *steps)
    assert result.exit_code == 0, result.stderr
    few = "data={use: data.images.Npz, path: mine.npz, split: {labels: 2}}"
    assert still("run", "hinton", "--set", few, *steps).exit_code == 0


def test_a_stage_that_is_null_is_left_out(still: Still, tmp_path: Path) -> None:
    (tmp_path / "points.csv").write_text("x,y\n" + "\n".join(f"{i % 7},{i % 5 + i / 100}" for i in range(200)))
    points = ("run", "denoise", "--set", "data={use: data.points.PointFile, path: points.csv}", "--set", "train.steps=3")
    refused = still(*points)
    assert refused.exit_code == 1 and "the data have none: leave it out with --set stages.judge=null" in refused.stderr
    count = ("--set", "audit.checks.0.count=50", "--set", "audit.checks.0.draws=10")
    result = still(*points, "--set", "stages.judge=null", "--set", "audit.checks.0.judge=null", *count)
    assert result.exit_code == 0, result.stderr


def test_a_folder_that_is_called_like_a_method_is_in_nobodys_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hinton").mkdir()
    assert launch.find("hinton", "smoke").id == "hinton"
    (tmp_path / "mine").mkdir()
    with pytest.raises(RecipeError, match="mine is neither a method"):
        launch.find("mine")
