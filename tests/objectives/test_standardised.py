"""Standardised logits: a golden value, scale and shift forgotten, MIX-KD's temperature, hostile numbers."""

from __future__ import annotations

import pytest
import torch
from properties import (
    HOSTILE,
    S,
    T,
    any_size,
    finite,
    golden,
    gradient,
    mask_is_subset,
    normal,
    right_gradient,
    teacher_is_constant,
)

from stillhouse.core.signal import HeadLogits, TopK
from stillhouse.objectives.divergences import ForwardKL, cross_entropy
from stillhouse.objectives.standardised import standardise, standardised_cross_entropy, standardised_kl

EVERY = {
    "kl": lambda s, t, weight=None: standardised_kl(s, t, temperature=2.0, weight=weight),
    "cross_entropy": lambda s, t, weight=None: standardised_cross_entropy(s, t.float().softmax(-1), weight=weight),
}
each = pytest.mark.parametrize("f", EVERY.values(), ids=EVERY)


def case(dtype=torch.float64, scale=2.0):
    return normal(6, 7, scale=scale, dtype=dtype), normal(6, 7, scale=scale, dtype=dtype)


def test_golden_value():
    # sunshangquan/logit-standardization-KD, mdistiller/distillers/KD.py (kd_loss, logit_stand), which multiplies by T²
    golden(4 * standardised_kl(S, T, temperature=2.0), 0.9316672319908306)


@each
def test_the_common_properties(f):
    right_gradient(f, *case())
    teacher_is_constant(f, *case())
    mask_is_subset(f, *case())
    any_size(f, *case())


@each
@HOSTILE
def test_large_logits_stay_finite(f, dtype):
    student, teacher = case(dtype, 1e4)
    finite(f, student, teacher)
    finite(f, student, student)


@each
def test_a_row_of_equal_logits_is_finite(f):
    student, teacher = case(torch.float32)
    for level in (0.0, 1e4):
        finite(f, torch.full_like(student, level), teacher)
    assert float(standardise(torch.full((2, 5), 3.0)).abs().max()) == 0
    assert float(finite(f, torch.zeros_like(student), teacher).abs().max()) < 1  # a head that begins at zero can learn


def test_rows_get_mean_0_and_deviation_1():
    found = standardise(normal(5, 9, scale=30.0) + 7, eps=0.0)
    assert torch.allclose(found.mean(-1), torch.zeros(5, dtype=torch.float64), atol=1e-14)
    assert torch.allclose(found.std(-1), torch.ones(5, dtype=torch.float64), rtol=1e-12)
    with pytest.raises(ValueError, match="at least two"):
        standardise(normal(5, 1))


def test_scale_and_shift_of_the_logits_are_forgotten():
    student, teacher = case()
    assert torch.allclose(standardised_kl(3 * student - 2, 0.1 * teacher + 9), standardised_kl(student, teacher), rtol=1e-5)
    assert float(standardised_kl(5 * teacher + 1, teacher, eps=0.0).abs().max()) < 1e-14
    assert float(ForwardKL()(5 * teacher + 1, teacher).min()) > 0.01  # plain KL does not forget


def test_the_students_deviation_is_not_a_constant():
    """So the gradient lies across the logits: pushing along them changes nothing."""
    student, teacher = case()
    slope = gradient(standardised_kl, student, teacher, temperature=2.0, eps=0.0)
    centred = student - student.mean(-1, keepdim=True)
    assert float((slope * centred).sum(-1).abs().max()) < 1e-14
    assert float(slope.sum(-1).abs().max()) < 1e-14


def test_without_eps_it_is_the_temperature_of_mix_kd():
    """hchoi71/MIX-KD, MIXSTD.py: each side's own standard deviation is its temperature."""
    student, teacher = case()
    s, t = (z / z.std(-1, keepdim=True) for z in (student, teacher))
    assert torch.allclose(standardised_kl(student, teacher, eps=0.0), ForwardKL()(s, t), rtol=1e-10)
    a, b = torch.arange(6) % 7, (torch.arange(6) + 3) % 7
    mixed = 0.3 * torch.nn.functional.one_hot(a, 7) + 0.7 * torch.nn.functional.one_hot(b, 7)
    expected = 0.3 * cross_entropy(s, a) + 0.7 * cross_entropy(s, b)
    assert torch.allclose(standardised_cross_entropy(student, mixed, eps=0.0), expected, rtol=1e-6)  # `mixed` is float32


def test_what_stands_for_logits():
    student, teacher = case()
    head = HeadLogits(normal(6, 4), normal(7, 4))
    assert torch.equal(standardised_kl(student, head), standardised_kl(student, head.dense()))
    with pytest.raises(TypeError, match="not as HeadLogits"):
        standardised_kl(head, teacher)
    with pytest.raises(TypeError, match="not its top k"):
        standardised_kl(student, TopK(normal(6, 2), torch.zeros(6, 2, dtype=torch.long), normal(6)))
