"""KD3: which images are selected, and the loss in front of the teacher's own head."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from stillhouse.core.run import Run, RunError
from stillhouse.data.images import Images
from stillhouse.methods.logits.kd3 import KD3, clear, proof, trust
from stillhouse.models.borrowed import Borrower, target
from stillhouse.models.toys import Convolutional
from stillhouse.models.vision import Residual, ResNet
from stillhouse.teachers.module import Frozen

BIG, THIN = ResNet(depth=6, stem=4, widths=(8, 12)), ResNet(depth=6, stem=4, widths=(4, 6))


def stood(tmp_path, method, items=6, teacher=None):
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (items, 1, 8, 8), generator=draw, dtype=torch.uint8)
    run = Run(tmp_path, device=torch.device("cpu"))
    one = torch.full((1, 1, 1), 128.0)
    run.source = Images(pixels, torch.full((items,), -100), tuple("abcd"), one, one)
    torch.manual_seed(1)
    module = Residual(BIG, 1, 4) if teacher is None else teacher
    run.teachers = {"teacher": Frozen(module)}
    batch = run.source.batch(range(items), 0)
    found = target(module, batch, 4)
    student = Borrower(Residual(THIN, 1, 4), "stages.1", (6, 4, 4), found.shape, module.get_submodule(found.head))
    run.horizon = 8
    return method.setup(student, run), run, batch


def test_the_threshold_by_hand():
    torch.manual_seed(0)
    logits = 3 * torch.randn(200, 5) + torch.tensor([1.0, 0.5, 0.0, 0.0, -3.0])
    p = logits.softmax(-1)
    own = [int(row.argmax()) for row in p]
    count = [own.count(k) for k in range(5)]
    kept = []
    for row, k in zip(p, own, strict=True):
        b = count[k] / max(count)
        kept.append(float(row.max()) > 0.8 * b / (2 - b))
    assert clear(logits, 0.8).tolist() == kept and 0 < sum(kept) < 200
    assert bool(clear(logits, 0.0).all()) and int(clear(logits, 1.0).sum()) < sum(kept)


def test_the_teacher_decides_early_and_the_student_late():
    """The code's formula, epoch by epoch."""
    for epoch in range(240):
        code = 1 - math.exp(-5 * ((epoch + 1) / 160 - 1) ** 2) if epoch < 120 else 0.0
        assert trust((epoch + 1) / 240) == pytest.approx(code, abs=1e-12)


def test_the_loss_by_hand(tmp_path, monkeypatch):
    method = KD3(least=0.0, contrast=0.7, temperature=0.4)
    s, run, batch = stood(tmp_path, method)
    seen = {}
    from stillhouse.methods.logits import kd3

    def kept(x, partner, share):
        seen["x'"] = other = restyled(x, partner, share)
        return other

    restyled = kd3.restyled
    monkeypatch.setattr(kd3, "restyled", kept)
    s.eval()
    (update,) = method.step(s, batch, run)
    x, other, teacher, student = batch["inputs"], seen["x'"], run.teacher.module, s.student

    def parts(images):
        maps = {}
        hooks = [m.register_forward_hook(lambda _, a, y, n=n: maps.__setitem__(n, y)) for n, m in
                 (("t", teacher.stages[1]), ("s", student.transfer))]  # fmt: skip
        logits = teacher(images), student(images)
        for hook in hooks:
            hook.remove()
        return logits, maps["t"], maps["s"]

    (zt, zs), ft, fs = parts(x)
    assert torch.allclose(zs, teacher.head(fs.mean((2, 3))), atol=1e-5)  # W_t GAP(transfer(F_s))
    loss = 0.0
    for b in range(6):
        w = float(torch.sigmoid((zs[b] - zt[b]).norm()).detach())
        loss += w * float((fs[b] - ft[b]).square().mean())
    _, ft2, fs2 = parts(other)
    for embed, first, second in ((s.adapters[0], fs, fs2), (s.adapters[1], ft, ft2)):
        z = torch.cat([F.normalize(embed(f.mean((2, 3))), dim=1) for f in (first, second)])
        for i in range(12):
            scores = [math.exp(float(z[i] @ z[j]) / 0.4) if j != i else 0.0 for j in range(12)]
            loss -= 0.7 * 0.5 * math.log(scores[(i + 6) % 12] / sum(scores))
    assert float(update.loss.detach()) == pytest.approx(loss, rel=1e-4) and int(update.count) == 6


def test_what_is_not_selected_is_not_looked_at(tmp_path):
    method = KD3(contrast=0.0)
    s, run, batch = stood(tmp_path, method)
    s.eval()
    s.kept.copy_(torch.tensor([1.0, 0, 1, 1, 0, 0]))
    (update,) = method.step(s, batch, run)
    broken = {**batch, "inputs": batch["inputs"].clone()}
    broken["inputs"][[1, 4, 5]] = float("nan")
    (again,) = method.step(s, broken, run)
    assert int(update.count) == 3 and torch.equal(update.loss, again.loss)
    s.kept.copy_(torch.tensor([1.0, 0, 0, 0, 0, 0]))
    (nothing,) = method.step(s, batch, run)
    assert int(nothing.count) == 0 and float(nothing.loss) == 0


def test_the_teachers_head_stays_and_its_embedding_learns(tmp_path):
    method = KD3(least=0.0)
    s, run, batch = stood(tmp_path, method)
    (update,) = method.step(s, batch, run)
    update.loss.backward()
    head = s.student.head
    assert torch.equal(head.weight, run.teacher.module.head.weight) and head.weight.grad is None
    assert float(s.adapters[1].weight.grad.abs().sum()) > 0
    assert all(p.grad is None for p in run.teacher.module.parameters())


def test_selection_follows_the_student_in_the_second_half(tmp_path):
    method = KD3(rounds=4, least=0.25)
    s, run, batch = stood(tmp_path, method)
    s.eval()
    run.step = 5
    method.advance(s, {}, run)  # step 6 of 8 begins round 3
    with torch.no_grad():
        assert torch.equal(s.kept.bool(), clear(s.student(batch["inputs"]), 0.25))
    before = s.kept.clone()
    s.kept.zero_()
    run.step = 4
    method.advance(s, {}, run)
    assert float(s.kept.sum()) == 0 and float(before.sum()) > 0  # no round begins


def test_a_teacher_whose_head_reads_no_mean_is_met_at_its_vector(tmp_path):
    torch.manual_seed(1)
    pooled = Convolutional(1, 4, 4, 2)  # it takes the largest of four cells before the mean
    s, run, batch = stood(tmp_path, KD3(least=0.0), teacher=pooled)
    assert s.tap == "head:in"
    (update,) = KD3(least=0.0).step(s, batch, run)
    assert bool(update.loss.isfinite())


def test_a_student_with_a_head_of_its_own_is_refused(tmp_path):
    run = Run(tmp_path)
    with pytest.raises(RunError, match="Borrowing"):
        KD3().setup(Residual(THIN, 1, 4), run)


def test_all_arms_train_the_same_network():
    arms = proof().arms.values()
    assert len({repr((made.stages["train"].student, made.stages["train"].steps)) for made in arms}) == 1
