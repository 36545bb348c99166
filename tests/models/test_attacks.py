"""Projected gradient ascent against a step by hand, and its bounds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stillhouse.core.run import Run
from stillhouse.data.images import Digits
from stillhouse.models.attacks import Attack, Light, evaluating, light_of, noise_by_item

DARK, BRIGHT = torch.tensor([0.0, -2.0])[:, None, None], torch.tensor([1.0, 2.0])[:, None, None]
LIGHT = Light(DARK, BRIGHT)


def test_one_step_is_the_one_by_hand():
    torch.manual_seed(0)
    x = torch.rand(3, 2, 4, 4) * (BRIGHT - DARK) + DARK
    slope = torch.randn(3, 2, 4, 4)
    slope[0, 0, 0, 0] = 0.0  # a pixel that does not matter stays
    found = Attack(radius=0.1, stride=0.03, steps=1, start=0.0)(lambda z: (slope * z).sum((1, 2, 3)), x, LIGHT)
    for n in range(3):
        for c in range(2):
            width = float(BRIGHT[c] - DARK[c])
            for i in range(4):
                for j in range(4):
                    before, rise = float(x[n, c, i, j]), float(slope[n, c, i, j])
                    after = before + 0.03 * width * ((rise > 0) - (rise < 0))
                    after = min(max(after, float(DARK[c])), float(BRIGHT[c]))
                    assert float(found[n, c, i, j]) == pytest.approx(after, abs=1e-6)


def test_it_climbs_to_the_best_corner_and_no_further():
    """Of a linear value the best point is known: each pixel as far up its slope as radius and light allow."""
    torch.manual_seed(1)
    x = torch.rand(5, 2, 3, 3) * (BRIGHT - DARK) + DARK
    slope = torch.randn(5, 2, 3, 3)
    found = Attack(radius=0.1, stride=0.03, steps=30)(lambda z: (slope * z).sum((1, 2, 3)), x, LIGHT)
    best = torch.minimum(torch.maximum(x + 0.1 * (BRIGHT - DARK) * slope.sign(), DARK), BRIGHT)
    assert torch.allclose(found, best, atol=1e-6)


@pytest.mark.parametrize("stride", [0.02, 0.5])
def test_it_stays_inside(stride: float):
    torch.manual_seed(2)
    x = torch.rand(4, 2, 5, 5) * (BRIGHT - DARK) + DARK
    found = Attack(radius=0.07, stride=stride, steps=7)(lambda z: (z**3).sin().sum((1, 2, 3)), x, LIGHT)
    width = BRIGHT - DARK
    assert bool(((found - x).abs() <= 0.07 * width + 1e-6).all())
    assert bool((found >= DARK).all()) and bool((found <= BRIGHT).all())
    assert not found.requires_grad


def test_no_step_is_the_image_and_its_noise():
    x = torch.full((2, 2, 3, 3), 0.5)
    still = Attack(steps=0, start=0.0)(lambda z: z.sum((1, 2, 3)), x, LIGHT)
    assert torch.equal(still, x)
    noise = torch.randn(2, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    noisy = Attack(steps=0, radius=0.5)(lambda z: z.sum((1, 2, 3)), x, LIGHT, noise=noise)
    assert torch.allclose(noisy - x, 0.001 * (BRIGHT - DARK) * noise, atol=1e-6)


def test_noise_does_not_depend_on_the_batch():
    x = torch.zeros(4, 2, 3, 3)
    whole = noise_by_item(x, [5, 7, 1, 2], "k")
    parts = torch.cat([noise_by_item(x[:1], [5], "k"), noise_by_item(x[1:], [7, 1, 2], "k")])
    assert torch.equal(whole, parts) and not torch.equal(whole, noise_by_item(x, [5, 7, 1, 2], "l"))


def test_only_the_image_gets_a_gradient_and_the_network_stays_as_it_is():
    net = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3), torch.nn.Flatten(), torch.nn.Linear(27, 2))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with evaluating(net):
        Attack(steps=3)(lambda z: net(z)[:, 0], torch.rand(4, 2, 5, 5), LIGHT)
    assert net.training and all(part.training for part in net.modules())
    assert all(p.grad is None for p in net.parameters())
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_light_of_standardised_images(tmp_path: Path):
    source = Digits().load(Run(tmp_path))["train"]
    light = light_of(source)
    batch = source.batch(range(len(source)), 0)["inputs"]
    assert float(light.dark) == pytest.approx(float(batch.min()), abs=1e-5)
    assert float(light.bright) == pytest.approx(float(batch.max()), abs=1e-5)


def test_negative_lengths_are_refused():
    with pytest.raises(ValueError, match="0 or more"):
        Attack(radius=-0.1)
