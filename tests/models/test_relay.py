"""Going on from the middle of a network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stillhouse.core.run import RunError
from stillhouse.models.relay import like, resumed
from stillhouse.models.taps import as_map, tapped
from stillhouse.models.toys import Convolutional
from stillhouse.models.vision import VisionTransformer, ViT

DRAW = torch.Generator().manual_seed(0)


def network(kind):
    torch.manual_seed(0)
    if kind == "cnn":
        return Convolutional(1, 4, 4, 3).eval(), "stages.0", "stages.2"
    return VisionTransformer(ViT(patch=2, width=8, depth=3, heads=2), (1, 8, 8), 4).eval(), "blocks.0", "blocks.2"


def batch(count=3):
    return {"inputs": torch.randn(count, 1, 8, 8, generator=DRAW), "labels": torch.zeros(count, dtype=torch.long)}


@pytest.mark.parametrize("kind", ["cnn", "vit"])
def test_another_images_state_gives_what_that_image_would(kind):
    module, low, up = network(kind)
    one, other = batch(), batch()
    seen = tapped(module, other, [low, up])[1]
    found = resumed(module, one, low, lambda own: seen[low], up)
    assert torch.allclose(found, seen[up], atol=1e-6)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


@pytest.mark.parametrize("kind", ["cnn", "vit"])
def test_the_form_is_the_layers_own(kind):
    """What was read as a map comes back as it was; a class token stays."""
    module, low, up = network(kind)
    images = batch()
    seen = tapped(module, images, [low, up])[1]
    back = resumed(module, images, low, lambda own: like(as_map(own), own), up)
    assert torch.allclose(back, seen[up], atol=1e-6)
    moved = like(as_map(seen[low]) + 1.0, seen[low])
    assert float((moved - seen[low]).abs().sum().detach()) == pytest.approx(as_map(seen[low]).numel(), rel=1e-4)
    if kind == "vit":
        assert torch.equal(moved[:, 0], seen[low][:, 0])


def test_the_input_of_a_layer_can_be_changed_and_a_gradient_comes_back():
    module, _, _ = network("cnn")
    module.requires_grad_(False)
    state = torch.randn(3, 16, generator=DRAW, requires_grad=True)
    found = resumed(module, batch(), "head:in", lambda own: state, "head")
    assert torch.allclose(found, state @ module.head.weight.T + module.head.bias, atol=1e-6)
    found.sum().backward()
    assert torch.allclose(state.grad, module.head.weight.sum(0).expand(3, -1), atol=1e-6)


def test_what_does_not_follow_is_refused():
    module, low, up = network("cnn")
    module.requires_grad_(False)
    with pytest.raises(RunError, match="name the earlier layer first"):
        resumed(module, batch(), up, lambda own: own + torch.ones(1, requires_grad=True), low)

    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(1, 1)

        def forward(self, x):
            return {"a": x}

    odd = nn.Sequential(nn.Flatten(), Odd())
    with pytest.raises(RunError, match="gives dict, which cannot be changed"):
        resumed(odd, batch(), "1", lambda own: own, "0")
