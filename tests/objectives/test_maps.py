"""Hints, attention, selectivity, variance: golden values, naive forms, torch's own, hostile numbers."""

from __future__ import annotations

import pytest
import torch
from properties import (
    ES,
    ET,
    FS,
    FT,
    HOSTILE,
    any_size,
    finite,
    golden,
    gradient,
    mask_is_subset,
    normal,
    right_gradient,
    teacher_is_constant,
)
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from stillhouse.objectives.maps import (
    attention_gap,
    attention_map,
    feature_gap,
    selectivity_gap,
    spread_for,
    unit,
    variational_gap,
)

SPREAD = torch.linspace(-1, 2, 4, dtype=torch.float64)
SAME = {  # both sides have the same shape
    "hint": feature_gap,
    "l1": lambda s, t, weight=None: feature_gap(s, t, form="l1", weight=weight),
    "smooth_l1": lambda s, t, weight=None: feature_gap(s, t, form="smooth_l1", beta=0.5, weight=weight),
    "unit": lambda s, t, weight=None: feature_gap(s, t, normalize="l2", weight=weight),
    "layer": lambda s, t, weight=None: feature_gap(s, t, normalize="layer", weight=weight),
    "variational": lambda s, t, weight=None: variational_gap(s, t, SPREAD, weight=weight),
}
MAPS = {
    "attention": attention_gap,
    "attention_paper": lambda s, t, weight=None: attention_gap(s, t, form="paper", weight=weight),
    "attention_4": lambda s, t, weight=None: attention_gap(s, t, power=4.0, weight=weight),
    "selectivity": selectivity_gap,
}
EVERY = SAME | MAPS
each = pytest.mark.parametrize("f", EVERY.values(), ids=EVERY)
each_same = pytest.mark.parametrize("f", SAME.values(), ids=SAME)
each_map = pytest.mark.parametrize("f", MAPS.values(), ids=MAPS)


def case(channels=4, size=3, dtype=torch.float64, scale=1.0):
    return normal(6, 4, 3, 3, scale=scale, dtype=dtype), normal(6, channels, size, size, scale=scale, dtype=dtype)


def test_golden_values():
    # HobbitLong/RepDistiller, distiller_zoo/AT.py, and torchdistill's ATLoss(mode="paper") on the same maps
    golden(attention_gap(FS, FT), 3.394171792105957e-05)
    golden(attention_gap(FS, FT, form="paper"), 0.04660626684124645)
    # HobbitLong/RepDistiller, distiller_zoo/NST.py (poly_kernel)
    golden(selectivity_gap(FS, FT), 0.9991044578875576)


@each
def test_the_common_properties(f):
    right_gradient(f, *case())
    teacher_is_constant(f, *case())
    mask_is_subset(f, *case())
    any_size(f, *case())


@each_map
def test_more_channels_and_a_larger_map(f):
    for student, teacher in (case(6, 5), case(2, 2)):
        right_gradient(f, student, teacher)
        mask_is_subset(f, student, teacher)
        any_size(f, student, teacher)
        size = min(student.shape[2], teacher.shape[2])
        small = (x if x.shape[2] == size else F.adaptive_avg_pool2d(x, size) for x in (student, teacher))
        assert torch.allclose(f(student, teacher), f(*small), rtol=1e-12)


@each
@HOSTILE
def test_large_numbers_stay_finite(f, dtype):
    student, teacher = case(dtype=dtype, scale=1e4)
    finite(f, student, teacher)
    finite(f, student, student)


@each
def test_dead_maps_have_moderate_gradients(f):
    """Zeros, as behind a ReLU: no NaN, and no slope of 1 over some eps."""
    student, teacher = case(dtype=torch.float32)
    student[2:4] = 0
    slope = finite(f, student, teacher)
    if f is not SAME["layer"]:  # LayerNorm's own eps is 1e-5
        assert float(slope.abs().max()) < 100
    finite(f, torch.zeros_like(student), torch.zeros_like(teacher))


