"""Cooperative masks against their equations."""

from __future__ import annotations

import math

import pytest
import torch

from feature_toys import stood
from stillhouse.methods.features.acam_kd import ACAM, Masks
from stillhouse.methods.layers import Beside
from stillhouse.objectives.masks import channel_gap, overlap, position_gap


def test_the_masks_by_hand():
    """Position by position: what the teacher asks for, what the student has there."""
    torch.manual_seed(0)
    make = Masks(4, 3).double().requires_grad_(False)
    mine, theirs = torch.randn(2, 4, 2, 3, dtype=torch.float64), torch.randn(2, 4, 2, 3, dtype=torch.float64)
    channels, positions = (masks.exp() for masks in make(mine, theirs))

    def at(layer, x, p):
        return layer.weight[:, :, 0, 0] @ x[:, p // 3, p % 3] + layer.bias

    for item, (own, other) in enumerate(zip(mine, theirs, strict=True)):
        fused = []
        for p in range(6):
            scores = [math.exp(float(at(make.query, other, p) @ at(make.key, own, r)) / math.sqrt(2)) for r in range(6)]
            fused.append(sum(w / sum(scores) * at(make.value, own, r) for r, w in enumerate(scores)))
        mean = sum(fused) / 6
        for m in range(3):
            assert torch.allclose(channels[item, m], torch.sigmoid(make.of_channels[m, 0] * mean))
            wanted = torch.stack([torch.sigmoid(make.of_positions[m] @ f) for f in fused])
            assert torch.allclose(positions[item, m], wanted)


def test_large_maps_have_their_keys_and_values_averaged_down():
    """To 32 cells a side; queries stay as many as the teacher has positions."""
    torch.manual_seed(0)
    make = Masks(2, 3)
    mine, theirs = 3 * torch.randn(1, 2, 64, 64), 3 * torch.randn(1, 2, 40, 40)
    found = make(mine, theirs)
    assert found[0].shape == (1, 3, 2) and found[1].shape == (1, 3, 1600)
    for masks, wanted in zip(found, make(torch.nn.functional.avg_pool2d(mine, 2), theirs), strict=True):
        assert torch.allclose(masks, wanted, atol=1e-5)
    cut = make(mine[..., ::2, ::2], theirs)  # a mean is no choice
    assert not torch.allclose(found[1], cut[1], atol=1e-2)


def test_the_objective_is_the_papers(tmp_path):
    method = ACAM(channel=2.0, spatial=3.0, diversity=4.0, beside=Beside(labels=0.5))
    s, run, batch = stood(tmp_path, method)
    (update,) = method.step(s, batch, run)
    seen = s.see(batch, run, adapted=False)
    ((project, masks),) = s.adapters
    mine, (theirs,) = project(seen.mine[0]), seen.theirs
    channels, positions = masks(mine, theirs)
    wanted = 2.0 * channel_gap(mine, theirs, channels) + 3.0 * position_gap(mine, theirs, positions)
    wanted = (wanted + 4.0 * (overlap(channels) + overlap(positions))).sum()
    wanted += 0.5 * torch.nn.functional.cross_entropy(seen.logits, batch["labels"], reduction="sum")
    assert torch.allclose(update.loss, wanted, rtol=1e-5)
    assert method.equation == "0.5 CE(y, q) + 2 L_c + 3 L_s + 4 (D(M_c) + D(M_s))"


def test_everything_learns_but_the_teacher(tmp_path):
    s, run, batch = stood(tmp_path, ACAM())
    (update,) = ACAM().step(s, batch, run)
    update.loss.backward()
    learned = [p for name, p in s.named_parameters() if not name.endswith("key.bias")]  # a shift of all keys changes nothing
    assert all(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in learned)
    assert all(p.grad is None for p in run.teachers["teacher"].module.parameters())
    assert set(s.groups()) == {"student"}


def test_masks_learn_to_differ(tmp_path):
    method = ACAM(channel=0.0, spatial=0.0, beside=Beside(labels=0.0))
    s, run, batch = stood(tmp_path, method)
    optimizer, found = torch.optim.SGD(s.adapters.parameters(), lr=1.0), []
    for _ in range(20):
        (update,) = method.step(s, batch, run)
        found.append(float(update.loss.detach()))
        optimizer.zero_grad()
        (update.loss / 6).backward()
        optimizer.step()
    assert found[-1] < found[0] and found[-1] == pytest.approx(min(found), rel=1e-3)


def test_edges(tmp_path):
    s, run, batch = stood(tmp_path, ACAM())
    poisoned = dict(batch, inputs=batch["inputs"].clone(), weight=torch.tensor([0.0, 1, 1, 1, 1, 1]))
    poisoned["inputs"][0] = float("nan")
    (ours,), (wanted,) = (ACAM().step(s, b, run) for b in (poisoned, {k: v[1:] for k, v in batch.items()}))
    assert torch.allclose(ours.loss, wanted.loss, rtol=1e-5)
    s.to(torch.bfloat16)
    (one,) = ACAM().step(s, {"inputs": 1e4 * batch["inputs"][:1], "labels": torch.tensor([-100])}, run)
    one.loss.backward()
    assert bool(one.loss.isfinite()) and all(bool(p.grad.isfinite().all()) for p in s.parameters() if p.grad is not None)
