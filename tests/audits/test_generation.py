"""Distances between drawn and real items, against closed forms and themselves."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
import torch
from torch import Tensor, nn

from stillhouse.audits.generation import Generation, coverage, energy, features, frechet, mmd, modes, picture
from stillhouse.core.recipe import Recipe
from stillhouse.core.report import Figure, Finding
from stillhouse.core.run import Run
from stillhouse.core.stage import LazyTeachers, Subjects
from stillhouse.data.points import Ring
from stillhouse.models.diffusion import Flow, PointDenoiser
from stillhouse.teachers.score import MixtureTeacher

DRAW = torch.Generator().manual_seed(0)


def gauss(n: int, d: int = 3, mean: float = 0.0, width: float = 1.0) -> Tensor:
    return mean + width * torch.randn(n, d, dtype=torch.float64, generator=DRAW)


def once(statistic, x: Tensor, y: Tensor) -> float:
    ones = [torch.ones(1, len(a), dtype=torch.float64) for a in (x, y)]
    return float(statistic(x, y)(*ones)[0])


def test_energy_distance_by_its_formula():
    x, y = gauss(20), gauss(15, mean=1.0)

    def mean(a: Tensor, b: Tensor, pairs: int) -> float:
        return float((a[:, None] - b[None]).norm(dim=-1).sum()) / pairs

    expected = 2 * mean(x, y, 300) - mean(x, x, 20 * 19) - mean(y, y, 15 * 14)
    assert once(energy, x, y) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_diagonal_gaussians():
    """With covariances that commute it is |m - m'|² + |sigma - sigma'|²."""
    x = gauss(400, 2)
    x = (x - x.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T  # mean 0, covariance 1, to the bit
    y = x * torch.tensor([2.0, 0.5]) + torch.tensor([1.0, -2.0])
    assert once(frechet, x, y) == pytest.approx(5 + 1 + 0.25, rel=1e-6)
    assert once(frechet, x, x) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("statistic", [energy, mmd, frechet])
def test_distances_tell_near_from_far(statistic):
    y = gauss(600)
    same, near, far = (once(statistic, x, y) for x in (gauss(600), gauss(600, mean=0.3), gauss(600, mean=1.0)))
    assert abs(same) < 0.2 * near < near < 0.5 * far


def test_counts_stand_for_repetition():
    """An item that counts twice is an item that is there twice, up to pairs of an item with itself."""
    x, y = gauss(30), gauss(40, mean=0.5)
    c, r = torch.ones(1, 30, dtype=torch.float64), torch.ones(1, 40, dtype=torch.float64)
    c[0, 4] = 2
    assert float(frechet(x, y)(c, r)[0]) == pytest.approx(once(frechet, torch.cat([x, x[4:5]]), y), rel=1e-9)


def test_coverage_and_modes():
    y = torch.cat([gauss(100), gauss(100, mean=50.0)])
    assert once(coverage, gauss(400), y) < 0.55
    assert once(coverage, torch.cat([gauss(400), gauss(400, mean=50.0)]), y) > 0.9
    which = torch.tensor([0] * 50 + [1] * 45 + [2] * 3 + [-1] * 2)
    assert float(modes(which, 4)(torch.ones(1, 100).double(), torch.ones(1, 1).double())[0]) == 0.5


def test_features_are_what_the_last_layer_is_given(tmp_path: Path):
    run = Run(tmp_path / "run", device=torch.device("cpu"))
    first, last = nn.Linear(4, 3), nn.Linear(3, 2)
    x = torch.randn(5, 4)
    assert torch.allclose(features(nn.Sequential(first, last), x, run), first(x).double())
    assert features(None, x.reshape(5, 2, 2), run).shape == (5, 4)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = Run(tmp_path / "run", device=torch.device("cpu"), stage="audit")
    teachers = {"teacher": MixtureTeacher(data=Ring(), schedule=Flow())}
    data = Ring(train=400, valid=100, test=400)
    made.recipe = Recipe(id="x", student=PointDenoiser(width=16), data=data, stages={}, teachers=teachers)
    made.teachers = LazyTeachers(teachers, made)
    return made


def test_the_whole_audit(run: Run):
    check = Generation(count=300, teacher_steps=(1, 32), draws=100)
    found = list(check(run, Subjects(run, ("start",))))
    value = {(f.name, f.subject): f for f in found if isinstance(f, Finding) and f.versus is None}
    assert value["modes", "teacher"].value == 1 and value["modes", "teacher_1_step"].value == 0
    assert value["evaluations", "teacher"].value == 32
    teacher, real, start = (value["energy_distance", n] for n in ("teacher", "real", "start"))
    assert abs(teacher.value) < 0.03 and abs(real.value) < 0.03
    assert start.low > teacher.high  # type: ignore[operator]
    assert all(f.low <= f.value <= f.high for f in found if isinstance(f, Finding) and f.low is not None)  # type: ignore[operator]
    versus = [f for f in found if isinstance(f, Finding) and f.versus == "teacher" and f.name == "energy_distance"]
    assert versus[0].decided == "worse"
    assert sum(isinstance(f, Figure) for f in found) == 1
    kept = numpy.load(run.path("audit_samples") / "samples.npz")
    assert kept["start"].shape == (300, 2) and kept["held_out"].shape == (300, 2)
    assert (run.path("audit_samples") / "samples.png").stat().st_size > 5000


def test_the_interval_of_two_samples_of_one_distribution_holds_zero(run: Run):
    found = Generation(count=200, teacher_steps=(64,), draws=200)(run, Subjects(run, ("start",)))
    (real,) = (f for f in found if isinstance(f, Finding) and (f.name, f.subject) == ("energy_distance", "real"))
    assert real.low <= 0.01 and real.high >= -0.01  # type: ignore[operator]


def test_pictures_of_images(tmp_path: Path):
    picture({"a": numpy.random.rand(40, 1, 8, 8), "b": numpy.random.rand(40, 1, 8, 8)}, str(tmp_path / "x.png"))
    picture({"a": numpy.random.rand(5, 3, 8, 8), "b": numpy.random.rand(5, 3, 8, 8)}, str(tmp_path / "y.png"))
    assert (tmp_path / "x.png").stat().st_size > 1000
