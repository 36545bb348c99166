"""Every pixel operation beside Pillow's, or beside a loop over pixels; and that no image depends on its neighbours."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from stillhouse.data import pixels

DRAW = torch.Generator().manual_seed(5)
NOISE = torch.randint(30, 200, (3, 32, 28), generator=DRAW, dtype=torch.uint8)
SLOPE = (torch.arange(32)[:, None] * 3 + torch.arange(28) * 4).expand(3, -1, -1).to(torch.uint8)
BYTES = torch.stack([NOISE, SLOPE])
IMAGES = BYTES.float() / 255


def by_pillow(change: Any) -> Tensor:
    """[B, C, H, W] levels from 0 to 255, as Pillow gives them."""
    pillow = pytest.importorskip("PIL.Image")
    found = [change(pillow.fromarray(image.movedim(0, -1).numpy())) for image in BYTES]
    return torch.stack([torch.from_numpy(numpy.array(image)).movedim(-1, 0) for image in found]).float()


def of(value: float) -> Tensor:
    return torch.full((2,), value, dtype=torch.float64)


@pytest.mark.parametrize("factor", [0.0, 0.1, 0.7, 1.0, 1.9])
@pytest.mark.parametrize(
    ("name", "class_name"),
    [("brightness", "Brightness"), ("contrast", "Contrast"), ("saturation", "Color"), ("sharpness", "Sharpness")],
)
def test_colours_are_pillows_up_to_its_rounding(name: str, class_name: str, factor: float):
    """Pillow rounds down to whole levels at every stage: less than one and a half levels apart."""
    enhance = getattr(pytest.importorskip("PIL.ImageEnhance"), class_name)
    found = getattr(pixels, name)(IMAGES, of(factor)) * 255
    assert (found - by_pillow(lambda image: enhance(image).enhance(factor))).abs().max() < 1.5
    if factor == 1.0:
        assert torch.equal(found, IMAGES * 255)


@pytest.mark.parametrize("lost", [0, 1, 3, 4])
def test_posterise_is_pillows(lost: int):
    ops = pytest.importorskip("PIL.ImageOps")
    found = pixels.posterise(IMAGES, of(lost)) * 255
    assert torch.equal(found.round(), by_pillow(lambda image: ops.posterize(image, 8 - lost)))


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7, 1.0])
def test_solarise_is_pillows(threshold: float):
    ops = pytest.importorskip("PIL.ImageOps")
    found = pixels.solarise(IMAGES, of(threshold)) * 255
    assert torch.equal(found.round(), by_pillow(lambda image: ops.solarize(image, threshold * 255)))


def test_equalise_is_pillows_and_autocontrast_nearly():
    ops = pytest.importorskip("PIL.ImageOps")
    assert torch.equal((pixels.equalise(IMAGES, of(0)) * 255).round(), by_pillow(ops.equalize))
    found = pixels.autocontrast(IMAGES, of(0)) * 255  # Pillow rounds down
    assert (found - by_pillow(ops.autocontrast)).abs().max() <= 1.001
    flat = torch.full((1, 3, 4, 4), 0.4)
    assert torch.equal(pixels.autocontrast(flat, of(0)[:1]), flat)
    assert torch.allclose(pixels.equalise(flat, of(0)[:1]), flat)


@pytest.mark.parametrize("angle", [-30.0, -7.5, 12.0, 90.0])
def test_rotation_is_pillows(angle: float):
    """But for a few pixels that lie between two: Pillow counts in 65,536ths."""
    found = pixels.geometric(IMAGES, torch.full((2,), pixels.OPERATIONS.index("rotate")), of(angle)) * 255
    assert (found.round() != by_pillow(lambda image: image.rotate(angle))).float().mean() < 0.003


@pytest.mark.parametrize("strength", [-0.3, 0.0, 0.13])
@pytest.mark.parametrize("kind", ["shear_x", "shear_y", "translate_x", "translate_y"])
def test_shears_and_translations_are_pillows(kind: str, strength: float):
    height, width = 32, 28
    matrix = {
        "shear_x": (1, strength, -strength * height / 2, 0, 1, 0), "shear_y": (1, 0, 0, strength, 1, -strength * width / 2),
        "translate_x": (1, 0, -round(strength * width), 0, 1, 0), "translate_y": (1, 0, 0, 0, 1, -round(strength * height)),
    }[kind]  # fmt: skip
    found = pixels.geometric(IMAGES, torch.full((2,), pixels.OPERATIONS.index(kind)), of(strength)) * 255
    expected = by_pillow(lambda image: image.transform(image.size, 0, matrix))  # 0: affine
    assert torch.equal(found.round(), expected)


@pytest.mark.parametrize("zero", [False, True])
def test_moving_is_cutting_a_window_out_of_the_padded_image(zero: bool):
    down, right = torch.tensor([2, -3]), torch.tensor([-1, 3])
    found = pixels.moved(IMAGES, down, right, torch.tensor([False, True]), zero)
    padded = F.pad(IMAGES, (3, 3, 3, 3), mode="constant" if zero else "replicate")
    for i in range(2):
        window = padded[i, :, 3 + down[i] : 35 + down[i], 3 + right[i] : 31 + right[i]]
        assert torch.equal(found[i], window.flip(-1) if i else window)


def test_a_crop_is_torchs_bilinear_resize_of_the_part():
    top, left, height, width = (
        torch.tensor(v, dtype=torch.float64) for v in ([0.25, 0.0], [0.5, 0.0], [0.5, 1.0], [0.25, 1.0])
    )
    found = pixels.cropped(IMAGES, top, left, height, width)
    part = IMAGES[:1, :, 8:24, 14:21]
    assert torch.allclose(found[:1], F.interpolate(part, (32, 28), mode="bilinear", align_corners=False), atol=1e-6)
    assert torch.equal(found[1], IMAGES[1])


def test_a_hole_is_a_square_cut_off_at_the_border():
    y, x, side = torch.tensor([0.1, 0.5]), torch.tensor([0.99, 0.5]), torch.tensor([0.5, 0.25])
    found = pixels.hole(IMAGES, y, x, side)
    for i, (row, column, high, wide) in enumerate([(3, 27, 16, 14), (16, 14, 8, 7)]):
        for r in range(32):
            for c in range(28):
                inside = (
                    row - high // 2 <= r < row - high // 2 + high and column - wide // 2 <= c < column - wide // 2 + wide
                )
                assert bool(found[i, 0, r, c]) == inside


def test_mixing():
    one, other = IMAGES, IMAGES.flip(0)
    share, cut = torch.tensor([0.3, 0.75], dtype=torch.float64), torch.tensor([0.0, 1.0])
    middle = torch.tensor([0.5, 0.5])
    mixed, mix = pixels.mixed(one, other, share, cut, middle, middle)
    assert torch.allclose(mixed[0], 0.3 * one[0] + 0.7 * other[0]) and mix[0] == pytest.approx(0.3)
    box = (mixed[1] == other[1]).all(0) & ~(one[1] == other[1]).all(0)
    assert int(box.sum()) == 16 * 14 and bool(box[8:24, 7:21].all())  # a quarter of the image
    assert torch.equal(mixed[1][:, ~box], one[1][:, ~box]) and mix[1] == pytest.approx(0.75)


def test_a_box_at_the_border_counts_as_much_as_is_in_the_image():
    corner = torch.zeros(2, dtype=torch.float64)
    _, mix = pixels.mixed(IMAGES, IMAGES.flip(0), torch.full((2,), 0.75), torch.ones(2), corner, corner)
    assert mix.tolist() == pytest.approx([1 - 1 / 16] * 2)  # a quarter of the box


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", pixels.OPERATIONS)
def test_any_number_of_channels(kind: str, channels: int):
    images = torch.rand(3, channels, 17, 19, generator=torch.Generator().manual_seed(1))
    strength = torch.full((3,), 20.0 if kind == "rotate" else 1.0 if kind == "posterise" else 0.5).double()
    found = pixels.operated(images, torch.full((3,), pixels.OPERATIONS.index(kind)), strength)
    assert found.shape == images.shape and bool(((found >= 0) & (found <= 1)).all())
    assert (kind == "identity" or channels == 1 and kind == "saturation") == torch.equal(found, images)


def test_each_image_has_its_own_operation():
    kinds = torch.arange(len(pixels.OPERATIONS))
    images = IMAGES[:1].expand(len(kinds), -1, -1, -1)
    strength = torch.full((len(kinds),), 0.5).double()
    found = pixels.operated(images, kinds, strength)
    for kind in kinds.tolist():
        alone = pixels.operated(images[:1], kinds[kind : kind + 1], strength[:1])
        assert torch.equal(found[kind], alone[0])
