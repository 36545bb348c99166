"""Divergences on dense logits: identities, independent references, double-precision gradients, hostile numbers."""

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.special import rel_entr
from torch.autograd import gradcheck, gradgradcheck

from stillhouse.core.signal import HeadLogits, TopK
from stillhouse.objectives.divergences import (
    JSD,
    Alpha,
    FDivergence,
    ForwardKL,
    Hellinger,
    ReverseKL,
    SkewKL,
    SkewReverseKL,
    TotalVariation,
    cross_entropy,
    entropy,
    mixed,
    token_logp,
)

EVERY = [
    ForwardKL(),
    ReverseKL(),
    JSD(0.5),
    JSD(0.1),
    JSD(0.0),
    JSD(1.0),
    SkewKL(0.1),
    SkewReverseKL(0.1),
    TotalVariation(),
    Hellinger(),
    Alpha(0.3),
    Alpha(0.0),
    Alpha(1.0),
]
each = pytest.mark.parametrize("divergence", EVERY, ids=str)


@dataclass(frozen=True)
class Jeffreys(FDivergence):
    """A user's own: KL(p, q) + KL(q, p) = sum (p - q)(log p - log q)."""

    def term(self, log_q, log_p):
        return (log_p.exp() - log_q.exp()) * (log_p - log_q)


def pair(*shape, scale=2.0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype) * scale, torch.randn(*shape, dtype=dtype) * scale


def gradient(values, *inputs):
    return torch.autograd.grad(values.sum(), inputs)


def probabilities(student, teacher):
    return student.softmax(-1).numpy(), teacher.softmax(-1).numpy()


def test_kl_and_jensen_shannon_agree_with_scipy():
    student, teacher = pair(6, 11)
    q, p = probabilities(student, teacher)
    kl_pq, kl_qp = rel_entr(p, q).sum(-1), rel_entr(q, p).sum(-1)
    m = 0.2 * p + 0.8 * q
    expected = {
        ForwardKL(): kl_pq,
        ReverseKL(): kl_qp,
        JSD(0.5): jensenshannon(p, q, axis=-1) ** 2,
        JSD(0.2): 0.2 * rel_entr(p, m).sum(-1) + 0.8 * rel_entr(q, m).sum(-1),
        SkewKL(0.2): rel_entr(p, 0.2 * p + 0.8 * q).sum(-1),
        SkewReverseKL(0.2): rel_entr(q, 0.8 * p + 0.2 * q).sum(-1),
        TotalVariation(): abs(p - q).sum(-1) / 2,
        Hellinger(): 1 - ((p * q) ** 0.5).sum(-1),
        Alpha(0.5): 4 * (1 - ((p * q) ** 0.5).sum(-1)),
        Jeffreys(): kl_pq + kl_qp,
    }
    for divergence, values in expected.items():
        torch.testing.assert_close(divergence(student, teacher), torch.from_numpy(values), msg=str(divergence))


def test_values_of_a_published_implementation():
    """RepDistiller's DistillKL on inputs without randomness: 4.2016 at T = 4 (it multiplies by T²) and 2.4222 at 1."""

    def made(k):
        return (3 * torch.sin(k * torch.arange(1, 801, dtype=torch.float64))).reshape(8, 100)

    student, teacher = made(0.7310), made(1.2345)
    plain, tempered = (ForwardKL()(student, teacher, temperature=t).mean().item() for t in (1.0, 4.0))
    assert plain == pytest.approx(2.4221741883835124, abs=1e-12)
    assert 16 * tempered == pytest.approx(4.2016458210702865, abs=1e-12)


@each
def test_gradient_in_double_precision(divergence):
    student, teacher = pair(3, 7)
    student.requires_grad_()
    weight = torch.tensor([0.5, 0.0, 2.0])
    assert gradcheck(lambda z: divergence(z, teacher, temperature=1.7, weight=weight), student)


