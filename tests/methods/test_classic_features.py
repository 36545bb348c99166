"""What every classic feature method must bear: absent items, one item, no labels, small numbers, large logits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from feature_toys import stood
from stillhouse.methods.classics.attention_transfer import AttentionTransfer
from stillhouse.methods.classics.cc import CC
from stillhouse.methods.classics.fitnet import FitNet
from stillhouse.methods.classics.nst import NST
from stillhouse.methods.classics.pkt import PKT
from stillhouse.methods.classics.rkd import RKD
from stillhouse.methods.classics.sp import SP
from stillhouse.methods.classics.vid import VID
from stillhouse.methods.layers import Beside

RELATIONS: dict[str, Any] = {"sp": SP(), "pkt": PKT(), "rkd": RKD(), "cc": CC(), "cc code": CC(form="code", weight=0.02)}
EVERY = {
    "fitnet": FitNet(), "attention": AttentionTransfer(), "attention paper": AttentionTransfer(form="paper"), "nst": NST(),
    "vid": VID(), **RELATIONS,
}  # fmt: skip
each = pytest.mark.parametrize("method", EVERY.values(), ids=EVERY)


def loss(method, s, batch, run):
    (update,) = method.step(s, batch, run)
    return update


def gradients(s):
    return [p.grad.clone() for p in s.parameters() if p.grad is not None]


@each
def test_an_item_of_weight_0_is_as_if_it_were_not_there(tmp_path, method):
    s, run, batch = stood(tmp_path, method)
    poisoned = dict(batch, inputs=batch["inputs"].clone(), weight=torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0]))
    poisoned["inputs"][1] = float("nan")
    kept = {name: value[torch.tensor([0, 2, 3, 5])] for name, value in batch.items()}
    ours, wanted = loss(method, s, poisoned, run), loss(method, s, kept, run)
    assert float(ours.count) == 4.0
    assert torch.allclose(ours.loss, wanted.loss, rtol=1e-4)


@each
def test_an_item_without_a_label_keeps_its_feature_term(tmp_path, method):
    s, run, batch = stood(tmp_path, method)
    known, unknown = loss(method, s, batch, run), loss(method, s, dict(batch, labels=torch.full((6,), -100)), run)
    assert float(unknown.logs["cross_entropy"]) == 0.0
    labels = method.beside.labels * known.logs["cross_entropy"]
    assert torch.allclose(unknown.loss, known.loss - labels, rtol=1e-4)
    assert float(unknown.count) == 6.0


@each
def test_the_teacher_gets_no_gradient_and_the_student_does(tmp_path, method):
    method = replace(method, beside=Beside(labels=0.0))  # what is left comes from the features alone
    s, run, batch = stood(tmp_path, method)
    loss(method, s, batch, run).loss.backward()
    assert all(p.grad is None for p in run.teachers["teacher"].module.parameters())
    found = [p.grad for p in s.student.stages.parameters() if p.grad is not None]
    assert any(bool(grad.any()) for grad in found) and all(bool(grad.isfinite().all()) for grad in found)


@each
@pytest.mark.parametrize("items", [1, 2])
def test_very_few_items(tmp_path, method, items):
    """One item has no relations: only what stands beside them is left."""
    s, run, batch = stood(tmp_path, method)
    few = {name: value[:items] for name, value in batch.items()}
    update = loss(method, s, few, run)
    update.loss.backward()
    assert bool(update.loss.isfinite()) and all(bool(g.isfinite().all()) for g in gradients(s))
    if items == 1 and method in RELATIONS.values():
        told = {name for name in update.logs if name not in ("cross_entropy", "kl")}
        assert all(abs(float(update.logs[name])) < 1e-6 for name in told)


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_large_logits_and_small_numbers_stay_finite(tmp_path, method, dtype):
    s, run, batch = stood(tmp_path, method)
    s.to(dtype)
    run.teachers["teacher"].module.to(dtype)
    with torch.no_grad():
        s.student.head.weight.mul_(1e4)
    update = loss(method, s, batch, run)
    update.loss.backward()
    assert bool(update.loss.isfinite()) and all(bool(g.isfinite().all()) for g in gradients(s))


@each
def test_of_equal_items_the_gradient_is_finite(tmp_path, method):
    """Distances of 0 between items, and a blank image: maps that are constant."""
    s, run, batch = stood(tmp_path, method)
    batch = dict(batch, inputs=torch.zeros_like(batch["inputs"]))
    loss(method, s, batch, run).loss.backward()
    assert all(bool(g.isfinite().all()) for g in gradients(s))


@each
def test_weight_0_is_learning_from_the_labels(tmp_path, method):
    off = {"distance": 0.0, "angle": 0.0} if isinstance(method, RKD) else {"weight": 0.0}
    method = replace(method, beside=Beside(), **off)
    s, run, batch = stood(tmp_path, method)
    update = loss(method, s, batch, run)
    wanted = torch.nn.functional.cross_entropy(s.student(batch["inputs"]), batch["labels"], reduction="sum")
    assert torch.allclose(update.loss, wanted, rtol=1e-5)
    assert method.equation == "1 CE(y, q)"


@each
def test_a_mixed_image_has_both_its_labels_and_one_feature_term(tmp_path, method):
    assert method.takes_mixed
    s, run, batch = stood(tmp_path, method)
    share, others = torch.tensor([0.9, 0.5, 0.7, 0.6, 1.0, 0.8]), batch["labels"].roll(1)
    mixed = loss(method, s, dict(batch, labels_b=others, mix=share), run)
    plain = loss(method, s, batch, run)
    log_q = s.student(batch["inputs"]).log_softmax(-1)
    rows = torch.arange(6)
    wanted = -(share * log_q[rows, batch["labels"]] + (1 - share) * log_q[rows, others]).sum()
    assert torch.allclose(mixed.logs["cross_entropy"], wanted, rtol=1e-5)
    names = [name for name in plain.logs if name != "cross_entropy"]
    assert names and all(torch.equal(mixed.logs[name], plain.logs[name]) for name in names)
