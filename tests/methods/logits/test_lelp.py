"""LELP's target and loss against a loop, its limits, and its student with several outputs a class."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from stillhouse.core.run import Run, RunError
from stillhouse.data.coarse import Coarse
from stillhouse.data.images import Digits, Images, Split
from stillhouse.methods.logits.lelp import LELP
from stillhouse.models.subclasses import Subclasses
from stillhouse.models.taps import tapped
from stillhouse.models.toys import ConvNet, Convolutional
from stillhouse.teachers.module import Frozen

C, S = 2, 3


def stood(folder, method: LELP, per_class: int = S) -> tuple[Any, Run, Any]:
    """(state, run, batch) with 40 noisy images of two classes, the label of two of them unknown."""
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (40, 1, 8, 8), generator=draw, dtype=torch.uint8)
    labels = torch.arange(40) % C
    labels[:2] = -100
    run = Run(folder, device=torch.device("cpu"))
    run.source = Images(pixels, labels, ("a", "b"), torch.full((1, 1, 1), 128.0), torch.full((1, 1, 1), 70.0))
    torch.manual_seed(1)
    run.teachers = {"teacher": Frozen(Convolutional(1, C, 8, 2))}
    student = Subclasses(spec=ConvNet(channels=1, width=4, classes=C), per_class=per_class).build(run)
    return method.setup(student, run), run, run.source.batch(range(10), 0)


def seen(run: Run, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
    logits, features = tapped(run.teacher.module, batch, ["head:in"])
    return logits, features["head:in"]


def test_the_objective_is_the_papers(tmp_path):
    method = LELP(temperature=2.0, sharpness=0.7, labels=0.3)
    s, run, batch = stood(tmp_path, method)
    (update,) = method.step(s, batch, run)
    logits, h = seen(run, batch)
    fine, loss = s.student.model(batch["inputs"]), torch.zeros(())
    for i in range(10):
        p = (logits[i] / 2).softmax(-1)
        q = fine[i].softmax(-1)
        for c in range(C):
            r = (((h[i] - s.middle[c]) @ s.maps[c]) / 0.7).softmax(-1)
            for k in range(S):
                target = p[c] * r[k]
                loss = loss + target * (target.log() - q[c * S + k].log())
        if int(batch["labels"][i]) >= 0:
            own = int(batch["labels"][i]) * S
            loss = loss - 0.3 * q[own : own + S].sum().log()
    assert torch.allclose(update.loss, loss, rtol=1e-4)
    assert int(update.count) == 10


def test_the_directions_are_those_of_the_teachers_features(tmp_path):
    """With the class that the teacher says where the label is not known."""
    s, run, _ = stood(tmp_path, LELP())
    whole = run.source.batch(range(40), 0)
    logits, h = seen(run, whole)
    labels = whole["labels"].where(whole["labels"] >= 0, logits.argmax(-1))
    for c in range(C):
        own = (h[labels == c] - s.middle[c]) @ s.maps[c]
        assert torch.allclose(own.mean(0), torch.zeros(S), atol=1e-4)
        assert torch.allclose(own.std(0, correction=0), torch.ones(S), atol=1e-3)


def test_what_the_head_sees_can_be_left_out(tmp_path):
    """Moving the features along the head's rows then changes no subclass; without, it does."""
    for method, left_out in ((LELP(null_space=True), True), (LELP(), False)):
        s, run, _ = stood(tmp_path / str(left_out), method)
        moved = run.teacher.module.head.weight @ s.maps  # [C, D] @ [C, D, S]
        assert (float(moved.abs().max()) < 1e-4) == left_out


def test_one_subclass_is_learning_the_teachers_probabilities(tmp_path):
    method = LELP(temperature=3.0)
    s, run, batch = stood(tmp_path, method, per_class=1)
    (update,) = method.step(s, batch, run)
    logits, _ = seen(run, batch)
    log_q = s.student(batch["inputs"]).log_softmax(-1)
    expected = torch.nn.functional.kl_div(log_q, (logits / 3).softmax(-1), reduction="sum")
    assert torch.allclose(update.loss, expected, rtol=1e-4)


