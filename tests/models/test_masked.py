"""Masked autoencoders: what is seen, what is told, and what a classifier takes over."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch.nn.functional import fold

from stillhouse.core.engine import micro_batches
from stillhouse.core.recipe import Recipe
from stillhouse.core.run import Run, RunError
from stillhouse.core.stage import Train
from stillhouse.data.images import Digits, Images
from stillhouse.methods.masked import MAE, autoencoder
from stillhouse.models.earlier import Continued
from stillhouse.models.masked import (
    Masked,
    MaskedAutoencoder,
    Pretrained,
    hidden,
    noise,
    patchify,
    visible,
    waves,
)
from stillhouse.models.vision import ViT

SHAPE = (2, 6, 4)
SPEC = Masked(encoder=ViT(patch=2, width=8, depth=3, heads=2, shape=SHAPE, classes=5), width=12, depth=2, heads=3)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run", device=torch.device("cpu"))


def made(run: Run, spec: Masked = SPEC, seed: int = 0) -> MaskedAutoencoder:
    torch.manual_seed(seed)
    module = spec.build(run)
    for name, value in module.named_parameters():  # biases and norms that are 0 and 1 would hide mistakes
        if value.ndim == 1:
            torch.nn.init.normal_(value, std=0.3, mean=1.0 if "norm" in name and name.endswith("weight") else 0.0)
    return module.eval()


def images(count: int = 3, shape: tuple[int, int, int] = SHAPE, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def test_patches_are_rows_of_the_image_and_come_back():
    x = images()
    parts = patchify(x, 2)
    assert parts.shape == (3, 6, 8)
    for n, (row, column) in enumerate((r, c) for r in range(3) for c in range(2)):
        own = x[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].flatten(1)
        assert torch.equal(parts[:, n], own)
    assert torch.equal(fold(parts.mT, SHAPE[1:], 2, stride=2), x)


SEEN = [(196, 0.75, 49), (49, 0.75, 12), (100, 0.9, 10), (6, 0.99, 1), (6, 0.01, 5)]


@pytest.mark.parametrize(("count", "ratio", "seen"), SEEN)
def test_as_many_patches_are_seen_as_the_ratio_says(count: int, ratio: float, seen: int):
    drawn = torch.rand(4, count, generator=torch.Generator().manual_seed(0))
    kept = visible(drawn, ratio)
    assert kept.shape == (4, seen)
    away = hidden(kept, count)
    assert away.sum(1).tolist() == [count - seen] * 4
    for row, own, mask in zip(drawn, kept, away, strict=True):
        assert row[own].max() <= row[mask.bool()].min()


def test_what_is_seen_depends_on_seed_item_and_step_alone(run: Run):
    x = images(8)
    whole = noise({"inputs": x, "items": torch.arange(8)}, 6, run)
    assert torch.equal(whole, noise({"inputs": x, "items": torch.arange(8)}, 6, run))
    part = noise({"inputs": x[[5, 2]], "items": torch.tensor([5, 2])}, 6, run)
    assert torch.equal(part, whole[[5, 2]])
    assert len({tuple(row.tolist()) for row in whole}) == 8
    run.step = 1
    assert not (noise({"inputs": x, "items": torch.arange(8)}, 6, run) == whole).any()
    run.step, run.seed = 0, 1
    assert not (noise({"inputs": x, "items": torch.arange(8)}, 6, run) == whole).any()


def test_items_without_a_number_are_known_by_their_pixels(run: Run):
    x = images(4)
    whole = noise({"inputs": x}, 6, run)
    assert torch.equal(noise({"inputs": x[[3, 1]]}, 6, run), whole[[3, 1]])
    assert len({tuple(row.tolist()) for row in whole}) == 4
    assert noise({"inputs": x[:0]}, 6, run).shape == (0, 6)


def test_all_patches_seen_is_what_the_classifier_computes(run: Run):
    module = made(run)
    x = images()
    everything = torch.arange(6).flip(0).expand(3, 6)
    for kept in (None, everything):
        last = module.encode(x, kept)[-1]
        assert torch.allclose(module.encoder.head(module.encoder.norm(last)[:, 0]), module(x), atol=1e-5)
    assert torch.allclose(module.encoder.head(module.summary(x)), module(x), atol=1e-6)


@pytest.mark.parametrize("token", [True, False])
def test_hidden_patches_are_not_looked_at(run: Run, token: bool):
    module = made(run, replace(SPEC, encoder=replace(SPEC.encoder, class_token=token)))
    x, kept = images(), torch.tensor([[4, 1], [0, 2], [5, 3]])
    changed = torch.where(hidden(kept, 6).bool()[:, :, None], 7.0, patchify(x, 2))
    other = fold(changed.mT, SHAPE[1:], 2, stride=2)
    a, b = (module.decode(module.encode(y, kept)[-1], kept)[-1] for y in (x, other))
    assert torch.equal(a, b)
    assert a.shape == (3, 6 + token, 12)
    assert len(module.encode(x, kept, blocks=2)) == 2
    assert torch.equal(module.encode(x, kept, blocks=2)[-1], module.encode(x, kept)[1])


def test_the_order_of_the_seen_patches_changes_nothing(run: Run):
    module = made(run)
    x, kept = images(), torch.tensor([[4, 1, 3]] * 3)
    a, b = (module.decode(module.encode(x, k)[-1], k)[-1] for k in (kept, kept[:, [2, 0, 1]]))
    assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("normalised", [True, False])
def test_the_loss_is_the_papers(run: Run, normalised: bool):
    module = made(run)
    x, kept = images(), torch.tensor([[4, 1], [0, 2], [5, 3]])
    decoded = module.decode(module.encode(x, kept)[-1], kept)[-1]
    told = module.reconstruct(decoded).detach().double().numpy()
    parts = patchify(x, 2).double().numpy()
    for item in range(3):
        errors: list[float] = []
        for n in set(range(6)) - set(kept[item].tolist()):
            wanted = parts[item, n]
            if normalised:
                wanted = (wanted - wanted.mean()) / numpy.sqrt(wanted.var(ddof=1) + 1e-6)
            errors += ((told[item, n] - wanted) ** 2).tolist()
        found = module.pixel_gap(x, decoded, kept, normalised=normalised)[item]
        assert float(found.detach()) == pytest.approx(sum(errors) / len(errors), rel=1e-4)


def test_flat_patches_and_patches_of_one_pixel_are_finite(run: Run):
    small = replace(SPEC, encoder=replace(SPEC.encoder, patch=1, shape=(1, 2, 2)))
    for spec, shape in ((SPEC, SHAPE), (small, (1, 2, 2))):
        module = made(run, spec)
        x = torch.full((2, *shape), 3.0)
        kept = visible(torch.rand(2, module.patches), 0.75)
        module.pixel_gap(x, module.decode(module.encode(x, kept)[-1], kept)[-1], kept).sum().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())


def test_bfloat16_tells_about_the_same(run: Run):
    module = made(run)
    x, kept = images(), torch.tensor([[4, 1], [0, 2], [5, 3]])

    def loss(module: MaskedAutoencoder) -> torch.Tensor:
        return module.pixel_gap(x, module.decode(module.encode(x, kept)[-1], kept)[-1], kept)

    exact = loss(module)
    rough = loss(module.to(torch.bfloat16))
    assert rough.dtype == torch.float32
    assert torch.allclose(rough, exact, rtol=0.1)


def test_positions_begin_as_waves():
    table = waves((3, 5), 10)
    assert table.shape == (15, 10) and not table[:, 8:].any()
    x, y = 4, 2
    place = table[y * 5 + x]
    expected = [numpy.sin(x), numpy.sin(x / 100), numpy.cos(x), numpy.cos(x / 100)]
    expected += [numpy.sin(y), numpy.sin(y / 100), numpy.cos(y), numpy.cos(y / 100)]
    assert numpy.allclose(place[:8].numpy(), expected, atol=1e-6)
    assert len({tuple(row.tolist()) for row in table}) == 15


def recipe(student: Any = SPEC, **stages: Any) -> Recipe:
    return Recipe(id="x", student=student, data=Digits(), stages=stages)


def kept(run: Run, module: torch.nn.Module) -> None:
    with run.artifact("train", kind="model") as folder:
        SPEC.save(module, folder, run)


@pytest.mark.parametrize("distilled", [False, True])
def test_a_classifier_begins_with_the_encoder(run: Run, distilled: bool):
    run.recipe = recipe()
    module = made(run)
    kept(run, module)
    spec = Pretrained(stage="train", distilled=distilled)
    torch.manual_seed(3)
    classifier: Any = spec.build(run)
    own = module.encoder.state_dict()
    for name, value in classifier.state_dict().items():
        if name.startswith("head"):
            assert name not in own or not torch.equal(value, own[name])
        elif distilled and name in ("position", "extra"):
            old = [0] + list(range(2, value.shape[1])) if name == "position" else [0]
            assert torch.equal(value[:, old], own[name]) and value[:, 1].any()
        else:
            assert torch.equal(value, own[name]), name
    torch.manual_seed(3)
    again = spec.build(run)
    assert all(torch.equal(a, b) for a, b in zip(classifier.parameters(), again.parameters(), strict=True))
    folder = run.folder / "classifier"
    folder.mkdir()
    spec.save(classifier, folder, run)
    x = images()
    assert torch.equal(spec.load(folder, run).eval()(x), classifier.eval()(x))


def test_one_that_nobody_pretrained_begins_as_pretraining_does(run: Run):
    run.recipe = recipe()
    torch.manual_seed(0)
    before = SPEC.build(run).encoder
    torch.manual_seed(0)
    classifier: Any = Pretrained().build(run)
    assert torch.equal(classifier.position, before.position)
    assert torch.equal(classifier.stem.weight, before.stem.weight)


def test_a_classifier_is_what_its_stage_trained_and_not_the_recipes_student(run: Run):
    """Also where that stage continued another."""
    wide = replace(SPEC, encoder=replace(SPEC.encoder, width=16))
    stages = {
        "train": Train(method=MAE(), student=wide, steps=1, batch=1),
        "again": Train(method=MAE(), student=Continued(stage="train", spec=wide), steps=1, batch=1),
        "own": Train(method=MAE(), student=Continued(stage="train"), steps=1, batch=1),
    }
    run.recipe = recipe(**stages)
    for stage, spec in (("train", wide), ("again", wide), ("own", SPEC)):
        with run.artifact(stage, kind="model") as folder:
            spec.save(spec.build(run), folder, run)
        classifier: Any = Pretrained(stage=stage).build(run)
        assert classifier.position.shape[-1] == spec.encoder.width


def test_weights_of_another_run_are_taken(run: Run, tmp_path: Path):
    module = made(run)
    SPEC.save(module, tmp_path, run)
    taken = replace(SPEC, weights=str(tmp_path)).build(run)
    assert all(torch.equal(a, b) for a, b in zip(taken.parameters(), module.parameters(), strict=True))
    with pytest.raises(RunError, match="do not fit"):
        replace(SPEC, width=24, weights=str(tmp_path)).build(run)


def test_what_cannot_be_is_said_in_a_line(run: Run):
    with pytest.raises(ValueError, match="heads divide"):
        Masked(width=10, heads=4)
    with pytest.raises(ValueError, match="Pretrained"):
        Masked(encoder=ViT(distilled=True))
    with pytest.raises(ValueError, match="ratio"):
        MAE(ratio=1.0)
    with pytest.raises(RunError, match="do not fill"):
        replace(SPEC, encoder=replace(SPEC.encoder, patch=4)).build(run)
    run.recipe = recipe(student=ViT())
    with pytest.raises(RunError, match=r"models\.masked\.Masked"):
        Pretrained().build(run)
    with pytest.raises(RunError, match="must be a masked autoencoder"):
        autoencoder(torch.nn.Linear(1, 1), run, "the student")
    one = torch.ones(1, 1, 1)
    run.source = Images(torch.zeros(2, 1, 8, 8), torch.zeros(2).long(), ("a", "b"), 0 * one, one)
    with pytest.raises(RunError, match=r"\[2, 6, 4\], and those"):
        autoencoder(made(run), run, "the student")


def test_pretraining_does_not_depend_on_how_a_batch_is_split(run: Run):
    """And learns: the loss of a batch of digits falls."""
    run.recipe = recipe(Masked(encoder=ViT(patch=2, width=16, depth=1, heads=2), width=16, depth=1))
    run.source = run.sources()["train"]
    torch.manual_seed(0)
    method = MAE()
    state = method.setup(run.recipe.student.build(run), run)
    losses: list[float] = []
    for accumulate in (1, 4):
        run.step = 3
        parts = micro_batches(run.source, step=3, size=12, accumulate=accumulate, seed=0)
        losses.append(sum(float(next(method.step(state, part, run)).loss.detach()) for part in parts))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_pretraining_learns(tmp_path: Path):
    from stillhouse.cli import launch
    from stillhouse.core.optim import Optim

    small = Masked(encoder=ViT(patch=2, width=16, depth=1, heads=2), width=16, depth=1)
    stage = Train(method=MAE(), steps=60, batch=32, optim=Optim(lr=1e-2))
    done = launch.launch(recipe(small, train=stage), folder=tmp_path / "learns", device="cpu")
    told = [line["student/pixels"] for line in done.read("metrics.jsonl")]
    assert sum(told[-5:]) < 0.7 * sum(told[:5])
