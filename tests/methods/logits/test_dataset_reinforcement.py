"""Reinforced data: the top k made whole again, the loss, and that what was kept teaches like the teachers themselves."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from logit_toys import BATCH, LABELS, STUDENT, TEACHER, mean, only, taught
from stillhouse.core.recipe import Recipe
from stillhouse.core.run import Run
from stillhouse.core.signal import Signal, TopK
from stillhouse.core.stage import execute
from stillhouse.core.teacher import TeacherMismatch
from stillhouse.data.augment import Augment
from stillhouse.data.images import Digits
from stillhouse.methods.logits.dataset_reinforcement import Reinforced, recipe
from stillhouse.models.toys import MLP
from stillhouse.objectives.spread import likeliest, spread
from stillhouse.signals.label import Label
from stillhouse.signals.topk import KeptTopK, top_k
from stillhouse.teachers.cached import Cached


def test_the_rest_is_spread_evenly_by_hand():
    top = TopK(torch.tensor([[0.5, 0.3]]).log(), torch.tensor([[2, 0]]), torch.tensor([0.2]).log(), classes=4)
    assert spread(top, 4).exp()[0].tolist() == pytest.approx([0.3, 0.1, 0.5, 0.1])


def test_it_is_a_distribution_that_keeps_the_top():
    for k in (1, 3, 99, 100):
        top = likeliest(TEACHER, k)
        p, whole = spread(top, 100).exp(), TEACHER.softmax(-1)
        assert torch.allclose(p.sum(-1), torch.ones(8, dtype=p.dtype))
        assert torch.allclose(p.gather(-1, top.index), whole.gather(-1, top.index))
        assert torch.equal(p.argmax(-1), whole.argmax(-1))
        kept = top_k(TEACHER, k, 100)  # what a store keeps of them
        assert torch.allclose(kept.rest.double(), top.rest, atol=1e-4)
    assert torch.allclose(spread(likeliest(TEACHER, 100), 100), TEACHER.log_softmax(-1))
    assert likeliest(TEACHER, 1000).index.shape == (8, 100)


def test_certain_teachers_and_wrong_classes():
    top = likeliest(torch.tensor([[1e4, 0.0, 0.0, -1e4]]), 2)
    target = spread(top, 4)
    student = torch.tensor([[0.0, 1e4, 3.0, 0.0]], requires_grad=True)
    from stillhouse.objectives.divergences import ForwardKL

    loss = ForwardKL()(student, target).sum()
    loss.backward()
    assert loss.isfinite() and student.grad is not None and student.grad.isfinite().all()
    with pytest.raises(ValueError, match="is of 4 classes, not of 5"):
        spread(top, 5)


def test_the_objective_is_the_papers(tmp_path: Path):
    run = taught(tmp_path, TEACHER)
    made, _ = only(Reinforced(share=0.9, k=3), run, STUDENT)
    p, log_q, loss = TEACHER.softmax(-1), STUDENT.log_softmax(-1), 0.0
    for i in range(8):
        kept = sorted(range(100), key=lambda c: -float(p[i, c]))[:3]
        left = (1 - sum(float(p[i, c]) for c in kept)) / 97
        for c in range(100):
            target = float(p[i, c]) if c in kept else left
            loss += 0.9 * target * (math.log(target) - float(log_q[i, c]))
        loss += 0.1 * -float(log_q[i, LABELS[i]])
    assert mean(made) == pytest.approx(loss / 8, rel=1e-9)


def test_a_stored_top_k_is_heard_like_a_live_teacher(tmp_path: Path):
    run = taught(tmp_path, TEACHER)
    live, _ = only(Reinforced(k=4), run, STUDENT)

    class Kept:
        gives = frozenset({"topk"})

        def __call__(self, batch: Any, want: Any) -> Signal:
            return Signal(topk=likeliest(TEACHER, 4))

    run.teachers = {"teacher": Kept()}
    stored, _ = only(Reinforced(k=99), run, STUDENT)
    assert mean(stored) == pytest.approx(mean(live), rel=1e-12)


def test_every_class_kept_and_no_labels_is_learning_the_teachers_probabilities(tmp_path: Path):
    made, _ = only(Reinforced(share=1.0, k=100), taught(tmp_path, TEACHER), STUDENT)
    expected = F.kl_div(STUDENT.log_softmax(-1), TEACHER.softmax(-1), reduction="batchmean")
    assert mean(made) == pytest.approx(float(expected), rel=1e-9)


def test_no_share_is_learning_the_labels_and_mixed_images_have_both(tmp_path: Path):
    run, mix, second = taught(tmp_path, TEACHER), torch.linspace(0, 1, 8), LABELS.flip(0)
    made, _ = only(Reinforced(share=0.0), run, STUDENT, {**BATCH, "labels_b": second, "mix": mix})
    each = [F.cross_entropy(STUDENT, labels, reduction="none") for labels in (LABELS, second)]
    assert mean(made) == pytest.approx(float((mix * each[0] + (1 - mix) * each[1]).mean()), rel=1e-6)
    unknown, _ = only(Reinforced(share=0.0), run, STUDENT, {**BATCH, "labels": torch.full((8,), -100)})
    assert mean(unknown) == 0
    for settings in ({"share": 1.5}, {"k": 0}):
        with pytest.raises(ValueError):
            Reinforced(**settings)


def small(draws: int, steps: int) -> Recipe:
    """The recipe as `small` wires it, on digits, with untrained perceptrons as teachers and ten of their classes kept."""
    made, wired = recipe("smoke"), recipe("small")
    live = made.teachers["teacher"]
    members = {name: replace(member, stage=None, spec=MLP(width=8)) for name, member in live.members.items()}
    live = replace(live, members=members)
    label: Label = replace(wired.stages["reinforce"], teacher=live, draws=draws, format=KeptTopK(k=10))
    assert isinstance(wired.teachers["teacher"], Cached) and wired.teachers["teacher"].stage == "reinforce"
    train = replace(made.stages["train"], steps=steps, batch=898, method=Reinforced(k=10))
    data = Digits(augment=Augment(shift=1, operations=1, draws=2))
    return replace(
        made, data=data, teachers={"teacher": Cached(stage="reinforce")}, stages={"reinforce": label, "train": train}
    )


def test_kept_answers_teach_like_live_teachers(tmp_path: Path):
    """Through the real stages, three epochs of two draws. Kept values are off by 1e-5 nats, so the weights nearly agree."""
    stored = small(draws=2, steps=3)
    live = replace(
        stored, teachers={"teacher": stored.stages["reinforce"].teacher}, stages={"train": stored.stages["train"]}
    )
    weights = []
    for name, made in (("stored", stored), ("live", live)):
        run = Run(tmp_path / name, device=torch.device("cpu"))
        execute(made, run)
        weights.append(made.student.load(run.path("train"), run).state_dict())
        start = made.student.build(run).state_dict()
    for key, value in weights[0].items():
        assert float((value - weights[1][key]).norm()) < 0.05 * float((value - start[key]).norm()) + 1e-6


def test_draws_that_nobody_was_asked_about_are_refused_before_the_first_step(tmp_path: Path):
    with pytest.raises(TeacherMismatch, match=r"hold 1 augmentation draws .*data\.augment\.draws=1"):
        execute(small(draws=1, steps=3), Run(tmp_path, device=torch.device("cpu")))
