"""A class as one item: drawn by class and epoch alone, known labels only, rare classes by turns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from stillhouse.core.recipe import Recipe
from stillhouse.core.run import Run, RunError
from stillhouse.data.byclass import ByClass, members_of
from stillhouse.data.images import Npz, Split
from stillhouse.data.toys import Clusters
from stillhouse.models.condensed import Condensed


def held(tmp_path: Path, sizes: tuple[int, ...] = (9, 4), **split: Any) -> Run:
    labels = numpy.concatenate([numpy.full(n, label) for label, n in enumerate(sizes)])
    images = numpy.arange(len(labels), dtype="float32")[:, None, None] * numpy.ones((1, 2, 2), dtype="float32")
    numpy.savez(tmp_path / "some.npz", images=images, labels=labels)
    data = Npz(path=str(tmp_path / "some.npz"), split=Split(valid=0.0, test=0.0, **split))
    run = Run(tmp_path / "run", device=torch.device("cpu"))
    run.recipe = Recipe(id="r", student=Condensed(), data=data, stages={})
    return run


def test_what_is_drawn_depends_on_class_and_epoch_alone(tmp_path: Path):
    run = held(tmp_path)
    source = run.sources(ByClass(images=3))["train"]
    assert (len(source), source.classes, source.shape) == (2, 2, (1, 2, 2))
    whole, alone = source.batch([1, 0], 5), source.batch([0], 5)
    assert whole["inputs"].shape == (2, 3, 1, 2, 2) and whole["labels"].tolist() == [1, 0]
    assert torch.equal(whole["inputs"][1], alone["inputs"][0])
    assert not torch.equal(alone["inputs"], source.batch([0], 6)["inputs"])


def test_images_are_of_their_class_and_different(tmp_path: Path):
    run = held(tmp_path)
    source = run.sources(ByClass(images=4))["train"]
    for epoch in range(5):
        for label, values in ((0, range(9)), (1, range(9, 13))):
            batch = source.batch([label], epoch)["inputs"]
            inner = run.sources()["train"]
            stored = (batch * inner.deviation + inner.mean)[0, :, 0, 0, 0].round().long().tolist()
            assert len(set(stored)) == 4 and set(stored) <= set(values)


def test_a_rare_class_gives_each_image_equally_often(tmp_path: Path):
    source = held(tmp_path).sources  # four images of class 1
    drawn = source(ByClass(images=10))["train"].batch([1], 0)["inputs"][0, :, 0, 0, 0]
    assert sorted(drawn.unique(return_counts=True)[1].tolist()) == [2, 2, 3, 3]


def test_unknown_labels_are_left_out(tmp_path: Path):
    run = held(tmp_path, labels=2)
    assert [len(m) for m in members_of(run.sources()["train"])] == [2, 2]


def test_one_image_of_a_class_and_none(tmp_path: Path):
    run = held(tmp_path, sizes=(1, 5))
    drawn = run.sources(ByClass(images=4))["train"].batch([0], 0)["inputs"]
    assert drawn.shape == (1, 4, 1, 2, 2) and bool((drawn == drawn[:, :1]).all())
    assert Condensed(per_class=1, start="kmeans").build(run).images.shape == (2, 1, 2, 2)
    nothing = held(tmp_path, sizes=(3, 5), labels=0)
    with pytest.raises(RunError, match="the training split has no image of class 0 whose label is known"):
        nothing.sources(ByClass())


def test_what_cannot_be_grouped(tmp_path: Path):
    run = held(tmp_path)
    with pytest.raises(RunError, match="train.data.images must be 1 or more, not 0"):
        ByClass(images=0).load(run)
    run.recipe = Recipe(id="r", student=Condensed(), data=Clusters(), stages={})
    with pytest.raises(RunError, match="condensing needs labelled images"):
        ByClass().load(run)
    run.recipe = Recipe(id="r", student=Condensed(), data=ByClass(), stages={})
    with pytest.raises(RunError, match="cannot be them; give it to a stage"):
        run.sources()
