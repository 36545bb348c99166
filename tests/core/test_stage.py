"""Stages: what they skip, what they refuse before the first step, and what an audit gets to see."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from stillhouse.core.optim import Optim
from stillhouse.core.recipe import Recipe
from stillhouse.core.report import Finding
from stillhouse.core.run import Run, RunError
from stillhouse.core.stage import Audit, LazyTeachers, Subjects, Train, execute
from stillhouse.core.teacher import TeacherMismatch
from stillhouse.data.toys import Clusters, Sentences
from stillhouse.methods.classics.hinton import Hinton
from stillhouse.methods.classics.supervised import Supervised
from stillhouse.models.toys import MLP, TinyLM
from stillhouse.teachers.module import ModuleTeacher

TRAIN = Train(method=Supervised(), steps=3, batch=8)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run", device=torch.device("cpu"))


def recipe(**stages: Any) -> Recipe:
    return Recipe(id="r", student=MLP(width=4), data=Clusters(), stages=stages)


@dataclass(frozen=True)
class Count:
    """A check that finds how many parameters move on average."""

    def __call__(self, run: Run, subjects: Subjects) -> Iterator[Finding]:
        for name in subjects.names:
            module = subjects.load(name)
            assert not module.training
            yield Finding(name="sum", value=sum(float(p.detach().sum()) for p in module.parameters()), subject=name)


def test_a_finished_stage_is_skipped(run: Run):
    made = recipe(train=TRAIN, audit=Audit(subjects=("start", "train"), checks=(Count(),)))
    execute(made, run)
    before = run.read("events.jsonl")
    assert [(e["stage"], e["state"]) for e in before if e["event"] == "stage"] == [
        ("train", "started"), ("train", "done"), ("audit", "started"), ("audit", "done"),
    ]  # fmt: skip
    execute(made, run)
    assert run.read("events.jsonl") == before
    start, trained = run.load_json("audit")
    assert start["value"] != trained["value"]
    mark = run.done("train")
    assert mark is not None and (mark["steps"], mark["items"], mark["kind"]) == (3, 24, "model")


def test_start_is_where_training_started(run: Run):
    frozen = replace(TRAIN, optim=Optim(lr=0.0))
    execute(recipe(train=frozen, audit=Audit(subjects=("start", "train"), checks=(Count(),))), run)
    start, trained = run.load_json("audit")
    assert start["value"] == trained["value"]


def test_arms_of_one_seed_start_alike_and_see_the_same_order(run: Run):
    execute(recipe(first=TRAIN, second=TRAIN), run)
    first, second = run.done("first"), run.done("second")
    assert first is not None and second is not None and first["content"] == second["content"]


def test_an_audit_of_what_was_not_trained(run: Run):
    with pytest.raises(RunError, match="no training stage 'trian' to audit; there are train, audit"):
        execute(recipe(train=TRAIN, audit=Audit(subjects=("trian",), checks=(Count(),))), run)


def test_an_audit_before_what_it_judges_is_refused_before_the_training(run: Run):
    with pytest.raises(RunError, match="judges 'train', which comes after it"):
        execute(recipe(audit=Audit(subjects=("start", "train"), checks=(Count(),)), train=TRAIN), run)
    assert run.read("events.jsonl") == []


def test_nothing_to_train_on(run: Run):
    with pytest.raises(RunError, match="the training split is empty"):
        execute(replace(recipe(train=TRAIN), data=Clusters(train=0)), run)


def test_a_student_that_cannot_checkpoint_gradients(run: Run):
    with pytest.raises(RunError, match="checkpointing=true, but this student has no gradient checkpointing"):
        execute(recipe(train=replace(TRAIN, checkpointing=True)), run)


def test_checkpointing_trains_alike(tmp_path: Path):
    def content(name: str, checkpointing: bool) -> str:
        made = Run(tmp_path / name, device=torch.device("cpu"))
        stage = replace(TRAIN, checkpointing=checkpointing)
        execute(Recipe(id="r", student=TinyLM(), data=Sentences(), stages={"train": stage}), made)
        return made.done("train")["content"]  # type: ignore[index]

    assert content("plain", False) == content("checkpointed", True)


def test_as_many_steps_as_another_stage_had_seconds(run: Run):
    made = recipe(slow=TRAIN, fast=TRAIN, same=replace(TRAIN, seconds_of="slow", speed_of="fast"))
    execute(made, run)
    marks = {name: run.done(name) or {} for name in made.stages}
    assert marks["same"]["steps"] == max(1, round(3 * marks["slow"]["seconds"] / marks["fast"]["seconds"]))


def test_seconds_of_a_stage_that_is_not_done(run: Run):
    with pytest.raises(RunError, match="needs 'later' and 'later' to be done before it"):
        execute(recipe(train=replace(TRAIN, seconds_of="later", speed_of="later"), later=TRAIN), run)


@dataclass(frozen=True)
class Mute:
    gives = frozenset({"text"})

    def build(self, run: Run) -> Mute:
        return self


def test_a_teacher_that_cannot_give_what_is_needed(run: Run):
    made = replace(recipe(train=replace(TRAIN, method=Hinton())), teachers={"writer": Mute()})
    with pytest.raises(TeacherMismatch, match="needs logits from teacher 'writer', which gives text"):
        execute(made, run)


def test_a_stage_without_need_of_a_teacher_builds_none(run: Run):
    later = ModuleTeacher(spec=MLP(width=4), stage="later")  # would fail: that stage is not done
    execute(replace(recipe(train=TRAIN), teachers={"teacher": later}), run)
    with pytest.raises(RunError, match="no finished artifact 'later'"):
        _ = run.teacher


def test_teachers_are_built_once(run: Run):
    run.recipe = recipe(train=TRAIN)
    teachers = LazyTeachers({"teacher": ModuleTeacher(spec=MLP(width=4))}, run)
    assert teachers["teacher"] is teachers["teacher"] and len(teachers) == 1


def test_precision_reaches_the_artifact(run: Run):
    execute(recipe(train=replace(TRAIN, precision="bfloat16")), run)
    module = Subjects(run, ("train",)).load("train")
    assert all(torch.equal(p, p.bfloat16().float()) for p in module.parameters())


@dataclass(frozen=True, kw_only=True)
class Looks(Supervised):
    """Remembers which data `setup` found."""

    def setup(self, student: Any, run: Run) -> Any:
        assert run.source is run.sources()["train"]
        return super().setup(student, run)


def test_setup_finds_the_training_split(run: Run):
    execute(recipe(train=replace(TRAIN, method=Looks())), run)


def test_a_batch_of_everything(run: Run, tmp_path: Path):
    execute(recipe(train=replace(TRAIN, batch=0)), run)
    other = Run(tmp_path / "other", device=torch.device("cpu"))
    execute(recipe(train=replace(TRAIN, batch=256)), other)
    one, two = run.done("train"), other.done("train")
    assert one is not None and two is not None
    assert (one["content"], one["items"]) == (two["content"], 3 * 256)
