"""Who teaches which stage, and what a stage without a teacher hears."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stillhouse.core.optim import Optim
from stillhouse.core.recipe import Recipe
from stillhouse.core.run import Run, RunError
from stillhouse.core.stage import Train, execute
from stillhouse.data.toys import Clusters
from stillhouse.methods.classics.hinton import Hinton
from stillhouse.methods.classics.supervised import Supervised
from stillhouse.models.toys import MLP
from stillhouse.teachers.lineage import Lineage


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Three stages of networks 8, 6 and 4 wide, finished."""
    first = Train(method=Supervised(), student=MLP(width=8), steps=3, batch=8, optim=Optim(lr=1e-2))
    second = Train(method=Hinton(), student=MLP(width=6), steps=3, batch=8, optim=Optim(lr=1e-2))
    third = Train(method=Hinton(), steps=3, batch=8, optim=Optim(lr=1e-2))
    made = Run(tmp_path / "run", device=torch.device("cpu"))
    stages = {"big": first, "middle": second, "train": third}
    teachers = {"teacher": Lineage(stages=("big", "middle"))}
    execute(Recipe(id="chain", student=MLP(width=4), data=Clusters(), stages=stages, teachers=teachers), made)
    return made


def width(run: Run) -> int:
    teacher = run.teachers["teacher"]
    return teacher.module.hidden[0].out_features  # type: ignore[attr-defined]


def test_every_stage_is_taught_by_the_one_before(run: Run):
    found = {}
    for run.stage in ("middle", "train", "audit", "middle"):
        found[run.stage] = width(run)
    assert found == {"middle": 8, "train": 6, "audit": 6}


def test_its_answers_are_those_of_the_stages_model(run: Run):
    run.stage = "train"
    teacher, batch = run.teachers["teacher"], run.sources()["train"].batch(range(5), 0)
    module = MLP(width=6).load(run.path("middle"), run)
    assert torch.equal(teacher(batch, frozenset({"logits"})).need("logits"), module(batch["inputs"]))
    teacher.tap(["hidden.0"])  # type: ignore[attr-defined]
    assert teacher(batch, frozenset({"logits", "features"})).need("features")["hidden.0"].shape == (5, 6)
    before = teacher.identity()  # type: ignore[attr-defined]
    run.stage = "middle"
    assert teacher.identity() != before  # type: ignore[attr-defined]


def test_a_stage_in_between_hears_the_last_that_is_done(run: Run):
    (run.folder / "artifacts" / "middle" / "done.json").unlink()
    run.stage = "label"
    assert width(run) == 8


def test_the_first_has_no_teacher(run: Run):
    run.stage = "big"
    with pytest.raises(RunError, match="nobody teaches stage 'big'"):
        run.teachers["teacher"](run.sources()["train"].batch([0], 0), frozenset({"logits"}))


def test_a_stage_that_there_is_not_is_refused(run: Run):
    with pytest.raises(RunError, match="no stage 'bug'"):
        Lineage(stages=("big", "bug")).build(run)
    with pytest.raises(RunError, match="at least one"):
        Lineage(stages=()).build(run)