@pytest.mark.parametrize("divergence", [ForwardKL(), JSD(0.4), SkewReverseKL(), Alpha(0.3)], ids=str)
def test_dense_logits_have_second_derivatives(divergence):
    student, teacher = pair(2, 4)
    assert gradgradcheck(lambda z: divergence(z, teacher), student.requires_grad_())


@each
def test_slope_is_the_derivative_of_term(divergence):
    log_q, log_p = (z.log_softmax(-1) for z in pair(4, 9))
    written, derived = divergence.slope(log_q, log_p), FDivergence.slope(divergence, log_q, log_p)
    # Inside the softmax a constant times q cancels; that is the only freedom a written slope has.
    q = log_q.exp()

    def centred(slope):
        return slope - q * slope.sum(-1, keepdim=True)

    torch.testing.assert_close(centred(written), centred(derived))


@each
def test_equal_distributions_are_at_distance_zero_with_zero_gradient(divergence):
    for dtype, tolerance in ((torch.float64, 1e-14), (torch.float32, 2e-6)):
        student = (torch.randn(5, 300, dtype=dtype) * 3).requires_grad_()
        shift = 0 if divergence == TotalVariation() else 7  # its gradient jumps where p = q, so rounding decides it
        values = divergence(student, student.detach() + shift)
        assert values.abs().max() < tolerance
        assert gradient(values, student)[0].abs().max() < tolerance


@each
def test_adding_a_constant_to_the_logits_changes_nothing(divergence):
    student, teacher = pair(5, 13)
    torch.testing.assert_close(divergence(student + 3, teacher - 7), divergence(student, teacher))


@each
def test_no_gradient_reaches_the_teacher(divergence):
    student, teacher = pair(2, 5)
    teacher.requires_grad_()
    assert not divergence(student, teacher).requires_grad
    assert divergence(student.requires_grad_(), teacher).requires_grad


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_huge_logits_stay_finite(divergence, dtype):
    student, teacher = (z.requires_grad_() for z in pair(8, 50, scale=1e4, dtype=dtype))
    values = divergence(student, teacher.detach())
    assert values.dtype == torch.float32
    assert values.isfinite().all()
    assert gradient(values, student)[0].isfinite().all()


@each
def test_a_class_ruled_out_on_both_sides_counts_for_nothing(divergence):
    student, teacher = pair(4, 8)
    shorter = divergence(student[:, :6], teacher[:, :6])
    student[:, 6:] = teacher[:, 6:] = -math.inf
    student.requires_grad_()
    values = divergence(student, teacher)
    torch.testing.assert_close(values, shorter)
    assert gradient(values, student)[0].isfinite().all()


@each
def test_a_masked_item_is_as_good_as_absent(divergence):
    student, teacher = pair(6, 9)
    mask = torch.tensor([1, 0, 1, 1, 0, 1], dtype=torch.bool)
    student[1] = math.nan
    teacher[4] = math.nan
    student.requires_grad_()
    values = divergence(student, teacher, weight=mask)
    torch.testing.assert_close(values[mask], divergence(student[mask], teacher[mask]))
    assert (values[~mask] == 0).all()
    assert (gradient(values, student)[0][~mask] == 0).all()


@each
def test_shapes_batching_empty_and_strided(divergence):
    student, teacher = pair(2, 3, 5)
    values = divergence(student, teacher)
    one_by_one = [divergence(s, t) for s, t in zip(student.flatten(0, 1), teacher.flatten(0, 1), strict=True)]
    torch.testing.assert_close(values, torch.stack(one_by_one).reshape(2, 3))
    turned = student.transpose(0, 2).contiguous().transpose(0, 2)
    assert not turned.is_contiguous()
    torch.testing.assert_close(divergence(turned, teacher), values)
    assert divergence(student[:0], teacher[:0], weight=torch.ones(0, 3)).shape == (0, 3)
    per_item = torch.tensor([[1.0, 2.0, 3.0]] * 2, dtype=torch.float64)
    torch.testing.assert_close(
        divergence(student, teacher, temperature=per_item)[:, 1], divergence(student, teacher, temperature=2.0)[:, 1]
    )


