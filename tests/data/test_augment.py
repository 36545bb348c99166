"""Siamese augmentation: pairs that are changed alike, gradients that pass, and each kind against its meaning."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stillhouse.data.augment import KINDS, Change, Siamese


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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
