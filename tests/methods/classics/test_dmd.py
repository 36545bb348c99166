"""DMD's two updates: what they are, whom they move, and where they end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from stillhouse.core.engine import Loop
from stillhouse.core.optim import Optim
from stillhouse.core.recipe import Recipe
from stillhouse.core.run import Run
from stillhouse.core.teacher import TeacherMismatch
from stillhouse.data.points import Ring
from stillhouse.methods.classics.dmd import DMD, Regression, recipe
from stillhouse.models.diffusion import VP, Denoiser, Flow, Karras, PointDenoiser, normal, seed_for, uniform
from stillhouse.objectives.scores import matching_gradient
from stillhouse.teachers.score import Exact, Learned

SPEC = PointDenoiser(inputs=2, width=16, depth=1)
BATCH: dict[str, Any] = {"inputs": torch.zeros(12, 2), "items": torch.arange(12)}


class Shift(torch.nn.Module):
    """G(z) = spread z + centre: a Gaussian with two parameters."""

    def __init__(self, centre: float = 0.0, spread: float = 1.0):
        super().__init__()
        self.centre = torch.nn.Parameter(torch.tensor([centre, centre]))
        self.spread = torch.nn.Parameter(torch.tensor(spread))

    def forward(self, x: torch.Tensor, t: torch.Tensor, labels: Any = None) -> torch.Tensor:
        return self.spread * x + self.centre


def gaussian(centre: float, spread: float, schedule: Any) -> Denoiser:
    return Denoiser(Shift(centre, spread), schedule, "x0")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = Run(tmp_path / "run", device=torch.device("cpu"))
    known = Ring().mixture()
    made.teachers = {"teacher": Exact(known.centres, known.deviation, Flow())}
    return made


def student(schedule: Any = None, seed: int = 0) -> Denoiser:
    torch.manual_seed(seed)
    spec = SPEC if schedule is None else replace(SPEC, schedule=schedule)
    return spec.build(Run.__new__(Run))  # type: ignore[return-value]


def test_the_updates_come_in_a_fixed_order(run: Run):
    for steps in (1, 5):
        method = DMD(fake_steps=steps)
        updates = list(method.step(method.setup(student(), run), BATCH, run))
        assert [u.group for u in updates] == ["student"] + ["fake"] * steps
        assert all(u.count == 12 for u in updates)


def test_each_update_moves_its_own_group(run: Run):
    method = DMD(fake_steps=2)
    s = method.setup(student(), run)
    for p in s.fake.parameters():  # something to learn from the first update on
        p.data.add_(0.05 * torch.randn_like(p))
    assert set(s.groups()) == {"student", "fake"}
    for update in method.step(s, BATCH, run):
        update.loss.backward()
        others = {"student": s.fake, "fake": s.student}[update.group]
        own = s.get_submodule(update.group)
        assert all(p.grad is None for p in others.parameters())
        assert any(p.grad is not None and bool((p.grad != 0).any()) for p in own.parameters())
        s.zero_grad()


def test_the_fake_score_begins_as_the_student_and_is_another_network(run: Run):
    s = DMD().setup(student(), run)
    for a, b in zip(s.student.parameters(), s.fake.parameters(), strict=True):
        assert torch.equal(a, b) and a.data_ptr() != b.data_ptr()


def test_no_gradient_where_fake_and_teacher_agree(run: Run):
    net = student()
    run.teachers = {"teacher": Learned(student())}
    update = next(DMD().step(DMD().setup(net, run), BATCH, run))  # type: ignore[arg-type]
    update.loss.backward()
    assert float(update.loss.detach()) == 0
    assert all(p.grad is None or float(p.grad.abs().max()) == 0 for p in net.parameters())


def test_the_generators_gradient_by_hand(run: Run):
    """Sum over items of g / d · dG/dtheta, with the noise, the times and the scores that the step used."""
    method, net = DMD(fake_steps=1), student(seed=1)
    s = method.setup(net, run)
    s.fake.load_state_dict(student(seed=2).state_dict())
    next(iter(method.step(s, BATCH, run))).loss.backward()
    found = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    net.zero_grad()
    keys = BATCH["items"]
    made = net.one_step(normal(keys, seed_for(run, "z"), 2))
    t = 0.02 + 0.96 * uniform(keys, seed_for(run, "matching time")).float()
    x_t = (1 - t)[:, None] * made.detach() + t[:, None] * normal(keys, seed_for(run, "matching noise"), 2)
    fake, real = s.fake(x_t, t).detach(), run.teacher.x0(x_t, t)  # type: ignore[attr-defined]
    g = (fake - real) / (made.detach() - real).abs().mean(1, keepdim=True)
    (g / 2 * made).sum().backward()
    expected = [p.grad for p in net.parameters() if p.grad is not None]
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)


def test_the_first_fake_step_learns_what_the_generator_step_made(run: Run):
    method, net = DMD(fake_steps=2), student()
    s = method.setup(net, run)
    updates = method.step(s, BATCH, run)
    next(updates)
    made = net.one_step(normal(BATCH["items"], seed_for(run, "z"), 2)).detach()
    for p in net.parameters():  # as the optimizer would
        p.data.add_(0.1)
    keys = BATCH["items"]
    t = uniform(keys, seed_for(run, "fake0 time")).float()
    x_t = Flow().add_noise(made, normal(keys, seed_for(run, "fake0 noise"), 2), t)
    alpha, sigma = Flow().parts(made, t)
    expected = (((alpha / sigma) ** 2 + 1) * (s.fake(x_t, t) - made).square()).mean(1).sum()
    assert float(next(updates).loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


@pytest.mark.parametrize("schedule", [Karras(sigma_max=10.0), VP()], ids=["edm", "vp"])
def test_a_gaussian_generator_feels_the_analytic_kl(schedule: Any, run: Run):
    """G(z) = c + s z. With both scores exact and the weight `kl`, the mean gradient is that of the mean KL over times."""
    known, n = 0.8, 60_000
    keys = torch.arange(n)
    generator = gaussian(0.3, 0.5 / float(schedule.sigma(torch.ones(1))), schedule)
    made = generator.one_step(normal(keys, 1, 2))
    t = 0.02 + 0.96 * uniform(keys, 2)
    x_t = schedule.add_noise(made.detach().double(), normal(keys, 3, 2).double(), t)
    zero = torch.zeros(1, 2, dtype=torch.float64)
    fake = Exact(zero + 0.3, 0.5, schedule).x0(x_t, t)
    real = Exact(zero, known, schedule).x0(x_t, t)
    alpha, sigma = schedule.parts(x_t, t)
    g = matching_gradient(made.double(), fake, real, alpha=alpha, sigma=sigma, weight="kl")
    centre = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    a, s = alpha.squeeze(), sigma.squeeze()
    divergence = (a * centre).square() / ((a * known) ** 2 + s**2)  # of both coordinates; the widths add no c
    expected = torch.autograd.grad(divergence.mean(), centre)[0]
    assert float(g.sum(1).mean()) == pytest.approx(float(expected), rel=0.05)


def test_pairs_add_their_distance(run: Run):
    z, y = torch.randn(12, 2), torch.randn(12, 2)
    batch = {**BATCH, "noise": z, "inputs": y}
    losses = {}
    for weight in (0.0, 0.25):
        method = DMD(regression=weight)
        update = next(iter(method.step(method.setup(student(), run), batch, run)))
        losses[weight] = float(update.loss.detach())
    distance = float((student().one_step(z) - y).square().mean(1).sum().detach())
    assert losses[0.25] - losses[0.0] == pytest.approx(0.25 * distance, rel=1e-4)
    (update,) = Regression().step(Regression().setup(student(), run), batch, run)
    assert float(update.loss.detach()) == pytest.approx(distance, rel=1e-6)
    with pytest.raises(TeacherMismatch, match="regression needs pairs: add a stage DrawPairs"):
        next(iter(DMD(regression=0.25).step(DMD().setup(student(), run), BATCH, run)))


def test_what_it_learns_is_the_teachers_gaussian(run: Run):
    """From N(0, 0.3²) to the teacher's N(1, 0.8²), with a generator and a fake score that can be exact."""
    schedule = Karras(sigma_max=10.0)
    run.teachers = {"teacher": Exact(torch.ones(1, 2), 0.8, schedule)}
    run.horizon = 250
    torch.manual_seed(0)
    net = replace(SPEC, schedule=schedule, width=32).build(run)
    method = DMD(fake_steps=3)
    loop = Loop(method, method.setup(net, run), run, Optim(lr=5e-3))
    for step in range(run.horizon):
        run.step = step
        loop.step([{"inputs": torch.zeros(64, 2), "items": torch.arange(64)}])
    made = net.one_step(normal(torch.arange(4000), 123, 2)).detach()
    assert torch.allclose(made.mean(0), torch.ones(2), atol=0.15)
    assert torch.allclose(made.std(0), torch.full((2,), 0.8), atol=0.15)