@pytest.mark.parametrize(("beta", "limit"), [(0.0, ForwardKL()), (1.0, ReverseKL())])
def test_jsd_ends_in_the_two_kls(beta, limit):
    student, teacher = pair(4, 6)
    student.requires_grad_()
    assert torch.equal(JSD(beta)(student, teacher), limit(student, teacher))
    assert torch.equal(*(gradient(d(student, teacher), student)[0] for d in (JSD(beta), limit)))
    near = abs(beta - 1e-7)  # the limit of JSD / (beta (1 - beta))
    torch.testing.assert_close(JSD(near)(student, teacher) / 1e-7, limit(student, teacher), rtol=1e-5, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 12), st.floats(0.01, 30.0), st.integers(0, 10_000))
def test_bounds_hold_for_any_pair(classes, scale, seed):
    torch.manual_seed(seed)
    student, teacher = pair(3, classes, scale=scale)
    tv, hellinger = TotalVariation()(student, teacher), Hellinger()(student, teacher)
    forward, jsd = ForwardKL()(student, teacher), JSD()(student, teacher)
    slack = 1e-12
    assert (jsd <= math.log(2) + slack).all() and (jsd >= -slack).all()
    assert (tv <= 1 + slack).all()
    assert (hellinger <= tv + slack).all() and (tv <= (2 * hellinger).sqrt() + slack).all()
    assert (2 * tv.square() <= forward + slack).all()  # Pinsker
    assert (SkewKL(0.1)(student, teacher) <= -math.log(0.1) + slack).all()
    torch.testing.assert_close(JSD()(teacher, student), jsd)


# A teacher of which only the top k is known


def kept(teacher, k):
    values, index = teacher.log_softmax(-1).topk(k, -1)
    rest = torch.log1p(-values.exp().sum(-1))
    return TopK(values, index, rest if k < teacher.shape[-1] else torch.full_like(rest, -math.inf))


def head_for(logits):
    """`HeadLogits` whose logits are exactly these."""
    return HeadLogits(logits, torch.eye(logits.shape[-1], dtype=logits.dtype))


@pytest.mark.parametrize("divergence", [*EVERY, Jeffreys()], ids=str)
@pytest.mark.parametrize("fused", [False, True], ids=["dense", "fused"])
def test_top_k_is_a_teacher_over_k_plus_one_outcomes(divergence, fused):
    student, teacher = pair(5, 12)
    top = kept(teacher, 4)
    index = top.index

    def bucketed(logits):  # brute force: probabilities of the k classes and of the rest, as logits again
        p = logits.softmax(-1)
        chosen = p.gather(-1, index)
        return torch.cat([chosen, 1 - chosen.sum(-1, keepdim=True)], -1).log()

    student.requires_grad_()
    expected = divergence(bucketed(student), bucketed(teacher))
    found = divergence(head_for(student) if fused else student, top)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient(found, student), gradient(expected, student))


@each
@pytest.mark.parametrize("fused", [False, True], ids=["dense", "fused"])
def test_top_k_that_keeps_everything_is_the_teacher(divergence, fused):
    student, teacher = pair(3, 6)
    student.requires_grad_()
    found = divergence(head_for(student) if fused else student, kept(teacher, 6))
    expected = divergence(student, teacher)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient(found, student), gradient(expected, student))


@pytest.mark.parametrize("fused", [False, True], ids=["dense", "fused"])
def test_top_k_rest_that_underflows_still_has_its_gradient(fused):
    student = torch.tensor([[500.0, 400.0, 3.0, 2.0]], requires_grad=True)
    teacher = TopK(torch.tensor([[0.5, 0.3]]).log(), torch.tensor([[0, 1]]), torch.tensor([0.2]).log())
    (found,) = gradient(ForwardKL()(head_for(student) if fused else student, teacher), student)
    inside = torch.tensor([3.0, 2.0]).softmax(-1)
    torch.testing.assert_close(found, torch.tensor([[0.5, -0.3, -0.2 * inside[0], -0.2 * inside[1]]]))


