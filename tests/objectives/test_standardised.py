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
from stillhouse.objectives.divergences import ForwardKL
from stillhouse.objectives.standardised import standardise, standardised_kl


def f(s, t, weight=None):
    return standardised_kl(s, t, temperature=2.0, weight=weight)


def case(dtype=torch.float64, scale=2.0):
    return normal(6, 7, scale=scale, dtype=dtype), normal(6, 7, scale=scale, dtype=dtype)


def test_golden_value():
    # sunshangquan/logit-standardization-KD, mdistiller/distillers/KD.py (kd_loss, logit_stand), which multiplies by T²
    golden(4 * standardised_kl(S, T, temperature=2.0), 0.9316672319908306)


def test_the_common_properties():
    right_gradient(f, *case())
    teacher_is_constant(f, *case())
    mask_is_subset(f, *case())
    any_size(f, *case())


@HOSTILE
def test_large_logits_stay_finite(dtype):
    student, teacher = case(dtype, 1e4)
    finite(f, student, teacher)
    finite(f, student, student)


def test_a_row_of_equal_logits_is_finite():
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


def test_what_stands_for_logits():
    student, teacher = case()
    head = HeadLogits(normal(6, 4), normal(7, 4))
    assert torch.equal(standardised_kl(student, head), standardised_kl(student, head.dense()))
    with pytest.raises(TypeError, match="not as HeadLogits"):
        standardised_kl(head, teacher)
    with pytest.raises(TypeError, match="not its top k"):
        standardised_kl(student, TopK(normal(6, 2), torch.zeros(6, 2, dtype=torch.long), normal(6)))
