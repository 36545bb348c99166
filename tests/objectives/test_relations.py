"""Relations between items, channels and positions: golden values, loops, coinciding items, hostile numbers."""

from __future__ import annotations

import math

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

from stillhouse.objectives import relations
from stillhouse.objectives.divergences import ForwardKL
from stillhouse.objectives.relations import (
    angle_gap,
    congruence_gap,
    distance_gap,
    error_products,
    neighbour_gap,
    relation_loss,
    relation_matrix,
)


def similarity(s, t, weight=None):
    return relation_loss(s, t, "sample_gram", weight=weight)


BETWEEN = {
    "similarity": similarity,
    "similarity_kl": lambda s, t, weight=None: relation_loss(s, t, "sample_gram", metric="kl", weight=weight),
    "cosine": lambda s, t, weight=None: relation_loss(s, t, "cosine", weight=weight),
    "neighbours": neighbour_gap,
    "distances": distance_gap,
    "angles": angle_gap,
    "congruence": congruence_gap,
}
WITHIN = {
    f"{kind} {metric}": lambda s, t, weight=None, kind=kind, metric=metric: relation_loss(
        s, t, kind, metric=metric, weight=weight
    )
    for kind in ("channel_gram", "spatial_self", "attn_rel")
    for metric in ("mse", "kl")
}
each_between = pytest.mark.parametrize("f", BETWEEN.values(), ids=BETWEEN)
EVERY = BETWEEN | WITHIN | {"error_products": error_products}
each = pytest.mark.parametrize("f", EVERY.values(), ids=EVERY)


def case(dtype=torch.float64, scale=1.0):
    return normal(6, 4, 2, 2, scale=scale, dtype=dtype), normal(6, 4, 2, 2, scale=scale, dtype=dtype)


def vectors(n=5):
    return normal(n, 4), normal(n, 3)


def test_golden_values():
    # HobbitLong/RepDistiller, distiller_zoo/SP.py, PKT.py, RKD.py, CC.py
    golden(similarity(FS, FT), 0.23266180462659536)
    golden(neighbour_gap(ES, ET), 0.051777967058195845)
    golden(25 * distance_gap(ES, ET) + 50 * angle_gap(ES, ET), 8.218855857157637)
    golden(error_products(ES, ET), 47.13565015961351)
    # yoshitomo-matsubara/torchdistill's SPKDLoss divides rows by their sum of absolute values, which is a mistake
    assert float(similarity(FS, FT).mean()) != pytest.approx(0.03261388435470072, rel=0.1)


@each
def test_the_common_properties(f):
    right_gradient(f, *case())
    teacher_is_constant(f, *case())
    mask_is_subset(f, *case())
    any_size(f, *case())


@each
@HOSTILE
def test_large_numbers_stay_finite(f, dtype):
    student, teacher = case(dtype, 1e4)
    finite(f, student, teacher)
    finite(f, student, student)


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_items_that_coincide_have_moderate_gradients(f, dtype):
    student, teacher = case(dtype)
    two = student.clone()
    two[1] = two[0]
    same = student[:1].expand_as(student)
    zeros = torch.zeros_like(student)
    one = student.clone()
    one[1] = 0
    for x in (two, same, zeros, one):
        for y in (teacher, x):
            assert float(finite(f, x, y).abs().max()) < 1e3
    finite(f, student, zeros)


@each_between
def test_items_keep_their_values_in_any_order(f):
    student, teacher = case()
    order = torch.randperm(6)
    assert torch.allclose(f(student[order], teacher[order]), f(student, teacher)[order], rtol=1e-10)


@each_between
def test_widths_may_differ_and_nothing_is_learned_from_oneself(f):
    student, teacher = vectors()
    right_gradient(f, student, teacher)
    assert float(f(student, student).abs().max()) < 1e-14
    assert float(gradient(f, student, student).abs().max()) < (1e-6 if f is neighbour_gap else 1e-14)  # its eps


# Loops, item by item


def cosine(a, b):
    return float(F.cosine_similarity(a, b, dim=0))


def test_similarity_by_loops():
    student, teacher = vectors()

    def rows(x):
        gram = [[float(a @ b) for b in x] for a in x]
        return [[g / math.sqrt(sum(v * v for v in row)) for g in row] for row in gram]

    s, t = rows(student), rows(teacher)
    expected = [sum((a - b) ** 2 for a, b in zip(r, q, strict=True)) / 5 for r, q in zip(s, t, strict=True)]
    assert similarity(student, teacher).tolist() == pytest.approx(expected, rel=1e-12)


def test_neighbours_by_loops():
    student, teacher = vectors()

    def chances(x, i):
        near = [(cosine(x[i], b) + 1) / 2 for b in x]
        return [v / sum(near) for v in near]

    expected = [
        sum(p * math.log(p / q) for p, q in zip(chances(teacher, i), chances(student, i), strict=True)) / 5 for i in range(5)
    ]
    assert neighbour_gap(student, teacher).tolist() == pytest.approx(expected, rel=1e-4)  # of eps
    assert neighbour_gap(student, teacher, eps=0.0).tolist() == pytest.approx(expected, rel=1e-10)


def smooth(gap):
    return 0.5 * gap * gap if abs(gap) < 1 else abs(gap) - 0.5


def test_relational_distances_by_loops():
    student, teacher = vectors()
    student[4] *= 30
    teacher[0] *= 30

    def distances(x):
        d = [[float((a - b).norm()) for b in x] for a in x]
        mean = sum(map(sum, d)) / 20
        return [[v / mean for v in row] for row in d]

    s, t = distances(student), distances(teacher)
    expected = [sum(smooth(s[i][j] - t[i][j]) for j in range(5)) / 5 for i in range(5)]
    assert max(abs(s[i][j] - t[i][j]) for i in range(5) for j in range(5)) > 1  # the linear part is there
    assert distance_gap(student, teacher).tolist() == pytest.approx(expected, rel=1e-12)


