"""What holds for every method on logits and labels: masks, unknown labels, mixed images, tokens, hostile numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from logit_toys import BATCH, LABELS, STUDENT, TEACHER, Headed, Said, mean, only, taught
from stillhouse.core.method import Update
from stillhouse.methods.classics.dist import Dist
from stillhouse.methods.classics.dkd import DKD
from stillhouse.methods.classics.logit_std import LogitStd
from stillhouse.methods.classics.nkd import NKD
from stillhouse.methods.outputs import warmed

METHODS: list[Any] = [DKD(), Dist(), NKD(), LogitStd(), LogitStd(labels=1.0, beta=8.0)]
EVERY = pytest.mark.parametrize("method", METHODS, ids=repr)


def gradient(made: Update, student: Any) -> torch.Tensor:
    made.loss.backward()
    return student.logits.grad


@EVERY
def test_an_item_of_weight_0_is_not_there(tmp_path, method):
    """Not even if its logits are nan, nor for those that are compared with one another."""
    run = taught(tmp_path)
    broken = STUDENT.clone()
    broken[5] = torch.nan
    weight = torch.ones(8).index_fill(0, torch.tensor([5]), 0.0)
    masked, student = only(method, run, broken, {**BATCH, "weight": weight})
    kept = [0, 1, 2, 3, 4, 6, 7]
    subset, _ = only(method, run, batch={"inputs": torch.tensor(kept), "labels": LABELS[kept]})
    assert float(masked.count) == float(subset.count) == 7
    assert masked.loss.item() == pytest.approx(subset.loss.item(), rel=1e-12)
    found = gradient(masked, student)
    assert found[kept].isfinite().all() and not found[5].any()


@pytest.mark.parametrize("method", [m for m in METHODS if not isinstance(m, Dist)], ids=repr)  # it compares items
def test_an_item_counts_by_its_weight(tmp_path, method):
    run = taught(tmp_path)
    weight = torch.tensor([2.0, 1.0, 0.5, 1.0, 1.0, 3.0, 1.0, 1.0])
    whole, _ = only(method, run, batch={**BATCH, "weight": weight})
    parts = [only(method, run, batch={"inputs": torch.tensor([i]), "labels": LABELS[i : i + 1]})[0] for i in range(8)]
    wanted = sum(w * p.loss.item() for w, p in zip(weight.tolist(), parts, strict=True))
    assert whole.loss.item() == pytest.approx(wanted, rel=1e-6)
    assert float(whole.count) == pytest.approx(10.5)


@EVERY
def test_an_unknown_label_leaves_what_needs_none(tmp_path, method):
    """DKD and NKD leave the item out altogether; the others keep their soft term, and it counts."""
    run = taught(tmp_path)
    labels = LABELS.clone()
    labels[2] = -100
    made, student = only(method, run, batch={**BATCH, "labels": labels})
    apart = isinstance(method, (DKD, NKD))
    assert float(made.count) == (7 if apart else 8)
    assert bool(gradient(made, student)[2].any()) is not (apart or getattr(method, "beta", None) == 8.0)


@EVERY
def test_nothing_known_of_any_item_is_no_update(tmp_path, method):
    made, _ = only(method, taught(tmp_path), batch={"inputs": torch.arange(0), "labels": LABELS[:0]})
    assert float(made.count) == 0 and float(made.loss.detach()) == 0


@EVERY
def test_a_mixed_image_has_both_labels(tmp_path, method):
    """What depends on the label is the mean over both, by their shares; the rest is there once."""
    run = taught(tmp_path)
    other, share = (LABELS + 1) % 100, torch.full((8,), 0.25)
    mixed, _ = only(method, run, batch={**BATCH, "labels_b": other, "mix": share})
    first, second = (only(method, run, batch={**BATCH, "labels": labels})[0] for labels in (LABELS, other))
    assert mean(mixed) == pytest.approx(0.25 * mean(first) + 0.75 * mean(second), rel=1e-6)
    assert float(mixed.count) == 8


@EVERY
def test_tokens_with_unprojected_logits_teach_the_same(tmp_path, method):
    batch = {"inputs": torch.arange(8).view(2, 4), "labels": LABELS.view(2, 4), "weight": torch.tensor([[0.0, 1, 1, 1]] * 2)}
    plain, _ = only(method, taught(tmp_path), batch=batch)
    headed, student = only(method, taught(tmp_path, Headed(TEACHER)), Headed(STUDENT), batch)
    assert plain.loss.item() == pytest.approx(headed.loss.item(), rel=1e-9)
    headed.loss.backward()
    assert student.hidden.grad[[0, 4]].eq(0).all() and student.hidden.grad[1].any() and student.head.grad.any()


@EVERY
def test_a_padded_vocabulary_is_trimmed(tmp_path, method):
    padded = torch.cat([TEACHER, torch.full((8, 3), 50.0)], -1)
    trimmed, _ = only(method, taught(tmp_path, Headed(TEACHER)), Headed(STUDENT))
    made, _ = only(method, taught(tmp_path, Headed(padded)), Headed(STUDENT))
    assert made.loss.item() == pytest.approx(trimmed.loss.item(), rel=1e-9)


@EVERY
def test_other_classes_than_the_teachers_are_refused(tmp_path, method):
    with pytest.raises(ValueError, match="classes"):
        only(method, taught(tmp_path, TEACHER[:, :60]))


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_logits_stay_finite(tmp_path, method, dtype):
    large = (STUDENT * 3e3).to(dtype)  # up to 9,000
    made, student = only(method, taught(tmp_path, (TEACHER * 3e3).to(dtype)), large)
    assert made.loss.isfinite() and gradient(made, student).isfinite().all()


@EVERY
def test_the_gradient_is_that_of_the_value(tmp_path, method):
    run = taught(tmp_path, TEACHER[:, :9])
    labels = LABELS % 9

    def loss(logits: torch.Tensor) -> torch.Tensor:
        student = Said(logits)
        del student.logits
        student.logits = logits
        return only(method, run, student, {**BATCH, "labels": labels})[0].loss

    assert torch.autograd.gradcheck(loss, STUDENT[:, :9].clone().requires_grad_())


@EVERY
def test_a_shift_of_the_logits_changes_nothing(tmp_path, method):
    shift = torch.linspace(-5, 5, 8, dtype=torch.float64).unsqueeze(-1)
    plain, _ = only(method, taught(tmp_path))
    shifted, _ = only(method, taught(tmp_path, TEACHER - shift), STUDENT + shift)
    assert mean(shifted) == pytest.approx(mean(plain), rel=1e-9)


@pytest.mark.parametrize("method", [type(m) for m in METHODS[:4]])
def test_a_temperature_of_0_is_refused(method):
    with pytest.raises(ValueError, match="above 0"):
        method(temperature=0.0)


@pytest.mark.parametrize("method", [DKD(warmup=0.5), LogitStd(warmup=0.5), LogitStd(warmup=0.5, beta=8.0)], ids=repr)
def test_the_warm_up_multiplies_the_whole_term(tmp_path, method):
    run, steady = taught(tmp_path), replace(method, warmup=0.0)
    term = only(replace(steady, labels=0.0), run)[0].loss.item()
    labels = only(steady, run)[0].loss.item() - term
    for step, factor in enumerate((0.2, 0.4, 0.6, 0.8, 1.0, 1.0)):  # of 10 steps
        run.step = step
        assert only(method, run)[0].loss.item() == pytest.approx(labels + factor * term, rel=1e-9)


def test_a_warm_up_is_a_share(tmp_path):
    run = taught(tmp_path)
    assert warmed(0.0, run) == 1.0
    run.step = 9
    assert warmed(1.0, run) == 1.0
    with pytest.raises(ValueError, match="share"):
        DKD(warmup=20)
