"""Samplers: from noise to data by asking a denoiser a few times.

The probability-flow ODE of x_t = alpha x_0 + sigma eps is dx = x0 dalpha + eps dsigma, for every schedule. Holding x0
and eps over a step gives DDIM (Song et al. 2021), which for a rectified flow is Euler's rule and for EDM Euler's rule in
sigma; the trapezoidal rule gives Heun's (Karras et al. 2022, Algorithm 1, whose numbers it has for EDM). The last step
ends in the denoiser's x0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .diffusion import Schedule, normal

Model = Callable[[Tensor, Tensor], Tensor]  # (x_t [B, ...], t [B]) to the estimate of x_0 [B, ...]


def grid(steps: int, start: float = 1.0, end: float = 0.0) -> list[float]:
    """The times of `steps` steps, start > ... > end, evenly spaced: `steps + 1` numbers."""
    return [start + (end - start) * i / steps for i in range(steps + 1)]


def ddim(model: Model, schedule: Schedule, x: Tensor, times: list[float]) -> Tensor:
    """Deterministic DDIM, also known as Euler, from x at times[0] to x0 at the end of `times`."""
    for here, there in zip(times, times[1:], strict=False):
        t, s = _at(here, x), _at(there, x)
        x0 = model(x, t)
        last = there == times[-1]
        x = x0 if last else schedule.add_noise(x0, schedule.eps(x, x0, t), s)
    return x


def heun(model: Model, schedule: Schedule, x: Tensor, times: list[float]) -> Tensor:
    """The trapezoidal rule: two evaluations a step, one in the last."""
    for here, there in zip(times, times[1:], strict=False):
        t, s = _at(here, x), _at(there, x)
        x0 = model(x, t)
        if there == times[-1]:
            return x0
        eps = schedule.eps(x, x0, t)
        ahead = schedule.add_noise(x0, eps, s)
        x0_ahead = model(ahead, s)
        (a, b), (a_next, b_next) = schedule.parts(x, t), schedule.parts(x, s)
        eps_ahead = schedule.eps(ahead, x0_ahead, s)
        x = x + 0.5 * (x0 + x0_ahead) * (a_next - a) + 0.5 * (eps + eps_ahead) * (b_next - b)
    return x


def restart(model: Model, schedule: Schedule, x: Tensor, times: list[float], fresh: Callable[[int], Tensor]) -> Tensor:
    """Denoise wholly, add fresh noise, denoise again: how consistency models and DMD2's few-step students sample."""
    for number, (here, there) in enumerate(zip(times, times[1:], strict=False)):
        x0 = model(x, _at(here, x))
        x = x0 if there == times[-1] else schedule.add_noise(x0, fresh(number), _at(there, x))
    return x


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """How items are drawn from a denoiser."""

    rule: Literal["ddim", "heun", "restart"] = "ddim"
    steps: int = 1

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"a sampler needs at least one step, not {self.steps}")

    @property
    def evaluations(self) -> int:
        """How often the network is asked for one item."""
        return 2 * self.steps - 1 if self.rule == "heun" else self.steps

    def __call__(self, model: Model, schedule: Schedule, z: Tensor, keys: Tensor | None = None) -> Tensor:
        """Items from standard normal z [B, ...]; `keys` [B] name the items where fresh noise is drawn."""
        t = torch.ones(len(z), device=z.device, dtype=z.dtype)
        x, times = schedule.parts(z, t)[1] * z, grid(self.steps)
        if self.rule == "restart":
            keys = torch.arange(len(z), device=z.device) if keys is None else keys
            shape = z.shape[1:]
            return restart(model, schedule, x, times, lambda number: normal(keys, number + 1, *shape).to(z.dtype))
        return (heun if self.rule == "heun" else ddim)(model, schedule, x, times)


def _at(time: float, x: Tensor) -> Tensor:
    return torch.full((len(x),), time, device=x.device, dtype=x.dtype)