def test_relational_angles_by_a_triple_loop():
    student, teacher = vectors()

    def angle(x, i, j, k):
        return 0.0 if i in (j, k) else cosine(x[j] - x[i], x[k] - x[i])

    expected = [
        sum(smooth(angle(student, i, j, k) - angle(teacher, i, j, k)) for j in range(5) for k in range(5)) / 25
        for i in range(5)
    ]
    assert angle_gap(student, teacher).tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("f", [distance_gap, angle_gap])
def test_relational_kd_forgets_place_size_and_turn(f):
    student, teacher = vectors()
    turn = torch.linalg.qr(normal(4, 4))[0]
    assert torch.allclose(f(3 * student @ turn + 7, teacher), f(student, teacher), rtol=1e-10)


def test_angles_in_parts_are_the_same(monkeypatch):
    student, teacher = vectors(9)
    whole, slope = angle_gap(student, teacher), gradient(angle_gap, student, teacher)
    for angles in (1, 200, 400):
        monkeypatch.setattr(relations, "ANGLES", angles)
        assert torch.allclose(angle_gap(student, teacher), whole, rtol=1e-14)
        assert torch.allclose(gradient(angle_gap, student, teacher), slope, rtol=1e-10, atol=1e-16)
        right_gradient(angle_gap, student[:4], teacher[:4])
    with torch.no_grad():
        assert torch.allclose(angle_gap(student, teacher), whole, rtol=1e-14)


def test_congruence_by_loops_and_in_the_limit():
    student, teacher = vectors()
    gamma = 0.4

    def kernel(a, b, order):
        return sum(math.exp(-2 * gamma) * (2 * gamma) ** p / math.factorial(p) * cosine(a, b) ** p for p in range(order + 1))

    def expected(k):
        pairs = [[(k(student[i], student[j]) - k(teacher[i], teacher[j])) ** 2 for j in range(5)] for i in range(5)]
        return [sum(row) / 5 for row in pairs]

    for order in (1, 2, 3):
        found = congruence_gap(student, teacher, gamma=gamma, order=order).tolist()
        assert found == pytest.approx(expected(lambda a, b, order=order: kernel(a, b, order)), rel=1e-10)

    def gaussian(a, b):
        return math.exp(-gamma * float((F.normalize(a, dim=0) - F.normalize(b, dim=0)).square().sum()))

    assert congruence_gap(student, teacher, gamma=gamma, order=20).tolist() == pytest.approx(expected(gaussian), rel=1e-10)


def test_error_products_by_a_loop():
    student, teacher = normal(5, 4), normal(5, 4)
    error = (student - teacher).abs()
    expected = sum(float(error[i] @ error[i + 1]) for i in range(4)) / 4
    assert float(error_products(student, teacher).mean()) == pytest.approx(expected, rel=1e-12)
    assert error_products(student[:1], teacher[:1]).tolist() == [0]


# Matrices


def test_relations_of_items():
    x = normal(5, 3, 2, 2)
    flat = x.flatten(1)
    assert torch.allclose(relation_matrix(x, "sample_gram"), F.normalize(flat @ flat.T, dim=1), rtol=1e-12)
    expected = F.cosine_similarity(flat[:, None], flat[None], dim=-1)
    assert torch.allclose(relation_matrix(x, "cosine"), expected, rtol=1e-10)


def test_relations_within_an_item():
    x = normal(5, 3, 2, 4)
    tokens = x.flatten(2).mT
    for kind in ("channel_gram", "spatial_self"):
        assert torch.allclose(relation_matrix(x, kind), relation_matrix(tokens, kind), rtol=1e-12)
        with pytest.raises(ValueError, match="needs maps"):
            relation_matrix(normal(5, 3), kind)
    assert relation_matrix(x, "channel_gram").shape == (5, 3, 3) and relation_matrix(x, "spatial_self").shape == (5, 8, 8)
    gram = torch.einsum("bchw,bdhw->bcd", x, x)
    assert torch.allclose(relation_matrix(x, "channel_gram"), F.normalize(gram, dim=2), rtol=1e-12)
    expected = F.cosine_similarity(tokens[:, :, None], tokens[:, None], dim=-1)
    assert torch.allclose(relation_matrix(x, "spatial_self"), expected, rtol=1e-10)
    heads = normal(5, 2, 6, 4)
    expected = torch.einsum("bhid,bhjd->bhij", heads, heads) / 2
    assert torch.allclose(relation_matrix(heads, "attn_rel"), expected, rtol=1e-12)


def test_the_kl_of_relations_is_that_of_their_rows():
    student, teacher = normal(5, 2, 6, 4), normal(5, 2, 6, 8)  # MiniLMv2: heads may be of any width
    r_s, r_t = (relation_matrix(x, "attn_rel") for x in (student, teacher))
    expected = F.kl_div(r_s.log_softmax(-1), r_t.softmax(-1), reduction="none").sum(-1).mean((1, 2))
    assert torch.allclose(relation_loss(student, teacher, "attn_rel", metric="kl"), expected, rtol=1e-10)
    s, t = vectors()
    expected = ForwardKL()(relation_matrix(s, "cosine"), relation_matrix(t, "cosine"))
    assert torch.allclose(relation_loss(s, t, "cosine", metric="kl"), expected, rtol=1e-12)


def test_relations_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match="pool or adapt"):
        relation_loss(normal(5, 3, 2, 2), normal(5, 4, 2, 2), "channel_gram")
    with pytest.raises(ValueError, match="5 items, the teacher 4"):
        similarity(normal(5, 3), normal(4, 3))
