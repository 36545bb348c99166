"""Exits of maps, tokens and vectors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stillhouse.models.exits import Merging, TokenExit, exit_from


@pytest.mark.parametrize("left", [0, 1, 3])
@pytest.mark.parametrize(
    "shape", [(6, 8, 8), (5, 1, 1), (3, 7, 2), (16, 12), (17, 12), (18, 12), (64, 12), (226, 12), (13, 12), (9,)], ids=str
)
def test_from_any_layer_to_logits(shape, left):
    branch = exit_from(shape, 10, 4, left)
    x = torch.randn(3, *shape)
    logits = branch(x)
    assert logits.shape == (3, 4)
    alone = torch.cat([branch(one.unsqueeze(0)) for one in x])
    assert torch.allclose(logits, alone, atol=1e-5)  # no item sees another
    logits.sum().backward()
    assert all(p.grad is not None for p in branch.parameters())


def test_an_earlier_exit_has_more_to_do():
    def work(shape, left):
        return sum(isinstance(m, nn.Conv2d) for m in exit_from(shape, 10, 4, left).modules())

    assert [work((6, 8, 8), left) for left in (0, 1, 2)] == [1, 4, 8]
    assert [len(exit_from((16, 12), 10, 4, left).blocks) for left in (0, 1, 2, 3)] == [1, 1, 2, 3]


def test_the_last_convolution_has_the_width_and_channels_double_before():
    convs = [m.out_channels for m in exit_from((6, 16, 16), 10, 4, 3).modules() if isinstance(m, nn.Conv2d)]
    assert convs == [6, 6, 6, 12, 12, 12, 12, 24, 24, 24, 24, 10]


def test_tokens_are_merged_to_seven_a_side_and_the_class_token_is_not():
    branch = TokenExit(226, 12, 10, 4, 1)  # a class token and 15 x 15 patches
    seen = []
    branch.blocks.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    branch.merges[1].register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    branch(torch.randn(2, 226, 12))
    assert seen == [(2, 64, 10), (2, 17, 10)] and len(branch.merges) == 2


def test_merging_takes_neighbours():
    merge = Merging(1, 4)
    merge.norm = nn.Identity()
    with torch.no_grad():
        merge.linear.weight.copy_(torch.eye(4))
        merge.linear.bias.fill_(100.0)  # far in the positive, where GELU changes nothing
    said = merge(torch.arange(9.0).reshape(1, 9, 1)) - 100.0
    assert said[0].tolist() == [[0.0, 1.0, 3.0, 4.0], [2.0, 0.0, 5.0, 0.0], [6.0, 7.0, 0.0, 0.0], [8.0, 0.0, 0.0, 0.0]]


def test_a_class_token_is_what_is_classified():
    branch = TokenExit(17, 12, 10, 4, 1)
    branch.blocks = nn.Sequential()  # no token sees another
    x = torch.randn(2, 17, 12)
    other = x.clone()
    other[:, 1:] += 1.0
    assert torch.equal(branch(x), branch(other))
