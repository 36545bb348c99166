"""Diffusion models: noise schedules, what networks predict, and two small networks that remove noise.

At time t in [0, 1] an item is x_t = alpha(t) x_0 + sigma(t) eps with standard normal eps; t = 1 is the most noise,
t = 0 next to none. A `Denoiser` answers with its estimate of E[x_0 | x_t], whatever its network predicts: noise,
velocity and score follow from that by `Schedule`. Randomness is drawn per item (`normal`, `uniform`), so that a batch
may be split.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.run import Run
from .toys import Kept, sizes_of

Predicts = Literal["x0", "eps", "v", "flow", "edm"]


def like(values: Tensor, items: Tensor) -> Tensor:
    """`values` [B] shaped to multiply `items` [B, ...]."""
    return values.reshape(-1, *[1] * (items.ndim - 1)).to(items.dtype)


# -- schedules -----------------------------------------------------------------------------------------------------


class Schedule:
    """How much signal and noise there is at time t; times are tensors [B] in [0, 1]."""

    def alpha(self, t: Tensor) -> Tensor:
        """The factor of the signal."""
        raise NotImplementedError

    def sigma(self, t: Tensor) -> Tensor:
        """The deviation of the noise."""
        raise NotImplementedError

    def parts(self, items: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma), shaped to multiply `items`; in double precision if t is."""
        return like(self.alpha(t), items), like(self.sigma(t), items)

    def add_noise(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_t."""
        alpha, sigma = self.parts(x0, t)
        return alpha * x0 + sigma * eps

    def kernel(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(a, b) of the step to a noisier time, x_t = a x_s + b eps, s <= t."""
        a = self.alpha(t) / self.alpha(s)
        return a, (self.sigma(t).square() - (a * self.sigma(s)).square()).clamp(min=0.0).sqrt()

    def renoise(self, x_s: Tensor, eps: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """x_t from x_s at a less noisy time s <= t."""
        a, b = self.kernel(s, t)
        return like(a, x_s) * x_s + like(b, x_s) * eps

    def snr(self, t: Tensor) -> Tensor:
        """Signal to noise, alpha^2 / sigma^2."""
        return (self.alpha(t) / self.sigma(t)).square()

    # What is known of x_t, from the estimate of x_0. All are linear in it, so a mean of one is a mean of the others.

    def eps(self, x_t: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """The noise in x_t, (x_t - alpha x0) / sigma."""
        alpha, sigma = self.parts(x_t, t)
        return (x_t - alpha * x0) / sigma

    def score(self, x_t: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """The gradient of the log-density of x_t, if x0 is E[x_0 | x_t]: -eps / sigma."""
        alpha, sigma = self.parts(x_t, t)
        return (alpha * x0 - x_t) / sigma.square()

    def v(self, x_t: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """alpha eps - sigma x0 (Salimans and Ho 2022)."""
        alpha, sigma = self.parts(x_t, t)
        return alpha * self.eps(x_t, x0, t) - sigma * x0

    def flow(self, x_t: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """eps - x0, the velocity of a straight path from data to noise."""
        return self.eps(x_t, x0, t) - x0

    def to_x0(self, output: Tensor, x_t: Tensor, t: Tensor, predicts: Literal["x0", "eps", "v", "flow", "score"]) -> Tensor:
        """The estimate of x_0 in a network's output; the inverse of the four above."""
        alpha, sigma = self.parts(x_t, t)
        if predicts == "x0":
            return output
        if predicts == "eps":
            return (x_t - sigma * output) / alpha
        if predicts == "score":
            return (x_t + sigma.square() * output) / alpha
        if predicts == "v":
            return (alpha * x_t - sigma * output) / (alpha.square() + sigma.square())
        return (x_t - sigma * output) / (alpha + sigma)


@dataclass(frozen=True, kw_only=True)
class VP(Schedule):
    """Variance preserving, DDPM's linear betas in continuous time (Song et al. 2021, Eq. 33)."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def _log_alpha(self, t: Tensor) -> Tensor:
        return -0.25 * t.square() * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min

    def alpha(self, t: Tensor) -> Tensor:
        """exp(-integral of beta / 2)."""
        return self._log_alpha(t).exp()

    def sigma(self, t: Tensor) -> Tensor:
        """sqrt(1 - alpha^2), exact near t = 0 too."""
        return (-torch.expm1(2 * self._log_alpha(t))).clamp(min=1e-10).sqrt()


@dataclass(frozen=True, kw_only=True)
class Cosine(Schedule):
    """Variance preserving with alpha = cos (Nichol and Dhariwal 2021, Eq. 17)."""

    offset: float = 0.008
    least: float = 0.005  # alpha never falls below, so that x_0 can be told from the noise

    def alpha(self, t: Tensor) -> Tensor:
        """cos of an angle that grows with t, scaled to 1 at t = 0."""
        quarter = math.pi / 2
        start = math.cos(self.offset / (1 + self.offset) * quarter)
        return (((t + self.offset) / (1 + self.offset) * quarter).cos() / start).clamp(min=self.least)

    def sigma(self, t: Tensor) -> Tensor:
        """sqrt(1 - alpha^2)."""
        return (1 - self.alpha(t).square()).clamp(min=1e-10).sqrt()


@dataclass(frozen=True, kw_only=True)
class Karras(Schedule):
    """EDM: x_t = x_0 + sigma eps, with times evenly spread over sigma^(1/rho) (Karras et al. 2022, Eq. 5)."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def alpha(self, t: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        """From sigma_min at 0 to sigma_max at 1."""
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return (low + t * (high - low)) ** self.rho


@dataclass(frozen=True, kw_only=True)
class Flow(Schedule):
    """Rectified flow: x_t = (1 - t) x_0 + t eps."""

    def alpha(self, t: Tensor) -> Tensor:
        """1 - t."""
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        """t."""
        return t.clamp(min=1e-5)


@dataclass(frozen=True, kw_only=True)
class Times:
    """Which times training looks at: even over [low, high]."""

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.low <= self.high <= 1.0:
            raise ValueError(f"times go from 0 to 1, low before high, not from {self.low} to {self.high}")

    def __call__(self, u: Tensor) -> Tensor:
        """Times [B] from uniform numbers [B] in (0, 1)."""
        return self.low + u * (self.high - self.low)


# -- randomness of one item ----------------------------------------------------------------------------------------
# A generator draws for a whole batch, and so differently when the batch is split. These draw for an item by its key,
# by counting and mixing bits (splitmix64, Steele et al. 2014), vectorised, and alike on every device.


def _mixed(bits: Tensor) -> Tensor:
    bits = (bits ^ (bits >> 30 & 0x3FFFFFFFF)) * (0xBF58476D1CE4E5B9 - 2**64)
    bits = (bits ^ (bits >> 27 & 0x1FFFFFFFFF)) * (0x94D049BB133111EB - 2**64)
    return bits ^ (bits >> 31 & 0x1FFFFFFFF)


GOLDEN = 0x9E3779B97F4A7C15 - 2**64


def keys_of(batch: Mapping[str, Any]) -> Tensor:
    """A number for each item, [B] int64: its `items` number if the source gives one, else made from its `inputs`."""
    if "items" in batch:
        return batch["items"]
    bits = batch["inputs"].float().flatten(1).contiguous().view(torch.int32).long()
    place = torch.arange(1, bits.shape[1] + 1, device=bits.device)
    return _mixed(bits + place * GOLDEN).sum(1)


def seed_for(run: Run, purpose: str) -> int:
    """A seed of the run, the step and a purpose, for `uniform` and `normal`."""
    return int(torch.randint(2**62, (), generator=run.rng(purpose)))


def uniform(keys: Tensor, seed: int, *shape: int) -> Tensor:
    """[B, *shape] float64 in (0, 1): what an item gets depends on its key and the seed alone."""
    count = math.prod(shape)
    base = _mixed(_mixed(keys) + seed)
    bits = _mixed(base[:, None] + torch.arange(1, count + 1, device=keys.device) * GOLDEN)
    return (((bits >> 11 & 0x1FFFFFFFFFFFFF).double() + 0.5) / 2**53).reshape(len(keys), *shape)


def normal(keys: Tensor, seed: int, *shape: int) -> Tensor:
    """[B, *shape] float32, standard normal (Box and Muller)."""
    count = math.prod(shape)
    u = uniform(keys, seed, 2 * count)
    drawn = (-2 * u[:, :count].log()).sqrt() * (2 * math.pi * u[:, count:]).cos()
    return drawn.float().reshape(len(keys), *shape)


# -- networks ------------------------------------------------------------------------------------------------------


class Denoiser(nn.Module):
    """A network that has learned one parametrisation, asked for E[x_0 | x_t].

    `edm` is Karras et al.'s preconditioning (Table 1) on x_t / alpha: the network sees inputs and targets of variance 1
    at every time, if the data have deviation `deviation`.
    """

    def __init__(
        self, net: nn.Module, schedule: Schedule, predicts: Predicts = "edm", deviation: float = 1.0, classes: int = 0
    ):
        super().__init__()
        if predicts == "eps" and not bool(schedule.alpha(torch.ones(1)) > 0):
            raise ValueError(
                "noise alone does not tell x_0 where there is no signal (t = 1 of a flow); predict v, flow or edm"
            )
        self.net, self.schedule = net, schedule
        self.predicts: Predicts = predicts
        self.deviation, self.classes = deviation, classes  # classes: 0 without conditions; label `classes` means any

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """x_t [B, ...], t [B], labels [B] to the estimate of x_0 [B, ...]."""
        weight = next(self.net.parameters())
        if self.predicts != "edm":
            output = self.net(x_t.to(weight.dtype), t, labels).to(x_t.dtype)
            return self.schedule.to_x0(output, x_t, t, self.predicts)
        alpha, sigma = self.schedule.parts(x_t, t)
        whole = (sigma.square() + (alpha * self.deviation).square()).sqrt()  # deviation of x_t
        output = self.net((x_t / whole).to(weight.dtype), t, labels).to(x_t.dtype)
        skip = alpha * (self.deviation / whole).square()
        return skip * x_t + sigma * self.deviation / whole * output

    def one_step(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """The generator G(z) = x0(sigma(1) z, 1) of standard normal z [B, ...]."""
        t = torch.ones(len(z), device=z.device)
        return self(like(self.schedule.sigma(t), z) * z, t, labels)


class _Condition(nn.Module):
    """Time and label as one vector [B, width]."""

    def __init__(self, width: int, classes: int):
        super().__init__()
        self.classes, self.waves = classes, width // 2
        self.time = nn.Sequential(nn.Linear(2 * self.waves, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(classes + 1, width) if classes else None  # the last one: any class

    def forward(self, t: Tensor, labels: Tensor | None) -> Tensor:
        speed = torch.exp(torch.linspace(0, math.log(1000), self.waves, device=t.device, dtype=t.dtype))
        angle = t[:, None] * speed
        found = self.time(torch.cat([angle.cos(), angle.sin()], -1).to(next(self.time.parameters()).dtype))
        if self.label is None:
            return found
        labels = torch.full_like(t, self.classes, dtype=torch.long) if labels is None else labels
        return found + self.label(labels)


class PointNet(nn.Module):
    """A residual multilayer perceptron over flattened items; every layer is scaled and shifted by the time."""

    def __init__(self, shape: tuple[int, ...], width: int, depth: int, classes: int):
        super().__init__()
        inputs = math.prod(shape)
        self.condition = _Condition(width, classes)
        self.first, self.last = nn.Linear(inputs, width), nn.Linear(width, inputs)
        self.layers = nn.ModuleList([nn.Linear(width, width) for _ in range(depth)])
        self.films = nn.ModuleList([nn.Linear(width, 2 * width) for _ in range(depth)])

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """x [B, ...], t [B] to [B, ...]."""
        condition = F.silu(self.condition(t, labels))
        h = self.first(x.flatten(1))
        for layer, film in zip(self.layers, self.films, strict=True):
            scale, shift = film(condition).chunk(2, -1)
            h = h + layer(F.silu(h * (1 + scale) + shift))
        return self.last(F.silu(h)).reshape(x.shape)


class _Residual(nn.Module):
    """Two 3x3 convolutions with group norm, the second scaled and shifted by the condition."""

    def __init__(self, inputs: int, width: int, condition: int):
        super().__init__()
        self.before = nn.GroupNorm(math.gcd(8, inputs), inputs)
        self.one, self.two = nn.Conv2d(inputs, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.between = nn.GroupNorm(math.gcd(8, width), width)
        self.film = nn.Linear(condition, 2 * width)
        self.skip = nn.Conv2d(inputs, width, 1) if inputs != width else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.film(condition)[:, :, None, None].chunk(2, 1)
        h = self.one(F.silu(self.before(x)))
        return self.skip(x) + self.two(F.silu(self.between(h) * (1 + scale) + shift))


class UNet(nn.Module):
    """A small U-Net without attention; the image is halved `levels - 1` times, the channels double each time."""

    def __init__(self, shape: tuple[int, ...], width: int, levels: int, classes: int):
        super().__init__()
        widths = [width * 2**i for i in range(levels)]
        self.condition = _Condition(4 * width, classes)
        self.first, self.last = nn.Conv2d(shape[0], width, 3, padding=1), nn.Conv2d(width, shape[0], 3, padding=1)
        self.down = nn.ModuleList([_Residual(a, b, 4 * width) for a, b in zip([width, *widths], widths, strict=False)])
        self.middle = _Residual(widths[-1], widths[-1], 4 * width)
        above = [*reversed(widths), width]
        self.up = nn.ModuleList([_Residual(2 * a, b, 4 * width) for a, b in zip(above, above[1:], strict=False)])
        self.norm = nn.GroupNorm(math.gcd(8, width), width)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """x [B, C, H, W], t [B] to [B, C, H, W]."""
        condition = F.silu(self.condition(t, labels))
        h, kept = self.first(x), []
        for level, block in enumerate(self.down):
            h = block(F.avg_pool2d(h, 2) if level else h, condition)
            kept.append(h)
        h = self.middle(h, condition)
        for level, block in enumerate(self.up):
            h = block(torch.cat([h, kept[-1 - level]], 1), condition)
            if level + 1 < len(self.up):
                h = F.interpolate(h, size=kept[-2 - level].shape[-2:], mode="nearest")
        return self.last(F.silu(self.norm(h)))


# -- specs ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _DenoiserSpec(Kept):
    """What the specs share: where the weights begin."""

    schedule: Schedule = Flow()
    predicts: Predicts = "edm"
    deviation: float = 1.0  # of the data, for the preconditioning
    classes: int = 0  # labels that it is told; 0: none
    stage: str | None = None  # begin with the weights that training stage `stage` of this run left
    path: str | None = None  # or with those in this folder, written by another run

    def build(self, run: Run) -> nn.Module:
        """A `Denoiser`."""
        made = Denoiser(self._net(run), self.schedule, self.predicts, self.deviation, self.classes)
        if self.stage is not None and run.done(self.stage):
            made.load_state_dict(_only_weights(self, run.path(self.stage), run))
        elif self.path is not None:
            made.load_state_dict(_only_weights(self, Path(self.path), run))
        return made

    def _net(self, run: Run) -> nn.Module:
        raise NotImplementedError


def _only_weights(spec: _DenoiserSpec, folder: Path, run: Run) -> Mapping[str, Any]:
    from dataclasses import replace

    return replace(spec, stage=None, path=None).load(folder, run).state_dict()


@dataclass(frozen=True, kw_only=True)
class PointDenoiser(_DenoiserSpec):
    """A `PointNet`, for points and other flat items."""

    inputs: int | None = None  # numbers in one item; None: as the recipe's data have
    width: int = 128
    depth: int = 3

    def _net(self, run: Run) -> nn.Module:
        shape, _ = sizes_of(run, None if self.inputs is None else (self.inputs,), 0)
        return PointNet(shape, self.width, self.depth, self.classes)


@dataclass(frozen=True, kw_only=True)
class ImageDenoiser(_DenoiserSpec):
    """A `UNet`, for images whose sides can be halved `levels - 1` times."""

    channels: int | None = None  # None: as the recipe's data have
    width: int = 32
    levels: int = 2

    def _net(self, run: Run) -> nn.Module:
        shape, _ = sizes_of(run, None if self.channels is None else (self.channels,), 0)
        return UNet(shape, self.width, self.levels, self.classes)
