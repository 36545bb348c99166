"""TGeo-KD: the geometry by hand, the look-ahead's gradient against finite differences, and what the ratio learns."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from feature_toys import stood
from stillhouse.core.run import Run, RunError
from stillhouse.core.signal import Signal
from stillhouse.methods.logits.tgeo_kd import Ratio, TGeoKD, geometry
from stillhouse.models.ahead import logits_with, stepped, weights_of
from stillhouse.models.call import logits_of


@pytest.fixture(autouse=True)
def with_validation(monkeypatch):
    """The run's own images as validation items."""
    monkeypatch.setattr(Run, "sources", lambda run, spec=None: {"valid": getattr(run, "held", run.source)})


def test_the_geometry_is_nine_numbers_a_class():
    q, p = torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([[0.1, 0.1, 0.8]])
    e, m = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.3, 0.1, 0.6])
    found = geometry(q.log(), p.log(), torch.tensor([2]), m[None])[0].reshape(9, 3)
    rows = [q[0], p[0], e, m, (m - q[0]) ** 2, (e - q[0]) ** 2, (p[0] - q[0]) ** 2, (p[0] - e) ** 2, (m - e) ** 2]
    assert torch.allclose(found, torch.stack(rows), atol=1e-6)
    nobody = geometry(q.log(), p.log(), torch.tensor([-100]), m[None])[0].reshape(9, 3)
    assert not nobody[2].any()


def test_the_students_loss_has_the_ratio_of_each_item(tmp_path):
    method = TGeoKD(temperature=2.0)
    s, run, batch = stood(tmp_path, method)
    labels = batch["labels"].clone()
    labels[1] = -100
    batch = {**batch, "labels": labels}
    (*_, update) = method.step(s, batch, run)
    z, t = logits_of(s.student, batch), logits_of(run.teacher.module, batch)
    a = s.ratio(geometry(z, t, labels, t.softmax(-1))).detach()
    a[1] = 1.0
    kl = 4 * F.kl_div((z / 2).log_softmax(-1), (t / 2).softmax(-1), reduction="none").sum(-1)
    ce = F.cross_entropy(z, labels, reduction="none", ignore_index=-100)
    assert torch.allclose(update.loss, (a * kl + (1 - a) * ce).sum(), rtol=1e-5)
    assert update.group == "student" and float(update.logs["ratio"]) == pytest.approx(float(a.sum()), rel=1e-5)


def test_the_ratios_gradient_is_that_of_the_look_ahead(tmp_path):
    """Against finite differences of the validation loss after a real step of the student, in double."""
    method = TGeoKD(ahead=0.5, validation=8)
    s, run, batch = stood(tmp_path, method)
    s.student.double()
    run.teacher.module.double()
    updates = method.step(s, batch, run)
    update = next(updates)
    assert update.group == "ratio" and float(update.count) == 8
    bias = s.ratio.layers[4].bias
    (slope,) = torch.autograd.grad(update.loss, bias)
    items = torch.randint(6, (8,), generator=run.rng("look-ahead")).tolist()
    judged = run.source.batch(items, 0)

    def after(shift):
        """By hand: the student's own parameters are moved and put back."""
        before = [p.detach().clone() for p in s.student.parameters()]
        with torch.no_grad():
            bias.add_(shift)
            z, t = logits_of(s.student, batch), logits_of(run.teacher.module, batch)
            a = s.ratio(geometry(z, t, batch["labels"], t.softmax(-1))).double()
            bias.sub_(shift)
        z = logits_of(s.student, batch)
        kl = 16 * F.kl_div((z / 4).log_softmax(-1), (t / 4).softmax(-1), reduction="none").sum(-1)
        loss = (a * kl + (1 - a) * F.cross_entropy(z, batch["labels"], reduction="none")).mean()
        slopes = torch.autograd.grad(loss, list(s.student.parameters()))
        with torch.no_grad():
            for p, g in zip(s.student.parameters(), slopes, strict=True):
                p -= 0.5 * g
            value = float(F.cross_entropy(logits_of(s.student, judged), judged["labels"], reduction="sum"))
            for p, old in zip(s.student.parameters(), before, strict=True):
                p.copy_(old)
        return value

    assert float(update.loss.detach()) == pytest.approx(after(0.0), rel=1e-6)
    numeric = (after(0.02) - after(-0.02)) / 0.04
    assert abs(numeric) > 1e-4 and float(slope) == pytest.approx(numeric, rel=0.02)


