"""Unlabelled images from elsewhere: brought to the task's shape and light, mined by the teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from stillhouse.core.run import Run, RunError
from stillhouse.data.images import UNKNOWN, Digits, Npz, Split
from stillhouse.data.mixstyle import restyled
from stillhouse.data.pools import Mine, Mined, Pictures, Pool, Rest, Shifted, Strays, near, surest
from stillhouse.models.toys import Convolutional
from stillhouse.teachers.module import Frozen


class Recipe:
    def __init__(self, data: Any):
        self.data, self.stages = data, {}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = Run(tmp_path / "run", device=torch.device("cpu"))
    made.recipe = Recipe(Digits(split=Split(valid=0.2, test=0.3, labels=10, unlabelled=False)))
    return made


def test_the_surest_of_every_class_by_hand():
    sure = torch.tensor([0.9, 0.8, 0.95, 0.5, 0.99, 0.7])
    classes = torch.tensor([0, 0, 0, 1, 1, 2])
    everything = torch.ones(6, dtype=torch.bool)
    assert surest(sure, classes, 2, everything).tolist() == [0, 2, 3, 4, 5]
    assert surest(sure, classes, 1, everything).tolist() == [2, 4, 5]
    assert surest(sure, classes, 2, sure >= 0.75).tolist() == [0, 2, 4]
    assert surest(sure, classes, 2, sure > 1).tolist() == []


def test_twins_are_those_of_the_largest_cosine():
    a = torch.nn.functional.normalize(torch.randn(50, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    b = torch.nn.functional.normalize(torch.randn(7, 4, generator=torch.Generator().manual_seed(1)), dim=1)
    slow = [max(float((x * y).sum()) for y in b) > 0.8 for x in a]
    assert near(a, b, 0.8).tolist() == slow and any(slow) and not all(slow)


def test_the_rest_is_what_has_no_label(run: Run):
    own, rest = run.sources()["train"], Rest().load(run)["train"]
    assert len(own) == 100 and bool((own.labels >= 0).all())
    assert bool((rest.labels == UNKNOWN).all()) and rest.truth is None
    every = Digits(split=Split(valid=0.2, test=0.3)).load(run)["train"]
    assert len(own) + len(rest) == len(every)
    kept = {bytes(image.numpy().tobytes()) for image in own.images}
    assert not kept & {bytes(image.numpy().tobytes()) for image in rest.images}
    run.recipe = Recipe(Digits())
    run._sources.clear()
    with pytest.raises(RunError, match=r"data\.split\.labels"):
        Rest().load(run)


def test_images_of_another_kind_are_brought_to_the_tasks(run: Run, tmp_path: Path):
    white = numpy.full((12, 20, 20, 3), 255, dtype="uint8")
    white[:, :10] = 0
    numpy.savez(tmp_path / "other.npz", images=white, labels=numpy.arange(12) % 2)
    other = Npz(path=str(tmp_path / "other.npz"), split=Split(valid=0.0, test=0.0))
    found = Pool(parts={"other": other, "strays": Strays(count=3)}).load(run)["train"]
    own = run.sources()["train"]
    assert found.shape == own.shape and found.images.dtype == own.images.dtype and len(found) == 15
    assert float(found.images[0, 0, -1].min()) == own.light[1] == 16.0 and float(found.images[0, 0, 0].max()) == 0.0
    assert torch.equal(found.mean, own.mean) and bool((found.labels == UNKNOWN).all())
    assert len(found.images[12:].unique()) > 3


def test_pictures_in_any_folder(run: Run, tmp_path: Path):
    pillow = pytest.importorskip("PIL.Image")
    (tmp_path / "web" / "deep").mkdir(parents=True)
    for i, name in enumerate(("a.png", "deep/b.png")):
        pillow.fromarray(numpy.full((30, 40, 3), 255 * i, dtype="uint8")).save(tmp_path / "web" / name)
    found = Pictures(path=str(tmp_path / "web")).load(run)["train"]
    assert found.images.shape == (2, 1, 8, 8) and found.images.flatten(1).amax(1).tolist() == [0, 16]
    with pytest.raises(RunError, match="no pictures"):
        Pictures(path=str(tmp_path / "nothing")).load(run)


def test_what_is_shifted(run: Run):
    plain, same = Rest().load(run)["train"], Shifted(negative=0.0, noise=0.0, degrees=0.0).load(run)["train"]
    assert torch.equal(plain.images, same.images)
    turned = Shifted(negative=1.0, noise=0.0, degrees=0.0).load(run)["train"]
    assert torch.equal(turned.images, 16 - plain.images)
    drawn = [Shifted().load(run)["train"].images for _ in range(2)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], plain.images)


def test_mining_keeps_what_the_teacher_is_surest_of(run: Run):
    torch.manual_seed(0)
    network = Convolutional(1, 10, 4, 2)
    run.teachers = {"teacher": Frozen(network)}
    stage = Mine(pool=Pool(parts={"rest": Rest()}), count=5, twin=1.0)
    run.recipe.stages["mine"] = stage
    run.stage = "mine"
    stage(run)
    items = run.load_json("mine")["items"]
    pool = Rest().load(run)["train"]
    with torch.no_grad():
        p = network(pool.batch(range(len(pool)), 0)["inputs"]).softmax(-1)
    expected: set[int] = set()
    for label in range(10):
        mine = [(float(p[i].max()), i) for i in range(len(pool)) if int(p[i].argmax()) == label]
        expected |= {i for _, i in sorted(mine, reverse=True)[:5]}
    assert set(items) == expected
    both, pooled = Mined().load(run)["train"], Mined(own=False).load(run)["train"]
    assert len(both) == 100 + len(items) and len(pooled) == len(items)
    assert torch.equal(both.images[100:], pool.images[torch.tensor(items)])
    assert bool((both.labels[:100] >= 0).all()) and bool((both.labels[100:] == UNKNOWN).all())


def test_mining_leaves_out_the_held_out_images_themselves(run: Run):
    class Held:
        def load(self, run: Run) -> Any:
            return {"train": run.sources()["test"]}

    torch.manual_seed(0)
    run.teachers = {"teacher": Frozen(Convolutional(1, 10, 4, 2))}
    run.stage = "mine"
    with pytest.raises(RunError, match="keeps none"):
        Mine(pool=Held(), twin=0.99999)(run)


def test_a_style_is_a_mean_and_a_deviation():
    torch.manual_seed(0)
    x = torch.randn(4, 2, 6, 6) * 3 + 1
    partner = torch.tensor([1, 2, 3, 0])
    assert torch.allclose(restyled(x, partner, torch.ones(4)), x, atol=1e-5)
    taken = restyled(x, partner, torch.zeros(4))
    for i in range(4):
        for c in range(2):
            other = x[partner[i], c]
            assert float(taken[i, c].mean()) == pytest.approx(float(other.mean()), abs=1e-5)
            assert float(taken[i, c].std()) == pytest.approx(float(other.std()), rel=1e-4)
    share = torch.tensor([0.3, 0.6, 0.1, 0.9])
    scaled = restyled(2 * x + 5, partner, share)  # the same on standardised images
    assert torch.allclose(scaled, 2 * restyled(x, partner, share) + 5, atol=1e-4)
    flat = torch.full((2, 1, 3, 3), 0.5)
    assert bool(restyled(flat, torch.tensor([1, 0]), torch.full((2,), 0.5)).isfinite().all())
