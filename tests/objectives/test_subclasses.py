"""Subclasses out of features: against explicit covariances, loops, and the properties that make them of use."""

from __future__ import annotations

import numpy
import pytest
import torch

from stillhouse.objectives.subclasses import along, beyond, centres, directions, nearest, subclasses

N, D, C, S = 200, 7, 3, 4


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def features() -> tuple[torch.Tensor, torch.Tensor]:
    draw = drawn(1)
    scale = torch.tensor([5.0, 3.0, 2.0, 1.0, 0.5, 0.2, 0.1], dtype=torch.float64)
    labels = torch.arange(N) % C
    return torch.randn(N, D, generator=draw, dtype=torch.float64) * scale + 10 * labels[:, None], labels


def test_coordinates_have_mean_0_and_deviation_1_inside_each_class(features):
    x, labels = features
    means, maps = directions(x, labels, C, S, generator=drawn())
    for label in range(C):
        own = (x[labels == label] - means[label]) @ maps[label]
        assert torch.allclose(own.mean(0), torch.zeros(S, dtype=x.dtype), atol=1e-12)
        assert torch.allclose(own.std(0, correction=0), torch.ones(S, dtype=x.dtype), rtol=1e-12)


def test_they_span_the_principal_directions(features):
    """The largest eigenvectors of numpy's covariance, whatever the rotation."""
    x, labels = features
    _, maps = directions(x, labels, C, S, generator=drawn())
    for label in range(C):
        _, vectors = numpy.linalg.eigh(numpy.cov(x[labels == label].numpy().T))
        top = torch.from_numpy(vectors[:, -S:].copy())
        outside = maps[label] - top @ (top.T @ maps[label])
        assert float(outside.abs().max()) < 1e-10
        assert torch.linalg.matrix_rank(maps[label]) == S


def test_the_rotation_is_one_for_all_classes_and_spreads_the_variance(features):
    """Before the division: U Q has coordinates of variances between the smallest and the largest eigenvalue."""
    x, labels = features
    _, first = directions(x, labels, C, S, generator=drawn(3))
    _, again = directions(x, labels, C, S, generator=drawn(3))
    _, other = directions(x, labels, C, S, generator=drawn(4))
    assert torch.equal(first, again) and not torch.allclose(first, other)
    same, turned = torch.cat([x, x + 5]), torch.cat([torch.zeros(N), torch.ones(N)]).long()
    _, maps = directions(same, turned, 2, S, generator=drawn(5))
    assert torch.allclose(maps[0], maps[1], atol=1e-9)


def test_few_items_fewer_directions_and_empty_classes():
    x = torch.tensor([[1.0, 0.0, 0.0], [3.0, 0.0, 0.0], [5.0, 5.0, 5.0]], dtype=torch.float64)
    means, maps = directions(x, torch.tensor([0, 0, 1]), 3, 2, generator=drawn())
    assert maps.isfinite().all() and not maps[1:].any() and torch.equal(means[1], x[2])
    assert (maps[0][0].abs() - 1).abs().max() < 1e-12 and not maps[0][1:].any()  # deviation of 1 and 3 is 1
    assert torch.allclose(along(x, means, maps)[:, 1], torch.full((3, 2), 0.5, dtype=x.dtype).log())


def test_what_the_head_sees_is_gone(features):
    x, _ = features
    head = torch.randn(2, D, generator=drawn(2), dtype=torch.float64)
    projection = beyond(torch.cat([head, head[:1]]))  # a head of rank 2
    assert float((x @ projection @ head.T).abs().max()) < 1e-10
    assert torch.allclose(projection @ projection, projection) and torch.linalg.matrix_rank(projection) == D - 2


def test_the_target_by_hand():
    logits = torch.tensor([[0.0, 2.0]], dtype=torch.float64)
    within = torch.tensor([[[0.25, 0.75], [0.5, 0.5]]], dtype=torch.float64).log()
    p = 1 / (1 + numpy.exp(2 / 4))
    expected = [p * 0.25, p * 0.75, (1 - p) * 0.5, (1 - p) * 0.5]
    assert subclasses(logits, within, 4.0)[0].exp().tolist() == pytest.approx(expected, rel=1e-12)


def test_the_target_adds_up_to_the_teachers_classes(features):
    x, labels = features
    means, maps = directions(x, labels, C, S, generator=drawn())
    logits = 1e4 * torch.randn(N, C, generator=drawn(8))
    target = subclasses(logits, along(x.float(), means.float(), maps.float(), 0.5), 2.0)
    assert target.isfinite().all() and target.shape == (N, C * S)
    assert torch.allclose(target.exp().unflatten(-1, (C, S)).sum(-1), (logits / 2).softmax(-1), atol=1e-5)


def test_clusters_are_found_and_the_nearest_is_the_subclass():
    corners = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]], dtype=torch.float64)
    x = (corners[:, None] + 0.1 * torch.randn(4, 25, 2, generator=drawn(), dtype=torch.float64)).flatten(0, 1)
    labels = (torch.arange(100) >= 50).long()
    middles = centres(x, labels, 2, 2, generator=drawn(1))
    for label in range(2):
        own = middles[label][middles[label][:, 0].argsort()]
        assert torch.allclose(own, corners[2 * label : 2 * label + 2], atol=0.2)
    chosen = nearest(x, middles).exp()
    assert torch.equal(chosen.sum(-1), torch.ones(100, 2, dtype=x.dtype))
    for i in range(100):
        gaps = [float((x[i] - middle).norm()) for middle in middles[labels[i]]]
        assert int(chosen[i, labels[i]].argmax()) == gaps.index(min(gaps))


def test_more_clusters_than_items():
    x = torch.randn(3, 2, generator=drawn())
    middles = centres(x, torch.tensor([0, 0, 2]), 3, 4, generator=drawn())
    chosen = nearest(x, middles).exp()
    assert torch.equal(chosen.sum(-1), torch.ones(3, 3, dtype=chosen.dtype))
    assert not chosen[:, 0, 2:].any() and not chosen[:, 2, 1:].any()
