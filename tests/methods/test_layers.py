"""What methods that compare features share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from stillhouse.core.method import Update
from stillhouse.core.run import Run, RunError
from stillhouse.data.images import Images
from stillhouse.methods.layers import Beside, Pairs, compared, equation, matched, total
from stillhouse.models.vision import ResNet, ViT
from stillhouse.teachers.module import Frozen


@dataclass
class Recipe:
    data: Any = None


def images(n: int = 6, classes: int = 5) -> Images:
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (n, 3, 16, 16), generator=draw, dtype=torch.uint8)
    names = tuple("abcde"[:classes])
    return Images(pixels, torch.arange(n) % classes, names, torch.zeros(3, 1, 1), torch.full((3, 1, 1), 255.0))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = Run(tmp_path, device=torch.device("cpu"))
    made.source = images()
    made._sources[id(None)] = (None, {"train": made.source})
    made.recipe = Recipe()
    return made


def net(run: Run, spec: Any) -> nn.Module:
    torch.manual_seed(1)
    return spec.build(run)


SMALL = ResNet(depth=8, widths=(4, 8, 16), stem=4, norm="group")
BIG = ResNet(depth=14, widths=(8, 16, 32), stem=8)
TOKENS = ViT(patch=4, width=12, depth=2, heads=2)


@pytest.mark.parametrize("form", ["map", "tokens", "vector"])
@pytest.mark.parametrize(("student", "teacher"), [(SMALL, BIG), (SMALL, TOKENS), (TOKENS, BIG), (TOKENS, TOKENS)])
def test_any_two_architectures_are_brought_to_one_shape(run: Run, student: Any, teacher: Any, form: Any):
    learner, frozen = net(run, student), Frozen(net(run, teacher))
    run.teachers = {"teacher": frozen}
    s = compared(learner, run, Pairs(), form, adapt=True)
    seen = s.see(run.source.batch(range(4), 0), run)
    assert seen.mine and all(a.shape == b.shape for a, b in zip(seen.mine, seen.theirs, strict=True))
    assert not any(x.requires_grad for x in seen.theirs)
    every = (*learner.modules(), *frozen.module.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in every)


def test_named_layers_and_globs(run: Run):
    learner, frozen = net(run, SMALL), Frozen(net(run, BIG))
    run.teachers = {"teacher": frozen}
    taps, shapes = matched(learner, run, Pairs(student=("stages.*",), teacher=("stages.*",)), "map")
    assert taps == [(f"stages.{i}", f"stages.{i}") for i in range(3)]
    assert shapes[0] == ((4, 16, 16), (8, 16, 16))
    taps, shapes = matched(learner, run, Pairs(student=("head:in",), teacher=("head:in",)), "vector")
    assert taps == [("head:in", "head:in")] and shapes == [((16,), (32,))]


@pytest.mark.parametrize(
    ("pairs", "line"),
    [
        (Pairs(student=("stages.9",), teacher=("stages.1",)), "no layer 'stages.9'; did you mean 'stages"),
        (Pairs(student=("stages.*",), teacher=("stages.1",)), "are 3 and the teacher's stages.1 are 1"),
        (Pairs(student=("stages.1:out",), teacher=("stages.1",)), "write stages.1 for what a layer gives"),
    ],
)
def test_what_does_not_fit_is_said_before_the_first_step(run: Run, pairs: Pairs, line: str):
    run.teachers = {"teacher": Frozen(net(run, BIG))}
    with pytest.raises(RunError, match=line):
        matched(net(run, SMALL), run, pairs, "map")


def test_one_side_named_is_refused():
    with pytest.raises(ValueError, match="of both"):
        Pairs(student=("stages.1",))


def test_a_dry_run_changes_nothing_in_the_student(run: Run):
    learner = net(run, ResNet(depth=8, widths=(4, 8, 16), stem=4)).train()
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    run.teachers = {"teacher": Frozen(net(run, BIG))}
    compared(learner, run, Pairs(), "map", adapt=True)
    assert learner.training and all(part.training for part in learner.modules())
    assert all(torch.equal(value, before[name]) for name, value in learner.state_dict().items())  # running means too


def test_adapters_learn_in_the_students_group_and_are_not_kept(run: Run):
    run.teachers = {"teacher": Frozen(net(run, BIG))}
    s = compared(net(run, SMALL), run, Pairs(), "map", adapt=True)
    assert set(s.groups()) == {"student"}
    names = {name for name, _ in s.groups()["student"].named_parameters()}
    assert any(name.startswith("adapters.") for name in names) and any(name.startswith("student.") for name in names)
    assert not any(name.startswith("adapters") for name in s.get_submodule("student").state_dict())


def test_two_runs_in_one_process_do_not_disturb_each_other(run: Run):
    teacher = net(run, BIG)
    learner = net(run, SMALL)
    a, b = Frozen(teacher), Frozen(teacher)
    a.tap(["stages.0"])
    b.tap(["stages.2"])
    batch = run.source.batch(range(2), 0)
    want = frozenset({"features", "logits"})
    assert set(a(batch, want).need("features")) == {"stages.0"} and set(b(batch, want).need("features")) == {"stages.2"}
    assert a(batch, frozenset({"logits"})).features is None
    assert not any(m._forward_hooks for m in (*teacher.modules(), *learner.modules()))


def test_the_objective_is_a_sum_over_items_with_its_live_weights(run: Run):
    run.teachers = {"teacher": Frozen(net(run, BIG))}
    s = compared(net(run, SMALL), run, Pairs(), "map", adapt=True)
    batch = {**run.source.batch(range(4), 0), "weight": torch.tensor([1.0, 1.0, 0.0, 2.0])}
    seen = s.see(batch, run)
    gap = torch.tensor([1.0, 2.0, float("nan"), 3.0])
    update: Update = total(seen, Beside(labels=0.5, soft=0.25, temperature=2.0), {"gap": (10.0, gap)})
    log_q, log_p = (x.double().div(2).log_softmax(-1) for x in (seen.logits, seen.said))
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)
    ce = -seen.logits.double().log_softmax(-1)[torch.arange(4), batch["labels"]]
    w = batch["weight"].double()
    kept = w > 0
    wanted = (0.5 * w * ce + 0.25 * 4 * w * kl)[kept].sum() + 10 * (1 + 2 + 2 * 3)
    assert float(update.count) == 4.0
    assert torch.allclose(update.loss.double(), wanted, rtol=1e-5)
    assert equation(Beside(labels=0.5, soft=0.25, temperature=2.0), {"gap": 10.0}) == (
        "0.5 CE(y, q) + 1 KL(p ‖ q at T=2) + 10 gap"
    )
