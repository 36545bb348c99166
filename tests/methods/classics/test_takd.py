"""A link of the chain is its method, taught by the stage before; the chain in a recipe."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch

from logit_toys import STUDENT, Said, mean, only, taught
from stillhouse.core.run import Run
from stillhouse.core.stage import execute
from stillhouse.methods.classics.dkd import DKD
from stillhouse.methods.classics.hinton import Hinton
from stillhouse.methods.classics.takd import TAKD, recipe
from stillhouse.teachers.module import ModuleTeacher


@pytest.mark.parametrize("method", [Hinton(temperature=2.0), DKD()], ids=repr)
def test_a_link_is_its_method(tmp_path, method):
    run = taught(tmp_path)
    link, plain = only(TAKD(method=method), run)[0], only(method, run)[0]
    assert mean(link) == mean(plain)
    assert TAKD(method=method).equation == getattr(method, "equation", "")
    assert run.read("events.jsonl")[-1]["by"] == "the recipe's teacher"


def test_a_method_that_moves_is_moved(tmp_path):
    seen = []

    class Moving:
        def advance(self, s, logs, run):
            seen.append(logs)

    TAKD(method=Moving()).advance(None, {"loss": 1.0}, taught(tmp_path))  # type: ignore[arg-type]
    assert seen == [{"loss": 1.0}]


def test_the_student_learns_from_the_assistant_and_it_from_the_teacher(tmp_path):
    """Each link by itself, with a fixed teacher, gives the same bits."""
    made = recipe("smoke").set("teacher.steps", 5).set("assistant.steps", 5).set("train.steps", 5)
    stages = {name: stage for name, stage in made.stages.items() if name in ("teacher", "assistant", "train")}
    run = Run(tmp_path / "chain", device=torch.device("cpu"))
    execute(replace(made, stages=stages), run)
    assert [event["by"] for event in run.read("events.jsonl") if "by" in event] == ["teacher", "assistant"]
    for stage, before in (("assistant", "teacher"), ("train", "assistant")):
        fixed = ModuleTeacher(spec=stages[before].student, stage=before)
        other = Run(tmp_path / stage, device=torch.device("cpu"))
        kept = {name: part for name, part in stages.items() if name != stage}
        execute(replace(made, stages={**kept, stage: stages[stage]}, teachers={"teacher": fixed}), _but(run, other, stage))
        assert run.done(stage)["content"] == other.done(stage)["content"]


def _but(run: Run, other: Run, stage: str) -> Run:
    """`other` with all that `run` has finished, but this stage."""
    for done in (run.folder / "artifacts").iterdir():
        if done.name != stage:
            shutil.copytree(done, other.folder / "artifacts" / done.name)
    return other


def test_the_students_gradient_does_not_reach_the_assistant(tmp_path):
    run = taught(tmp_path)
    made, student = only(TAKD(), run, Said(STUDENT))
    made.loss.backward()
    assert student.logits.grad.any() and run.teacher.module.logits.grad is None
