"""Made-up points, files of points, and what a batch of them holds."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
import torch

from stillhouse.core.run import Run, RunError
from stillhouse.data.points import Grid, Moons, PointFile, Ring


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run", device=torch.device("cpu"))


@pytest.mark.parametrize("spec", [Ring(train=800), Grid(train=800), Moons(train=800)])
def test_made_up_points(spec, run: Run):
    splits = spec.load(run)
    train = splits["train"]
    assert len(train) == 800 and train.shape == (2,)
    assert torch.equal(train.inputs, spec.load(Run(run.folder, seed=5))["train"].inputs)  # not the run's seed
    assert not torch.equal(splits["valid"].inputs, splits["test"].inputs)
    assert 0.7 < float(train.inputs.std()) < 1.3  # what denoisers expect
    batch = train.batch([3, 1], 0)
    assert torch.equal(batch["inputs"], train.inputs[[3, 1]]) and batch["items"].tolist() == [3, 1]
    assert set(train.batch(range(800), 0)["labels"].tolist()) == set(range(train.classes))


@pytest.mark.parametrize("spec", [Ring(), Grid()])
def test_points_come_from_the_mixture_that_is_told(spec, run: Run):
    known = spec.mixture()
    points = spec.load(run)["test"].inputs
    away, which = torch.cdist(points, known.centres).min(1)
    assert float((away < 4 * known.deviation).float().mean()) > 0.99
    assert len(which.unique()) == len(known.centres)


@pytest.mark.parametrize("kind", ["npy", "csv", "csv with names"])
def test_files(kind: str, run: Run, tmp_path: Path):
    points = numpy.random.default_rng(0).normal([5, -3, 100], [1, 2, 30], size=(200, 3))
    path = tmp_path / ("points.npy" if kind == "npy" else "points.csv")
    if kind == "npy":
        numpy.save(path, points)
    else:
        numpy.savetxt(path, points, delimiter=",", header="a,b,c" if "names" in kind else "", comments="")
    splits = PointFile(path=str(path)).load(run)
    assert [len(splits[n]) for n in ("train", "valid", "test")] == [140, 30, 30]
    train = splits["train"]
    assert torch.allclose(train.inputs.std(0, correction=0), torch.ones(3), atol=1e-5)
    back = torch.cat([s.inputs * s.deviation + s.mean for s in splits.values()])
    assert sorted(map(tuple, back.round(decimals=2).tolist())) == sorted(map(tuple, points.round(2).tolist()))


def test_a_point_stays_in_its_split(run: Run, tmp_path: Path):
    points = numpy.random.default_rng(0).normal(size=(100, 2))
    found = []
    for rows in (points, points[::-1]):
        numpy.save(tmp_path / "points.npy", rows)
        split = PointFile(path=str(tmp_path / "points.npy")).load(run)["test"]
        found.append(sorted((split.inputs * split.deviation + split.mean).tolist()))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("content", "message"),
    [("a,b\nc,d\n", "cannot read"), ("1,2\nnan,4\n" * 9, "no numbers"), ("1,2\n3,4\n", "too few points"), (None, "no file")],
)
def test_files_that_hold_no_points(content: str | None, message: str, run: Run, tmp_path: Path):
    path = tmp_path / "points.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(RunError, match=message):
        PointFile(path=str(path)).load(run)


def test_a_file_of_the_wrong_shape(run: Run, tmp_path: Path):
    numpy.save(tmp_path / "points.npy", numpy.zeros((3, 4, 5)))
    with pytest.raises(RunError, match=r"is float64 \[3, 4, 5\]; it should hold numbers, one point a row"):
        PointFile(path=str(tmp_path / "points.npy")).load(run)
