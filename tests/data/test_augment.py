"""Changes drawn for each image, replayed to the bit; and siamese ones: pairs that are changed alike, gradients that
pass, and each kind against its meaning."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

from stillhouse.core.optim import Optim
from stillhouse.core.recipe import Recipe
from stillhouse.core.run import Run
from stillhouse.core.stage import Train, execute
from stillhouse.data import augment, pixels
from stillhouse.data.augment import KINDS, Augment, Change, Siamese
from stillhouse.data.images import Images, Npz
from stillhouse.methods.classics.hinton import Hinton
from stillhouse.methods.classics.supervised import Supervised
from stillhouse.models.toys import MLP
from stillhouse.signals.label import Label
from stillhouse.signals.raw import Raw
from stillhouse.teachers.cached import Cached
from stillhouse.teachers.module import ModuleTeacher

ALL = Augment(
    crop=0.5, shift=2, border="zero", flip=True, brightness=0.4, contrast=0.4, saturation=0.4, operations=2, cutout=0.3,
    mixup=0.4, cutmix=1.0,
)  # fmt: skip
EACH = [
    Augment(crop=0.3), Augment(shift=3), Augment(shift=3, border="zero"), Augment(flip=True), Augment(brightness=0.5),
    Augment(contrast=0.5), Augment(saturation=0.5), Augment(operations=1), Augment(operations=3, magnitude=1.0),
    Augment(cutout=0.5), Augment(mixup=0.2), Augment(cutmix=1.0), ALL,
]  # fmt: skip


def split(change: Augment | None, n: int = 40, shape: tuple[int, ...] = (3, 12, 11)) -> Images:
    pictures = torch.randint(0, 256, (n, *shape), generator=rng(3), dtype=torch.uint8)
    level = torch.full((shape[0], 1, 1), 120.0)
    return Images(pictures, torch.arange(n) % 4, ("a", "b", "c", "d"), level, level / 2, 0, change)


def joined(parts: list[Any]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


@pytest.mark.parametrize("change", EACH, ids=range(len(EACH)))
def test_a_batch_does_not_depend_on_how_it_is_split(change: Augment):
    """To the bit: a signal stored for an image is found by its bytes."""
    source = split(change)
    whole = source.batch(range(40), 3)
    for cuts in ([1] * 40, [7, 16, 17], [39, 1]):
        items = iter(range(40))
        parts = joined([source.batch([next(items) for _ in range(count)], 3) for count in cuts])
        assert whole.keys() == parts.keys()
        assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert not torch.equal(whole["inputs"], source.batch(range(40), 4)["inputs"])
    assert bool(whole["inputs"].isfinite().all())


@pytest.mark.parametrize("change", [None, *EACH], ids=range(len(EACH) + 1))
def test_what_was_drawn_can_be_stored_and_replayed(change: Augment | None):
    source, items = split(change), [5, 0, 39, 7]
    stored = json.loads(json.dumps([source.sample(item, 2) for item in items]))
    again, first = source.replay(items, stored), source.batch(items, 2)
    assert all(torch.equal(again[name], first[name]) for name in first)
    assert change is None or stored[0] != stored[1]


def test_one_change_leaves_the_draws_of_another():
    """Adding a flip to a crop makes no other crops."""
    some, more = Augment(crop=0.5, cutout=0.2), Augment(crop=0.5, cutout=0.2, flip=True, operations=1, mixup=1.0)
    few, many = (change.draw(range(5), 0, 0, 9) for change in (some, more))
    assert all(torch.equal(few[name], many[name]) for name in few)


def test_after_so_many_epochs_the_draws_come_again():
    source = split(Augment(operations=2, mixup=1.0, draws=2))
    first, second, third = (source.batch(range(8), epoch)["inputs"] for epoch in range(3))
    assert torch.equal(first, third) and not torch.equal(first, second)


def test_a_mixture_is_of_two_images_of_the_split():
    source = split(Augment(mixup=1.0))
    batch, plain = source.batch(range(40), 0), split(None).batch(range(40), 0)
    partners = source.augment.draw(range(40), 0, 0, 40)["mix"][:, 0].long()  # type: ignore[union-attr]
    mix = batch["mix"][:, None, None, None]
    assert torch.allclose(batch["inputs"], mix * plain["inputs"] + (1 - mix) * plain["inputs"][partners], atol=1e-5)
    assert torch.equal(batch["labels"], plain["labels"]) and torch.equal(batch["labels_b"], plain["labels"][partners])
    assert bool((partners != torch.arange(40)).all()) and len(partners.unique()) > 15


def test_the_partner_is_changed_as_it_would_be_alone():
    """Cutting a box of the whole size leaves the partner, with its own flip and shift."""
    source, alone = split(Augment(shift=3, flip=True, cutmix=1.0)), split(Augment(shift=3, flip=True)).batch(range(40), 0)
    drawn = dict(source.sample(0, 0))
    drawn["mix"] = [9.0, 0.0, 1.0, 0.5, 0.5]
    drawn["other"] = source.sample(9, 0)
    whole = source.replay([0], [{**drawn, "other": {n: v for n, v in drawn["other"].items() if n not in ("mix", "other")}}])
    assert torch.allclose(whole["inputs"][0], alone["inputs"][9], atol=1e-6) and float(whole["mix"]) == 0


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_shares_follow_the_beta_distribution(alpha: float):
    scipy = pytest.importorskip("scipy.stats")
    drawn = Augment(mixup=alpha).draw(range(4000), 0, 0, 4000)["mix"][:, 1]
    assert scipy.kstest(drawn.numpy(), scipy.beta(alpha, alpha).cdf).pvalue > 0.01


def test_numbers_are_spread_evenly():
    scipy = pytest.importorskip("scipy.stats")
    bits = numpy.array([augment.seed_of(i) for i in range(3000)], dtype=numpy.uint64)
    u = augment._uniform(bits, 3, 4)
    assert all(scipy.kstest(column, "uniform").pvalue > 0.01 for column in u.T)
    assert numpy.abs(numpy.corrcoef(u.T) - numpy.eye(4)).max() < 0.06


def test_crops_and_colours_stay_within_what_was_asked():
    drawn = Augment(crop=0.3, aspect=2.0, brightness=0.4, saturation=2.0).draw(range(2000), 0, 0, 2000)
    top, left, height, width = drawn["crop"].unbind(-1)
    assert 0.2999 < float((height * width).min()) < 0.31 and float((height * width).max()) <= 1.0
    assert bool((top + height <= 1.00001).all()) and bool((left + width <= 1.00001).all()) and float(top.min()) >= 0
    assert float((width / height).max()) <= 2.001 and float((height / width).max()) <= 2.001
    brightness, contrast, saturation = drawn["colour"].unbind(-1)
    assert 0.6 <= float(brightness.min()) < 0.65 and 1.35 < float(brightness.max()) <= 1.4
    assert bool((contrast == 1).all()) and float(saturation.min()) == 0.0


def test_every_operation_is_drawn_and_strengths_grow():
    drawn = Augment(operations=2, magnitude=0.5).draw(range(600), 0, 0, 600)
    kinds, strength = drawn["operation 1"].unbind(-1)
    assert sorted(kinds.unique().tolist()) == list(range(len(pixels.OPERATIONS)))
    said = {name: strength[kinds == i].unique().tolist() for i, name in enumerate(pixels.OPERATIONS)}
    assert said["rotate"] == [-15.0, 15.0] and said["posterise"] == [2.0] and said["solarise"] == [0.5]
    assert said["brightness"] == pytest.approx([0.55, 1.45], abs=1e-5) and said["shear_x"] == pytest.approx(
        [-0.15, 0.15], abs=1e-5
    )
    assert not torch.equal(kinds, drawn["operation 2"][:, 0])
    some = Augment(operations=1, kinds=("rotate", "equalise")).draw(range(50), 0, 0, 50)["operation 1"][:, 0]
    assert set(some.tolist()) == {1.0, 13.0}


def test_a_cutout_is_grey_and_a_zero_border_dark():
    batch = split(Augment(cutout=0.5)).batch(range(40), 0)["inputs"]
    blank = (batch.abs() < 1e-6).all(1)  # the mean, after standardising
    counts = blank.flatten(1).sum(1)
    assert int(counts.max()) == 6 * 5 and int(counts.min()) >= 3 * 2  # a quarter of it in a corner
    moved = split(Augment(shift=3, border="zero")).batch(range(40), 0)["inputs"]
    assert float(moved.min()) == pytest.approx(-2.0)


@pytest.mark.parametrize("change", EACH, ids=range(len(EACH)))
def test_values_that_are_no_bytes(change: Augment):
    """Colours work between the darkest and the brightest value of the training split."""
    source = split(change)
    scaled = Images(
        source.images.double() / 255 * 4 - 1, source.labels, source.names, source.mean / 255 * 4 - 1,
        source.deviation / 255 * 4, 0, change, light=(-1.0, 3.0),
    )  # fmt: skip
    difference = (scaled.batch(range(40), 0)["inputs"] - source.batch(range(40), 0)["inputs"]).abs()
    assert float((difference > 1e-4).float().mean()) < 0.01  # a level more or less may decide whether a pixel is turned


@pytest.mark.parametrize(("settings", "message"), [
    ({"kinds": ("blur",)}, "no operation 'blur'; there are identity, rotate"), ({"crop": 0.0}, "crop must be above 0"),
    ({"mixup": 2.0}, "mixup must be between 0 and 1"), ({"shift": -1}, "shift and operations must be 0 or more"),
    ({"contrast": -0.1}, "brightness, contrast and saturation must be 0 or more"),
])  # fmt: skip
def test_settings_without_sense(settings: Any, message: str):
    with pytest.raises(ValueError, match=message):
        Augment(**settings)


def test_accumulation_changes_nothing_where_images_are_mixed(tmp_path: Path):
    labels = numpy.arange(60) % 3
    pictures = numpy.random.default_rng(0).integers(0, 90, (60, 6, 6)) + 60 * labels[:, None, None]
    numpy.savez(tmp_path / "a.npz", images=pictures.astype("uint8"), labels=labels)

    def weights(accumulate: int) -> dict[str, Tensor]:
        train = Train(
            method=Supervised(), steps=6, batch=16, accumulate=accumulate, optim=Optim(name="sgd", lr=0.1, momentum=0.0)
        )
        data = Npz(path=str(tmp_path / "a.npz"), augment=ALL)
        run = Run(tmp_path / str(accumulate), device=torch.device("cpu"))
        execute(Recipe(id="a", student=MLP(width=8), data=data, stages={"train": train}), run)
        return MLP(width=8).load(run.path("train"), run).state_dict()

    once, often = weights(1), weights(16)
    assert all(torch.allclose(once[name], often[name], atol=1e-5) for name in once)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_signals_stored_for_mixed_images_are_found_again(tmp_path: Path):
    """The inputs' bytes are the key: not one may depend on the batch."""
    numpy.savez(tmp_path / "a.npz", images=numpy.random.default_rng(0).random((30, 6, 6)), labels=numpy.arange(30) % 3)
    data = Npz(path=str(tmp_path / "a.npz"), augment=replace(ALL, draws=2))
    live = ModuleTeacher(spec=MLP(width=8))
    train = Train(method=Hinton(), steps=6, batch=8, accumulate=8)
    label = Label(format=Raw(kind="logits"), teacher=live, batch=1, draws=2)
    weights: list[Any] = []
    for stages, teacher in (({"train": train}, live), ({"label": label, "train": train}, Cached(stage="label"))):
        run = Run(tmp_path / str(len(stages)), device=torch.device("cpu"))
        execute(Recipe(id="a", student=MLP(width=8), data=data, stages=stages, teachers={"teacher": teacher}), run)
        weights.append(MLP(width=8).load(run.path("train"), run).state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def images(n: int = 4, channels: int = 3, size: tuple[int, int] = (9, 8)) -> Tensor:
    return torch.randn(n, channels, *size, generator=rng(7), dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(5))
def test_a_pair_is_changed_alike(kind: str, seed: int):
    """The same image among others, in a batch of another size, becomes the same."""
    x = images()
    change = Siamese(kinds=(kind,)).draw(rng(seed))
    whole = change(x)
    assert whole.shape == x.shape and whole.dtype == x.dtype
    assert torch.allclose(change(x[2:3]), whole[2:3], atol=1e-12)
    assert torch.equal(Siamese(kinds=(kind,)).draw(rng(seed))(x), whole)


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_pair_each_image_has_its_own(kind: str):
    x = images(1).expand(64, -1, -1, -1)
    changed = Siamese(kinds=(kind,)).draw(rng(), 64)(x)
    assert len(changed.flatten(1).unique(dim=0)) > 1
    assert len(Siamese(kinds=(kind,)).draw(rng())(x).flatten(1).unique(dim=0)) == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 3])
