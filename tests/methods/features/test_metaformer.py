"""The benchmark of mixers: students of equal size that differ in their mixer alone, and what an image costs each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from stillhouse.core.recipe import Recipe
from stillhouse.core.run import Run
from stillhouse.data.images import Digits
from stillhouse.methods.classics.hinton import Hinton
from stillhouse.methods.features.metaformer import ACTIVATIONS, RATIOS, Operations, proof, recipe, student
from stillhouse.models.metaformer import MetaFormer, SquaredReLU, StarReLU


def built(spec: Any, folder: Path, shape: tuple[int, ...] = (1, 14, 14)) -> Any:
    fields = {"shape": shape} if isinstance(spec, MetaFormer) else {"inputs": 196}
    return replace(spec, classes=10, **fields).build(Run(folder, device=torch.device("cpu")))


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_all_students_of_the_proof_have_as_many_parameters(tmp_path: Path) -> None:
    students = {name: made.student for name, made in proof().arms.items()}
    sizes = {name: count(built(spec, tmp_path)) for name, spec in students.items()}
    assert sizes["ours"] == sizes["alone"] == 36_338
    assert all(abs(size - 36_338) < 60 for size in sizes.values()), sizes
    assert set(students) == {"ours", "random", "pool", "conv", "attention", "gelu", "perceptron", "alone"}
    assert students["ours"] == student("small", "identity") == students["alone"]


def test_its_arms_differ_in_the_student_alone() -> None:
    arms = dict(proof().arms)
    ours, plain = arms.pop("ours"), arms.pop("alone")
    assert all(replace(made, student=ours.student) == ours for made in arms.values())
    assert isinstance(ours.stages["train"].method, Hinton) and not plain.teachers
    assert {**vars(plain.stages["train"]), "method": None} == {**vars(ours.stages["train"]), "method": None}
    for mixer in ("random", "pool", "conv", "attention"):
        spec = arms[mixer].student
        assert spec.mixers == (mixer, mixer)
        assert replace(spec, mixers=ours.student.mixers, ratio=6.0) == ours.student
    assert replace(arms["gelu"].student, activation="star") == ours.student
    assert proof().beats == ("perceptron", "alone")


def test_the_recipe_has_every_mixer_and_judges_the_one_without_last() -> None:
    made = recipe("smoke")
    assert [made.stages[name].student.mixers[0] for name in RATIOS if name != "identity"] == [*RATIOS][1:]
    assert made.stages["gelu"].student.activation == "gelu" and made.student.mixers == ("identity", "identity")
    assert made.stages["audit"].subjects == (
        "start", "teacher", "random", "pool", "conv", "attention", "gelu", "alone", "train",
    )  # fmt: skip
    paper = recipe("paper")
    assert paper.stages["attention"].student.mixers == ("conv", "conv", "attention", "attention")
    assert (paper.student.norm, paper.stages["conv"].student.norm) == ("image", "channels")


class Subjects:
    """Subjects of an audit that are at hand."""

    def __init__(self, **modules: nn.Module):
        self.modules, self.names = modules, tuple(modules)

    def load(self, name: str) -> nn.Module:
        return self.modules[name].eval()


def costs(folder: Path, **modules: nn.Module) -> dict[tuple[str, str], float]:
    run = Run(folder / "run", device=torch.device("cpu"))
    run.recipe = Recipe(id="r", student=None, data=Digits(), stages={})  # 8 x 8 pixels
    found = list(Operations()(run, Subjects(**modules)))  # type: ignore[arg-type]
    assert len(found) == 2 * len(modules) and all(f.better == "lower" for f in found)
    return {(f.subject, f.name): f.value for f in found}


@pytest.mark.parametrize(("mixer", "mixing", "active"), [
    ("identity", 0, 0), ("pool", 0, 0), ("random", 8 * 16 * 16, 0),
    ("conv", 16 * (8 * 16 + 49 * 16 + 16 * 8), 4 * 16 * 16),
    ("attention", 16 * (8 * 96 + 32 * 8) + 2 * 32 * 16 * 16, 0),
])  # fmt: skip
def test_operations_by_hand(tmp_path: Path, mixer: Any, mixing: int, active: int) -> None:
    """One stage of 4 x 4 positions and 8 channels, with a perceptron of 32."""
    spec = MetaFormer(mixers=(mixer,), widths=(8,), depths=(1,))
    found = costs(tmp_path, net=built(spec, tmp_path, (1, 8, 8)))
    assert found["net", "multiplications"] == 16 * 9 * 8 + mixing + 16 * 2 * 8 * 32 + 8 * 10
    assert found["net", "activation_operations"] == 4 * 16 * 32 + active


def test_starrelu_takes_71_percent_fewer_operations_than_gelu(tmp_path: Path) -> None:
    nets = {name: built(student("small", "conv", activation=name), tmp_path, (1, 8, 8)) for name in ("star", "gelu")}
    found = costs(tmp_path, **nets)
    fewer = 1 - found["star", "activation_operations"] / found["gelu", "activation_operations"]
    assert round(fewer, 2) == 0.71
    assert found["star", "multiplications"] == found["gelu", "multiplications"]


def test_operations_of_any_module(tmp_path: Path) -> None:
    parts = (nn.ReLU(), SquaredReLU(), StarReLU(), nn.GELU(), nn.Tanh())
    found = costs(tmp_path, net=nn.Sequential(nn.Flatten(), nn.Linear(64, 5), *parts, nn.Linear(5, 10)))
    assert found["net", "multiplications"] == 64 * 5 + 5 * 10
    assert found["net", "activation_operations"] == 5 * sum(ACTIVATIONS.values()) == 5 * (1 + 2 + 4 + 14)
