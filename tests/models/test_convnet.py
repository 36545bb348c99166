"""The networks of condensing: their maps, their sizes, and weights that depend on one generator."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stillhouse.core.recipe import Recipe
from stillhouse.core.run import Run, RunError
from stillhouse.data.images import Digits
from stillhouse.data.toys import Clusters
from stillhouse.models.convnet import ConvNetD


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = Run(tmp_path / "run", device=torch.device("cpu"))
    made.recipe = Recipe(id="r", student=ConvNetD(), data=Digits(), stages={})
    return made


def test_maps_and_logits():
    network = ConvNetD(width=6, depth=3).of((3, 32, 28), 5, rng(0))
    x = torch.randn(2, 3, 32, 28, generator=rng(1))
    maps, last = network.maps(x)
    assert [tuple(m.shape) for m in maps] == [(2, 6, 32, 28), (2, 6, 16, 14), (2, 6, 8, 7)]
    assert all(float(m.detach().min()) == 0 for m in maps) and last.shape == (2, 6 * 4 * 3)
    assert torch.equal(network(x), network.head(last)) and network(x).shape == (2, 5)


def test_an_image_is_seen_alone():
    network = ConvNetD(width=6, depth=2).of((1, 8, 8), 3, rng(0))
    x = torch.randn(4, 1, 8, 8, generator=rng(1))
    assert torch.allclose(network(x)[1:2], network(x[1:2]), atol=1e-6)


def test_weights_depend_on_the_generator_alone():
    torch.manual_seed(0)
    a = ConvNetD(width=6, depth=2).of((1, 8, 8), 3, rng(0)).state_dict()
    torch.manual_seed(1)
    b = ConvNetD(width=6, depth=2).of((1, 8, 8), 3, rng(0)).state_dict()
    c = ConvNetD(width=6, depth=2).of((1, 8, 8), 3, rng(1)).state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a["convolutions.0.weight"], c["convolutions.0.weight"])


def test_weights_are_spread_as_torch_spreads_them():
    drawn = ConvNetD(width=64, depth=2).of((3, 8, 8), 10, rng(0)).convolutions[1]
    usual = torch.nn.Conv2d(64, 64, 3)
    assert float((drawn.weight.std() / usual.weight.std()).detach()) == pytest.approx(1, abs=0.02)  # type: ignore[operator]
    assert float(drawn.weight.abs().max()) <= (64 * 9) ** -0.5


def test_saved_and_loaded_is_the_same(run: Run, tmp_path: Path):
    spec = ConvNetD(width=4, depth=2)
    module = spec.build(run)
    spec.save(module, tmp_path, run)
    loaded = spec.load(tmp_path, run)
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in module.state_dict().items())


@pytest.mark.parametrize(("size", "depth"), [(4, 2), (8, 2), (16, 2), (28, 3), (32, 3), (64, 4), (128, 5)])
def test_its_depth_follows_the_images(size: int, depth: int):
    assert len(ConvNetD(width=2).of((1, size, size + 3), 2).convolutions) == depth


def test_images_too_small_to_be_halved(run: Run):
    with pytest.raises(RunError, match="8 pixels cannot be halved 4 times; set the network's depth to at most 3"):
        ConvNetD(depth=4).build(run)
    with pytest.raises(RunError, match=r"images \[C, H, W\] of 4 pixels a side or more, not \[1, 3, 9\]"):
        ConvNetD().of((1, 3, 9), 2)
    run = Run(run.folder, device=torch.device("cpu"))
    run.recipe = Recipe(id="r", student=ConvNetD(), data=Clusters(), stages={})
    with pytest.raises(RunError, match=r"this network is for images \[C, H, W\]"):
        ConvNetD().build(run)
