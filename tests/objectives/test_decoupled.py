"""The label and the rest: golden values, KL put together again, independent references, hostile numbers."""

from __future__ import annotations

import pytest
import torch
from properties import (
    HOSTILE,
    LABELS,
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
from scipy.special import rel_entr
from torch.distributions import Bernoulli, kl_divergence

from stillhouse.core.signal import HeadLogits, TopK
from stillhouse.objectives.decoupled import (
    bernoulli_gap,
    bernoulli_kl,
    decoupled,
    enhanced_cross_entropy,
    non_target_kd,
    normalised,
    target_kd,
)
from stillhouse.objectives.divergences import ForwardKL

LABELLED = {
    "target": lambda s, t, y, weight=None: target_kd(s, t, y, temperature=2.0, weight=weight),
    "others": lambda s, t, y, weight=None: non_target_kd(s, t, y, temperature=2.0, weight=weight),
    "decoupled": lambda s, t, y, weight=None: decoupled(s, t, y, weight=weight),
    "normalised": lambda s, t, y, weight=None: normalised(s, t, y, temperature=2.0, weight=weight),
    "enhanced": lambda s, t, y, weight=None: enhanced_cross_entropy(s, t, y, temperature=2.0, weight=weight),
}
BINARY = {
    "bernoulli_kl": lambda s, t, y, weight=None: bernoulli_kl(s, t, temperature=2.0, weight=weight),
    "bernoulli_gap": lambda s, t, y, weight=None: bernoulli_gap(s, t, weight=weight),
}
EVERY = LABELLED | BINARY
each = pytest.mark.parametrize("f", EVERY.values(), ids=EVERY)
each_labelled = pytest.mark.parametrize("f", LABELLED.values(), ids=LABELLED)


def case(n=6, classes=7, scale=2.0, dtype=torch.float64):
    return (
        normal(n, classes, scale=scale, dtype=dtype),
        normal(n, classes, scale=scale, dtype=dtype),
        torch.arange(n) % classes,
    )


def test_golden_values():
    # megvii-research/mdistiller, distillers/DKD.py (dkd_loss and its two parts), which multiplies by T²
    golden(16 * target_kd(S, T, LABELS, temperature=4), 0.03875911338484526)
    golden(16 * non_target_kd(S, T, LABELS, temperature=4), 4.184723914245934)
    golden(decoupled(S, T, LABELS, alpha=1, beta=8, temperature=4), 33.516550427352314)
    # Hao840/OFAKD, distillers/ofa.py (ofa_loss)
    golden(enhanced_cross_entropy(S, T, LABELS, power=1.0), 6.184140964137667)
    golden(enhanced_cross_entropy(S, T, LABELS, power=1.5), 1.0045067255768028)


@each
def test_gradients_in_double(f):
    right_gradient(f, *case())


@each
def test_the_teacher_is_constant(f):
    teacher_is_constant(f, *case())


@each
def test_items_of_weight_0_leave_no_trace(f):
    mask_is_subset(f, *case())


@each
def test_no_item_and_one_item(f):
    any_size(f, *case())


@each
@HOSTILE
def test_large_logits_stay_finite(f, dtype):
    student, teacher, labels = case(scale=1e4, dtype=dtype)
    finite(f, student, teacher, labels)
    finite(f, student, student, labels)
    finite(f, student, -student, labels)


@each_labelled
def test_large_logits_in_float32_are_right(f):
    student, teacher, labels = case(scale=1e4, dtype=torch.float32)
    exact = f(student.double(), teacher.double(), labels)
    assert torch.allclose(f(student, teacher, labels).double(), exact, rtol=1e-6, atol=1e-6)


@each_labelled
def test_a_shift_of_the_logits_changes_nothing(f):
    student, teacher, labels = case()
    shifted = f(student + normal(6, 1), teacher + normal(6, 1), labels)
    assert torch.allclose(shifted, f(student, teacher, labels), rtol=1e-12)


@each
def test_item_axes_are_free(f):
    student, teacher, labels = case()
    weight = torch.tensor([1.0, 0.0, 1.0, 3.0, 1.0, 1.0])
    for w, shaped in ((None, None), (weight, weight.reshape(2, 3))):
        found = f(student.reshape(2, 3, 7), teacher.reshape(2, 3, 7), labels.reshape(2, 3), weight=shaped)
        assert torch.equal(found.flatten(), f(student, teacher, labels, weight=w)) and found.shape == (2, 3)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_two_parts_put_together_are_the_kl(temperature):
    """Zhao et al. 2022: KL = TCKD + (1 - p_label) NCKD."""
    student, teacher, labels = case()
    wrong = 1 - (teacher / temperature).softmax(-1).gather(1, labels[:, None]).squeeze(1)
    kl = temperature**2 * ForwardKL()(student, teacher, temperature=temperature)
    found = decoupled(student, teacher, labels, alpha=1.0, beta=wrong, temperature=temperature)
    assert torch.allclose(found, kl, rtol=1e-12)

    def whole(s):
        return ForwardKL()(s, teacher, temperature=temperature) * temperature**2

    def parts(s):
        return decoupled(s, teacher, labels, alpha=1.0, beta=wrong, temperature=temperature)

    assert torch.allclose(gradient(parts, student), gradient(whole, student), rtol=1e-10)


def test_a_factor_of_an_item_that_is_not_looked_at_may_be_anything():
    student, teacher, labels = case()
    beta = torch.full((6,), 2.0, dtype=torch.float64)
    beta[1] = torch.nan
    weight = torch.ones(6).index_fill(0, torch.tensor([1]), 0.0)
    found = decoupled(student, teacher, labels, beta=beta, weight=weight)
    assert torch.equal(found, decoupled(student, teacher, labels, beta=2.0, weight=weight))


def test_the_parts_agree_with_scipy():
    student, teacher, labels = case()
    q, p = (z.div(3).softmax(-1) for z in (student, teacher))
    for i, y in enumerate(labels.tolist()):
        a, b = (torch.stack([x[i, y], 1 - x[i, y]]).numpy() for x in (p, q))
        assert float(target_kd(student, teacher, labels, temperature=3)[i]) == pytest.approx(rel_entr(a, b).sum(), rel=1e-9)
        a, b = (torch.cat([x[i, :y], x[i, y + 1 :]]) / (1 - x[i, y]) for x in (p, q))
        expected = rel_entr(a.numpy(), b.numpy()).sum()
        assert float(non_target_kd(student, teacher, labels, temperature=3)[i]) == pytest.approx(expected, rel=1e-9)


def test_nothing_to_learn_from_oneself():
    student, _, labels = case()
    for f in (LABELLED["target"], LABELLED["others"], LABELLED["decoupled"], *BINARY.values()):
        assert float(f(student, student, labels).abs().max()) < 1e-14
        assert float(gradient(f, student, student, labels).abs().max()) < 1e-14


def test_two_classes_have_one_other_and_one_class_has_none():
    student, teacher, labels = case(classes=2)
    assert float(non_target_kd(student, teacher, labels).abs().max()) == 0
    for f in LABELLED.values():
        finite(f, student[:, :1], teacher[:, :1], torch.zeros(6, dtype=torch.long))


def test_normalised_agrees_with_the_formula_class_by_class():
    student, teacher, labels = case()
    temperature, gamma = 2.0, 0.7
    for i, y in enumerate(labels.tolist()):
        own = -teacher[i].softmax(0)[y] * student[i].softmax(0)[y].log()
        q, p = ((z[i] / temperature).softmax(0) for z in (student, teacher))
        rest = -sum(p[k] / (1 - p[y]) * (q[k] / (1 - q[y])).log() for k in range(7) if k != y)
        found = normalised(student, teacher, labels, gamma=gamma, temperature=temperature)[i]
        assert float(found) == pytest.approx(float(own + gamma * temperature**2 * rest), rel=1e-12)


def test_with_power_1_it_is_the_cross_entropy_with_the_teacher():
    student, teacher, labels = case()
    expected = torch.nn.functional.cross_entropy(student, teacher.softmax(-1), reduction="none")
    found = enhanced_cross_entropy(student, teacher, labels, power=1.0)
    assert torch.allclose(found, expected, rtol=1e-12)
    unlabelled = enhanced_cross_entropy(student, teacher, labels.flip(0), power=1.0)
    assert torch.allclose(found, unlabelled, rtol=1e-12)
    above = enhanced_cross_entropy(student, teacher, labels, power=1.5)
    assert not torch.allclose(above, enhanced_cross_entropy(student, teacher, labels.flip(0), power=1.5))
    with pytest.raises(ValueError, match="power must be above 0"):
        enhanced_cross_entropy(student, teacher, labels, power=0.0)


def test_bernoulli_agrees_with_torch():
    student, teacher, _ = case()
    expected = kl_divergence(Bernoulli(logits=teacher / 3), Bernoulli(logits=student / 3)).sum(-1)
    assert torch.allclose(bernoulli_kl(student, teacher, temperature=3), expected, rtol=1e-10)
    even = Bernoulli(torch.full_like(student, 0.5))
    expected = kl_divergence(even, Bernoulli(logits=(student - teacher) / 3)).sum(-1)
    assert torch.allclose(bernoulli_gap(student, teacher, temperature=3), expected, rtol=1e-10)
    moved = teacher + 1.0  # its own logits one up: a softmax would not notice
    assert float(bernoulli_gap(moved, teacher).min()) > 0.1 and float(bernoulli_kl(moved, teacher).min()) > 0.01


def test_a_negative_label_is_not_counted():
    student, teacher, labels = case()
    labels[2] = -100
    for f in LABELLED.values():
        found = f(student, teacher, labels)
        assert float(found[2]) == 0 and float(gradient(f, student, teacher, labels)[2].abs().max()) == 0
        assert bool((found[[0, 1, 3, 4, 5]] != 0).all())


def test_peers_formula_breaks_where_ours_does_not():
    """log(softmax) of two outcomes, as mdistiller and mmrazor write it, is infinite once a probability underflows."""
    student, teacher, labels = case(scale=200.0, dtype=torch.float32)
    q, p = (z.softmax(-1).gather(1, labels[:, None]) for z in (student, teacher))
    q, p = (torch.cat([x, 1 - x], 1) for x in (q, p))
    assert not bool((p * (p.log() - q.log())).sum(1).isfinite().all())
    finite(EVERY["decoupled"], student, teacher, labels)


@each
def test_what_stands_for_logits(f):
    student, teacher, labels = case()
    head = HeadLogits(normal(6, 4), normal(7, 4))
    assert torch.equal(f(student, head, labels), f(student, head.dense(), labels))
    with pytest.raises(TypeError, match="the student's logits written down as a tensor, not as HeadLogits"):
        f(head, teacher, labels)
    top = TopK(normal(6, 2), torch.zeros(6, 2, dtype=torch.long), normal(6))
    with pytest.raises(TypeError, match="over all classes, not its top k"):
        f(student, top, labels)
    with pytest.raises(ValueError, match="7 classes, teacher 5"):
        f(student, teacher[:, :5], labels)
