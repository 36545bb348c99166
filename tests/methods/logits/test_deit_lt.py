"""DeiT-LT: class weights, its two terms, the end of mixing, the way uphill, and the audit of common and rare classes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from stillhouse.audits.tails import Tails
from stillhouse.core.run import Run, RunError
from stillhouse.data.augment import Augment
from stillhouse.data.images import Digits, Images, LongTail, Split
from stillhouse.data.late import Late, Turning
from stillhouse.methods.logits.deit_lt import Balanced, DeiTLT, recipe
from stillhouse.models.sharpness import uphill
from stillhouse.models.toys import Convolutional
from stillhouse.models.vision import ViT
from stillhouse.objectives.balance import effective, thirds
from stillhouse.teachers.module import Frozen

COUNTS = torch.tensor([20, 6, 3, 1])


def test_weights_by_hand():
    raw = [(1 - 0.99) / (1 - 0.99**n) for n in (20, 6, 3, 1)]
    expected = [4 * w / sum(raw) for w in raw]
    assert effective(COUNTS, 0.99).tolist() == pytest.approx(expected, rel=1e-12)
    assert float(effective(COUNTS).sum()) == pytest.approx(4)


def test_the_limits_of_the_weights():
    assert effective(COUNTS, 0.0).tolist() == [1, 1, 1, 1]
    inverse = 1 / COUNTS.double()
    assert torch.allclose(effective(COUNTS, 1 - 1e-12), 4 * inverse / inverse.sum(), rtol=1e-6)
    absent = effective(torch.tensor([5, 0, 5]), 0.9)
    assert absent.tolist() == pytest.approx([1, 0, 1])
    assert effective(torch.tensor([10**9, 1])).isfinite().all()
    with pytest.raises(ValueError, match="beta"):
        effective(COUNTS, 1.0)


def test_head_middle_and_tail():
    head, middle, tail = thirds(torch.tensor([3, 9, 1, 5, 2, 8, 7]))
    assert head.tolist() == [1, 5, 6] and middle.tolist() == [3, 0] and tail.tolist() == [4, 2]


def stood(folder: Path, method: Any, *, late: bool | None = None, mixed: bool = False) -> tuple[Any, Run, Any]:
    """(state, run, batch) of 30 images of four classes; `late`: whether the batch is, or None where none says so."""
    pixels = torch.randint(0, 256, (30, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    labels = torch.arange(4).repeat_interleave(COUNTS)
    augment = Augment(mixup=0.7) if mixed else None
    own = Images(pixels, labels, tuple("abcd"), torch.full((1, 1, 1), 128.0), torch.full((1, 1, 1), 70.0), 0, augment)
    run = Run(folder, device=torch.device("cpu"))
    if late is not None:
        own = Turning(**{name: getattr(own, name) for name in own.__dataclass_fields__}, turn=2)
    run.source = own
    torch.manual_seed(1)
    run.teachers = {"teacher": Frozen(Convolutional(1, 4, 8, 2))}
    student = ViT(patch=4, width=16, depth=1, heads=2, distilled=True, shape=(1, 8, 8), classes=4).build(run)
    return method.setup(student, run), run, own.batch([0, 5, 22, 27, 29], 3 if late else 0)


@pytest.mark.parametrize("late", [False, True])
def test_the_objective_is_the_papers(tmp_path: Path, late: bool):
    """By torch's own weighted cross-entropy; the weights are 1 on average over the training images."""
    method = DeiTLT(alpha=0.3, beta=0.99)
    s, run, batch = stood(tmp_path, method, late=late)
    (update,) = method.step(s, batch, run)
    weights = effective(COUNTS, 0.99)
    weights = (weights / ((weights * COUNTS).sum() / 30)).float()
    heard = run.teacher.module(batch["inputs"]).argmax(-1)
    said = s.student(batch["inputs"], each=True)
    own = F.cross_entropy(said["class"], batch["labels"], reduction="sum")
    other = F.cross_entropy(said["distilled"], heard, weight=weights if late else None, reduction="sum")
    assert torch.allclose(update.loss, 0.7 * own + 0.3 * other, rtol=1e-5)
    assert int(update.count) == 5


def test_each_head_learns_from_its_own_term(tmp_path: Path):
    for alpha, silent in ((0.0, "head_distilled"), (1.0, "head")):
        method = DeiTLT(alpha=alpha, weighted="never")
        s, run, batch = stood(tmp_path / silent, method)
        (update,) = method.step(s, batch, run)
        update.loss.backward()
        assert not getattr(s.student, silent).weight.grad.any()


def test_the_teacher_hears_the_mixed_images(tmp_path: Path):
    method = DeiTLT(alpha=0.5, weighted="never")
    s, run, batch = stood(tmp_path, method, mixed=True)
    (update,) = method.step(s, batch, run)
    said = s.student(batch["inputs"], each=True)
    heard = run.teacher.module(batch["inputs"]).argmax(-1)
    first = F.cross_entropy(said["class"], batch["labels"], reduction="none")
    second = F.cross_entropy(said["class"], batch["labels_b"], reduction="none")
    own = (batch["mix"] * first + (1 - batch["mix"]) * second).sum()
    other = F.cross_entropy(said["distilled"], heard, reduction="sum")
    assert torch.allclose(update.loss, 0.5 * own + 0.5 * other, rtol=1e-5)


