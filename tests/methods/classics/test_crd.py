"""Contrastive representation distillation against its equation, item by item; its memories, negatives and constants."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from feature_toys import stood
from stillhouse.core.run import RunError
from stillhouse.methods.classics.crd import CRD
from stillhouse.methods.layers import Beside

SMALL = CRD(width=5, negatives=3, temperature=0.5, beside=Beside(labels=0.5), weight=2.0)


def by_hand(query, memory, index, z, tau):
    """One side of the loss, summed over the items."""
    n, k = len(memory), index.shape[1] - 1
    found = 0.0
    for g, rows in zip(query.double(), index.tolist(), strict=True):
        h = [math.exp(float(g @ memory[row].double()) / tau) / z for row in rows]
        found -= math.log(h[0] / (h[0] + k / n))
        found -= sum(math.log((k / n) / (value + k / n)) for value in h[1:])
    return found


def test_the_objective_is_the_papers(tmp_path):
    s, run, batch = stood(tmp_path, SMALL, items=8)
    (update,) = SMALL.step(s, batch, run)
    seen, g_s, g_t = SMALL._embedded(s, batch, run)
    assert torch.allclose(g_s.norm(dim=1), torch.ones(8)) and torch.allclose(g_t.norm(dim=1), torch.ones(8))
    index = SMALL._drawn(s, batch["items"], run)
    sides = [(g_s, s.memory_t, s.log_z_t), (g_t, s.memory_s, s.log_z_s)]
    contrast = sum(by_hand(g.detach(), m, index, math.exp(float(z)), 0.5) for g, m, z in sides)
    ce = torch.nn.functional.cross_entropy(seen.logits, batch["labels"], reduction="sum")
    assert float(update.loss.detach()) == pytest.approx(0.5 * float(ce.detach()) + 2.0 * contrast, rel=1e-5)
    assert SMALL.equation == "0.5 CE(y, q) + 2 (NCE(g_s, M_t) + NCE(g_t, M_s))"


def test_the_constant_is_n_times_the_mean_score(tmp_path):
    s, run, batch = stood(tmp_path, SMALL, items=8)
    _, g_s, _ = SMALL._embedded(s, batch, run)  # all 8 items: those that it was taken from
    rows = s.memory_t[SMALL._drawn(s, batch["items"], run)]
    mean = ((rows * g_s.detach().unsqueeze(1)).sum(-1) / 0.5).exp().mean()
    assert float(s.log_z_t) == pytest.approx(math.log(8 * float(mean)), rel=1e-5)


def test_both_embeddings_and_the_student_learn_and_the_memories_do_not(tmp_path):
    method = replace(SMALL, beside=Beside(labels=0.0))  # what is left comes from the contrast alone
    s, run, batch = stood(tmp_path, method)
    before = s.memory_s.clone(), s.memory_t.clone()
    (update,) = method.step(s, batch, run)
    update.loss.backward()
    assert all(bool(p.grad.abs().sum() > 0) for p in s.adapters.parameters() if p.ndim > 1)
    assert all(bool(p.grad.any()) for p in s.student.stages.parameters() if p.ndim > 1)
    assert all(p.grad is None for p in run.teachers["teacher"].module.parameters())
    assert torch.equal(s.memory_s, before[0]) and torch.equal(s.memory_t, before[1])
    assert set(s.groups()) == {"student"}


def test_the_memories_move_once_a_step_whatever_the_parts(tmp_path):
    whole, run, batch = stood(tmp_path / "a", SMALL, items=6)
    parts, _, _ = stood(tmp_path / "b", SMALL, items=6)
    parts.load_state_dict(whole.state_dict())
    old_s, old_t, (_, g_s, g_t) = whole.memory_s.clone(), whole.memory_t.clone(), SMALL._embedded(whole, batch, run)
    some = [{name: value[i : i + 2] for name, value in batch.items()} for i in (0, 2, 4)]
    together = [u for part in some for u in SMALL.step(parts, part, run)]
    (at_once,) = SMALL.step(whole, batch, run)
    assert torch.allclose(torch.stack([u.loss for u in together]).sum(), at_once.loss, rtol=1e-5)
    for s in (whole, parts):
        with torch.no_grad():
            SMALL.advance(s, {}, run)
        assert not s.pending
        for memory, query, before in ((s.memory_s, g_s, old_s), (s.memory_t, g_t, old_t)):
            rows = 0.5 * before + 0.5 * query.detach()
            assert torch.allclose(memory, rows / rows.norm(dim=1, keepdim=True), atol=1e-6)
    assert torch.allclose(whole.memory_t, parts.memory_t, atol=1e-6)
    assert torch.allclose(whole.memory_t.norm(dim=1), torch.ones(6))


def test_negatives_are_of_other_classes_and_every_one_of_them_comes(tmp_path):
    method = replace(SMALL, negatives=10_000)
    s, run, batch = stood(tmp_path, method, items=10)  # classes 0 1 2 3 0 1 2 3 0 1
    assert method._drawn(s, batch["items"], run).shape == (10, 10)  # at most as many as there are others
    seen = {item: set() for item in range(10)}
    for run.step in range(60):
        for item, *others in method._drawn(s, batch["items"], run).tolist():
            seen[item] |= set(others)
    labels = batch["labels"].tolist()
    assert all(found == {j for j in range(10) if labels[j] != labels[item]} for item, found in seen.items())


def test_an_item_without_a_label_has_all_others_for_negatives(tmp_path):
    s, run, batch = stood(tmp_path, SMALL, items=6)
    run.source.labels[[0, 1]] = -100
    s = SMALL.setup(s.student, run)
    seen = set()
    for run.step in range(60):
        seen |= set(SMALL._drawn(s, batch["items"][:1], run)[0, 1:].tolist())
    assert seen == {1, 2, 3, 4, 5}


def test_one_class_and_data_without_numbers_are_refused(tmp_path):
    with pytest.raises(RunError, match="all training items are of one class"):
        stood(tmp_path, SMALL, items=4, classes=1)
    s, run, batch = stood(tmp_path, SMALL)

    class Unnumbered:
        classes = 4

        def __len__(self):
            return 6

        def batch(self, items, epoch):
            return {"inputs": batch["inputs"][: len(items)], "labels": batch["labels"][: len(items)]}

    run.source = Unnumbered()
    with pytest.raises(RunError, match="do not say which items"):
        SMALL.setup(s.student, run)


def test_an_item_of_weight_0_teaches_nothing_and_is_not_remembered(tmp_path):
    s, run, batch = stood(tmp_path, SMALL)
    old = s.memory_s.clone()
    weighed = dict(batch, inputs=batch["inputs"].clone(), weight=torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0, 1.0]))
    weighed["inputs"][1] = float("nan")
    (update,) = SMALL.step(s, weighed, run)
    kept = {name: value[torch.tensor([0, 2, 3, 4, 5])] for name, value in batch.items()}
    s.pending.clear()
    (wanted,) = SMALL.step(s, kept, run)
    assert torch.allclose(update.loss, wanted.loss, rtol=1e-5)
    with torch.no_grad():
        SMALL.advance(s, {}, run)
    assert torch.equal(s.memory_s[1], old[1]) and not torch.equal(s.memory_s[0], old[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_one_item_blank_images_and_large_logits_stay_finite(tmp_path, dtype):
    s, run, batch = stood(tmp_path, SMALL)
    s.to(dtype)
    with torch.no_grad():
        s.student.head.weight.mul_(1e4)
    for inputs in (batch["inputs"], torch.zeros_like(batch["inputs"])):
        for count in (1, 6):
            part = {name: value[:count] for name, value in dict(batch, inputs=inputs).items()}
            (update,) = SMALL.step(s, part, run)
            update.loss.backward()
            assert bool(update.loss.isfinite())
    assert all(bool(p.grad.isfinite().all()) for p in s.parameters() if p.grad is not None)
