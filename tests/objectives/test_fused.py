"""The fused pass over `HeadLogits`: exact gradients, the promised number of products, and no [items, V] tensor."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from stillhouse.core.signal import HeadLogits, TopK
from stillhouse.objectives import fused
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
)

SMOOTH = [ForwardKL(), ReverseKL(), JSD(0.5), JSD(0.0), JSD(1.0), SkewKL(), SkewReverseKL(), Hellinger(), Alpha(0.3)]
each = pytest.mark.parametrize("divergence", [*SMOOTH, TotalVariation()], ids=str)


@dataclass(frozen=True)
class SlowForwardKL(FDivergence):
    """Forward KL as a user would add it: no slope, no in-place arithmetic."""

    def term(self, log_q, log_p):
        return log_p.exp() * (log_p - log_q)


@dataclass(frozen=True)
class SlowJSD(FDivergence):
    """As above, with f(r) = (r log r - (1 + r) log((1 + r) / 2)) / 2."""

    def term(self, log_q, log_p):
        log_r = log_p - log_q
        r = log_r.exp()
        return log_q.exp() * 0.5 * (r * log_r - (1 + r) * ((1 + r) / 2).log())


def heads(items=(3,), classes=7, width=4, dtype=torch.float64, grad=True, **options):
    """A student and a teacher of another width, with ordinary logits."""
    hidden = torch.randn(*items, width, dtype=dtype, requires_grad=grad)
    weight = torch.randn(classes, width, dtype=dtype, requires_grad=grad)
    student = HeadLogits(hidden, weight, **options)
    other = HeadLogits(torch.randn(*items, width + 2, dtype=dtype), torch.randn(classes, width + 2, dtype=dtype), scale=0.5)
    return student, other


def gradients(values, head):
    inputs = [x for x in (head.hidden, head.weight, head.bias) if x is not None]
    return torch.autograd.grad(values, inputs)


class Spy(TorchDispatchMode):
    """Counts the multiplications of matrix products, and remembers the largest tensor that any operation returned."""

    def __init__(self):
        super().__init__()
        self.multiplications = 0
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in ("mm", "addmm", "addmm_"):
            left, right = args[-2:]
            self.multiplications += left.shape[0] * left.shape[1] * right.shape[1]
        assert name not in ("bmm", "baddbmm", "matmul", "linear", "einsum"), "a product that the spy does not count"
        if isinstance(out, torch.Tensor):
            self.largest = max(self.largest, out.numel())
        return out


@each
@pytest.mark.parametrize(
    "options",
    [{}, {"scale": 0.3}, {"softcap": 2.0, "scale": 1.4}, {"classes": 5}, {"bias": True, "softcap": 3.0, "scale": 0.7}],
    ids=str,
)
def test_gradients_in_double_precision(divergence, options):
    student, teacher = heads(**{**options, "bias": None})
    if "classes" in options:
        teacher = teacher.trim(options["classes"])
    bias = torch.randn(7, dtype=torch.float64, requires_grad=True) if options.get("bias") else None
    weight = torch.tensor([0.3, 0.0, 2.0])

    def values(hidden, head, bias):
        logits = replace(student, hidden=hidden, weight=head, bias=bias)
        return divergence(logits, teacher, temperature=1.6, weight=weight)

    inputs = (student.hidden, student.weight, bias)
    assert gradcheck(values, inputs)  # one item at a time: recomputed in backward
    assert gradcheck(lambda *x: values(*x).sum(), inputs)  # all alike: taken in forward


@each
def test_float32_agrees_with_dense_logits(divergence):
    student, teacher = heads((4, 16), 500, 24, torch.float32)
    student = replace(student, scale=0.5)
    values, reference = divergence(student, teacher), divergence(student.dense(), teacher.dense())
    torch.testing.assert_close(values, reference, rtol=1e-6, atol=1e-6)
    for found, expected in zip(gradients(values.sum(), student), gradients(reference.sum(), student), strict=True):
        assert (found - expected).norm() < 4e-6 * expected.norm()  # both are 1 to 2e-6 away from float64


@pytest.mark.parametrize(("user", "special"), [(SlowForwardKL(), ForwardKL()), (SlowJSD(), JSD(0.5))], ids=["kl", "jsd"])
def test_a_users_own_divergence_equals_the_optimised_one(user, special):
    student, teacher = heads((5,), 30)
    found, expected = user(student, teacher, temperature=2.0), special(student, teacher, temperature=2.0)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients(found.sum(), student), gradients(expected.sum(), student))


@settings(max_examples=30, deadline=None)
@given(
    items=st.integers(0, 9),
    classes=st.integers(2, 20),
    seed=st.integers(0, 1000),
    rows=st.integers(1, 4),
    masked=st.booleans(),
    upstream=st.sampled_from(["ones", "same", "different", "masked sum"]),
    divergence=st.sampled_from([*SMOOTH, SlowForwardKL()]),
)
def test_any_shape_chunking_mask_and_upstream(items, classes, seed, rows, masked, upstream, divergence):
    torch.manual_seed(seed)
    student, teacher = heads((items,), classes, 3)
    weight = torch.randint(0, 3, (items,)).double() if masked else None
    up = {
        "ones": torch.ones(items),
        "same": torch.full((items,), -0.7),
        "different": torch.randn(items),
        "masked sum": torch.ones(items) if weight is None else (weight != 0),
    }[upstream].double()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "CPU_TILES", 2 * 8 * classes * rows)
        patch.setattr(fused, "CPU_BLOCK", 8 * classes * 2)
        values = divergence(student, teacher, weight=weight)
        found = gradients((values * up).sum(), student)
    reference = divergence(student.dense(), teacher.dense()) * (1.0 if weight is None else weight)
    torch.testing.assert_close(values, reference)
    torch.testing.assert_close(found, gradients((reference * up).sum(), student))


def test_backward_twice_and_scaled():
    student, teacher = heads()
    values = ForwardKL()(student, teacher)
    loss = 3 * values.mean()
    once = [g.clone() for g in torch.autograd.grad(loss, (student.hidden, student.weight), retain_graph=True)]
    torch.testing.assert_close(once, list(gradients(loss, student)))
    torch.testing.assert_close(once, list(gradients(3 * ForwardKL()(student.dense(), teacher).mean(), student)))


def counted(objective, backward=True):
    with Spy() as spy:
        values = objective()
        if backward:
            values.sum().backward()
    return spy


N, V, D = 48, 1000, 8  # one product is N * V * D multiplications; the teacher's is (D + 2) / D of that
LARGEST = V * (D + 2)  # the teacher's head; all logits would be N * V


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(fused, "CPU_TILES", 2 * 4 * V * 8)  # eight rows of both


@pytest.mark.usefixtures("small_chunks")
class TestWork:
    teacher_product = (D + 2) / D

    def test_four_products_with_a_dense_teacher(self):
        for divergence in SMOOTH:
            student, teacher = heads((N,), V, D, torch.float32)
            spy = counted(lambda d=divergence, s=student, t=teacher: d(s, t))
            assert spy.multiplications == N * V * D * (3 + self.teacher_product)

    def test_three_with_a_stored_teacher_or_labels(self):
        student, teacher = heads((N,), V, D, torch.float32)
        values, index = teacher.dense().log_softmax(-1).topk(5, -1)
        top = TopK(values, index, torch.log1p(-values.exp().sum(-1)))
        labels = torch.zeros(N, dtype=torch.long)
        for objective in (
            lambda: ForwardKL()(student, top),
            lambda: cross_entropy(student, labels),
            lambda: entropy(student),
        ):
            assert counted(objective).multiplications == N * V * D * 3

    def test_labels_cost_no_product(self):
        student, teacher = heads((N,), V, D, torch.float32)
        labels = torch.zeros(N, dtype=torch.long)
        spy = counted(lambda: mixed(JSD(), student, teacher, labels, 0.5).total)
        assert spy.multiplications == N * V * D * (3 + self.teacher_product)

    def test_a_frozen_head_and_frozen_hidden_states_skip_theirs(self):
        student, teacher = heads((N,), V, D, torch.float32)
        student.weight.requires_grad_(False)
        assert counted(lambda: JSD()(student, teacher)).multiplications == N * V * D * (2 + self.teacher_product)
        assert student.weight.grad is None
        student.weight.requires_grad_(True)
        student.hidden.requires_grad_(False)
        student.hidden.grad = None
        assert counted(lambda: JSD()(student, teacher)).multiplications == N * V * D * (2 + self.teacher_product)
        assert student.hidden.grad is None

    def test_two_without_gradients(self):
        student, teacher = heads((N,), V, D, torch.float32)
        with torch.no_grad():
            spy = counted(lambda: JSD()(student, teacher), backward=False)
        assert spy.multiplications == N * V * D * (1 + self.teacher_product)

    def test_masked_items_are_not_projected(self):
        student, teacher = heads((N,), V, D, torch.float32)
        mask = torch.arange(N) % 4 == 0
        with torch.no_grad():
            student.hidden[~mask] = math.nan
        spy = counted(lambda: ForwardKL()(student, teacher, weight=mask))
        assert spy.multiplications == N / 4 * V * D * (3 + self.teacher_product)
        assert student.hidden.grad.isfinite().all() and student.weight.grad.isfinite().all()

    def test_a_scaled_or_masked_sum_recomputes_nothing(self):
        student, teacher = heads((N,), V, D, torch.float32)
        mask = torch.arange(N) % 2 == 0
        spy = counted(lambda: 0.3 * (ForwardKL()(student, teacher, weight=mask) * mask))
        assert spy.multiplications == N / 2 * V * D * (3 + self.teacher_product)

    def test_no_tensor_has_all_items_and_classes(self):
        for divergence in [*SMOOTH, TotalVariation(), SlowForwardKL()]:
            student, teacher = heads((N,), V, D, torch.float32)
            assert counted(lambda d=divergence, s=student, t=teacher: d(s, t)).largest <= LARGEST
        labels = torch.zeros(N, dtype=torch.long)
        assert counted(lambda: mixed(JSD(), student, teacher, labels, 0.5).total).largest <= LARGEST
        assert counted(lambda: fused.compare(student, teacher, labels)["nll"], backward=False).largest <= LARGEST


def test_masked_items_equal_absent_ones():
    student, teacher = heads((6,), 9)
    mask = torch.tensor([1, 0, 0, 1, 1, 0], dtype=torch.bool)
    found = ForwardKL()(student, teacher, weight=mask)
    expected = ForwardKL()(student[mask], teacher[mask])
    torch.testing.assert_close(found[mask], expected)
    assert (found[~mask] == 0).all()
    torch.testing.assert_close(gradients(found.sum(), student), gradients(expected.sum(), student))


@pytest.mark.parametrize("weight", [None, torch.zeros(4)], ids=["none", "all masked"])
def test_nothing_to_do_is_done(weight):
    items = 0 if weight is None else 4
    student, teacher = heads((items,), 9)
    labels = torch.zeros(items, dtype=torch.long)
    values = ForwardKL()(student, teacher, weight=weight)
    assert values.shape == (items,) and (values == 0).all()
    assert all((g == 0).all() for g in gradients(values.sum(), student))
    assert {v.shape for v in fused.compare(student, teacher, labels, weight=weight).values()} == {(items,)}
    assert mixed(ForwardKL(), student, teacher, labels, 0.5, weight=weight).cross_entropy.shape == (items,)


def test_temperature_per_item_and_strided_hidden_states():
    student, teacher = heads((5, 4), 9)
    turned = replace(student, hidden=student.hidden.transpose(0, 1))
    assert not turned.hidden.is_contiguous()
    temperature = torch.rand(4, 5) + 0.5
    other = replace(teacher, hidden=teacher.hidden.transpose(0, 1))
    found = JSD()(turned, other, temperature=temperature)
    expected = JSD()(turned.dense(), other.dense(), temperature=temperature)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients(found.sum(), student), gradients(expected.sum(), student))


def test_a_dense_teacher_of_a_fused_student_and_the_reverse():
    student, teacher = heads((5,), 9)
    expected = ReverseKL()(student.dense(), teacher.dense())
    torch.testing.assert_close(ReverseKL()(student, teacher.dense()), expected)
    torch.testing.assert_close(ReverseKL()(student.dense(), teacher), expected)


def test_padded_vocabularies_are_refused_until_they_are_trimmed():
    student, teacher = heads((5,), 12)
    padded = replace(teacher, weight=torch.cat([teacher.weight, torch.zeros(4, 6)]).double())
    with pytest.raises(ValueError, match="12 classes, teacher 16.*trim"):
        ForwardKL()(student, padded)
    torch.testing.assert_close(ForwardKL()(student, padded.trim(12)), ForwardKL()(student, teacher))
    ours = replace(student, weight=torch.cat([student.weight, torch.ones(3, 4)]).detach().requires_grad_()).trim(12)
    values = ForwardKL()(ours, teacher)
    torch.testing.assert_close(values, ForwardKL()(student, teacher))
    assert (gradients(values.sum(), ours)[1][12:] == 0).all()


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_huge_logits_stay_finite(divergence, dtype):
    student, teacher = heads((6,), 50, 8, dtype, grad=False)
    student = replace(student, hidden=(student.hidden * 5e3).requires_grad_(), weight=student.weight.requires_grad_())
    teacher = replace(teacher, hidden=teacher.hidden * 1e4)
    assert student.dense().abs().max() > 1e4
    values = divergence(student, teacher)
    assert values.isfinite().all()
    assert all(g.isfinite().all() for g in gradients(values.sum(), student))


@each
def test_equal_heads_are_at_distance_zero(divergence):
    student, _ = heads((6,), 300, 8, torch.float32)
    values = divergence(student, student.detach())
    assert values.abs().max() < 2e-6
    assert all(g.abs().max() < 2e-5 for g in gradients(values.sum(), student))


@pytest.mark.parametrize("divergence", [ForwardKL(), ReverseKL(), JSD(0.5)], ids=str)
def test_bfloat16_inputs_cost_only_the_rounding_of_the_result(divergence):
    student, teacher = heads((64,), 400, 32, torch.bfloat16)
    student, teacher = replace(student, scale=0.3), replace(teacher, scale=0.3)
    exact = HeadLogits(
        student.hidden.detach().double().requires_grad_(), student.weight.detach().double().requires_grad_(), scale=0.3
    )
    reference = divergence(exact, replace(teacher, hidden=teacher.hidden.double(), weight=teacher.weight.double()))
    values = divergence(student, teacher)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values.double(), reference, rtol=1e-5, atol=1e-6)
    for found, expected in zip(gradients(values.sum(), student), gradients(reference.sum(), exact), strict=True):
        assert found.dtype == torch.bfloat16
        assert (found - expected).norm() < 3e-3 * expected.norm()


def test_hidden_and_head_may_differ_in_precision():
    student, teacher = heads((4,), 11, dtype=torch.float32)
    low = replace(student, hidden=student.hidden.detach().bfloat16().requires_grad_())
    values = JSD()(low, teacher)
    hidden, weight = gradients(values.sum(), low)
    assert hidden.dtype == torch.bfloat16 and weight.dtype == torch.float32


def test_compare_measures_what_an_evaluation_asks():
    student, teacher = heads((40,), 6)
    labels = torch.randint(0, 6, (40,))
    labels[3] = -100
    weight = torch.ones(40)
    weight[5] = 0
    counted = (labels >= 0) & (weight > 0)
    z, t = student.dense().detach(), teacher.dense()
    expected = {
        "nll": torch.nn.functional.cross_entropy(z, labels, reduction="none"),
        "teacher_nll": torch.nn.functional.cross_entropy(t, labels, reduction="none"),
        "confidence": z.softmax(-1).amax(-1),
        "correct": (z.argmax(-1) == labels).double(),
        "teacher_correct": (t.argmax(-1) == labels).double(),
        "agree": (z.argmax(-1) == t.argmax(-1)).double(),
        "forward_kl": torch.nn.functional.kl_div(z.log_softmax(-1), t.softmax(-1), reduction="none").sum(-1),
        "reverse_kl": torch.nn.functional.kl_div(t.log_softmax(-1), z.softmax(-1), reduction="none").sum(-1),
    }
    for pair in ((student, teacher), (z, t)):
        found = fused.compare(*pair, labels, weight=weight)
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            torch.testing.assert_close(found[name], values * counted, msg=name)
    alone = fused.compare(student, None, labels, weight=weight)
    assert alone.keys() == {"nll", "confidence", "correct"}
    torch.testing.assert_close(alone["nll"], expected["nll"] * counted)
