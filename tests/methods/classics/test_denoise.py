"""DDPM's loss: what it is at a point, and where its minimum lies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from stillhouse.core.engine import Loop
from stillhouse.core.optim import Optim
from stillhouse.core.run import Run
from stillhouse.methods.classics.denoise import Denoise
from stillhouse.models.diffusion import VP, Flow, PointDenoiser, Times, normal, seed_for, uniform
from stillhouse.teachers.score import Exact

X = torch.randn(10, 2, generator=torch.Generator().manual_seed(0))
BATCH: dict[str, Any] = {"inputs": X, "items": torch.arange(10), "labels": torch.arange(10) % 3}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run", device=torch.device("cpu"))


def test_it_is_ddpms_simple_loss(run: Run):
    """|eps - eps_hat|² of a network that predicts noise."""
    torch.manual_seed(0)
    net: Any = PointDenoiser(inputs=2, width=16, schedule=VP(), predicts="eps").build(run)
    (update,) = Denoise(weight="eps", times=Times(low=0.05)).step(Denoise().setup(net, run), BATCH, run)
    t = 0.05 + 0.95 * uniform(BATCH["items"], seed_for(run, "time")).float()
    eps = normal(BATCH["items"], seed_for(run, "noise"), 2)
    said = net.net(VP().add_noise(X, eps, t), t)
    assert float(update.loss.detach()) == pytest.approx(float((said - eps).square().mean(1).sum().detach()), rel=1e-3)
    assert update.count == 10 and update.group == "student"


def test_a_part_of_the_batch_costs_its_part(run: Run):
    torch.manual_seed(0)
    net = PointDenoiser(inputs=2, width=16).build(run)
    method = Denoise()
    s = method.setup(net, run)
    (whole,) = method.step(s, BATCH, run)
    parts = [{k: v[i : i + 5] for k, v in BATCH.items()} for i in (0, 5)]
    split = sum(next(iter(method.step(s, part, run))).loss.detach() for part in parts)
    assert float(split) == pytest.approx(float(whole.loss.detach()), rel=1e-6)


def test_labels_are_left_out_for_some(run: Run):
    torch.manual_seed(0)
    net = PointDenoiser(inputs=2, width=16, classes=3).build(run)
    losses = [
        float(next(iter(Denoise(unlabelled=share).step(Denoise().setup(net, run), BATCH, run))).loss.detach())
        for share in (0.0, 0.5, 1.0)
    ]
    assert len(set(losses)) == 3
    unknown = {**BATCH, "labels": torch.full((10,), -100)}
    (update,) = Denoise(unlabelled=0.0).step(Denoise().setup(net, run), unknown, run)
    assert float(update.loss.detach()) == pytest.approx(losses[2])


def test_its_minimum_is_the_posterior_mean(run: Run):
    """Trained on N(1, 0.5²) it approaches the closed form."""
    torch.manual_seed(0)
    net: Any = PointDenoiser(inputs=2, width=32).build(run)
    run.horizon = 300
    loop = Loop(Denoise(), Denoise().setup(net, run), run, Optim(lr=5e-3))
    data = 1 + 0.5 * torch.randn(4096, 2, generator=torch.Generator().manual_seed(1))
    for step in range(run.horizon):
        run.step = step
        items = torch.arange(128 * step, 128 * (step + 1)) % 4096
        loop.step([{"inputs": data[items], "items": items}])
    x, t = 1 + torch.randn(200, 2, generator=torch.Generator().manual_seed(2)), torch.linspace(0.1, 0.95, 200)
    x_t = Flow().add_noise(data[:200], x - 1, t)
    exact = Exact(torch.ones(1, 2), 0.5, Flow()).x0(x_t, t)
    assert float((net(x_t, t) - exact).detach().square().mean()) < 0.01
