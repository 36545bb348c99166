"""Both stages of G2SD against their equations."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch

from masked_toys import SMALL, few_images, stood, total
from stillhouse.core.run import RunError
from stillhouse.core.stage import Train
from stillhouse.methods.features.g2sd import Generic, Specific, proof
from stillhouse.models.masked import noise, visible
from stillhouse.models.vision import ViT
from stillhouse.teachers.module import Frozen

TAKEN: Any = ViT(patch=2, width=8, depth=2, heads=2, shape=(1, 8, 8), classes=4, distilled=True)


def test_the_generic_objective_is_the_papers(tmp_path):
    method = Generic(beta=0.5)
    s, run, batch = stood(tmp_path, method)
    (update,) = method.step(s, batch, run)
    kept = visible(noise(batch, 16, run), 0.75)
    teacher, student, images = run.teachers["teacher"].module, s.student, batch["inputs"]
    with torch.no_grad():
        theirs = teacher.decode(teacher.encode(images, kept)[-1], kept)[1].double().numpy()  # the 2nd of 4 blocks
        mine = s.adapters[0](student.norm(student.decode(student.encode(images, kept)[-1], kept)[-1])).double().numpy()
    assert theirs.shape == mine.shape == (6, 17, 20)
    theirs = (theirs - theirs.mean(-1, keepdims=True)) / numpy.sqrt(theirs.var(-1, keepdims=True) + 1e-5)
    gap = numpy.abs(mine - theirs)
    assert (gap < 0.5).any() and (gap > 0.5).any()
    expected = numpy.where(gap < 0.5, 0.5 * gap**2 / 0.5, gap - 0.25).mean((1, 2)).sum()
    assert float(update.loss.detach()) == pytest.approx(expected, rel=1e-5)
    assert float(update.count) == 6
    assert Generic().beta == 2.0 and Generic().ratio == 0.75  # as released


def test_the_pixels_of_hidden_patches_teach_nothing(tmp_path):
    """The generic stage tells no pixel: what predicts them gets no gradient, and neither does the teacher."""
    method = Generic()
    s, run, _ = stood(tmp_path, method)
    total(method, s, run, 1)
    assert s.student.predict.weight.grad is None
    assert s.student.mask.grad.any() and s.adapters[0][2].weight.grad.any()
    assert all(p.grad is None for p in run.teachers["teacher"].module.parameters())


@pytest.mark.parametrize("depth", [0.25, 1.0])
def test_the_teachers_scale_does_not_count(tmp_path, depth):
    method = Generic(depth=depth)
    s, run, batch = stood(tmp_path, method)
    (before,) = method.step(s, batch, run)
    decode = run.teachers["teacher"].module.decode
    run.teachers["teacher"].module.decode = lambda *a, **k: [50.0 * x + 3.0 for x in decode(*a, **k)]
    (after,) = method.step(s, batch, run)
    assert float(after.loss.detach()) == pytest.approx(float(before.loss.detach()), rel=1e-3)


def specific(folder: Any, student: ViT = TAKEN, classes: int = 4) -> tuple[Any, Any, Any]:
    from stillhouse.core.run import Run

    run = Run(folder, device=torch.device("cpu"))
    run.source = few_images()
    torch.manual_seed(1)
    teacher = ViT(patch=4, width=8, depth=1, heads=2, shape=(1, 8, 8), classes=classes).build(run)
    run.teachers = {"teacher": Frozen(teacher)}
    torch.manual_seed(2)
    return Specific().setup(student.build(run), run), run, run.source.batch(range(6), 0)


def test_the_specific_objective_is_the_papers(tmp_path):
    s, run, batch = specific(tmp_path)
    labels = batch["labels"].clone()
    labels[2] = -100
    (update,) = Specific().step(s, {**batch, "labels": labels}, run)
    with torch.no_grad():
        said = s.student(batch["inputs"], each=True)
        choice = run.teachers["teacher"].module(batch["inputs"]).argmax(-1)
        own, other = (said[name].double().log_softmax(-1) for name in ("class", "distilled"))
    labels[2] = choice[2]  # nobody knows it, and the teacher says this
    expected = -sum(float(own[i, labels[i]]) for i in range(6)) / 2
    expected -= sum(float(other[i, choice[i]]) for i in range(6)) / 2
    assert float(update.loss.detach()) == pytest.approx(expected, rel=1e-5)
    assert float(update.count) == 6


def test_mixed_images_have_both_their_labels(tmp_path):
    s, run, batch = specific(tmp_path)
    mix = torch.full((6,), 0.25)
    (mixed,) = Specific().step(s, {**batch, "labels_b": (batch["labels"] + 1) % 4, "mix": mix}, run)
    (first,) = Specific().step(s, batch, run)
    (second,) = Specific().step(s, {**batch, "labels": (batch["labels"] + 1) % 4}, run)
    assert torch.allclose(mixed.loss, 0.25 * first.loss + 0.75 * second.loss, rtol=1e-5)


def test_each_head_learns_its_own(tmp_path):
    s, run, batch = specific(tmp_path)
    choice = run.teachers["teacher"].module(batch["inputs"]).argmax(-1)
    found: list[torch.Tensor] = []
    for labels in ((choice + 1) % 4, (choice + 2) % 4):
        s.zero_grad()
        (update,) = Specific().step(s, {**batch, "labels": labels}, run)
        update.loss.backward()
        found += [s.student.head.weight.grad.clone(), s.student.head_distilled.weight.grad.clone()]
    assert not torch.allclose(found[0], found[2]) and torch.equal(found[1], found[3]) and found[1].any()


@pytest.mark.parametrize("method", ["generic", "specific"])
def test_a_batch_in_parts_has_the_same_gradient(tmp_path, method):
    learnt: Any = Generic() if method == "generic" else Specific()
    s, run, _ = stood(tmp_path, learnt) if method == "generic" else specific(tmp_path)
    (loss, count, grads), (again, also, others) = (total(learnt, s, run, parts) for parts in (1, 3))
    assert (again, also) == (pytest.approx(loss, rel=1e-5), count)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(grads, others, strict=True))


def test_what_does_not_fit_is_said(tmp_path):
    plain = ViT(patch=2, width=8, depth=2, heads=2, shape=(1, 8, 8), classes=4)
    with pytest.raises(RunError, match="`distilled` to true"):
        specific(tmp_path, student=plain)
    with pytest.raises(RunError, match="the student must be a masked autoencoder"):
        stood(tmp_path, Generic(), student=SMALL.encoder)
    s, run, batch = specific(tmp_path, classes=40)
    with pytest.raises(RunError, match="more classes apart"):
        list(Specific().step(s, batch, run))


def test_all_arms_take_the_same_steps():
    own = [
        [made.stages[name].steps for name in ("train", "tuned") if isinstance(made.stages.get(name), Train)]
        for made in proof().arms.values()
    ]
    assert own == [own[0]] * 4 and len(own[0]) == 2