@each
def test_nothing_to_learn_from_oneself(f):
    student, _ = case()
    if f is SAME["variational"]:
        assert float(gradient(f, student, student).abs().max()) == 0
        return
    assert float(f(student, student).abs().max()) < 1e-14
    assert float(gradient(f, student, student).abs().max()) < 1e-14


@pytest.mark.parametrize("shape", [(6, 5), (6, 3, 5), (6, 4, 3, 3)], ids=["vectors", "tokens", "maps"])
def test_feature_gaps_are_torchs(shape):
    s, t = normal(*shape), normal(*shape)

    def mean(x):
        return x.flatten(1).mean(1)

    assert torch.allclose(feature_gap(s, t), mean(F.mse_loss(s, t, reduction="none")), rtol=1e-12)
    assert torch.allclose(feature_gap(s, t, form="l1"), mean(F.l1_loss(s, t, reduction="none")), rtol=1e-12)
    expected = mean(F.smooth_l1_loss(s, t, beta=0.7, reduction="none"))
    assert torch.allclose(feature_gap(s, t, form="smooth_l1", beta=0.7), expected, rtol=1e-12)
    axis = 1 if len(shape) == 4 else -1
    expected = mean(F.mse_loss(F.normalize(s, dim=axis), F.normalize(t, dim=axis), reduction="none"))
    assert torch.allclose(feature_gap(s, t, normalize="l2"), expected, rtol=1e-12)
    a, b = (x.movedim(axis, -1) for x in (s, t))
    norm = torch.nn.LayerNorm(a.shape[-1], elementwise_affine=False, dtype=torch.float64)
    expected = mean(F.mse_loss(norm(a), norm(b), reduction="none"))
    assert torch.allclose(feature_gap(s, t, normalize="layer"), expected, rtol=1e-12)


def test_factors_inside_an_item():
    s, t = case()
    mask = (normal(6, 1, 3, 3) > 0).double()
    expected = ((s - t) ** 2 * mask).flatten(1).mean(1)
    dirty = s.clone()
    dirty[mask.expand_as(s) == 0] = torch.nan
    for x in (s, dirty):
        assert torch.allclose(feature_gap(x, t, inside=mask), expected, rtol=1e-12)
        assert bool(gradient(lambda s: feature_gap(s, t, inside=mask), x).isfinite().all())
    learned = torch.rand(6, 4, 1, 1, dtype=torch.float64).add(0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda m: feature_gap(s, t, inside=m), (learned,))
    assert torch.allclose(feature_gap(s, t, inside=learned), ((s - t) ** 2 * learned).flatten(1).mean(1), rtol=1e-12)
    weight = torch.tensor([1.0, 0, 1, 1, 0, 2])
    found = feature_gap(s, t, inside=mask, weight=weight)
    assert torch.allclose(found, expected * weight, rtol=1e-12)


@each_same
def test_other_shapes_are_refused(f):
    with pytest.raises(ValueError, match="5"):
        f(normal(6, 4), normal(6, 5))


@each_map
def test_only_maps_are_taken(f):
    with pytest.raises(ValueError, match=r"needs maps \[B, C, H, W\]"):
        f(ES, ET)


def test_other_items_are_refused():
    with pytest.raises(ValueError, match="6 items, the teacher 5"):
        attention_gap(normal(6, 2, 2, 2), normal(5, 2, 2, 2))


def test_attention_is_where_the_activity_is():
    x = torch.zeros(1, 2, 2, 2)
    x[0, :, 1, 0] = torch.tensor([3.0, -4.0])
    x[0, 0, 0, 1] = 5.0
    assert attention_map(x).tolist()[0] == pytest.approx([0, 0.5**0.5, 0.5**0.5, 0])  # 25 and 25
    assert attention_map(x, power=1.0).tolist()[0] == pytest.approx([0, 5 / 74**0.5, 7 / 74**0.5, 0])
    student, teacher = case()
    assert torch.allclose(attention_gap(3 * student, -2 * teacher), attention_gap(student, teacher), rtol=1e-12)