def test_the_look_ahead_leaves_the_student_alone(tmp_path):
    method = TGeoKD()
    s, run, batch = stood(tmp_path, method)
    norm = torch.nn.BatchNorm1d(64)
    s.student = torch.nn.Sequential(torch.nn.Flatten(), norm, torch.nn.Linear(64, 4))
    before = {k: v.clone() for k, v in s.student.state_dict().items()}
    weights = weights_of(s.student)
    loss = logits_with(s.student, weights, batch).square().sum()
    moved = logits_with(s.student, stepped(weights, loss, 0.1), batch)
    moved.sum().backward()
    assert all(torch.equal(before[k], v) for k, v in s.student.state_dict().items())
    assert all(p.grad is None for p in s.student.parameters()) and not torch.equal(moved, logits_of(s.student, batch))


def test_the_means_are_added_up_after_the_step(tmp_path):
    method = TGeoKD()
    s, run, batch = stood(tmp_path, method)
    for _ in range(2):
        list(method.step(s, batch, run))
    assert not s.means.met.any()
    method.advance(s, {}, run)
    p = logits_of(run.teacher.module, batch).softmax(-1)
    assert s.means.met.tolist() == [4.0, 4.0, 2.0, 2.0]
    for label in range(4):
        mean = p[batch["labels"] == label].mean(0)
        assert torch.allclose(s.means.row(torch.tensor([label]), torch.zeros(1, 4))[0], mean, atol=1e-6)


def test_the_ratio_learns_to_distrust_a_teacher_that_is_wrong(tmp_path):
    """Items 0 to 3 get another class's answer from the teacher; the ratio comes to hear less of it there."""
    method = TGeoKD(ahead=0.5, validation=32, temperature=1.0)
    s, run, batch = stood(tmp_path, method, items=16, classes=2)
    right = F.one_hot(batch["labels"], 2).float() * 6
    right[:4] = right[:4].flip(-1)
    run.teachers = {"teacher": lambda batch, want: Signal(logits=right)}
    groups = {name: torch.optim.Adam(group.parameters(), lr=0.01) for name, group in s.groups().items()}
    for run.step in range(100):
        for update in method.step(s, batch, run):
            for adam in groups.values():
                adam.zero_grad()
            (update.loss / update.count).backward()
            groups[update.group].step()
        method.advance(s, {}, run)
    means = s.means.row(batch["labels"], right)
    a = s.ratio(geometry(logits_of(s.student, batch), right, batch["labels"], means)).detach()
    assert float(a[:4].max()) < 0.2 and float(a[:4].max()) < float(a[4:].min())


def test_the_rule_is_the_baselines(tmp_path):
    method = TGeoKD(learned=False)
    s, run, batch = stood(tmp_path, method)
    (update,) = method.step(s, batch, run)
    z, t = logits_of(s.student, batch), logits_of(run.teacher.module, batch)
    ce = [F.cross_entropy(x, batch["labels"], reduction="none") for x in (z, t)]
    assert float(update.logs["ratio"]) == pytest.approx(float((1 - (-ce[0] / ce[1]).exp()).sum().detach()), rel=1e-5)
    assert set(s.groups()) == {"student"} and not method.compares_items
    method.advance(s, {}, run)


def test_every_so_many_steps_no_validation_items_and_bfloat16(tmp_path):
    method = TGeoKD(every=3)
    s, run, batch = stood(tmp_path, method)
    counts = []
    for run.step in range(4):
        counts.append(len(list(method.step(s, batch, run))))
    assert counts == [2, 1, 1, 2]
    run.step = 0
    s.bfloat16()
    for update in method.step(s, batch, run):
        update.loss.backward()
        assert update.loss.isfinite()
    assert all(p.grad.isfinite().all() for p in s.parameters())
    run.held = ()
    with pytest.raises(RunError, match="learned on validation items"):
        method.setup(s.student, run)
    assert Ratio(10).layers[0].in_features == 90
