"""Only a share of the images is mixed, and nothing else changes."""

from __future__ import annotations

import pytest
import torch

from stillhouse.cli import door
from stillhouse.core.recipe import to_plain
from stillhouse.data.augment import Augment, plain, stacked
from stillhouse.data.images import Digits, Images
from stillhouse.data.mixing import Partly

ITEMS = range(1000)


def source(augment):
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (1000, 1, 6, 6), generator=draw, dtype=torch.uint8)
    one = torch.ones(1, 1, 1)
    return Images(pixels, torch.arange(1000) % 5, tuple("abcde"), 0 * one, 255 * one, augment=augment)


def test_the_share_is_kept_and_the_rest_is_untouched():
    part, whole, none = (source(a) for a in (Partly(mixup=1.0, mixed=0.3), Augment(mixup=1.0), None))
    for epoch in (0, 1):
        batch, full, bare = (s.batch(ITEMS, epoch) for s in (part, whole, none))
        mixed = batch["mix"] < 1
        assert 0.25 < float(mixed.float().mean()) < 0.35
        assert torch.equal(batch["inputs"][mixed], full["inputs"][mixed])
        assert torch.equal(batch["inputs"][~mixed], bare["inputs"][~mixed])
    assert not torch.equal(part.batch(ITEMS, 0)["mix"] < 1, mixed)  # others in the next epoch


def test_all_and_none():
    assert torch.equal(
        source(Partly(mixup=1.0, mixed=1.0)).batch(ITEMS, 0)["mix"], source(Augment(mixup=1.0)).batch(ITEMS, 0)["mix"]
    )
    assert bool((source(Partly(mixup=1.0, mixed=0.0)).batch(ITEMS, 0)["mix"] == 1).all())
    assert bool((source(Partly(cutmix=1.0, mixed=0.0)).batch(ITEMS, 0)["mix"] == 1).all())
    assert "mix" not in source(Partly()).batch(ITEMS, 0)


def test_an_image_does_not_depend_on_its_batch_and_can_be_replayed():
    augment = Partly(mixup=1.0, mixed=0.5, shift=1, draws=2)
    data = source(augment)
    whole, some = data.batch(ITEMS, 3), data.batch([7, 900, 41], 3)
    assert torch.equal(whole["inputs"][[7, 900, 41]], some["inputs"])
    assert torch.equal(data.batch([7], 1)["inputs"], data.batch([7], 3)["inputs"])
    kept = [plain(augment.draw([item], 3, 0, 1000)) for item in (7, 900)]
    assert stacked(kept)["mix"].tolist() == augment.draw([7, 900], 3, 0, 1000)["mix"].tolist()
    assert torch.equal(data.replay([7, 900], kept)["inputs"], some["inputs"][:2])


def test_it_survives_a_recipe_and_refuses_what_is_no_share():
    spec = Digits(augment=Partly(mixup=1.0))
    assert door.spec(to_plain(spec)) == spec
    with pytest.raises(ValueError, match="between 0 and 1"):
        Partly(mixed=1.5)
