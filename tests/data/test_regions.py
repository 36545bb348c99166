"""Images as two: the region and the rest."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
import torch

from stillhouse.core.run import Run, RunError
from stillhouse.data.images import Split
from stillhouse.data.regions import CLASSES, Regions, Scenes, moved


def test_the_parts_add_up_to_the_image(tmp_path: Path):
    draw = numpy.random.default_rng(0)
    images = draw.integers(1, 256, (20, 6, 6, 3), dtype="uint8")
    masks = numpy.zeros((20, 6, 6), dtype="uint8")
    masks[:, 2:4, 1:5] = 1
    numpy.savez(tmp_path / "r.npz", images=images, masks=masks, labels=numpy.arange(20) % 2 + 3)
    run = Run(tmp_path / "run")
    source = Regions(path=str(tmp_path / "r.npz"), split=Split(valid=0.2, test=0.2)).load(run)["train"]
    assert source.shape == (6, 6, 6) and source.names == ("3", "4")
    batch = source.batch(range(len(source)), 0)["inputs"]
    region, rest = batch[:, :3], batch[:, 3:]
    assert bool((region[:, :, :2] == 0).all()) and bool((rest[:, :, 2:4, 1:5] == 0).all())
    whole = (region + rest) * source.deviation[:3]
    stored = {tuple(image.reshape(-1).tolist()) for image in images.transpose(0, 3, 1, 2)}
    assert all(tuple(image.round().int().flatten().tolist()) in stored for image in whole)
    assert float((region + rest).square().mean((0, 2, 3)).mean()) == pytest.approx(1.0, abs=1e-4)


def test_files_that_do_not_fit(tmp_path: Path):
    numpy.savez(tmp_path / "r.npz", images=numpy.zeros((4, 6, 6)), masks=numpy.zeros((4, 5, 5)), labels=numpy.arange(4))
    with pytest.raises(RunError, match="do not fit"):
        Regions(path=str(tmp_path / "r.npz")).load(Run(tmp_path / "run"))
    with pytest.raises(RunError, match="images, masks and labels"):
        Regions(path=str(tmp_path / "other.npz")).load(Run(tmp_path / "run"))


def test_the_region_alone_does_not_tell_what_the_surroundings_decide(tmp_path: Path):
    """Noise aside, a disc in a frame has the region of a disc on stripes."""
    source = Scenes(count=120, noise=0.0).load(Run(tmp_path))["train"]
    seen: dict[str, set[bytes]] = {}
    for image, label in zip(source.images, source.labels.tolist(), strict=True):
        seen.setdefault(CLASSES[label].split()[0], set()).add(image[0][image[0] > 0].numpy().tobytes())
    assert seen["disc"].isdisjoint(seen["cross"]) and len(seen["disc"]) == 1


def test_a_region_that_is_moved():
    pairs = torch.zeros(1, 2, 4, 4)
    pairs[0, 0, 0, 0], pairs[0, 1] = 5.0, 1.0
    pairs[0, 1, 0, 0] = 0.0
    found = moved(pairs, 2, 3)
    assert float(found[0, 0, 2, 3]) == 5.0 and float(found[0, 0].sum()) == 5.0
    assert float(found[0, 1, 2, 3]) == 0.0 and float(found[0, 1, 0, 0]) == 0.0 and float(found[0, 1].sum()) == 14.0
    assert torch.equal(moved(pairs, 0, 0), pairs)