def test_refusals(run: Run):
    with pytest.raises(TeacherMismatch, match="make them equal"):
        DMD().setup(student(VP()), run)
    with pytest.raises(TeacherMismatch, match="needs a denoiser as student, not Linear"):
        DMD().setup(torch.nn.Linear(2, 2), run)
    with pytest.raises(ValueError, match="fake_steps must be 1 or more"):
        DMD(fake_steps=0)
    with pytest.raises(ValueError, match="regression must be 0 or more"):
        DMD(regression=-1.0)


def test_labels_reach_generator_fake_and_teacher(run: Run):
    spec = replace(SPEC, classes=3)
    torch.manual_seed(0)
    net: Any = spec.build(run)
    run.teachers = {"teacher": Learned(spec.build(run))}
    method = DMD(fake_steps=1)

    def losses(labels: torch.Tensor) -> list[float]:
        s = method.setup(net, run)
        return [float(u.loss.detach()) for u in method.step(s, {**BATCH, "labels": labels}, run)]

    assert losses(torch.zeros(12).long()) != losses(torch.ones(12).long())


def test_the_published_setting():
    made: Recipe = recipe("paper")
    train = made.stages["train"]
    assert (train.method.fake_steps, train.method.regression, train.steps, train.batch) == (1, 0.5, 300_000, 392)
    assert (train.optim.lr, train.optim.weight_decay, train.optim.clip) == (5e-5, 0.01, 10.0)
    assert (made.stages["pairs"].count, made.stages["pairs"].sampler.steps) == (500_000, 18)
    assert train.optim.rate(499, 300_000) == train.optim.rate(250_000, 300_000) == 5e-5
    assert (train.method.sampling.low, train.method.sampling.high) == (0.02, 0.98)
