"""Images changed by so little that nobody sees it, to make a network err: projected gradient ascent."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core.run import seed_of


@dataclass(frozen=True, kw_only=True)
class Attack:
    """Projected gradient ascent in the maximum norm (Madry et al. 2018, arXiv 1706.06083).

    Lengths are shares of the light, from the darkest value of an image to the brightest: what they are where pixels lie
    between 0 and 1.
    """

    radius: float = 8 / 255  # how much a pixel may change
    stride: float = 2 / 255  # how much it changes in a step
    steps: int = 10
    start: float = 0.001  # standard deviation of the noise that the ascent begins with

    def __post_init__(self) -> None:
        if self.radius < 0 or self.stride < 0 or self.start < 0 or self.steps < 0:
            raise ValueError("radius, stride, start and steps must be 0 or more")

    def __call__(
        self, value: Callable[[Tensor], Tensor], inputs: Tensor, light: Light, *, noise: Tensor | None = None
    ) -> Tensor:
        """Images [B, C, H, W] within `radius` of `inputs` and within the light, where `value(images)` [B] is large.

        `noise` is like `inputs`, of deviation 1; drawn if None. The result has no gradient, and nothing but the images
        gets one on the way.
        """
        radius, stride, start = (light.width * length for length in (self.radius, self.stride, self.start))
        near, far = torch.maximum(inputs - radius, light.dark), torch.minimum(inputs + radius, light.bright)
        noise = torch.randn_like(inputs) if noise is None else noise
        found = torch.minimum(torch.maximum(inputs + noise * start, near), far).detach()
        for _ in range(self.steps):
            with torch.enable_grad():
                moved = found.requires_grad_()
                (slope,) = torch.autograd.grad(value(moved).sum(), moved)
            with torch.no_grad():
                found = torch.minimum(torch.maximum(moved + stride * slope.sign(), near), far)
        return found.detach()


@dataclass(frozen=True)
class Light:
    """The darkest and the brightest value that a pixel of a batch can have, [C, 1, 1]."""

    dark: Tensor
    bright: Tensor

    @property
    def width(self) -> Tensor:
        """From dark to bright."""
        return self.bright - self.dark

    def to(self, device: torch.device) -> Light:
        """The same on a device."""
        return Light(self.dark.to(device), self.bright.to(device))


def light_of(source: Any) -> Light:
    """That of a split of images (`data.images.Images`), whose batches are standardised."""
    dark, bright = source.light
    return Light((dark - source.mean) / source.deviation, (bright - source.mean) / source.deviation)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[nn.Module]:
    """The module in evaluation mode: an attack is not to move the running means of its batch norms."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        yield module.eval()
    finally:
        for part, was in modes:
            part.training = was


def noise_by_item(inputs: Tensor, items: Sequence[int], *key: object) -> Tensor:
    """Noise of deviation 1 like `inputs`, which depends on the items' numbers and the key, not on how a batch is split."""
    shape = inputs.shape[1:]
    drawn = [torch.randn(shape, generator=torch.Generator().manual_seed(seed_of(*key, item))) for item in items]
    return torch.stack(drawn).to(inputs) if drawn else torch.zeros_like(inputs)
