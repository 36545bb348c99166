"""Spaces of students: what is in them, what is counted, and the student that was picked."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from stillhouse.core.recipe import Recipe
from stillhouse.core.run import Run, RunError
from stillhouse.data.images import Digits
from stillhouse.models.own import OwnModule
from stillhouse.models.space import Compact, Picked, Space, flops_of, parameters_of
from stillhouse.models.vision import ResNet, ViT

SPACE = Space(of=Compact(), values={"width": (4, 8, 16), "kernel": (1, 3), "skip": (True, False)})


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = Run(tmp_path, device=torch.device("cpu"))
    made.recipe = Recipe(id="space", student=Picked(), data=Digits(), stages={})
    return made


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("skip", [True, False])
def test_counts_by_hand(kernel: int, skip: bool, run: Run):
    """Two stages on an 8 x 8 image of one channel: 4 channels at 8 x 8, then 8 channels at 4 x 4."""
    module = Compact(width=4, depth=2, kernel=kernel, skip=skip).build(run)
    k, s = kernel**2, int(skip)
    first, second = 1 * 4 * k + 4 * 4 * k + s * 1 * 4, 4 * 8 * k + 8 * 8 * k + s * 4 * 8
    assert parameters_of(module) == first + second + 2 * (4 + 4) + 2 * (8 + 8) + 8 * 10 + 10
    batch = run.sources()["train"].batch([0], 0)
    assert flops_of(module, batch) == 2 * (64 * first + 16 * second + 8 * 10)
    assert flops_of(module, run.sources()["train"].batch([0, 1, 2], 0)) == 3 * flops_of(module, batch)
    assert module.training and module(batch["inputs"]).shape == (1, 10)


def test_small_images_are_not_halved_away(run: Run):
    module = Compact(width=2, depth=6, classes=3, channels=1).build(run)
    assert module(torch.randn(2, 1, 8, 8)).shape == (2, 3)


@pytest.mark.parametrize("wrong", [{"kernel": 2}, {"width": 0}, {"depth": 0}])
def test_what_cannot_be_built_is_refused(wrong: dict[str, Any]):
    with pytest.raises(ValueError, match="1 or more"):
        Compact(**wrong)


def test_every_combination_once():
    assert len(SPACE) == 12
    every = [SPACE.settings(choice) for choice in SPACE]
    expected = [dict(zip(SPACE.values, v, strict=True)) for v in itertools.product((4, 8, 16), (1, 3), (True, False))]
    assert every == expected
    assert SPACE.spec(every[3]) == Compact(width=4, kernel=3, skip=False)


def test_a_mutation_changes_one_field():
    draw = torch.Generator().manual_seed(0)
    space = Space(of=Compact(), values={**SPACE.values, "depth": (2,)})
    seen = set()
    for _ in range(200):
        parent = space.random(draw)
        child = space.mutated(parent, draw)
        changed = [place for place, (a, b) in enumerate(zip(parent, child, strict=True)) if a != b]
        assert len(changed) == 1 and 0 <= child[changed[0]] < space.sizes[changed[0]]
        seen.add((parent, child))
    assert {parent for parent, _ in seen} == set(space)
    one = Space(of=Compact(), values={"depth": (2,)})
    assert one.mutated((0,), draw) == (0,)


def test_values_that_are_lists_and_values_that_do_not_fit():
    space = Space(of=ResNet(depth=8), values={"widths": ((4, 8, 16), (8, 16, 16)), "depth": (8, 9)})
    assert space.spec(space.settings((1, 0))) == ResNet(depth=8, widths=(8, 16, 16))
    with pytest.raises(ValueError, match="has depth"):
        space.spec(space.settings((0, 1)))
    with pytest.raises(RunError, match="ViT has no 'widht' to vary; did you mean 'width'"):
        Space(of=ViT(), values={"widht": (1,)}).spec({"widht": 1})
    with pytest.raises(ValueError, match="'depth' has none"):
        Space(of=ViT(), values={"width": (1,), "depth": ()})
    with pytest.raises(ValueError, match="needs values"):
        Space(of=ViT())


def test_arguments_of_a_function(tmp_path: Path):
    own = tmp_path / "mine.py"
    own.write_text(
        "from torch import nn\n"
        "def student(width, bias=True):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, width, bias=bias), nn.Linear(width, 10))\n"
    )
    space = Space(of=OwnModule(function=f"{own}:student", kwargs={"bias": False}), values={"width": (3, 5)})
    spec = space.spec(space.settings((1,)))
    assert spec.kwargs == {"bias": False, "width": 5} and space.of.kwargs == {"bias": False}
    assert parameters_of(spec.made()) == 64 * 5 + 5 * 10 + 10


def test_the_picked_student_is_built_kept_and_read_back(run: Run, tmp_path: Path):
    class Stage:
        space = SPACE

    object.__setattr__(run.recipe, "stages", {"search": Stage()})
    run.save_json("search", {"ranked": [{"choice": [1, 0, 0]}, {"choice": [0, 0, 0]}]})
    assert Picked().spec(run) == Compact(width=8, kernel=1, skip=True)
    module = Picked().build(run)
    (tmp_path / "kept").mkdir()
    Picked().save(module, tmp_path / "kept", run)
    again = Picked().load(tmp_path / "kept", run).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in module.state_dict().items())


def test_nothing_is_picked_before_the_search(run: Run):
    with pytest.raises(RunError, match="no finished artifact 'search'"):
        Picked().build(run)
