"""Sums over items: masks, empty masks, and what must not leak through them."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.objectives import reduce


def test_nan_and_infinity_under_the_mask_leak_nowhere():
    values = torch.tensor([[1.0, math.nan, 2.0], [math.inf, -math.inf, math.nan]], requires_grad=True)
    mask = torch.tensor([[1, 0, 1], [0, 0, 0]])
    weight = mask * torch.tensor([0.5, 9.0, 2.0])
    for total, expected in (
        (reduce.masked_sum(values, mask), 3.0),
        (reduce.masked_mean(values, mask.bool()), 1.5),
        (reduce.weighted_sum(values, weight), 4.5),
        (reduce.per_sequence(values, mask).sum(), 3.0),
        (reduce.per_sequence_mean(values, mask).sum(), 1.5),
    ):
        assert total.item() == expected
        (gradient,) = torch.autograd.grad(total, values)
        assert gradient.isfinite().all() and (gradient[mask == 0] == 0).all()


def test_empty_masks_and_empty_tensors_sum_to_zero():
    for values in (torch.ones(2, 3), torch.ones(0, 3), torch.ones(2, 0)):
        mask = torch.zeros(values.shape, dtype=torch.bool)
        assert reduce.masked_sum(values, mask) == reduce.masked_mean(values, mask) == reduce.weighted_sum(values, mask) == 0
        assert reduce.count(values, mask) == 0
        assert (reduce.per_sequence_mean(values, mask) == torch.zeros(values.shape[0])).all()


def test_masks_broadcast():
    values = torch.arange(6.0).reshape(2, 3)
    mask = torch.tensor([True, False, True])
    assert reduce.masked_sum(values, mask) == 0 + 2 + 3 + 5
    assert reduce.count(values, mask) == 4 and reduce.count(values) == 6
    assert reduce.per_sequence_mean(values, mask).tolist() == [1.0, 4.0]
    assert reduce.masked_sum(values) == 15


@given(st.lists(st.tuples(st.floats(-1e3, 1e3), st.booleans()), max_size=30), st.integers(0, 30))
def test_splitting_a_batch_does_not_change_sum_and_count(items, cut):
    values = torch.tensor([v for v, _ in items], dtype=torch.float64)
    mask = torch.tensor([m for _, m in items], dtype=torch.bool)
    parts = [(values[:cut], mask[:cut]), (values[cut:], mask[cut:])]
    torch.testing.assert_close(sum(reduce.masked_sum(*p) for p in parts), reduce.masked_sum(values, mask))
    assert sum(reduce.count(*p) for p in parts) == mask.sum()
