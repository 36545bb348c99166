"""The ensemble is the mean of its members' probabilities, and is loaded from where they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from logit_toys import STUDENT, TEACHER, Headed, Said
from stillhouse.core.recipe import Recipe
from stillhouse.core.run import Run, RunError
from stillhouse.core.stage import Subjects, Train, execute
from stillhouse.data.toys import Clusters
from stillhouse.methods.classics.supervised import Supervised
from stillhouse.models.together import Average, Together
from stillhouse.models.toys import MLP


def test_it_averages_probabilities():
    found = Average([Said(STUDENT), Headed(TEACHER)])(torch.arange(8)).exp()
    mean = (STUDENT.softmax(-1) + TEACHER.softmax(-1)) / 2
    assert torch.allclose(found / found.sum(-1, keepdim=True), mean)
    assert torch.allclose(Average([Said(STUDENT)])(torch.arange(8)), STUDENT.log_softmax(-1))


def test_rounded_members_are_averaged_in_float32():
    assert Average([Said(STUDENT.bfloat16() * 1e3)])(torch.arange(8)).dtype == torch.float32


def recipe(*names: str) -> Recipe:
    def train(seed_width: int) -> Train:
        return Train(method=Supervised(), student=MLP(width=seed_width), steps=2, batch=8)

    stages = {"one": train(4), "two": train(6), "both": Together(stages=names)}
    return Recipe(id="both", student=MLP(), data=Clusters(), stages=stages)


def test_an_audit_loads_it(tmp_path: Path):
    run = Run(tmp_path / "run", device=torch.device("cpu"))
    execute(recipe("one", "two"), run)
    subjects = Subjects(run, ("one", "two", "both"))
    inputs = run.sources()["test"].batch(range(4), 0)["inputs"]
    one, two, both = (subjects.load(name)(inputs).softmax(-1) for name in subjects.names)
    assert torch.allclose(both, (one + two) / 2, atol=1e-6)


def test_members_that_are_not_there_are_refused(tmp_path: Path):
    with pytest.raises(RunError, match="no finished artifact 'three'"):
        execute(recipe("one", "three"), Run(tmp_path / "run", device=torch.device("cpu")))
