"""One-for-All against its equation, for students of three kinds."""

from __future__ import annotations

import math

import pytest
import torch

from feature_toys import stood
from stillhouse.core.run import RunError
from stillhouse.methods.features.ofa_kd import OFA
from stillhouse.models.taps import tapped
from stillhouse.models.toys import Perceptron
from stillhouse.models.vision import Mixer, MLPMixer, VisionTransformer, ViT


def student(kind):
    if kind == "vit":
        return VisionTransformer(ViT(patch=2, width=8, depth=3, heads=2), (1, 8, 8), 4)
    return MLPMixer(Mixer(patch=2, width=8, depth=3), (1, 8, 8), 4)


def placed(folder, method, kind):
    s, run, batch = stood(folder, method)
    return (s if kind == "cnn" else method.setup(student(kind), run)), run, batch


def enhanced(student, teacher, label, power, temperature):
    """E of one item, class by class."""
    q, p = ([math.exp(float(v) / temperature) for v in z] for z in (student, teacher))
    q, p = ([v / sum(e) for v in e] for e in (q, p))
    e = [float(k == label) for k in range(len(p))]
    return -sum(((a + b) ** power - b) * math.log(c) for a, b, c in zip(p, e, q, strict=True))


@pytest.mark.parametrize("kind", ["cnn", "vit", "mixer"])
def test_the_objective_is_the_papers(tmp_path, kind):
    method = OFA(labels=0.5, soft=2.0, exits=3.0, power=1.3, temperature=2.0)
    s, run, batch = placed(tmp_path, method, kind)
    (update,) = method.step(s, batch, run)
    logits, seen = tapped(s.student, batch, s.taps)
    teacher = run.teachers["teacher"].module(batch["inputs"])
    answers = [logits, *(branch(seen[tap]) for branch, tap in zip(s.adapters, s.taps, strict=True))]
    assert len(answers) == {"cnn": 3, "vit": 4, "mixer": 4}[kind]

    def total(said):
        return sum(enhanced(*row, 1.3, 2.0) for row in zip(said, teacher, batch["labels"].tolist(), strict=True))

    ce = float(torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="sum").detach())
    with torch.no_grad():
        wanted = 0.5 * ce + 2.0 * total(logits) + 3.0 * sum(total(said) for said in answers[1:])
    assert float(update.loss.detach()) == pytest.approx(wanted, rel=1e-5)
    assert method.equation == "0.5 CE(y, q) + 2 E(q, p) + 3 sum E(q_s, p)"


@pytest.mark.parametrize("kind", ["cnn", "vit", "mixer"])
def test_the_exits_learn_with_the_student_and_are_not_part_of_it(tmp_path, kind):
    s, run, batch = placed(tmp_path, OFA(), kind)
    (update,) = OFA().step(s, batch, run)
    update.loss.backward()
    assert all(p.grad is not None for p in s.adapters.parameters())
    assert set(s.groups()) == {"student"} and not any("exit" in name for name, _ in s.student.named_modules())
    assert all(p.grad is None for p in run.teachers["teacher"].module.parameters())


def test_power_1_is_soft_cross_entropy(tmp_path):
    method = OFA(labels=0.0, exits=0.0)
    s, run, batch = stood(tmp_path, method)
    (update,) = method.step(s, batch, run)
    p = run.teachers["teacher"].module(batch["inputs"]).softmax(-1)
    wanted = -(p * s.student(batch["inputs"]).log_softmax(-1)).sum()
    assert torch.allclose(update.loss, wanted, rtol=1e-5)


def test_a_mixed_image_learns_both_labels(tmp_path):
    method = OFA(power=1.4)
    s, run, batch = stood(tmp_path, method)
    other, share = batch["labels"].roll(1), torch.linspace(0, 1, 6)
    (mixed,) = method.step(s, dict(batch, labels_b=other, mix=share), run)
    (first,), (second,) = (
        method.step(s, dict(batch, labels=labels, weight=weight), run)
        for labels, weight in ((batch["labels"], share), (other, 1 - share))
    )
    assert torch.allclose(mixed.loss, first.loss + second.loss, rtol=1e-5) and float(mixed.count) == 6.0


def test_edges(tmp_path):
    """No label, weight 0, one item, large logits in bfloat16."""
    method = OFA(power=1.4)
    s, run, batch = stood(tmp_path, method)
    (unknown,) = method.step(s, dict(batch, labels=torch.full((6,), -100)), run)
    assert float(unknown.loss.detach()) == 0.0
    poisoned = dict(batch, inputs=batch["inputs"].clone(), weight=torch.tensor([0.0, 1, 1, 1, 1, 1]))
    poisoned["inputs"][0] = float("nan")
    (ours,), (wanted,) = (method.step(s, b, run) for b in (poisoned, {k: v[1:] for k, v in batch.items()}))
    assert torch.allclose(ours.loss, wanted.loss, rtol=1e-5)
    s.to(torch.bfloat16)
    with torch.no_grad():
        s.student.head.weight.mul_(1e4)
    (one,) = method.step(s, {k: v[:1] for k, v in batch.items()}, run)
    one.loss.backward()
    assert bool(one.loss.isfinite()) and all(bool(p.grad.isfinite().all()) for p in s.parameters() if p.grad is not None)


def test_layers_can_be_named_and_must_be_found(tmp_path):
    method = OFA(layers=("stages.0",), width=5)
    s, run, _ = stood(tmp_path, method)
    assert s.taps == ("stages.0",) and s.adapters[0].head.in_features == 5
    with pytest.raises(RunError, match=r"name its layers \(method.layers\)"):
        OFA().setup(Perceptron(64, 4, 8, 2), run)
    assert OFA(layers=("hidden.*",)).setup(Perceptron(64, 4, 8, 2), run).taps == ("hidden.0", "hidden.1")
