"""Language runs that something goes wrong in: one clear line, the steps so far saved, and the same end after a resume."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from stillhouse.cli.errors import explain
from stillhouse.core.optim import Optim
from stillhouse.core.recipe import Recipe
from stillhouse.core.run import Run
from stillhouse.core.stage import Train, execute
from stillhouse.data.rewards import Own, Rewarded
from stillhouse.data.tasks import Chain
from stillhouse.methods import groups
from stillhouse.methods.classics.gkd import GKD
from stillhouse.methods.classics.grpo import GRPO
from stillhouse.models.generate import Sampling
from stillhouse.models.toys import TinyLM
from stillhouse.teachers.module import Frozen, ModuleTeacher

TASKS = Chain(ops=(1,), base=2, style="answer", train=6, valid=1, test=1)
SPEC = TinyLM(width=16, depth=1)
SAMPLING = Sampling(max_new=4)


def recipe(method: Any, data: Any = TASKS) -> Recipe:
    train = Train(method=method, steps=5, batch=4, optim=Optim(lr=1e-2), checkpoint_minutes=60.0)
    teachers = {"teacher": ModuleTeacher(spec=SPEC)} if method.needs else {}
    return Recipe(id="fault", student=SPEC, data=data, teachers=teachers, stages={"train": train})


def finished(folder: Path, made: Recipe) -> bytes:
    """The trained weights' bytes."""
    run = Run(folder, device=torch.device("cpu"))
    execute(made, run)
    (file,) = sorted(run.path("train").glob("*.safetensors"))
    return file.read_bytes()


def resumes_to_the_same(folder: Path, made: Recipe, mend: Callable[[], None], line: str) -> None:
    """The run fails with this line at its third step, and then goes on from there as if it had not."""
    run = Run(folder, device=torch.device("cpu"))
    with pytest.raises(Exception) as caught:  # noqa: PT011  the classes differ, the lines are what counts
        execute(made, run)
    told, status = explain(caught.value)
    assert line in told and "\n" not in told and status == 1
    assert run.stage == "train" and not run.done("train")
    mend()
    again = finished(folder, made)
    assert [e["step"] for e in run.read("events.jsonl") if e["event"] == "resumed"] == [2]
    assert again == finished(folder.with_name("straight"), made)


@pytest.mark.parametrize("fault", ["nan", "raises", "hangs"])
def test_a_reward_that_fails(tmp_path: Path, fault: str) -> None:
    broken = {"nan": "float('nan')", "raises": "1 / 0", "hangs": "__import__('time').sleep(60)"}[fault]
    told = {"nan": "gave nan", "raises": "raised ZeroDivisionError", "hangs": "took more than 2 seconds"}[fault]
    flag, file = tmp_path / "broken", tmp_path / "rewards.py"
    flag.touch()
    file.write_text(f"""
import os
def score(question, answer, truth):
    with open({str(tmp_path / "calls")!r}, "a+") as calls:
        calls.write("x")
        number = calls.tell()
    if number > 16 and os.path.exists({str(flag)!r}):  # 8 answers a step: in the third
        return {broken}
    return len(question) % 3 + (answer is None)
""")
    data = Rewarded(base=TASKS, rewards={"own": Own(function=f"{file}:score", seconds=2.0)})
    method = GRPO(group=2, kl=0.0, sampling=SAMPLING)
    resumes_to_the_same(tmp_path / "run", recipe(method, data), flag.unlink, told)


def test_a_teacher_without_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, calls = Frozen.__call__, [0]

    def answers(self: Frozen, batch: Any, want: Any) -> Any:
        calls[0] += 1
        if calls[0] == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.\nMore lines")
        return asked(self, batch, want)

    monkeypatch.setattr(Frozen, "__call__", answers)
    made = recipe(GKD(on_policy=1.0, sampling=SAMPLING))
    resumes_to_the_same(tmp_path / "run", made, lambda: None, "out of memory; use a smaller batch")


def test_answers_that_end_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but the end: one token to learn from each, and nothing that is not finite."""
    monkeypatch.setattr(groups, "generate", lambda module, prompts, *rest, **more: [[0] for _ in prompts])
    run = Run(tmp_path, device=torch.device("cpu"))
    execute(recipe(GRPO(group=2, kl=0.1, sampling=SAMPLING)), run)
    lines = run.read("metrics.jsonl")
    assert len(lines) == 5 and all(line["student/answer_tokens"] == 1 and line["student/solved"] == 0 for line in lines)