def test_attention_of_the_paper_is_the_root_of_the_sum():
    student, teacher = case()
    code, paper = attention_gap(student, teacher), attention_gap(student, teacher, form="paper")
    assert torch.allclose(paper, (code * 9).sqrt(), rtol=1e-12)


@pytest.mark.parametrize(("c_s", "c_t", "work"), [
    (2, 3, 6 * (2 * 2 + 2 * 3 + 3 * 3)), (7, 5, 6 * 6 * (7 + 5)),
], ids=["by channels", "by positions"])  # fmt: skip
def test_selectivity_is_the_mmd_channel_by_channel(c_s, c_t, work):
    """The definition, with its [B, C, C, HW] temporary, on both sides of the choice, which is for the less work."""
    student, teacher = normal(4, c_s, 2, 3), normal(4, c_t, 2, 3)
    with FlopCounterMode(display=False) as counter:
        selectivity_gap(student, teacher)
    assert counter.get_total_flops() == 2 * 4 * work  # a multiplication and an addition each, of 4 items

    def naive(student, teacher=teacher):
        a, b = (F.normalize(x.flatten(2), dim=2) for x in (student, teacher))

        def kernel(a, b):
            return (a.unsqueeze(1) * b.unsqueeze(2)).sum(-1).square().mean((1, 2))

        return kernel(a, a) - 2 * kernel(a, b) + kernel(b, b)

    assert torch.allclose(selectivity_gap(student, teacher), naive(student), rtol=1e-12)
    assert torch.allclose(gradient(lambda s: selectivity_gap(s, teacher), student), gradient(naive, student), rtol=1e-10)
    again = selectivity_gap(student[:, torch.randperm(c_s)], teacher)  # a distribution has no order
    assert torch.allclose(again, selectivity_gap(student, teacher), rtol=1e-12)


def test_the_variational_gap_is_a_gaussians_likelihood():
    student, teacher = case()
    deviation = (F.softplus(SPREAD) + 1e-5).sqrt().reshape(4, 1, 1)
    expected = -torch.distributions.Normal(student, deviation).log_prob(teacher).flatten(1).mean(1)
    constant = 0.5 * torch.log(torch.tensor(2 * torch.pi, dtype=torch.float64))
    assert torch.allclose(variational_gap(student, teacher, SPREAD), expected - constant, rtol=1e-12)
    tokens = [x.flatten(2).mT for x in (student, teacher)]
    assert torch.allclose(variational_gap(*tokens, SPREAD), expected - constant, rtol=1e-12)
    learned = SPREAD.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: variational_gap(student, teacher, v), (learned,))


def test_the_best_variance_is_the_mean_square():
    student, teacher = case()
    error = (student - teacher).square().mean((0, 2, 3))
    best = torch.stack([spread_for(float(e), 1).double().squeeze() for e in error]).requires_grad_()
    slope = torch.autograd.grad(variational_gap(student, teacher, best).mean(), best)[0]
    assert float(slope.abs().max()) < 1e-7


@pytest.mark.parametrize("variance", [2e-5, 0.01, 5.0, 1000.0])
def test_the_spread_of_a_variance(variance):
    found = F.softplus(spread_for(variance, 3).double()) + 1e-5
    assert found.tolist() == pytest.approx([variance] * 3, rel=1e-5)
    with pytest.raises(ValueError, match="must be above"):
        spread_for(1e-6, 3)


def test_zeros_have_the_slope_1():
    x = torch.zeros(2, 3, dtype=torch.float64)
    assert gradient(lambda x: unit(x), x).tolist() == [[1.0] * 3] * 2
    x = normal(2, 3)
    assert torch.equal(unit(x), F.normalize(x, dim=-1))
    assert unit(x.bfloat16()).dtype == torch.float32
