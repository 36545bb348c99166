"""DMAE against its equation, written out token by token."""

from __future__ import annotations

from dataclasses import replace

import numpy
import pytest
import torch

from masked_toys import BIG, SMALL, stood, total
from stillhouse.core.run import RunError
from stillhouse.methods.features.dmae import DMAE
from stillhouse.models.masked import hidden, noise, patchify, visible
from stillhouse.models.vision import ViT


def test_the_objective_is_the_papers(tmp_path):
    method = DMAE(weight=3.0)
    s, run, batch = stood(tmp_path, method)
    (update,) = method.step(s, batch, run)
    kept = visible(noise(batch, 16, run), 0.75)
    assert kept.shape == (6, 4)
    teacher, student, images = run.teachers["teacher"].module, s.student, batch["inputs"]
    with torch.no_grad():
        theirs = teacher.encode(images, kept)[5].double().numpy()  # the 6th of 8 blocks
        encoded = student.encode(images, kept)
        mine = s.adapters[0](encoded[2]).double().numpy()  # the 3rd of 4
        told = student.reconstruct(student.decode(encoded[-1], kept)[-1]).double()
    assert theirs.shape == mine.shape == (6, 5, 16)
    parts = patchify(images, 2).double()
    wanted = (parts - parts.mean(-1, keepdim=True)) / (parts.var(-1, keepdim=True) + 1e-6).sqrt()
    expected = 0.0
    for item in range(6):
        away = hidden(kept, 16)[item].bool()
        pixels = float((told[item, away] - wanted[item, away]).square().mean())
        gaps = [
            numpy.abs(a / numpy.linalg.norm(a) - b / numpy.linalg.norm(b)).mean()
            for a, b in zip(mine[item], theirs[item], strict=True)
        ]
        expected += pixels + 3.0 * float(numpy.mean(gaps))
    assert float(update.loss.detach()) == pytest.approx(expected, rel=1e-5)
    assert float(update.count) == 6
    assert method.equation == "mean (x - x̂)² + 3 mean |u(r(h_S)) - u(h_T)|"


def test_the_blocks_are_those_of_the_repository():
    assert [DMAE().blocks(n) for n in (12, 24)] == [9, 18]
    assert [DMAE(depth=0.01).blocks(4), DMAE(depth=1.0).blocks(4)] == [1, 4]


def test_a_student_that_is_the_teacher_has_nothing_to_learn_of_it(tmp_path):
    method = DMAE()
    s, run, batch = stood(tmp_path, method, same=True)
    with torch.no_grad():
        s.adapters[0].weight.copy_(torch.eye(8))
        s.adapters[0].bias.zero_()
    (update,) = method.step(s, batch, run)
    assert float(update.logs["features"]) < 1e-5 < float(update.logs["pixels"])


def test_the_length_of_the_teachers_tokens_does_not_count(tmp_path):
    method = DMAE(depth=1.0)
    s, run, batch = stood(tmp_path, method)
    (before,) = method.step(s, batch, run)
    encode = run.teachers["teacher"].module.encode
    run.teachers["teacher"].module.encode = lambda *a, **k: [5.0 * x for x in encode(*a, **k)]
    (after,) = method.step(s, batch, run)
    assert float(after.loss.detach()) == pytest.approx(float(before.loss.detach()), rel=1e-5)


def test_a_batch_in_parts_has_the_same_gradient(tmp_path):
    method = DMAE()
    s, run, _ = stood(tmp_path, method)
    (loss, count, grads), (again, also, others) = (total(method, s, run, parts) for parts in (1, 6))
    assert (again, also) == (pytest.approx(loss, rel=1e-5), count)
    assert len(grads) == len(others)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(grads, others, strict=True))


def test_an_item_without_weight_does_not_count(tmp_path):
    method = DMAE()
    s, run, batch = stood(tmp_path, method)
    weight = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0, 1.0])
    (update,) = method.step(s, {**batch, "weight": weight}, run)
    part = {name: value[weight > 0] for name, value in batch.items()}
    (other,) = method.step(s, part, run)
    assert float(update.count) == 5
    assert torch.allclose(update.loss, other.loss, rtol=1e-5)


def test_only_the_student_and_its_layer_learn(tmp_path):
    method = DMAE()
    s, run, _ = stood(tmp_path, method)
    total(method, s, run, 1)
    assert all(p.grad is None for p in run.teachers["teacher"].module.parameters())
    assert s.adapters[0].weight.grad.any()
    assert s.student.encoder.blocks[2].mlp[0].weight.grad.any()


@pytest.mark.parametrize(("teacher", "said"), [
    (ViT(shape=(1, 8, 8), classes=4), "the teacher must be a masked autoencoder"),
    (replace(BIG, encoder=replace(BIG.encoder, patch=4)), "divide an image alike"),
    (replace(BIG, encoder=replace(BIG.encoder, class_token=False)), "divide an image alike"),
    (replace(BIG, encoder=replace(BIG.encoder, shape=(1, 16, 16))), "the teacher reads images of"),
])  # fmt: skip
def test_who_cannot_teach_is_told(tmp_path, teacher, said):
    with pytest.raises(RunError, match=said):
        stood(tmp_path, DMAE(), teacher=teacher)


def test_who_cannot_learn_is_told(tmp_path):
    with pytest.raises(RunError, match="the student must be a masked autoencoder"):
        stood(tmp_path, DMAE(), student=SMALL.encoder)
    with pytest.raises(ValueError, match="depth"):
        DMAE(depth=0.0)
