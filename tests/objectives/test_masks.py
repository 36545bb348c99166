"""Masked gaps against loops."""

from __future__ import annotations

import pytest
import torch

from stillhouse.objectives.masks import channel_gap, overlap, position_gap

DRAW = torch.Generator().manual_seed(0)


def drawn(*shape):
    return torch.rand(*shape, generator=DRAW, dtype=torch.float64)


def test_by_hand():
    student, teacher, channels, positions = drawn(2, 3, 2, 4), drawn(2, 3, 2, 4), drawn(2, 5, 3), drawn(2, 5, 8)
    by_channel, by_position = channel_gap(student, teacher, channels.log()), position_gap(student, teacher, positions.log())
    for item in range(2):
        d = ((student[item] - teacher[item]) ** 2).flatten(1).tolist()  # 3 channels of 8 positions
        of_channels = [sum(row) / 8 for row in d]
        of_positions = [sum(row[p] for row in d) / 3 for p in range(8)]
        for found, gaps, masks in ((by_channel, of_channels, channels), (by_position, of_positions, positions)):
            groups = [sum(m * g for m, g in zip(mask, gaps, strict=True)) / sum(mask) for mask in masks[item].tolist()]
            assert float(found[item]) == pytest.approx(sum(groups) / 5)


def test_even_masks_give_the_mean_square_whatever_their_size():
    student, teacher = drawn(2, 3, 4, 4), drawn(2, 3, 4, 4)
    plain = (student - teacher).square().flatten(1).mean(1)
    for size in (1e-300, 0.3, 1.0):
        assert torch.allclose(channel_gap(student, teacher, torch.full((2, 5, 3), size).double().log()), plain)
        assert torch.allclose(position_gap(student, teacher, torch.full((2, 5, 16), size).double().log()), plain)


def test_the_overlap():
    masks = drawn(2, 4, 6)
    pairs = [(i, j) for i in range(4) for j in range(4) if i != j]
    for item, found in enumerate(overlap(masks.log())):
        m = masks[item]
        dice = [2 * float(m[i] @ m[j]) / float(m[i] @ m[i] + m[j] @ m[j]) for i, j in pairs]
        assert float(found) == pytest.approx(sum(dice) / len(dice))
    assert torch.allclose(overlap(masks[:, :1].expand(-1, 3, -1).log()), torch.ones(2, dtype=torch.float64))
    assert overlap(torch.eye(4)[None].log()).item() == 0.0 and overlap(drawn(2, 1, 5).log()).tolist() == [0.0, 0.0]


def test_gradients_go_to_student_and_masks_alone():
    student, masks = drawn(2, 3, 2, 2).requires_grad_(), drawn(2, 2, 3).log().requires_grad_()
    teacher = drawn(2, 3, 2, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda s, m: channel_gap(s, teacher.detach(), m), (student, masks))
    positions = drawn(2, 2, 4).log().requires_grad_()
    assert torch.autograd.gradcheck(lambda s, m: position_gap(s, teacher.detach(), m), (student, positions))
    assert torch.autograd.gradcheck(overlap, masks)
    assert torch.autograd.grad(channel_gap(student, teacher, masks).sum(), teacher, allow_unused=True) == (None,)


@pytest.mark.parametrize("log_mask", [-1e4, -100.0, 0.0])
def test_closed_masks_are_finite_and_weigh_as_others_do(log_mask):
    """Next to nothing is left of them; what they share with open ones is nothing."""
    student, teacher = torch.randn(2, 3, 2, 2, generator=DRAW).requires_grad_(), torch.randn(2, 3, 2, 2, generator=DRAW)
    masks = torch.rand(2, 4, 3, generator=DRAW).log()
    closed = torch.cat([masks + log_mask, masks], 1).requires_grad_()
    gap, shared = channel_gap(student, teacher, closed), overlap(closed)
    (gap.sum() + shared.sum()).backward()
    assert bool(student.grad.isfinite().all()) and bool(closed.grad.isfinite().all())
    assert torch.allclose(gap, channel_gap(student, teacher, masks), rtol=1e-4)
    if log_mask < 0:  # of 56 ordered pairs the 24 within the halves are left
        assert torch.allclose(shared, overlap(masks) * 24 / 56, rtol=1e-4)


def test_no_items():
    masks = drawn(0, 4, 3)
    assert channel_gap(drawn(0, 3, 2, 2), drawn(0, 3, 2, 2), masks).shape == overlap(masks).shape == (0,)