def test_an_image_without_a_label_has_the_teachers(tmp_path: Path):
    method = DeiTLT(alpha=0.5, weighted="always")
    s, run, batch = stood(tmp_path, method)
    (known,) = method.step(s, batch, run)
    (unknown,) = method.step(s, {**batch, "labels": torch.full_like(batch["labels"], -100)}, run)
    assert torch.equal(known.logs["heard"], unknown.logs["heard"]) and float(unknown.logs["cross_entropy"]) == 0


def test_when_it_is_late_has_to_be_said(tmp_path: Path):
    with pytest.raises(RunError, match="data.late.Late"):
        stood(tmp_path, DeiTLT())
    for method in (DeiTLT(weighted="always"), Balanced(weighted="never")):
        stood(tmp_path, method)
    s, run, _ = stood(tmp_path, DeiTLT(weighted="never"))
    with pytest.raises(RunError, match="distillation token"):
        DeiTLT(weighted="never").setup(run.teacher.module, run)
    with pytest.raises(ValueError, match="alpha"):
        DeiTLT(alpha=2.0)


def test_late_images_are_not_mixed(tmp_path: Path):
    run = Run(tmp_path, device=torch.device("cpu"))
    strong = Augment(shift=1, mixup=0.5, cutmix=0.5)
    run.recipe = replace(recipe("smoke"), data=Digits(split=Split(tail=LongTail(factor=10)), augment=strong))
    sources = Late(turn=4).load(run)
    train = sources["train"]
    early, late = train.batch([1, 2], 3), train.batch([1, 2], 4)
    assert "mix" in early and early["late"].tolist() == [0, 0]
    assert "mix" not in late and "labels_b" not in late and late["late"].tolist() == [1, 1]
    only_moved = replace(run.sources()["train"], augment=Augment(shift=1))
    assert torch.equal(late["inputs"], only_moved.batch([1, 2], 4)["inputs"])
    assert torch.equal(early["inputs"], run.sources()["train"].batch([1, 2], 3)["inputs"])
    weak = Late(turn=0, augment=Augment()).load(run)["train"].batch([1, 2], 3)
    assert torch.equal(weak["inputs"], replace(train, augment=None, turn=9).batch([1, 2], 3)["inputs"])
    assert sources["test"] is run.sources()["test"]


def test_balanced_against_torch(tmp_path: Path):
    method = Balanced(beta=0.99, radius=0.0)
    s, run, batch = stood(tmp_path, method, late=True)
    s.student = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    (update,) = method.step(s, batch, run)
    effective_number = torch.tensor([(1 - 0.99**n) / (1 - 0.99) for n in (20, 6, 3, 1)])
    weights = (1 / effective_number) * 30 / (torch.tensor([20, 6, 3, 1]) / effective_number).sum()  # 1 on average
    expected = F.cross_entropy(s.student(batch["inputs"]), batch["labels"], weight=weights, reduction="sum")
    assert torch.allclose(update.loss, expected, rtol=1e-5)


def test_the_gradient_uphill_is_that_at_the_moved_weights():
    """Against moving the weights by hand."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(9, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    batch: dict[str, Any] = {"inputs": torch.randn(4, 1, 3, 3, dtype=torch.float64), "labels": torch.tensor([0, 1, 2, 0])}

    def loss(logits: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits, batch["labels"], reduction="sum")

    before = [p.detach().clone() for p in module.parameters()]
    loss(uphill(module, batch, loss, 0.3)).backward()
    found = [p.grad.clone() for p in module.parameters()]  # type: ignore[union-attr]
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
    module.zero_grad()
    loss(module(batch["inputs"])).backward()
    norm = torch.cat([p.grad.flatten() for p in module.parameters()]).norm()  # type: ignore[union-attr]
    with torch.no_grad():
        for p in module.parameters():
            p += 0.3 * p.grad / norm
    plain = [p.grad.clone() for p in module.parameters()]  # type: ignore[union-attr]
    module.zero_grad()
    loss(module(batch["inputs"])).backward()
    for got, p, was in zip(found, module.parameters(), plain, strict=True):
        assert torch.allclose(got, p.grad, rtol=1e-9)  # type: ignore[arg-type]
        assert not torch.allclose(got, was)


class Loads:
    """Subjects of an audit that are at hand."""

    def __init__(self, **modules: nn.Module):
        self.modules, self.names = modules, tuple(modules)

    def load(self, name: str) -> nn.Module:
        return self.modules[name]


def test_the_audit_against_a_loop(tmp_path: Path):
    s, run, _ = stood(tmp_path, DeiTLT(weighted="never"))
    student = s.student.eval()
    run.sources = lambda spec=None: {"train": run.source, "test": run.source}  # type: ignore[method-assign]
    loads: Any = Loads(train=student, plain=run.teacher.module)
    found = {(f.name, f.subject): f for f in Tails(draws=20, batch=7)(run, loads)}
    batch = run.source.batch(range(30), 0)
    said = student(batch["inputs"], each=True)
    parts = {"head": [0, 1], "middle": [2], "tail": [3]}
    for key, end in (("logits", ""), ("class", "_class"), ("distilled", "_distilled")):
        for part, classes in parts.items():
            rows = [i for i in range(30) if int(batch["labels"][i]) in classes]
            right = sum(int(said[key][i].argmax()) == int(batch["labels"][i]) for i in rows)
            assert found[f"accuracy_{part}{end}", "train"].value == pytest.approx(right / len(rows))
            assert found[f"accuracy_{part}{end}", "train"].n == len(rows)
    assert 0 < found["token_cosine", "train"].value <= 1
    assert {name for name, subject in found if subject == "plain"} == {f"accuracy_{part}" for part in parts}