def test_gradients_pass(kind: str, count: int):
    change = Siamese(kinds=(kind,)).draw(rng(3), count)
    assert torch.autograd.gradcheck(change, (images(3, 2, (4, 4)).requires_grad_(),))


def test_no_kinds_no_images_and_unknown_kinds():
    x = images()
    assert Siamese(kinds=()).draw(rng())(x) is x
    assert Siamese().draw(rng())(x[:0]).shape == (0, 3, 9, 8)
    with pytest.raises(ValueError, match="no augmentation 'blur'; there are colour, crop"):
        Siamese(kinds=("blur",))


def test_every_kind_is_drawn():
    draw = rng()
    assert {Siamese().draw(draw).kind for _ in range(100)} == set(KINDS)


def changed(kind: str, *numbers: float, x: Tensor | None = None, **settings: float) -> Tensor:
    row = torch.tensor([[*numbers, *[0.0] * (3 - len(numbers))]], dtype=torch.float64)
    return Change(Siamese(kinds=(kind,), **settings), kind, row)(images() if x is None else x)  # type: ignore[arg-type]


# The `rand_*` functions of DataDAM's `utils.py` (as in DSA's) with the random numbers 0.3, 0.8, 0.6 put in place of torch's,
# on sin(0.731 (i + 1)), [2, 3, 6, 5] float32; the sum of what they give times sin(1.2345 (i + 1)).
GOLDEN = {
    "colour": -0.21772048614229478, "crop": 0.21502463111642767, "cutout": -0.13649875795477895,
    "flip": -0.5832831923217827, "scale": 0.1407914114608384, "rotate": 0.09380567905436854,
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_values_of_the_authors_code(kind: str):
    number = torch.arange(180, dtype=torch.float64) + 1
    x, weight = (torch.sin(k * number).reshape(2, 3, 6, 5) for k in (0.731, 1.2345))
    assert float((changed(kind, 0.3, 0.8, 0.6, x=x) * weight).sum()) == pytest.approx(GOLDEN[kind], abs=1e-5)


def test_colour_in_the_middle_of_its_range_changes_nothing():
    assert torch.allclose(changed("colour", 0.5, 0.5, 0.5), images())


def test_colour_keeps_what_it_should():
    x = images()
    brighter = changed("colour", 1.0, 0.5, 0.5)
    assert torch.allclose(brighter - x, torch.full_like(x, 0.5))
    grey = changed("colour", 0.5, 0.0, 0.5)
    assert torch.allclose(grey, x.mean(1, keepdim=True).expand_as(x))
    more = changed("colour", 0.5, 0.5, 1.0)
    assert torch.allclose(more.mean((1, 2, 3)), x.mean((1, 2, 3)))
    assert torch.allclose(more.std((1, 2, 3)), 1.5 * x.std((1, 2, 3)))


def test_crop_moves_and_fills_with_zero():
    x = images()
    assert torch.equal(changed("crop", 0.5, 0.5), x)
    up_left = changed("crop", 0.999, 0.0)  # one of nine rows further down in the image, one of eight columns to the left
    assert torch.equal(up_left[:, :, :-1, 1:], x[:, :, 1:, :-1])
    assert not up_left[:, :, -1].any() and not up_left[:, :, :, 0].any()


@pytest.mark.parametrize("u", [0.0, 0.3, 0.5, 0.999])
def test_cutout_blanks_one_rectangle(u: float):
    x = images().abs() + 1
    gone = changed("cutout", u, 1 - u if u else 0.5, x=x) == 0
    rows, columns = gone[0, 0].any(1), gone[0, 0].any(0)
    assert torch.equal(gone, (rows[:, None] & columns).expand_as(gone))
    for line, most in ((rows, 5), (columns, 4)):
        at = line.nonzero().flatten()
        assert most // 2 <= len(at) <= most and int(at[-1] - at[0]) == len(at) - 1
    kept = changed("cutout", u, u, x=x)
    assert torch.equal(kept[kept != 0], x[kept != 0])


def test_flip_is_a_mirror():
    assert torch.equal(changed("flip", 0.4), images().flip(-1))
    assert torch.equal(changed("flip", 0.6), images())


def test_scale_and_rotate_in_the_middle_change_nothing():
    even = (1 - 1 / 1.2) / (1.2 - 1 / 1.2)  # where the factor is 1
    assert torch.allclose(changed("scale", even, even), images(), atol=1e-12)
    assert torch.allclose(changed("rotate", 0.5), images(), atol=1e-12)


def test_a_quarter_turn():
    x = images(size=(6, 6))
    turned = changed("rotate", 1.0, x=x, rotate=90.0)
    assert any(torch.allclose(turned, torch.rot90(x, way, (-2, -1)), atol=1e-12) for way in (1, -1))


def test_scale_zooms_out():
    """A factor above 1 shows more than there was: the border is empty."""
    small = changed("scale", 1.0, 1.0, x=torch.ones(1, 1, 12, 12, dtype=torch.float64), scale=2.0)
    assert not small[0, 0, 0].any() and float(small[0, 0, 6, 6]) == 1