def test_top_k_is_refused_at_another_temperature():
    student, teacher = pair(3, 6)
    for temperature in (2.0, torch.full((3,), 2.0)):
        with pytest.raises(ValueError, match="temperature 1"):
            ForwardKL()(student, kept(teacher, 2), temperature=temperature)


def test_a_learned_temperature_gets_its_gradient():
    student, teacher = pair(3, 5)
    mask = torch.tensor([True, False, True])
    temperature = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda t: ForwardKL()(student, teacher, temperature=t, weight=mask), temperature)
    torch.testing.assert_close(
        ForwardKL()(head_for(student), teacher, temperature=temperature), ForwardKL()(student, teacher, temperature=1.7)
    )


# The other objectives


def test_cross_entropy_entropy_and_token_logp_agree_with_torch():
    student, _ = pair(4, 5, 7)
    labels = torch.randint(0, 7, (4, 5))
    labels[0] = -100
    expected = torch.nn.functional.cross_entropy(student.flatten(0, 1), labels.flatten(), reduction="none")
    for logits in (student, head_for(student)):
        torch.testing.assert_close(cross_entropy(logits, labels), expected.reshape(4, 5))
        torch.testing.assert_close(token_logp(logits, labels), -expected.reshape(4, 5))
        torch.testing.assert_close(entropy(logits), torch.distributions.Categorical(logits=student).entropy())


@pytest.mark.parametrize("fused", [False, True], ids=["dense", "fused"])
def test_gradients_of_cross_entropy_and_entropy(fused):
    student, _ = pair(3, 5)
    student.requires_grad_()
    labels, weight = torch.tensor([1, -100, 4]), torch.tensor([0.5, 1.0, 2.0])
    wrap = head_for if fused else (lambda z: z)
    assert gradcheck(lambda z: cross_entropy(wrap(z), labels, weight=weight), student)
    assert gradcheck(lambda z: entropy(wrap(z), weight=weight), student)


@pytest.mark.parametrize("divergence", [ForwardKL(), JSD(0.3), Jeffreys()], ids=str)
@pytest.mark.parametrize("fused", [False, True], ids=["dense", "fused"])
@pytest.mark.parametrize("k", [None, 3], ids=["all", "top3"])
def test_mixed_is_the_weighted_sum(divergence, fused, k):
    student, teacher = pair(4, 9)
    student.requires_grad_()
    signal = teacher if k is None else kept(teacher, k)
    labels, weight = torch.tensor([2, -100, 0, 8]), torch.tensor([1.0, 0.5, 0.0, 2.0], dtype=torch.float64)
    temperature = 2.0 if k is None else 1.0
    found = mixed(
        divergence,
        head_for(student) if fused else student,
        signal,
        labels,
        0.7,
        temperature=temperature,
        weight=weight,
    )
    first = divergence(student, signal, temperature=temperature) * weight
    second = torch.nn.functional.cross_entropy(student, labels, reduction="none") * weight
    torch.testing.assert_close(found.total, 0.7 * first + 0.3 * second)
    torch.testing.assert_close(found.divergence, first)
    torch.testing.assert_close(found.cross_entropy, second)
    torch.testing.assert_close(gradient(found.total, student), gradient(0.7 * first + 0.3 * second, student))
    assert not found.divergence.requires_grad and not found.cross_entropy.requires_grad


# What is refused, and how


def test_different_vocabularies_are_refused_in_words():
    with pytest.raises(ValueError, match=r"151,936 classes, teacher 152,064.*trim"):
        ForwardKL()(torch.zeros(1, 151_936), torch.zeros(1, 152_064))


def test_different_items_are_refused():
    with pytest.raises(ValueError, match="items"):
        ForwardKL()(torch.zeros(2, 3), torch.zeros(3, 3))


@pytest.mark.parametrize("make", [lambda: JSD(1.5), lambda: SkewKL(1.0), lambda: SkewReverseKL(-0.1), lambda: Alpha(2.0)])
def test_parameters_outside_their_range_are_refused(make):
    with pytest.raises(ValueError, match="must be"):
        make()
