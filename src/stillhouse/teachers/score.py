"""Teachers that know scores: the exact one of a mixture of Gaussians, and a trained denoiser; and what they draw.

A batch for them has `inputs` (x_t [B, ...]), `time` [B] and, for conditional ones, `labels` [B]. `Signal.score` is their
estimate of E[x_0 | x_t], from which their `schedule` gives the score itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..core.run import Run, seed_of
from ..core.signal import Batch, Kind, Signal
from ..core.teacher import TeacherMismatch, freeze
from ..data.points import Mixture, Pairs
from ..models.call import weights_hash
from ..models.diffusion import Denoiser, Schedule, normal, uniform
from ..models.samplers import Sampler


class ScoreTeacher:
    """Gives E[x_0 | x_t] under its schedule."""

    gives: frozenset[Kind] = frozenset({"score"})
    schedule: Schedule
    shape: tuple[int, ...] | None = None  # of an item, where it is known

    def x0(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """The estimate for x_t [B, ...] at times t [B]."""
        raise NotImplementedError

    @torch.no_grad()
    def __call__(self, batch: Batch, want: frozenset[Kind]) -> Signal:
        """The estimate for the batch's noised items."""
        return Signal(score=self.x0(batch["inputs"], batch["time"], batch.get("labels")))


class Exact(ScoreTeacher):
    """The posterior mean under a mixture of Gaussians with one deviation, in closed form.

    x_t is a mixture too, of N(alpha m_k, s_t^2) with s_t^2 = alpha^2 deviation^2 + sigma^2; given component k, x_0 has
    the mean m_k + alpha deviation^2 / s_t^2 (x_t - alpha m_k).
    """

    def __init__(self, centres: Tensor, deviation: float, schedule: Schedule, weights: Tensor | None = None):
        self.centres, self.deviation, self.schedule = centres, deviation, schedule  # [K, d]
        self.weights = torch.full((len(centres),), 1 / len(centres)) if weights is None else weights / weights.sum()
        self.shape = tuple(centres.shape[1:])

    def x0(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """E[x_0 | x_t] [B, d]."""
        alpha, sigma = self.schedule.parts(x_t, t)
        centres, weights = self.centres.to(x_t), self.weights.to(x_t)
        spread = (alpha * self.deviation).square() + sigma.square()
        away = x_t[:, None] - alpha[:, None] * centres  # [B, K, d]
        share = (weights.log() - away.square().sum(-1) / (2 * spread)).softmax(-1)
        each = centres + (alpha * self.deviation**2 / spread)[:, None] * away
        return (share[..., None] * each).sum(1)


class Learned(ScoreTeacher):
    """A frozen denoiser; with `guidance` other than 1, x0 = any + guidance (labelled - any) (Ho and Salimans 2022)."""

    def __init__(self, module: nn.Module, guidance: float = 1.0):
        if not isinstance(module, Denoiser):
            raise TeacherMismatch(f"a score teacher needs a denoiser, not {type(module).__name__}")
        if guidance != 1.0 and not module.classes:
            raise TeacherMismatch("guidance needs a denoiser that is told labels; set `classes` of its spec")
        self.module: Denoiser = freeze(module)  # type: ignore[assignment]
        self.schedule, self.guidance = module.schedule, guidance

    def x0(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """The denoiser's estimate."""
        if not self.module.classes:
            return self.module(x_t, t)
        found = self.module(x_t, t, labels)
        if self.guidance == 1.0 or labels is None:
            return found
        free = self.module(x_t, t)
        return free + self.guidance * (found - free)

    def identity(self) -> dict[str, Any]:
        """What makes its answers what they are."""
        return {"name": type(self.module).__name__, "weights": weights_hash(self.module), "guidance": self.guidance}


@dataclass(frozen=True, kw_only=True)
class MixtureTeacher:
    """The exact score of made-up data that know their own mixture (`data.points.Ring`, `Grid`)."""

    data: Any
    schedule: Schedule

    def build(self, run: Run) -> Exact:
        """The closed form on the run's device."""
        found: Mixture | None = self.data.mixture()
        if found is None:
            raise TeacherMismatch(f"{type(self.data).__name__} is no mixture of Gaussians; train a denoiser as teacher")
        return Exact(found.centres.to(run.device), found.deviation, self.schedule)


@dataclass(frozen=True, kw_only=True)
class DenoiserTeacher:
    """A denoiser from a model spec, with the weights that training stage `stage` of this run left."""

    spec: Any  # ModelSpec of a Denoiser; its own `path` or `stage` may say where the weights are
    stage: str | None = None
    guidance: float = 1.0

    def build(self, run: Run) -> Learned:
        """The frozen denoiser on the run's device."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(run.seed, "teacher"))
            module = self.spec.build(run) if self.stage is None else self.spec.load(run.path(self.stage), run)
        return Learned(module.to(run.device), self.guidance)


@torch.no_grad()
def draw(
    model: Callable[..., Tensor], schedule: Schedule, shape: tuple[int, ...], sampler: Sampler, count: int, *,
    seed: int, device: torch.device, batch: int = 500, labels: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(noise, items) [count, ...] on the CPU; item number i is the same however many are drawn."""
    noise, items = [], []
    for begin in range(0, count, batch):
        keys = torch.arange(begin, min(begin + batch, count))
        z = normal(keys, seed, *shape)
        told = None if labels is None else labels[begin : begin + batch].to(device)

        def ask(x: Tensor, t: Tensor, told: Tensor | None = told) -> Tensor:
            return model(x, t) if told is None else model(x, t, told)

        noise.append(z)
        items.append(sampler(ask, schedule, z.to(device), keys.to(device)).cpu())
    return torch.cat(noise), torch.cat(items)


@dataclass(frozen=True, kw_only=True)
class DrawPairs:
    """A stage: pairs of noise and what the recipe's only teacher makes of it; read them with `data.points.Pairs`."""

    count: int
    sampler: Sampler = Sampler(rule="heun", steps=18)  # deterministic: `ddim` or `heun`
    batch: int = 500  # items at a time

    def __post_init__(self) -> None:
        if self.sampler.rule == "restart":
            raise ValueError("pairs need a deterministic sampler: ddim or heun")

    def __call__(self, run: Run) -> None:
        """Draw and keep them as safetensors."""
        teacher: Any = run.teacher
        source: Any = run.sources()["train"]
        seed = seed_of(run.seed, "pairs") >> 1
        labels = None
        if getattr(getattr(teacher, "module", None), "classes", 0):
            chosen = (uniform(torch.arange(self.count), seed + 1)[..., None] * len(source)).long().flatten()
            labels = torch.cat([source.batch([i], 0)["labels"] for i in chosen.tolist()])
        found = draw(
            teacher.x0, teacher.schedule, source.shape, self.sampler, self.count,
            seed=seed, device=run.device, batch=self.batch, labels=labels,
        )  # fmt: skip
        parts = dict(zip(("noise", "inputs"), found, strict=True)) | ({} if labels is None else {"labels": labels})
        with run.artifact(run.stage, kind="pairs", items=self.count) as folder:
            save_file(parts, str(folder / Pairs.FILE))
