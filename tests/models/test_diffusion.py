"""Schedules' identities, conversions there and back, randomness by item, and the networks' specs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from stillhouse.core.run import Run
from stillhouse.models.diffusion import (
    VP,
    Cosine,
    Denoiser,
    Flow,
    ImageDenoiser,
    Karras,
    PointDenoiser,
    PointNet,
    Schedule,
    Times,
    keys_of,
    normal,
    seed_for,
    uniform,
)

SCHEDULES = [VP(), Cosine(), Karras(), Flow()]
names = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
T = torch.linspace(0.05, 0.95, 7, dtype=torch.float64)


def items(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(len(T), *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run", device=torch.device("cpu"))


@names
def test_signal_fades_and_noise_grows(schedule: Schedule):
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    snr = schedule.snr(t)
    assert bool((snr[1:] < snr[:-1]).all())
    assert float(schedule.alpha(t)[0]) == pytest.approx(1, abs=1e-9)
    assert float(schedule.sigma(t)[0]) < 0.01
    assert float(schedule.snr(t)[-1]) < 2e-4


@pytest.mark.parametrize("schedule", [VP(), Cosine()])
def test_variance_is_preserved(schedule: Schedule):
    assert torch.allclose(schedule.alpha(T) ** 2 + schedule.sigma(T) ** 2, torch.ones_like(T), rtol=1e-14)


def test_vp_is_the_limit_of_ddpm():
    """DDPM's 1,000 betas from 1e-4 to 0.02: the product of 1 - beta."""
    bars = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
    step = torch.tensor([99, 499, 899])
    assert torch.allclose(2 * VP().alpha((step + 1.0).double() / 1000).log(), bars[step].log(), rtol=0.02)


def test_karras_has_the_published_grid():
    """Karras et al. 2022, Eq. 5, sigma_i for i of 18 steps."""
    i = torch.arange(18, dtype=torch.float64)
    published = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    assert torch.allclose(Karras().sigma(1 - i / 17), published, rtol=1e-12)


@names
@pytest.mark.parametrize("shape", [(2,), (1, 4, 4)])
def test_conversions_there_and_back(schedule: Schedule, shape: tuple[int, ...]):
    x0, eps = items(0, *shape), items(1, *shape)
    x_t = schedule.add_noise(x0, eps, T)
    assert torch.allclose(schedule.eps(x_t, x0, T), eps, rtol=1e-9, atol=1e-9)
    for kind in ("eps", "v", "flow", "score"):
        said = getattr(schedule, kind)(x_t, x0, T)
        assert torch.allclose(schedule.to_x0(said, x_t, T, kind), x0, rtol=1e-8, atol=1e-7), kind
    assert schedule.to_x0(x0, x_t, T, "x0") is x0


@names
def test_the_kernel_composes(schedule: Schedule):
    """Noising to s and then to t has the signal and the variance of noising to t."""
    s, t = T[:-1], T[1:]
    a, b = schedule.kernel(s, t)
    assert torch.allclose(a * schedule.alpha(s), schedule.alpha(t), rtol=1e-12)
    assert torch.allclose((a * schedule.sigma(s)) ** 2 + b**2, schedule.sigma(t) ** 2, rtol=1e-9)
    x, e = items(2, 2)[1:], items(3, 2)[1:]
    assert torch.allclose(schedule.renoise(x, e, s, t), a[:, None] * x + b[:, None] * e)


def test_noise_depends_on_the_item_not_on_the_batch():
    keys = torch.tensor([5, 7, 11, 5])
    whole = normal(keys, 3, 2, 4)
    assert torch.equal(whole[1:2], normal(keys[1:2], 3, 2, 4))
    assert torch.equal(whole[0], whole[3])
    assert not torch.equal(whole, normal(keys, 4, 2, 4))
    inputs = torch.randn(4, 3)
    assert torch.equal(keys_of({"inputs": inputs})[2:], keys_of({"inputs": inputs[2:]}))
    assert len(set(keys_of({"inputs": inputs}).tolist())) == 4
    assert torch.equal(keys_of({"inputs": inputs, "items": keys}), keys)


