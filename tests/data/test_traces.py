"""Traces: every question is asked and judged once, right answers and pairs are what they say, a kill loses nothing."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from language import run_of
from stillhouse.core.recipe import Recipe
from stillhouse.core.run import Interrupted, Run, RunError
from stillhouse.core.stage import execute
from stillhouse.data import traces
from stillhouse.data.pairs import StagePairs
from stillhouse.data.tasks import Chain
from stillhouse.data.toys import Sentences
from stillhouse.data.traces import Traces
from stillhouse.data.written import Written
from stillhouse.models.generate import Sampling
from stillhouse.models.toys import TinyLM
from stillhouse.teachers.module import ModuleTeacher

EACH = 3


class Lenient(Chain):
    """Right is what ends in an even token: an untrained teacher does that often enough, and not always."""

    def verify(self, run: Run, split: str, example: int, answer: Sequence[int]) -> float:
        return float(len(answer) > 0 and answer[-1] % 2 == 0)


TASK = Lenient(ops=(1,), train=40, valid=5, test=5)


def recipe(**settings: Any) -> Recipe:
    stage = Traces(**({"data": TASK, "each": EACH, "sampling": Sampling(max_new=4, batch=24)} | settings))
    return Recipe(
        id="traces", student=TinyLM(width=8, depth=1), data=stage.data, stages={"traces": stage},
        teachers={"teacher": ModuleTeacher(spec=TinyLM(width=16, depth=1))},
    )  # fmt: skip


def lines(run: Any, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.path("traces") / f"{name}.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Any:
    run = run_of(tmp_path_factory.mktemp("traces"), None)
    execute(recipe(splits=("train", "valid")), run)
    return run


def test_right_and_wrong_are_sorted(finished: Any):
    mark = finished.done("traces")
    assert mark["questions"] == 45 and mark["asked"] == 45 * EACH == mark["right"] + mark["wrong"]
    kept, pairs = (
        lines(finished, "train") + lines(finished, "valid"),
        lines(finished, "pairs/train") + lines(finished, "pairs/valid"),
    )
    assert (len(kept), len(pairs)) == (mark["kept"], mark["pairs"])
    assert 0 < len(pairs) < len(kept) <= mark["right"] < mark["asked"]
    prompts = TASK.prompts(finished)["train"]
    for line in lines(finished, "train"):
        assert line["prompt"] == prompts[line["example"]] and line["answer"][-1] % 2 == 0
    assert len({json.dumps(line) for line in kept}) == len(kept)
    for line in pairs:
        assert line["chosen"][-1] % 2 == 0 and line["rejected"][-1] % 2 == 1
    assert len({line["example"] for line in lines(finished, "pairs/train")}) == len(lines(finished, "pairs/train"))
    assert not (finished.folder / "state" / "traces").exists()


def test_questions_without_a_right_answer_are_rejected(finished: Any):
    lost = [r for r in finished.read("rejects.jsonl") if "is right" in r["why"]]
    solved = {line["example"] for line in lines(finished, "train")}
    assert {r["row"]["example"] for r in lost if r["row"]["split"] == "train"} == set(range(40)) - solved
    assert len(lost) == finished.done("traces")["unsolved"] > 0
    assert {r["why"] for r in lost} == {"none of 3 answers to this question is right"}


def test_what_was_found_is_data(finished: Any):
    right = Written(stage="traces", base=TASK).load(finished)["train"]
    assert sum(len(row) for row in right.rows) == len(lines(finished, "train"))
    pairs = StagePairs(stage="traces", base=TASK).load(finished)
    assert len(pairs["train"]) == len(lines(finished, "pairs/train"))
    assert pairs["test"] == TASK.load(finished)["test"]  # was not asked


def test_an_answer_does_not_depend_on_its_batch(finished: Any, tmp_path: Path):
    run = run_of(tmp_path, None)
    execute(recipe(splits=("train", "valid"), sampling=Sampling(max_new=4, batch=7)), run)
    assert lines(run, "pairs/train") == lines(finished, "pairs/train")
    limited = run_of(tmp_path / "limited", None)
    execute(recipe(limit=9), limited)
    assert lines(limited, "train") == [line for line in lines(finished, "train") if line["example"] < 9]


class StopAfter:
    """A progress bar that asks to stop, as Ctrl-C would."""

    def update(self, stage: str, done: int, total: int, logs: object, seconds: float) -> None:
        if done == 16:
            signal.raise_signal(signal.SIGINT)


def test_a_stopped_stage_goes_on_to_the_same_bytes(finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = run_of(tmp_path, None)
    run.progress = StopAfter()
    with pytest.raises(Interrupted, match="16 of 45 questions"):
        execute(recipe(splits=("train", "valid")), run)
    asked: list[int] = []
    generate = traces.generate
    monkeypatch.setattr(traces, "generate", lambda m, p, *a, **k: asked.append(len(p)) or generate(m, p, *a, **k))
    again = run_of(tmp_path, None)
    execute(recipe(splits=("train", "valid")), again)
    assert sum(asked) == (45 - 16) * EACH
    assert again.done("traces")["content"] == finished.done("traces")["content"]


KILLED = """
import sys, os, signal
sys.path[:0] = {paths!r}
import torch; torch.set_num_threads(1)
from test_traces import recipe, run_of, execute, Path
class Kill:
    def update(self, stage, done, total, logs, seconds):
        if done == 24: os.kill(os.getpid(), signal.SIGKILL)
run = run_of(Path(sys.argv[1]), None)
run.progress = Kill()
execute(recipe(splits=("train", "valid")), run)
"""


def test_a_killed_stage_goes_on_to_the_same_bytes(finished: Any, tmp_path: Path):
    here = Path(__file__).resolve()
    code = KILLED.format(paths=[str(here.parent), str(here.parents[1])])
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert len(list((tmp_path / "state" / "traces").glob("*.jsonl"))) == 3
    run = run_of(tmp_path, None)
    execute(recipe(splits=("train", "valid")), run)
    assert run.done("traces")["content"] == finished.done("traces")["content"]


class Hopeless(Lenient):
    def verify(self, run: Run, split: str, example: int, answer: Sequence[int]) -> float:
        return 0.0


def test_a_teacher_that_is_never_right_is_said_so(tmp_path: Path):
    with pytest.raises(RunError, match="none of the teacher's 120 answers is right"):
        execute(recipe(data=Hopeless(ops=(1,), train=40, valid=5, test=5)), run_of(tmp_path, None))


def test_data_without_a_verifier_are_refused(tmp_path: Path):
    with pytest.raises(RunError, match="Sentences has no verifier"):
        execute(replace(recipe(data=Sentences())), run_of(tmp_path, None))
