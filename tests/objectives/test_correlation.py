"""DIST: golden value, numpy's correlations, columns divided among items, hostile numbers."""

from __future__ import annotations

import numpy as np
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

from stillhouse.core.signal import HeadLogits
from stillhouse.objectives.correlation import inter_class, intra_class

EVERY = {
    "inter": lambda s, t, weight=None: inter_class(s, t, temperature=2.0, weight=weight),
    "intra": lambda s, t, weight=None: intra_class(s, t, temperature=2.0, weight=weight),
}
each = pytest.mark.parametrize("f", EVERY.values(), ids=EVERY)


def case(dtype=torch.float64, scale=2.0):
    return normal(6, 7, scale=scale, dtype=dtype), normal(6, 7, scale=scale, dtype=dtype)


def test_golden_value():
    # open-mmlab/mmrazor, losses/dist_loss.py (DISTLoss), as hunto/DIST_KD: eps is added to the product of the norms
    found = inter_class(S, T) + intra_class(S, T)
    golden(found, 1.9957437955621509)
    # yoshitomo-matsubara/torchdistill clamps the norms instead, and is off in the eighth digit
    assert float(found.mean()) != pytest.approx(1.9957437406709189, rel=1e-9)


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
def test_equal_rows_and_equal_classes_are_finite(f):
    student, teacher = case(torch.float32)
    finite(f, student[:1].expand(6, 7), teacher)
    finite(f, student[:, :1].expand(6, 7), teacher)
    finite(f, torch.zeros(6, 7), torch.zeros(6, 7))


def test_they_are_numpys_correlations():
    student, teacher = case()
    q, p = (z.div(2).softmax(-1).numpy() for z in (student, teacher))
    rows = [1 - np.corrcoef(a, b)[0, 1] for a, b in zip(q, p, strict=True)]
    columns = [1 - np.corrcoef(a, b)[0, 1] for a, b in zip(q.T, p.T, strict=True)]
    assert EVERY["inter"](student, teacher).tolist() == pytest.approx(rows, rel=1e-5)  # of eps
    assert float(EVERY["intra"](student, teacher).mean()) == pytest.approx(np.mean(columns), rel=1e-5)
    exact = intra_class(student, teacher, temperature=2.0, eps=0.0).mean()
    assert float(exact) == pytest.approx(np.mean(columns), rel=1e-12)


@each
def test_a_shift_of_the_logits_changes_nothing(f):
    student, teacher = case()
    found = f(student + normal(6, 1), teacher + normal(6, 1))
    assert torch.allclose(found, f(student, teacher), rtol=1e-10)


def test_nothing_to_learn_from_oneself():
    student, _ = case()
    for f in EVERY.values():
        assert float(f(student, student).mean()) == pytest.approx(0, abs=1e-5)  # eps
        assert float(gradient(f, student, student).abs().max()) < 1e-5
    assert float(inter_class(student, student, eps=0.0).abs().max()) < 1e-14


def test_correlation_forgives_a_less_certain_student():
    """The paper's point: with probabilities drawn towards the uniform ones it is still 1."""
    _, teacher = case()
    student = (0.4 * teacher.softmax(-1) + 0.6 / 7).log()
    assert float(inter_class(student, teacher, eps=0.0).abs().max()) < 1e-12
    assert float(intra_class(student, teacher, eps=0.0).mean().abs()) < 1e-12


def test_items_keep_their_values_in_any_order_and_shape():
    student, teacher = case()
    order = torch.randperm(6)
    for f in EVERY.values():
        found = f(student, teacher)
        assert torch.allclose(f(student[order], teacher[order]), found[order], rtol=1e-12)
        assert torch.allclose(f(student.reshape(2, 3, 7), teacher.reshape(2, 3, 7)), found.reshape(2, 3), rtol=1e-12)


def test_one_item_has_no_columns_to_compare():
    student, teacher = case()
    assert intra_class(student[:1], teacher[:1]).tolist() == [1.0]
    with pytest.raises(TypeError, match="not as HeadLogits"):
        inter_class(HeadLogits(student, teacher), teacher)