def test_noise_is_normal_and_independent():
    drawn = normal(torch.arange(4000), 1, 50).double()
    flat = drawn.flatten().sort().values
    expected = torch.distributions.Normal(0, 1).cdf(flat)
    gap = (expected - torch.linspace(0, 1, len(flat), dtype=torch.float64)).abs().max()
    assert float(gap) < 1.63 / len(flat) ** 0.5  # Kolmogorov and Smirnov, 1 %
    correlation = torch.corrcoef(drawn.T) - torch.eye(50)
    assert float(correlation.abs().max()) < 5 / 4000**0.5
    neighbours = torch.corrcoef(torch.stack([drawn[:-1].flatten(), drawn[1:].flatten()]))[0, 1]
    seeds = torch.corrcoef(torch.stack([drawn.flatten(), normal(torch.arange(4000), 2, 50).double().flatten()]))[0, 1]
    assert max(abs(float(neighbours)), abs(float(seeds))) < 5 / 200_000**0.5
    u = uniform(torch.arange(100_000), 9)
    assert 0 < float(u.min()) and float(u.max()) < 1 and abs(float(u.mean()) - 0.5) < 0.005


def test_the_seed_moves_with_the_step_and_the_purpose(run: Run):
    first = seed_for(run, "z")
    assert first == seed_for(run, "z") != seed_for(run, "t")
    run.step = 1
    assert seed_for(run, "z") != first


@pytest.mark.parametrize("predicts", ["x0", "eps", "v", "flow", "edm"])
@names
def test_a_denoiser_at_every_time(schedule: Schedule, predicts: Any):
    torch.manual_seed(0)
    net = PointNet((2,), 16, 1, 0)
    if predicts == "eps" and isinstance(schedule, Flow):
        with pytest.raises(ValueError, match="predict v, flow or edm"):
            Denoiser(net, schedule, predicts)
        return
    made = Denoiser(net, schedule, predicts)
    t = torch.linspace(0, 1, 9)
    assert bool(made(torch.randn(9, 2), t).isfinite().all())
    assert made.one_step(torch.randn(3, 2)).shape == (3, 2)


def test_preconditioning_is_that_of_edm():
    """c_skip, c_out, c_in of Karras et al. 2022, Table 1."""
    torch.manual_seed(0)
    net = PointNet((2,), 16, 1, 0).double()
    made = Denoiser(net, Karras(), "edm", deviation=0.5)
    x = items(4, 2)
    sigma = Karras().sigma(T)[:, None]
    whole = (sigma**2 + 0.25).sqrt()
    expected = 0.25 / whole**2 * x + sigma * 0.5 / whole * net(x / whole, T)
    assert torch.allclose(made(x, T), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("spec", "shape"),
    [(PointDenoiser(width=16), (2,)), (ImageDenoiser(width=8), (1, 8, 8)), (ImageDenoiser(width=8, levels=3), (3, 16, 16))],
)
def test_specs_build_save_and_load(spec: Any, shape: tuple[int, ...], run: Run, tmp_path: Path):
    run.recipe = SimpleNamespace(data=SimpleNamespace(load=lambda _: {"train": SimpleNamespace(shape=shape)}))
    torch.manual_seed(0)
    made = spec.build(run)
    x, t = torch.randn(5, *shape), torch.rand(5)
    assert made(x, t).shape == x.shape
    assert torch.allclose(made(x, t)[2:3], made(x[2:3], t[2:3]), atol=1e-6)  # no item sees another
    folder = tmp_path / "kept"
    folder.mkdir()
    spec.save(made, folder, run)
    assert torch.equal(spec.load(folder, run)(x, t), made(x, t))
    assert torch.equal(replace(spec, path=str(folder)).build(run)(x, t), made(x, t))


def test_labels_are_heard(run: Run):
    torch.manual_seed(0)
    made = PointDenoiser(inputs=2, width=16, classes=3).build(run)
    x, t = torch.randn(4, 2), torch.rand(4)
    told = made(x, t, torch.tensor([0, 1, 2, 3]))
    assert torch.allclose(told[3], made(x, t)[3])  # label `classes` is any
    assert not torch.allclose(told[0], made(x, t)[0])


def test_times():
    assert Times(low=0.02, high=0.98)(torch.tensor([0.0, 0.5, 1.0])).tolist() == pytest.approx([0.02, 0.5, 0.98])
    with pytest.raises(ValueError, match="times go from 0 to 1"):
        Times(low=0.5, high=0.2)