def test_very_sharp_directions_and_clusters_have_one_subclass_each(tmp_path):
    for method in (LELP(sharpness=1e-4), LELP(split="clusters")):
        s, run, batch = stood(tmp_path / method.split, method)
        (update,) = method.step(s, batch, run)
        update.loss.backward()
        assert update.loss.isfinite()
        assert all(p.grad.isfinite().all() for p in s.student.parameters())


def test_clusters_against_a_loop(tmp_path):
    method = LELP(split="clusters")
    s, run, batch = stood(tmp_path, method)
    (update,) = method.step(s, batch, run)
    logits, h = seen(run, batch)
    log_q, loss = s.student.model(batch["inputs"]).detach().log_softmax(-1), 0.0
    for i in range(10):
        p = logits[i].softmax(-1)
        for c in range(C):
            own = int((h[i] - s.middle[c]).norm(dim=-1).argmin())
            loss += float(p[c] * (p[c].log() - log_q[i, c * S + own]))
    assert float(update.loss.detach()) == pytest.approx(loss, rel=1e-4)


def test_a_class_is_the_sum_of_its_subclasses(tmp_path):
    s, _, batch = stood(tmp_path, LELP())
    fine = s.student.model(batch["inputs"]).softmax(-1)
    assert torch.allclose(s.student(batch["inputs"]).softmax(-1), fine.unflatten(-1, (C, S)).sum(-1), atol=1e-6)


def test_what_cannot_be_learned_from_is_told(tmp_path):
    s, run, _ = stood(tmp_path, LELP())
    with pytest.raises(RunError, match="several outputs for every class"):
        LELP().setup(s.student.model, run)
    with pytest.raises(RunError, match="null_space needs the head"):
        LELP(null_space=True, layer="stages.1").setup(s.student, run)
    s.student.per_class = 5
    with pytest.raises(RunError, match="gives 6 logits; 5 for each of 2 classes"):
        list(LELP().step(s, run.source.batch([0], 0), run))
    with pytest.raises(ValueError, match="sharpness"):
        LELP(sharpness=0.0)


def test_coarse_classes(tmp_path):
    run = Run(tmp_path, device=torch.device("cpu"))
    digits = Digits(split=Split(labels=3))
    fine = digits.load(run)
    made = Coarse(source=digits, groups={"low": (0, "1", 2), "four": ("4",)}).load(run)
    for name, images in made.items():
        old = fine[name].labels if fine[name].truth is None else fine[name].truth
        assert len(images) == sum(int((old == d).sum()) for d in (0, 1, 2, 4)) and images.names == ("low", "four")
    train, truth = made["train"], made["train"].truth
    assert truth is not None and sorted(set(truth.tolist())) == [0, 1]
    assert int((train.labels == 0).sum()) == 9 and int((train.labels == 1).sum()) == 3
    assert torch.equal(train.labels[train.labels >= 0], truth[train.labels >= 0])
    with pytest.raises(RunError, match="no class 'ten'"):
        Coarse(source=digits, groups={"a": ("ten",), "b": (1,)}).load(run)
    with pytest.raises(ValueError, match="in no other group"):
        Coarse(source=digits, groups={"a": (1,), "b": (1, 2)})


def test_a_student_that_is_kept_and_read_again(tmp_path):
    spec = Subclasses(spec=ConvNet(channels=1, width=4, classes=C), per_class=S)
    run = Run(tmp_path, device=torch.device("cpu"))
    module = spec.build(run)
    (tmp_path / "kept").mkdir()
    spec.save(module, tmp_path / "kept", run)
    images = torch.randn(2, 1, 8, 8)
    assert torch.equal(spec.load(tmp_path / "kept", run)(images), module(images))
    plain = replace(spec.spec, classes=C * S).load(tmp_path / "kept", run)  # what is kept is the model itself
    assert torch.equal(plain(images), module.model(images))
