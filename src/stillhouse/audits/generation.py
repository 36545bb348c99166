"""How near is what each model draws to real data that nobody trained on, how sure is that, and are all kinds there?

Energy distance, MMD and a Fréchet distance to a held-out split, with bootstrap intervals over drawn and real items. Features
are those of a small classifier that the recipe trains (`judge`), or the numbers themselves: this is the formula of the
FID without its network, and says nothing about a published FID. `real` is the training split in the place of a
model: as near as a sample of this size can come.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import numpy
import torch
from torch import Tensor, nn

from ..core.report import Figure, Finding
from ..core.run import Run, RunError, seed_of
from ..core.stage import Subjects
from ..models.diffusion import Denoiser
from ..models.samplers import Sampler
from ..teachers.score import draw

NEIGHBOURS = 5  # of a real item, for coverage
FULL = 0.2  # of its fair share: a mode with less counts as lost
Statistic = Callable[[Tensor, Tensor], Tensor]  # how often each drawn and each real item counts, [D, n] [D, m] -> [D]


@dataclass(frozen=True, kw_only=True)
class Generation:
    """Distances between drawn and real items, modes and coverage, and the last subject's paired differences."""

    split: str = "test"
    count: int = 1000  # items drawn from each model
    sampler: Sampler = Sampler()  # of every subject
    samplers: Mapping[str, Sampler] = field(default_factory=dict[str, Sampler])  # subjects that are sampled otherwise
    teacher_steps: tuple[int, ...] = ()  # the recipe's only teacher is sampled with these; the last one is `teacher`
    teacher_rule: Literal["ddim", "heun"] = "ddim"
    judge: str | None = None  # training stage of the classifier whose features are compared
    draws: int = 200  # of the bootstrap

    def __call__(self, run: Run, subjects: Subjects) -> Iterator[Finding | Figure]:
        """The findings about every subject, and the samples as an artifact of their own."""
        sources = run.sources()
        real, source = _all(sources[self.split], self.count), sources["train"]
        labels = real.get("labels")
        judge = None if self.judge is None else subjects.load(self.judge)
        drawn: dict[str, Tensor] = {}
        facts: dict[str, tuple[int, float]] = {}
        for name, module, schedule, sampler in self._models(run, subjects):
            told = labels if getattr(module, "classes", 0) else None
            if told is not None:
                told = told.repeat(-(-self.count // len(told)))[: self.count]
            seed, began = seed_of(run.seed, "audit") >> 1, time.perf_counter()
            _, made = draw(
                getattr(module, "x0", module), schedule, source.shape, sampler, self.count,
                seed=seed, device=run.device, labels=told,
            )  # fmt: skip
            drawn[name] = made
            facts[name] = sampler.evaluations, self.count / (time.perf_counter() - began)
        drawn["real"] = _all(source, self.count)["inputs"]
        for name, (evaluations, speed) in facts.items():
            yield Finding(
                name="evaluations", value=evaluations, subject=name, better="lower", note="of the network, an item"
            )
            yield Finding(name="items_per_second", value=speed, subject=name, better="higher", note=run.device.type)
        judged = subjects.names[-1]
        found: dict[tuple[str, str], Tensor] = {}
        for name, made in drawn.items():
            for quantity, better, statistic, n in self._quantities(made, real["inputs"], sources, judge, run):
                values = _bootstrap(statistic, n, len(real["inputs"]), self.draws)
                found[quantity, name] = values
                yield self._finding(quantity, better, name, values, n)
        for (quantity, name), values in found.items():
            if name not in (judged, "real"):
                gap = found[quantity, judged] - values
                yield self._finding(quantity, _better(quantity), judged, gap, self.count, versus=name)
        yield from self._figure(found, judged, facts)
        _keep(run, drawn, real["inputs"], source)

    def _models(self, run: Run, subjects: Subjects) -> Iterator[tuple[str, Any, Any, Sampler]]:
        if self.teacher_steps:
            teacher: Any = run.teacher
            for steps in self.teacher_steps:
                name = f"teacher_{steps}_step{'s' if steps > 1 else ''}" if steps != self.teacher_steps[-1] else "teacher"
                yield name, teacher, teacher.schedule, Sampler(rule=self.teacher_rule, steps=steps)
        for name in subjects.names:
            module = subjects.load(name)
            if not isinstance(module, Denoiser):
                raise RunError(f"cannot draw from {name!r}: a {type(module).__name__} is no denoiser")
            yield name, module, module.schedule, self.samplers.get(name, self.sampler)

    def _quantities(
        self, made: Tensor, real: Tensor, sources: Mapping[str, Any], judge: nn.Module | None, run: Run
    ) -> Iterator[tuple[str, Literal["higher", "lower"], Statistic, int]]:
        x, y = features(judge, made, run), features(judge, real, run)
        n = len(x)
        yield "frechet", "lower", frechet(x, y), n
        yield "energy_distance", "lower", energy(x, y), n
        yield "mmd", "lower", mmd(x, y), n
        yield "coverage", "higher", coverage(x, y), n
        mixture = getattr(sources["train"], "mixture", None)
        if mixture is not None:
            away = torch.cdist(made.flatten(1), mixture.centres)
            near, which = away.min(1)
            on = near < 3 * mixture.deviation
            yield "on_mode", "higher", lambda c, _: c @ on.double() / n, n
            yield "modes", "higher", modes(torch.where(on, which, -1), len(mixture.centres)), n
        elif judge is not None:
            with torch.no_grad():
                which = cast(Tensor, judge(made.to(run.device))).argmax(-1).cpu()
            yield "modes", "higher", modes(which, sources["train"].classes), n

    def _finding(
        self, quantity: str, better: Literal["higher", "lower"], subject: str, values: Tensor, n: int,
        versus: str | None = None,
    ) -> Finding:  # fmt: skip
        value, again = float(values[0]), values[1:]
        low, high = torch.quantile(again, torch.tensor([0.025, 0.975], dtype=again.dtype)).tolist()
        bias = float(again.mean()) - value  # drawing again biases what bends
        low, high = min(low - bias, value), max(high - bias, value)
        if versus is None:
            low = min(max(low, 0.0), value)  # an estimate without bias may itself be below 0
            high = min(high, 1.0) if better == "higher" else high
        return Finding(
            name=quantity, value=value, subject=subject, better=better, low=low, high=high, n=n,
            over="items", versus=versus, split=self.split,
        )  # fmt: skip

    def _figure(
        self, found: Mapping[tuple[str, str], Tensor], judged: str, facts: Mapping[str, tuple[int, float]]
    ) -> Iterator[Figure]:
        curve = sorted((facts[n][0], float(found["frechet", n][0])) for n in facts if n.startswith("teacher"))
        if len(curve) > 1:
            ours = float(found["frechet", judged][0])
            yield Figure(
                title="Fréchet distance by evaluations of the network", x="evaluations", y="frechet",
                series={"teacher": [(float(x), y) for x, y in curve], judged: [(1.0, ours), (float(curve[-1][0]), ours)]},
            )  # fmt: skip


# -- quantities ----------------------------------------------------------------------------------------------------
# Each takes features [n, d] and [m, d] and gives a function of how often every item counts, so that drawing again is
# a matrix product.


def energy(x: Tensor, y: Tensor) -> Statistic:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'|, without bias: pairs of an item with itself are left out."""
    between, inside, real = torch.cdist(x, y), torch.cdist(x, x), torch.cdist(y, y)
    return lambda c, r: 2 * _cross(c, between, r) - _within(c, inside) - _within(r, real)


def mmd(x: Tensor, y: Tensor) -> Statistic:
    """The squared maximum mean discrepancy with a Gaussian kernel as wide as the median distance of real items."""
    real = torch.cdist(y, y)
    width = float(real[real > 0].median()) if bool((real > 0).any()) else 1.0
    k_xy, k_xx, k_yy = ((-(d / width).square() / 2).exp() for d in (torch.cdist(x, y), torch.cdist(x, x), real))
    return lambda c, r: _within(c, k_xx) + _within(r, k_yy) - 2 * _cross(c, k_xy, r)


def frechet(x: Tensor, y: Tensor) -> Statistic:
    """|m_x - m_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2)) of the Gaussians with their means and covariances."""

    def value(c: Tensor, r: Tensor) -> Tensor:
        (m_x, c_x), (m_y, c_y) = _moments(c, x), _moments(r, y)
        values, vectors = torch.linalg.eigh(c_x)
        root = (vectors * values.clamp(min=0).sqrt()[:, None]) @ vectors.mT
        mixed = torch.linalg.eigvalsh(root @ c_y @ root).clamp(min=0).sqrt().sum(-1)
        trace = (c_x + c_y).diagonal(dim1=-2, dim2=-1).sum(-1)
        return ((m_x - m_y).square().sum(-1) + trace - 2 * mixed).clamp(min=0)

    return value


def coverage(x: Tensor, y: Tensor) -> Statistic:
    """The share of real items with something drawn nearer than their 5th real neighbour (Naeem et al. 2020)."""
    k = min(NEIGHBOURS, len(y) - 1)
    radius = torch.cdist(y, y).topk(k + 1, largest=False).values[:, -1]  # the first is the item itself
    covered = (torch.cdist(y, x).min(1).values < radius).double()
    return lambda c, r: r @ covered / r.sum(1)


def modes(which: Tensor, count: int) -> Statistic:
    """The share of `count` equally likely modes with a fifth of their share or more; `which` [n], -1 for none."""
    member = torch.nn.functional.one_hot(which + 1, count + 1)[:, 1:].double()
    return lambda c, r: (c @ member >= FULL * len(which) / count).double().mean(1)


def features(judge: nn.Module | None, items: Tensor, run: Run) -> Tensor:
    """[n, d] float64 on the CPU: what the judge's last linear layer is given, or the numbers of an item."""
    if judge is None:
        return items.flatten(1).double().cpu()
    last = [m for m in judge.modules() if isinstance(m, nn.Linear)]
    if not last:
        raise RunError(f"the judge, a {type(judge).__name__}, has no linear layer whose inputs could be compared")
    seen: list[Tensor] = []
    hook = last[-1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    with torch.no_grad():
        for part in items.split(500):
            judge(part.to(run.device))
    hook.remove()
    return torch.cat(seen).flatten(1).double().cpu()


def _bootstrap(statistic: Statistic, n: int, m: int, draws: int) -> Tensor:
    """[1 + draws]: the value, and its values when both sets are drawn again. The same draws for every subject."""
    generator = torch.Generator().manual_seed(seed_of("generation", n, m))
    counts = []
    for size in (n, m):
        drawn = torch.randint(size, (draws, size), generator=generator)
        again = torch.zeros(draws, size, dtype=torch.float64).scatter_add_(
            1, drawn, torch.ones_like(drawn, dtype=torch.float64)
        )
        counts.append(torch.cat([torch.ones(1, size, dtype=torch.float64), again]))
    return statistic(*counts)


def _cross(c: Tensor, matrix: Tensor, r: Tensor) -> Tensor:
    return ((c @ matrix) * r).sum(1) / (c.sum(1) * r.sum(1))


def _within(c: Tensor, matrix: Tensor) -> Tensor:
    n = c.sum(1)
    return (((c @ matrix) * c).sum(1) - c @ matrix.diagonal()) / (n * (n - 1))


def _moments(c: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    n, d = c.sum(1), x.shape[1]
    mean = c @ x / n[:, None]
    second = (c @ (x[:, :, None] * x[:, None, :]).flatten(1) / n[:, None]).reshape(-1, d, d)
    return mean, (second - mean[:, :, None] * mean[:, None, :]) * (n / (n - 1))[:, None, None]


def _better(quantity: str) -> Literal["higher", "lower"]:
    return "higher" if quantity in ("coverage", "modes", "on_mode") else "lower"


# -- what a reader looks at ----------------------------------------------------------------------------------------


def _all(source: Any, most: int) -> dict[str, Any]:
    """The first `most` items of a split."""
    return dict(source.batch(range(min(len(source), most)), 0))


def _keep(run: Run, drawn: Mapping[str, Tensor], real: Tensor, source: Any) -> None:
    """`samples.npz` in the user's own numbers, and a picture of it."""
    sets = {"held_out": real, **drawn}
    back = {n: (x * source.deviation + source.mean).cpu().numpy() for n, x in sets.items()}
    with run.artifact(f"{run.stage}_samples", kind="samples") as folder:
        numpy.savez(folder / "samples.npz", **back)  # type: ignore[arg-type]
        picture(back, str(folder / "samples.png"))


def picture(sets: Mapping[str, Any], path: str, each: int = 36) -> None:
    """A panel for each set: the first two coordinates of points, or a square of images [n, C, H, W]."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    columns = min(4, len(sets))
    rows = -(-len(sets) // columns)
    canvas = Canvas(figsize=(2.6 * columns, 2.8 * rows), layout="constrained")
    FigureCanvasAgg(canvas)
    first = next(iter(sets.values()))
    span = 1.15 * float(numpy.abs(first.reshape(len(first), -1)[:, :2]).max())
    for number, (name, values) in enumerate(sets.items()):
        axes = canvas.add_subplot(rows, columns, number + 1)
        axes.set_title(name.replace("_", " "), fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
        if values.ndim == 4:
            side = int(min(each, len(values)) ** 0.5)
            low, high = first.min(), first.max()
            tiles = ((values[: side * side] - low) / max(high - low, 1e-9)).clip(0, 1)
            c, h, w = tiles.shape[1:]
            sheet = tiles.reshape(side, side, c, h, w).transpose(0, 3, 1, 4, 2).reshape(side * h, side * w, c)
            axes.imshow(sheet[..., 0] if c == 1 else sheet[..., :3], cmap="gray")
        else:
            flat = values.reshape(len(values), -1)
            axes.scatter(flat[:, 0], flat[:, -1 if flat.shape[1] < 2 else 1], s=2, linewidths=0)
            axes.set(xlim=(-span, span), ylim=(-span, span), aspect="equal")
    canvas.savefig(path, dpi=110)
