"""PLD against its equation, place by place, and its limits."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from feature_toys import stood
from stillhouse.methods.logits.pld import PLD
from stillhouse.models.call import logits_of
from stillhouse.objectives.choices import label_first, ranked
from stillhouse.objectives.divergences import cross_entropy
from stillhouse.objectives.preference import plackett_luce


def inp(shape, k, scale=3.0):
    n = torch.Size(shape).numel()
    return scale * torch.sin(k * (torch.arange(n, dtype=torch.float64) + 1)).reshape(shape)


STUDENT, TEACHER, LABELS = inp((5, 7), 0.731), inp((5, 7), 1.2345), torch.tensor([3, 0, 6, 2, 2])


def by_hand(s, t, y, temperature):
    """One item, with lists and math alone."""
    order = ([y] if y >= 0 else []) + sorted((k for k in range(len(t)) if k != y), key=lambda k: -t[k])
    whole = sum(math.exp(v / temperature) for v in t)
    value = 0.0
    for place, k in enumerate(order):
        left = math.log(sum(math.exp(s[other]) for other in order[place:]))
        value += math.exp(t[k] / temperature) / whole * (left - s[k])
    return value


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_values_are_those_of_the_equation(temperature):
    labels = torch.tensor([3, 0, 6, 2, -100])
    found = ranked(STUDENT, TEACHER, labels, temperature=temperature)
    rows = zip(STUDENT.tolist(), TEACHER.tolist(), labels.tolist(), strict=True)
    assert found.tolist() == pytest.approx([by_hand(*row, temperature) for row in rows], rel=1e-12)


def test_the_label_comes_first_whatever_the_teacher_thinks():
    order = label_first(torch.tensor([[0.0, 5.0, 2.0, 2.0], [9.0, 1.0, 3.0, 2.0]]), torch.tensor([3, -100]))
    assert order.tolist() == [[3, 1, 2, 0], [0, 2, 3, 1]]


def test_a_teacher_that_is_sure_of_the_label_gives_cross_entropy():
    sure = F.one_hot(LABELS, 7).double() * 1e4
    assert torch.allclose(ranked(STUDENT, sure, LABELS, temperature=1.0), cross_entropy(STUDENT, LABELS), rtol=1e-12)


def test_places_that_count_the_same_are_listmle():
    order = label_first(TEACHER, LABELS)
    even = plackett_luce(STUDENT.gather(-1, order)) / 7
    assert torch.allclose(ranked(STUDENT, TEACHER, LABELS, temperature=1e9), even, rtol=1e-6)


def test_the_gradient_is_the_papers():
    s = STUDENT.clone().requires_grad_()
    (slope,) = torch.autograd.grad(ranked(s, TEACHER, LABELS).sum(), s)
    order, a = label_first(TEACHER, LABELS), (TEACHER / 4).softmax(-1)
    for i in range(5):
        place = {int(k): n for n, k in enumerate(order[i])}
        for j in range(7):
            drawn = 0.0
            for k in range(place[j] + 1):
                left = order[i, k:]
                drawn += float(a[i, order[i, k]] * STUDENT[i, left].softmax(-1)[place[j] - k])
            assert float(slope[i, j]) == pytest.approx(drawn - float(a[i, j]), abs=1e-12)


def test_gradcheck_convexity_and_shifts():
    s = STUDENT.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ranked(x, TEACHER, LABELS), (s,))
    assert torch.autograd.gradgradcheck(lambda x: ranked(x, TEACHER, LABELS), (s,))
    assert torch.allclose(ranked(STUDENT + 7.0, TEACHER - 3.0, LABELS), ranked(STUDENT, TEACHER, LABELS))
    (hessian,) = (
        torch.autograd.functional.hessian(lambda x: ranked(x, TEACHER[:1], LABELS[:1]).sum(), STUDENT[:1])[0, :, 0],
    )
    assert torch.linalg.eigvalsh(hessian).min() > -1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_logits_stay_finite(dtype):
    s = (STUDENT * 1e4).to(dtype).requires_grad_()
    found = ranked(s, (TEACHER * 1e4).to(dtype), LABELS)
    (slope,) = torch.autograd.grad(found.sum(), s)
    assert found.dtype == torch.float32 and found.isfinite().all() and slope.isfinite().all() and (found >= 0).all()


def test_a_weight_of_0_hides_whatever_is_there():
    broken = STUDENT.clone()
    broken[1] = torch.nan
    weight = torch.tensor([1.0, 0.0, 1.0, 2.0, 1.0])
    plain = ranked(STUDENT, TEACHER, LABELS) * weight
    assert torch.allclose(ranked(broken, TEACHER, LABELS, weight=weight), plain)


def test_the_method_sums_it_and_takes_mixed_images(tmp_path):
    method = PLD(temperature=2.0)
    s, run, batch = stood(tmp_path, method)
    (update,) = method.step(s, batch, run)
    mine, theirs = logits_of(s.student, batch), logits_of(run.teacher.module, batch)
    assert torch.allclose(update.loss, ranked(mine, theirs, batch["labels"], temperature=2.0).sum())
    assert float(update.count) == 6
    other = batch["labels"].roll(1)
    (mixed,) = method.step(s, {**batch, "labels_b": other, "mix": torch.full((6,), 0.25)}, run)
    parts = [ranked(mine, theirs, labels, temperature=2.0).sum() for labels in (batch["labels"], other)]
    assert torch.allclose(mixed.loss, 0.25 * parts[0] + 0.75 * parts[1]) and float(mixed.count) == 6
    assert method.equation == "sum of p_k at T=2 times CE(k, q over the classes that are left) at T=1"
