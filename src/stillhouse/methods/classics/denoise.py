"""Denoising Diffusion Probabilistic Models (Ho, Jain, Abbeel 2020, arXiv 2006.11239): how a diffusion teacher is made.

    L = E_{x_0, t, eps} w(t) |x_0 - D(x_t, t)|²,     x_t = alpha_t x_0 + sigma_t eps,     w = alpha_t² / sigma_t²

D is the network's estimate of E[x_0 | x_t], eps standard normal noise, t uniform. With w = snr (`weight="eps"`) this is
the paper's L_simple = E |eps - eps_hat|² (Eq. 14), whatever the network itself predicts.

Differs from the paper / the authors' code: time is continuous (their 1,000 betas are `models.diffusion.VP` in the limit),
other schedules and weights may be chosen, and sampling is left to `models.samplers`. The default is the weight `edm`
with the preconditioning of Karras et al. (2022), which asks the network for outputs of variance 1 at every time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from ...audits.generation import Generation
from ...core.method import State, Update
from ...core.optim import Optim
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Recipe, Scale, pick
from ...core.run import Run
from ...core.signal import Batch, Kind
from ...core.stage import Audit, Train
from ...data.images import Digits, Npz
from ...data.points import Ring
from ...models.diffusion import VP, ImageDenoiser, PointDenoiser, Times, keys_of, normal, seed_for, uniform
from ...models.samplers import Sampler
from ...models.toys import ConvNet
from ...objectives.scores import Weighting, denoising, denoising_weight
from .supervised import Supervised

PAPER = Paper(
    id="denoise",
    title="Denoising Diffusion Probabilistic Models",
    authors=("Jonathan Ho", "Ajay Jain", "Pieter Abbeel"),
    year=2020,
    arxiv="2006.11239",
    venue="NeurIPS",
    modality=("image", "table"),
    data=("unlabelled", "labels"),
    claim="A network that has learned to remove noise, asked again and again on the way from pure noise, draws new data.",
)


@dataclass(frozen=True, kw_only=True)
class Denoise:
    """Tell what is under the noise."""

    weight: Weighting = "edm"
    times: Times = Times()
    unlabelled: float = 0.1  # share of items whose label a conditional network is not told, for guidance
    needs: ClassVar[frozenset[Kind]] = frozenset()

    def setup(self, student: nn.Module, run: Run) -> State:
        """The student alone, a `models.diffusion.Denoiser`."""
        return State(student=student)

    def step(self, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        """One update over all items, each at a time of its own."""
        x0, keys = batch["inputs"], keys_of(batch)
        t = self.times(uniform(keys, seed_for(run, "time"))).to(x0.dtype)
        x_t = s.student.schedule.add_noise(x0, normal(keys, seed_for(run, "noise"), *x0.shape[1:]).to(x0), t)
        labels = None
        if s.student.classes:
            told = uniform(keys, seed_for(run, "label")) >= self.unlabelled
            labels = torch.where(told & (batch["labels"] >= 0), batch["labels"], s.student.classes)
        alpha, sigma = s.student.schedule.parts(x0, t)
        weight = denoising_weight(self.weight, alpha, sigma, deviation=s.student.deviation)
        yield Update(denoising(s.student(x_t, t, labels), x0, weight).sum(), count=len(x0))


def recipe(scale: Scale = "small") -> Recipe:
    """A ring of Gaussians (smoke), scikit-learn's digits (small), CIFAR-10 as `cifar10.npz` (paper)."""
    judge = Train(
        method=Supervised(), student=ConvNet(width=16), steps=pick(scale, smoke=1, small=300, paper=20_000), batch=64,
        optim=Optim(lr=3e-3),
    )  # fmt: skip
    check = Generation(
        judge=None if scale == "smoke" else "judge",
        count=pick(scale, smoke=500, small=1000, paper=10_000),
        sampler=Sampler(rule="ddim", steps=pick(scale, smoke=32, small=32, paper=256)),
    )
    return Recipe(
        id="denoise",
        student=pick(
            scale,
            smoke=PointDenoiser(width=64),
            small=PointDenoiser(width=128),
            paper=ImageDenoiser(width=128, levels=3, schedule=VP(), predicts="eps"),
        ),
        data=pick(scale, smoke=Ring(), small=Digits(), paper=Npz(path="cifar10.npz")),
        stages=({} if scale == "smoke" else {"judge": judge})
        | {
            "train": Train(
                method=Denoise(weight=pick(scale, smoke="edm", small="edm", paper="eps")),
                steps=pick(scale, smoke=300, small=2500, paper=800_000),
                batch=pick(scale, smoke=128, small=128, paper=128),
                optim=Optim(lr=pick(scale, smoke=3e-3, small=2e-3, paper=2e-4)),
            ),
            "audit": Audit(subjects=("start", "train"), checks=(check,)),
        },
    )


def proof() -> Proof:
    """Asked 32 times against asked once, and against the network before training."""
    ours = recipe("small")
    return Proof(
        claim="Digits drawn by asking the trained network 32 times are nearer to real digits than those drawn by asking it"
        " once, and than those of the network before training.",
        arms={"ours": ours, "one_step": ours.set("audit.checks.0.sampler.steps", 1), "untrained": ours},
        subjects={"untrained": "start"},
        metric="frechet",
        better="lower",
        beats=("one_step", "untrained"),
        seeds=(0, 1, 2),
        minutes=4.0,
        note="A sanity check of the whole chain. The distance is between features of a small classifier; it is no FID.",
    )
