"""RveRNet: the tokens' loss, the frozen parts, and what each network sees."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from stillhouse.core.run import Run, RunError
from stillhouse.methods.logits.rvernet import RveRNet, TokenTaught
from stillhouse.models.toys import Convolutional
from stillhouse.models.views import Fused, Viewing
from stillhouse.models.vision import VisionTransformer, ViT
from stillhouse.teachers.module import Frozen

LABELS = torch.tensor([0, 2, 1, -100, 2])


def transformer(distilled=True):
    return VisionTransformer(ViT(patch=4, width=8, depth=1, heads=2, distilled=distilled), (1, 8, 8), 3)


def batch():
    torch.manual_seed(0)
    inputs = torch.randn(5, 2, 8, 8)
    inputs[:, 0, 4:], inputs[:, 1, :4] = 0.0, 0.0
    return {"inputs": inputs, "labels": LABELS}


def test_the_tokens_loss_by_hand(tmp_path):
    torch.manual_seed(1)
    run = Run(tmp_path, device=torch.device("cpu"))
    teacher = Viewing(Convolutional(1, 3, 4, 2), "around")
    run.teachers = {"one": Frozen(Viewing(Convolutional(1, 3, 4, 2), "inside")), "two": Frozen(teacher)}
    student, given = Viewing(transformer(), "inside"), batch()
    method = TokenTaught(teacher="two", hard=0.3)
    (update,) = method.step(method.setup(student, run), given, run)
    said = student.module(given["inputs"][:, :1], each=True)
    choice = teacher.module(given["inputs"][:, 1:]).argmax(-1)
    known = LABELS >= 0
    loss = 0.7 * F.cross_entropy(said["class"][known], LABELS[known], reduction="sum")
    loss = loss + 0.3 * F.cross_entropy(said["distilled"], choice, reduction="sum")
    assert torch.allclose(update.loss, loss, rtol=1e-5) and float(update.count) == 5
    with pytest.raises(RunError, match="distillation token"):
        next(method.step(method.setup(Viewing(transformer(False), "inside"), run), given, run))
    with pytest.raises(RunError, match="no teacher 'three'"):
        TokenTaught(teacher="three").setup(student, run)


def test_each_sees_its_part_alone():
    given = batch()["inputs"]
    net = Convolutional(1, 3, 4, 2)
    assert torch.equal(Viewing(net, "inside")(given), net(given[:, :1]))
    assert torch.equal(Viewing(net, "around")(given), net(given[:, 1:]))
    assert torch.equal(Viewing(net, "whole")(given), net(given[:, :1] + given[:, 1:]))


def test_frozen_parts_stay_as_they_are(tmp_path):
    parts = [torch.nn.Sequential(torch.nn.Conv2d(2, 3, 8), torch.nn.BatchNorm2d(3), torch.nn.Flatten()) for _ in range(2)]
    module = Fused(parts, 3, 7, unfrozen=False).train()
    before = {name: value.clone() for name, value in module.parts.state_dict().items()}
    run, method, given = Run(tmp_path, device=torch.device("cpu")), RveRNet(), batch()
    state = method.setup(module, run)
    (update,) = method.step(state, given, run)
    update.loss.backward()
    assert not parts[0].training and module.head.training
    assert all(torch.equal(before[n], v) for n, v in module.parts.state_dict().items())
    assert all(p.grad is None for p in module.parts.parameters()) and module.head[0].weight.grad is not None
    with torch.no_grad():
        said = torch.cat([part(given["inputs"]) for part in parts], 1)
        logits = module.head[2](module.head[0](said).relu())
    known = LABELS >= 0
    assert float(update.loss.detach()) == pytest.approx(
        float(F.cross_entropy(logits[known], LABELS[known], reduction="sum")), rel=1e-5
    )
    assert float(update.count) == 4
    open_ = Fused(parts, 3, 7, unfrozen=True).train()
    (more,) = method.step(method.setup(open_, run), given, run)
    more.loss.backward()
    assert parts[0][0].weight.grad is not None


def test_a_student_that_joins_nothing_is_refused(tmp_path):
    with pytest.raises(RunError, match="LateFusion"):
        RveRNet().setup(transformer(), Run(tmp_path))
