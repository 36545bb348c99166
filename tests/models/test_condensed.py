"""A data set as a student: what it begins as, what is kept of it, and k-means against its definition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image

from stillhouse.core.recipe import Recipe
from stillhouse.core.run import Run, RunError
from stillhouse.data.byclass import members_of
from stillhouse.data.images import Digits, Npz, Split
from stillhouse.models.condensed import Condensed, nearest_to_centres


def made(tmp_path: Path, spec: Condensed, seed: int = 0, data: Any = None) -> Run:
    run = Run(tmp_path / f"run{seed}", seed=seed, device=torch.device("cpu"))
    run.recipe = Recipe(id="r", student=spec, data=data or Digits(), stages={})
    return run


@pytest.mark.parametrize("start", ["random", "kmeans"])
@pytest.mark.parametrize("per_class", [1, 3])
def test_it_begins_as_different_real_images_of_each_class(tmp_path: Path, start: Any, per_class: int):
    spec = Condensed(per_class=per_class, start=start)
    run = made(tmp_path, spec)
    student, source = spec.build(run), run.sources()["train"]
    assert student.images.shape == (10 * per_class, 1, 8, 8) and student.images.requires_grad
    assert student.labels.tolist() == [label for label in range(10) for _ in range(per_class)]
    for label, items in enumerate(members_of(source)):
        real = source.batch(items.tolist(), 0)["inputs"].flatten(1).double()
        apart = torch.cdist(student.of(label).detach().flatten(1).double(), real)
        assert float(apart.amin(1).max()) < 1e-4
        assert len(set(apart.argmin(1).tolist())) == per_class


def test_it_depends_on_the_seed_alone(tmp_path: Path):
    spec = Condensed(per_class=2)
    run = made(tmp_path, spec)
    first = spec.build(run)
    run.step, run.stage = 7, "audit"
    torch.manual_seed(123)
    assert torch.equal(first.images, spec.build(run).images)
    assert not torch.equal(first.images, spec.build(made(tmp_path, spec, seed=1)).images)


def test_noise_needs_no_images(tmp_path: Path):
    spec = Condensed(per_class=400, start="noise")
    images = spec.build(made(tmp_path, spec)).images
    assert abs(float(images.mean())) < 0.02 and float(images.std()) == pytest.approx(1, abs=0.02)


def test_more_than_there_are(tmp_path: Path):
    spec = Condensed(per_class=100)
    with pytest.raises(RunError, match="class 0 has 89 training images, fewer than the 100 asked for"):
        spec.build(made(tmp_path, spec))
    with pytest.raises(ValueError, match="per_class must be 1 or more, not 0"):
        Condensed(per_class=0)


def test_saved_and_loaded_is_the_same(tmp_path: Path):
    spec = Condensed(per_class=2)
    run = made(tmp_path, spec)
    student = spec.build(run)
    folder = tmp_path / "kept"
    folder.mkdir()
    spec.save(student, folder, run)
    loaded = spec.load(folder, run)
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in student.state_dict().items())
    assert (loaded.classes, loaded.per_class) == (10, 2)
    with Image.open(folder / "condensed.png") as picture:
        assert picture.size == (2 * 34, 10 * 34)  # 8 pixels four times, and a frame
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    spec.save(student, folder, run)
    assert before == {p.name: p.read_bytes() for p in folder.iterdir()}  # an artifact's hash must not hold the time
    with pytest.raises(RunError, match="no condensed images in"):
        spec.load(tmp_path, run)


def test_what_it_keeps_can_be_trained_on(tmp_path: Path):
    """`condensed.npz` is data for any other recipe, in the units of the real images."""
    spec = Condensed(per_class=2)
    run = made(tmp_path, spec)
    student = spec.build(run)
    spec.save(student, tmp_path, run)
    with numpy.load(tmp_path / "condensed.npz", allow_pickle=False) as file:
        assert file["images"].shape == (20, 8, 8, 1) and file["names"].tolist() == [str(d) for d in range(10)]
        assert file["images"].min() >= -1e-3 and file["images"].max() <= 16.001
    data = Npz(path=str(tmp_path / "condensed.npz"), split=Split(valid=0.0, test=0.0))
    again = made(tmp_path, spec, seed=1, data=data).sources()["train"]
    assert torch.allclose(again.images, student.stored()) and torch.equal(again.labels, student.labels)


def test_colour_pictures_and_many_images(tmp_path: Path):
    from stillhouse.models.condensed import Pixels

    spec = Condensed()
    run = made(tmp_path, spec)
    images = torch.randn(50, 3, 40, 40)
    labels = torch.arange(2).repeat_interleave(25)
    spec.save(Pixels(images, labels, torch.zeros(3, 1, 1), torch.ones(3, 1, 1)), tmp_path, run)
    with Image.open(tmp_path / "condensed.png") as picture:
        assert picture.size == (20 * 42, 2 * 42)


def test_kmeans_finds_blobs():
    draw = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0], [10, 0], [0, 10]])
    points = torch.cat([c + torch.randn(30, 2, generator=draw) for c in centres])
    chosen = nearest_to_centres(points, 3, draw)
    assert sorted((chosen // 30).tolist()) == [0, 1, 2]
    for number in chosen.tolist():
        mean = points[number // 30 * 30 : number // 30 * 30 + 30].mean(0)
        blob = points[number // 30 * 30 : number // 30 * 30 + 30]
        assert float((points[number] - mean).norm()) == pytest.approx(float((blob - mean).norm(dim=1).min()), rel=1e-5)


def test_one_centre_is_the_mean():
    points = torch.randn(20, 3, generator=torch.Generator().manual_seed(1))
    (chosen,) = nearest_to_centres(points, 1, torch.Generator().manual_seed(2)).tolist()
    assert chosen == int((points - points.mean(0)).norm(dim=1).argmin())


@pytest.mark.parametrize("points", [torch.zeros(5, 2), torch.arange(5.0)[:, None], torch.tensor([[0.0]] * 4 + [[9.0]])])
def test_all_points_taken_and_points_alike(points: torch.Tensor):
    assert sorted(nearest_to_centres(points, 5, torch.Generator().manual_seed(0)).tolist()) == [0, 1, 2, 3, 4]
