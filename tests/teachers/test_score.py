"""The exact score of a mixture against autograd, trained ones, and pairs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from stillhouse.core.recipe import Recipe
from stillhouse.core.run import Run
from stillhouse.core.stage import LazyTeachers
from stillhouse.core.teacher import TeacherMismatch
from stillhouse.data.points import Moons, Pairs, Ring
from stillhouse.models.diffusion import VP, Cosine, Flow, Karras, PointDenoiser, Schedule
from stillhouse.models.samplers import Sampler
from stillhouse.teachers.score import DenoiserTeacher, DrawPairs, Exact, Learned, MixtureTeacher, draw

CENTRES = torch.tensor([[1.0, 0.0], [-1.0, 0.5], [0.2, -1.3]], dtype=torch.float64)
WEIGHTS = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)


@pytest.mark.parametrize("schedule", [VP(), Cosine(), Karras(), Flow()], ids=lambda s: type(s).__name__)
def test_the_exact_score_is_the_gradient_of_the_log_density(schedule: Schedule):
    t = torch.linspace(0.15, 0.8, 30, dtype=torch.float64)
    x = torch.randn(30, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    alpha, sigma = schedule.parts(x, t)
    spread = (alpha * 0.3) ** 2 + sigma**2
    away = (x[:, None] - alpha[:, None] * CENTRES).square().sum(-1)
    log_density = (WEIGHTS.log() - away / (2 * spread) - spread.log()).logsumexp(-1)  # in two dimensions
    expected = torch.autograd.grad(log_density.sum(), x)[0]
    x0 = Exact(CENTRES, 0.3, schedule, WEIGHTS).x0(x.detach(), t)
    assert torch.allclose(schedule.score(x.detach(), x0, t), expected, rtol=1e-8, atol=1e-9)


def test_at_both_ends():
    """Without noise x_0 is x_t; with nothing but noise it is the mean."""
    teacher = Exact(CENTRES, 0.3, Flow(), WEIGHTS)
    x = CENTRES + 0.1
    assert torch.allclose(teacher.x0(x, torch.zeros(3, dtype=torch.float64)), x, atol=1e-6)
    mean = (WEIGHTS[:, None] * CENTRES).sum(0)
    assert torch.allclose(teacher.x0(x, torch.ones(3, dtype=torch.float64)), mean.expand(3, 2))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = Run(tmp_path / "run", device=torch.device("cpu"))
    spec = PointDenoiser(width=16)
    teachers = {"teacher": MixtureTeacher(data=Ring(), schedule=Flow())}
    made.recipe = Recipe(id="x", student=spec, data=Ring(train=40, valid=10, test=10), stages={}, teachers=teachers)
    made.teachers = LazyTeachers(teachers, made)
    return made


def test_a_mixture_is_drawn_with_all_its_modes(run: Run):
    teacher: Any = run.teacher
    assert teacher.gives == {"score"}
    _, made = draw(teacher.x0, teacher.schedule, (2,), Sampler(steps=64), 800, seed=1, device=run.device)
    near, which = torch.cdist(made, teacher.centres).min(1)
    assert float((near < 0.3).float().mean()) > 0.97
    share = which.bincount(minlength=8) / 800
    assert float(share.min()) > 0.07 and float(share.max()) < 0.18


def test_made_up_data_without_a_mixture_have_no_exact_score(run: Run):
    with pytest.raises(TeacherMismatch, match="Moons is no mixture of Gaussians; train a denoiser"):
        MixtureTeacher(data=Moons(), schedule=Flow()).build(run)


def test_what_is_drawn_for_an_item_does_not_depend_on_the_batch(run: Run):
    teacher: Any = run.teacher
    for rule in ("ddim", "restart"):
        ways = [
            draw(teacher.x0, teacher.schedule, (2,), Sampler(rule=rule, steps=3), n, seed=5, device=run.device, batch=b)[1]  # type: ignore[arg-type]
            for n, b in ((10, 10), (7, 2))
        ]
        assert torch.allclose(ways[0][:7], ways[1], atol=1e-6)


def test_a_trained_teacher_and_guidance(run: Run):
    torch.manual_seed(0)
    spec = PointDenoiser(width=16, classes=3)
    plain = DenoiserTeacher(spec=spec).build(run)
    guided = DenoiserTeacher(spec=spec, guidance=2.5).build(run)
    x, t, labels = torch.randn(4, 2), torch.rand(4), torch.tensor([0, 1, 2, 0])
    told, free = plain.x0(x, t, labels), plain.x0(x, t)
    assert torch.allclose(guided.x0(x, t, labels), free + 2.5 * (told - free))
    assert torch.equal(plain({"inputs": x, "time": t, "labels": labels}, frozenset({"score"})).need("score"), told)
    assert not any(p.requires_grad for p in plain.module.parameters())
    with pytest.raises(TeacherMismatch, match="guidance needs a denoiser that is told labels"):
        DenoiserTeacher(spec=PointDenoiser(width=16), guidance=2.0).build(run)
    with pytest.raises(TeacherMismatch, match="needs a denoiser, not Linear"):
        Learned(torch.nn.Linear(2, 2))


def test_pairs_are_what_the_teacher_makes_of_the_noise(run: Run):
    run.stage = "pairs"
    DrawPairs(count=30, sampler=Sampler(rule="heun", steps=9), batch=8)(run)
    assert run.done("pairs")["items"] == 30  # type: ignore[index]
    source = Pairs().load(run)["train"]
    batch = source.batch(range(30), 0)
    teacher: Any = run.teacher
    again = Sampler(rule="heun", steps=9)(teacher.x0, teacher.schedule, batch["noise"])
    assert torch.allclose(batch["inputs"], again, atol=1e-5)
    assert len(source) == 30 and source.shape == (2,)
    with pytest.raises(ValueError, match="deterministic sampler"):
        DrawPairs(count=1, sampler=Sampler(rule="restart"))


def test_pairs_of_a_conditional_teacher_have_labels(run: Run):
    teacher = DenoiserTeacher(spec=PointDenoiser(width=16, classes=8)).build(run)
    run.teachers, run.stage = {"teacher": teacher}, "pairs"
    DrawPairs(count=20, sampler=Sampler(steps=2))(run)
    source = Pairs().load(run)["train"]
    batch = source.batch(range(20), 0)
    again = Sampler(steps=2)(lambda x, t: teacher.x0(x, t, batch["labels"]), teacher.schedule, batch["noise"])
    assert torch.allclose(batch["inputs"], again, atol=1e-5)
    assert source.classes > 1


def test_a_spec_begins_with_a_stages_weights(run: Run):
    spec = PointDenoiser(width=16)
    torch.manual_seed(3)
    trained = spec.build(run)
    with run.artifact("teacher") as folder:
        spec.save(trained, folder, run)
    begun = replace(spec, stage="teacher").build(run)
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), begun.parameters(), strict=True))
