"""The run folder: seeds, numbers, artifacts, and a folder that cannot be written."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from stillhouse.core.files import content_hash, write_atomically
from stillhouse.core.run import Run, RunError, seed_of


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run", stage="train", device=torch.device("cpu"))


def test_a_folder_that_cannot_be_made(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write to .*; choose another folder with --runs"):
        Run(tmp_path / "file" / "run")


def test_seeds_come_from_what_they_are_for():
    assert seed_of(1, "a") == seed_of(1, "a") != seed_of(1, "b")
    assert seed_of(1, 11) != seed_of(11, 1) and seed_of("1") != seed_of(1)
    assert 0 <= seed_of("anything") < 2**63


def test_drawing_twice_gives_the_same(run: Run):
    def draw(*key: object) -> list[float]:
        return torch.rand(3, generator=run.rng(*key)).tolist()

    first = draw("x")
    torch.rand(5)
    assert draw("x") == first != draw("y")
    run.step = 1
    assert draw("x") != first
    run.step, run.seed = 0, 1
    assert draw("x") != first


def test_an_artifact_is_done_when_its_block_ends_well(run: Run):
    with pytest.raises(ZeroDivisionError), run.artifact("a") as folder:
        (folder / "half").write_text("half")
        _ = 1 / 0
    assert run.done("a") is None and run.names() == []
    with pytest.raises(RunError, match="no finished artifact 'a'; there are none"):
        run.path("a")
    with run.artifact("a", kind="thing") as folder:
        assert not (folder / "half").exists()
        (folder / "whole").write_text("whole")
    mark = run.done("a")
    assert mark is not None and mark["kind"] == "thing" and mark["content"] == content_hash(run.path("a"))
    with pytest.raises(RunError, match="no finished artifact 'b'; there are a"):
        run.path("b")


def test_content_is_names_and_bytes(tmp_path: Path):
    def folder(name: str, **files: str) -> str:
        for path, text in files.items():
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / path).write_text(text)
        return content_hash(tmp_path / name)

    assert folder("one", a="x", b="y") == folder("two", b="y", a="x")
    assert len({folder("one", a="x"), folder("three", a="y", b="x"), folder("four", a="xy", b="")}) == 3


def test_json_artifacts(run: Run):
    run.save_json("numbers", [{"value": 0.1}], kind="findings")
    assert run.load_json("numbers") == [{"value": 0.1}]


def test_lines_cut_short_by_a_kill_are_left_out(run: Run):
    run.log(0, {"loss": 1.0})
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "train", "st')
    assert run.read("metrics.jsonl") == [{"stage": "train", "step": 0, "loss": 1.0}]
    assert run.read("nothing.jsonl") == []


def test_metrics_are_forgotten_to_the_byte(run: Run):
    numbers = [0.1, 1 / 3, 1e-30, math.inf]
    for step, number in enumerate(numbers):
        run.log(step, {"größe": number})
    before = (run.folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    run.stage = "other"
    run.log(0, {"loss": 1.0})
    run.forget_metrics("train", 2)
    after = (run.folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    assert after[:2] == before[:2] and len(after) == 3 and json.loads(after[2])["stage"] == "other"


def test_rejects_keep_their_reason_once(run: Run):
    run.reject({"text": ""}, "empty")
    run.reject({"text": ""}, "empty")
    Run(run.folder, stage="train", device=torch.device("cpu")).reject({"text": ""}, "empty")
    assert run.read("rejects.jsonl") == [{"stage": "train", "why": "empty", "row": {"text": ""}}]


def test_sources_are_loaded_once_for_each_spec(run: Run):
    class Spec:
        times = 0

        def load(self, run: Run) -> dict[str, int]:
            self.times += 1
            return {"train": self.times}

    one, two = Spec(), Spec()
    assert run.sources(one) is run.sources(one) and run.sources(two) is not run.sources(one)
    assert one.times == 1


def test_the_only_teacher(run: Run):
    with pytest.raises(LookupError, match="needs exactly one teacher; there are none"):
        _ = run.teacher
    run.teachers = {"a": object(), "b": object()}  # type: ignore[dict-item]
    with pytest.raises(LookupError, match=r"there are \['a', 'b'\]"):
        _ = run.teacher


def test_files_are_replaced_whole(tmp_path: Path):
    write_atomically(tmp_path / "file", "one")
    write_atomically(tmp_path / "file", "two")
    assert (tmp_path / "file").read_text() == "two" and len(list(tmp_path.iterdir())) == 1
