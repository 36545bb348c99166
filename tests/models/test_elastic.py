"""A network that contains others: each member is the network that it would be alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stillhouse.core.run import Run
from stillhouse.models.elastic import Elastic, Supernet, logits_by, members_of, recalibrated

SPEC = Elastic(channels=(8, 16), blocks=2, widths=(0.5, 1.0), skips=(0, 1), ratios=(0.5, 1.0), divisor=4, norm="group")


def alone(whole: Supernet, number: int) -> Supernet:
    """The member as a network by itself, with the first channels of every weight."""
    made = Supernet(whole.spec, 1, 3, only=whole.members[number])
    for name, value in made.state_dict().items():
        other = whole.state_dict()[name]
        value.copy_(other[tuple(slice(n) for n in value.shape)])
    return made


def test_members_from_the_largest_to_the_smallest():
    assert len(SPEC.members) == 8
    assert (SPEC.members[0].width, SPEC.members[0].skipped, SPEC.members[0].ratio) == (1.0, 0, 1.0)
    assert (SPEC.members[-1].width, SPEC.members[-1].skipped, SPEC.members[-1].ratio) == (0.5, 1, 0.5)


@pytest.mark.parametrize("kernels", [(1, 3, 1), (3, 3)])
@pytest.mark.parametrize("norm", ["group", "batch"])
def test_a_member_says_what_it_would_say_alone(norm: str, kernels: tuple[int, ...]):
    torch.manual_seed(0)
    spec = Elastic(channels=(8, 16), blocks=2, widths=(0.5, 1.0), skips=(0, 1), ratios=(0.5, 1.0), divisor=4,
                   norm=norm, kernels=kernels)  # type: ignore[arg-type]  # fmt: skip
    whole = Supernet(spec, 1, 3).eval()
    x = torch.randn(4, 1, 8, 8)
    said = [whole(x, member=i) for i in range(len(whole.members))]
    for i, logits in enumerate(said):
        assert torch.allclose(logits, alone(whole, i).eval()(x), atol=1e-5)
    assert not torch.allclose(said[0], said[-1])
    assert torch.equal(whole(x), said[0])


def test_a_member_teaches_its_own_channels_alone():
    torch.manual_seed(0)
    whole = Supernet(SPEC, 1, 3)
    whole(torch.randn(2, 1, 8, 8), member=len(SPEC.members) - 1).sum().backward()
    slope = whole.head.weight.grad
    assert slope is not None and bool((slope[:, :8] != 0).any()) and bool((slope[:, 8:] == 0).all())


def test_recalibration_gives_a_member_its_own_means():
    torch.manual_seed(0)
    spec = Elastic(channels=(8,), blocks=1, widths=(0.5, 1.0), skips=(0,), ratios=(1.0,), divisor=4)
    whole = Supernet(spec, 1, 3)
    x = torch.randn(64, 1, 6, 6)
    for _ in range(3):
        whole(x, member=0)
    before = {name: value.clone() for name, value in whole.state_dict().items()}
    with recalibrated(whole, 1, [{"inputs": x}]) as found:
        stem = torch.nn.functional.conv2d(x, whole.stem.weight[:4], padding=1)
        assert torch.allclose(found.norm.running_mean[:4], stem.mean((0, 2, 3)), atol=1e-5)
        assert torch.allclose(found.norm.running_var[:4], stem.var((0, 2, 3)), atol=1e-4)
        found.train()
        assert torch.allclose(logits_by(found, {"inputs": x}, 1), alone(whole, 1).train()(x), atol=1e-4)
    assert all(torch.equal(before[name], value) for name, value in whole.state_dict().items())


def test_networks_apart_share_nothing(tmp_path: Path):
    from stillhouse.data.images import Digits

    class Recipe:
        data = Digits()

    run = Run(tmp_path)
    run.recipe = Recipe()
    made = Elastic(channels=(8,), blocks=2, widths=(0.5, 1.0), skips=(0, 1), ratios=(1.0,), divisor=4, apart=True).build(run)
    x = torch.randn(2, 1, 8, 8)
    made(x, member=2).sum().backward()
    assert all((p.grad is not None) == name.startswith("parts.2.") for name, p in made.named_parameters())
    assert len(members_of(made)) == 4 and members_of(torch.nn.Linear(1, 1)) == (None,)


def test_settings_that_make_no_network():
    with pytest.raises(ValueError, match="can be skipped"):
        Elastic(blocks=2, skips=(0, 2))
    with pytest.raises(ValueError, match="at most 1"):
        Elastic(widths=(1.5,))
