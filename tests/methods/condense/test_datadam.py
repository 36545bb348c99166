"""DataDAM's maps and distances against loops, its identities, its gradients in double, and what a step may depend on."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stillhouse.core.run import Run, RunError
from stillhouse.core.stage import execute
from stillhouse.data.augment import Siamese
from stillhouse.methods.condense.datadam import DataDAM, attention, mismatch, recipe
from stillhouse.models.condensed import Pixels
from stillhouse.models.convnet import ConvNetD
from stillhouse.models.toys import MLP

CLASSES, PER_CLASS, REAL, SHAPE = 3, 2, 5, (2, 8, 8)
METHOD = DataDAM(network=ConvNetD(width=4, depth=3), augment=Siamese())


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pixels(images: Tensor, per_class: int = PER_CLASS) -> Pixels:
    labels = torch.arange(len(images) // per_class).repeat_interleave(per_class)
    return Pixels(images.clone(), labels, torch.zeros(2, 1, 1), torch.ones(2, 1, 1))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run", device=torch.device("cpu"))


@pytest.fixture
def batch() -> dict[str, Tensor]:
    return {"inputs": randn(CLASSES, REAL, *SHAPE, seed=1), "labels": torch.arange(CLASSES)}


def update(method: DataDAM, student: Pixels, batch: Any, run: Run) -> Any:
    (made,) = method.step(method.setup(student, run), batch, run)
    return made


@pytest.mark.parametrize("power", [1.0, 2.0, 4.0])
def test_attention_against_a_loop(power: float):
    maps = randn(3, 4, 2, 5)
    found = attention(maps, power)
    for n in range(3):
        seen = [sum(abs(float(maps[n, c, i, j])) ** power for c in range(4)) for i in range(2) for j in range(5)]
        length = math.sqrt(sum(v * v for v in seen))
        assert found[n].tolist() == pytest.approx([v / length for v in seen], rel=1e-12)


# The authors' `utils.get_attention(..., param=1, exp=4, norm="l2")` on sin(0.731 (i + 1)), [2, 3, 2, 2].
GOLDEN = [
    [0.08433218992311231, 0.7401290796938342, 0.6649467074814364, 0.0542485331039224],
    [0.004887829877192561, 0.12410684119674799, 0.8035692167792982, 0.5821083360783987],
]


def test_attention_of_the_authors_code():
    maps = torch.sin(0.731 * (torch.arange(24, dtype=torch.float64) + 1)).reshape(2, 3, 2, 2)
    assert torch.allclose(attention(maps, 4), torch.tensor(GOLDEN, dtype=torch.float64), rtol=1e-12)


def test_attention_has_unit_length_and_no_scale():
    maps = randn(3, 4, 5, 5)
    assert torch.allclose(attention(maps, 4).norm(dim=-1), torch.ones(3, dtype=torch.float64))
    assert torch.allclose(attention(7 * maps, 4), attention(maps, 4))
    assert torch.equal(attention(torch.zeros(1, 2, 3, 3), 4), torch.zeros(1, 9))


def test_mismatch_against_a_loop():
    real, made = randn(6, 4), randn(3 * 4, 4, seed=1)  # three classes: two real rows, four made ones
    expected = 0.0
    for c in range(3):
        for j in range(4):
            a = sum(float(real[2 * c + i, j]) for i in range(2)) / 2
            b = sum(float(made[4 * c + i, j]) for i in range(4)) / 4
            expected += (a - b) ** 2
    assert float(mismatch(real, made, 3)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("power", [1.0, 4.0])
def test_the_whole_loss_against_a_loop(run: Run, batch: Any, power: float):
    """One image and one class at a time, through a network written out again."""
    student = pixels(randn(CLASSES * PER_CLASS, *SHAPE))
    method = replace(METHOD, power=power, augment=Siamese(kinds=()), features=0.5)
    made = update(method, student, batch, run)
    network = method.network.of(SHAPE, CLASSES, run.rng("network")).double()

    def seen(image: Tensor) -> tuple[list[Tensor], Tensor]:
        x, maps = image[None], []
        for convolution, norm in zip(network.convolutions, network.norms, strict=True):
            x = torch.nn.functional.conv2d(x, convolution.weight, convolution.bias, padding=1)
            mean, variance = x.mean((2, 3), keepdim=True), x.var((2, 3), keepdim=True, correction=0)
            x = ((x - mean) / (variance + norm.eps).sqrt()).clamp(min=0)
            z = (x**power).sum(1).flatten()
            maps.append(z / z.norm())
            x = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).mean((3, 5))
        return maps[:-1], x.flatten()

    total = 0.0
    for c in range(CLASSES):
        network.requires_grad_(False)
        a, b = [seen(i) for i in batch["inputs"][c]], [seen(i) for i in student.of(c).detach()]
        for level in range(2):
            gap = sum(m[level] for m, _ in a) / len(a) - sum(m[level] for m, _ in b) / len(b)  # type: ignore[operator]
            total += float(gap.square().sum())
        gap = sum(e for _, e in a) / len(a) - sum(e for _, e in b) / len(b)  # type: ignore[operator]
        total += 0.5 * float(gap.square().sum())
    assert float(made.loss.detach() / made.count) == pytest.approx(100 * total, rel=1e-6)


@pytest.mark.parametrize("per_class", [1, 2])
def test_real_images_as_the_student_leave_nothing_to_learn(run: Run, per_class: int):
    images = randn(CLASSES * per_class, *SHAPE)
    student = pixels(images, per_class)
    batch = {"inputs": images.unflatten(0, (CLASSES, per_class)), "labels": torch.arange(CLASSES)}
    made = update(METHOD, student, batch, run)
    made.loss.backward()
    assert float(made.loss.detach()) == pytest.approx(0, abs=1e-20)
    assert float(student.images.grad.abs().max()) < 1e-10  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["colour", "scale"])
def test_gradients_in_double(run: Run, batch: Any, kind: str):
    method = replace(METHOD, network=ConvNetD(width=3, depth=2), augment=Siamese(kinds=(kind,)), features=1.0)

    def loss(images: Tensor) -> Tensor:
        student = pixels(images.detach())
        del student._parameters["images"]
        student.images = images  # type: ignore[assignment]
        return update(method, student, batch, run).loss

    start = randn(CLASSES, *SHAPE)

    def one(images: Tensor) -> Tensor:
        student = pixels(images.detach(), 1)
        del student._parameters["images"]
        student.images = images  # type: ignore[assignment]
        return update(method, student, batch, run).loss

    assert torch.autograd.gradcheck(one, (start.requires_grad_(),), fast_mode=True)
    assert torch.autograd.gradcheck(loss, (randn(CLASSES * 2, *SHAPE).requires_grad_(),), fast_mode=True)


def test_classes_are_items(run: Run, batch: Any):
    """Each class alone gives the same pixels the same gradient, so a batch may be split."""
    whole, split = (pixels(randn(CLASSES * PER_CLASS, *SHAPE)) for _ in range(2))
    made = update(METHOD, whole, batch, run)
    made.loss.backward()
    loss = 0.0
    for c in (2, 0, 1):
        part = update(METHOD, split, {"inputs": batch["inputs"][c : c + 1], "labels": torch.tensor([c])}, run)
        part.loss.backward()
        loss += float(part.loss.detach())
    assert loss == pytest.approx(float(made.loss.detach()), rel=1e-12)
    assert torch.allclose(whole.images.grad, split.images.grad, rtol=1e-10, atol=1e-14)  # type: ignore[arg-type]


def test_another_step_has_another_network(run: Run, batch: Any):
    student = pixels(randn(CLASSES * PER_CLASS, *SHAPE))
    first, again = (float(update(METHOD, student, batch, run).loss.detach()) for _ in range(2))
    run.step = 1
    assert first == again != float(update(METHOD, student, batch, run).loss.detach())


def test_a_network_of_one_block_matches_features_alone(run: Run, batch: Any):
    made = update(
        replace(METHOD, network=ConvNetD(width=4, depth=1)), pixels(randn(CLASSES * PER_CLASS, *SHAPE)), batch, run
    )
    assert float(made.logs["attention"]) == 0 < float(made.logs["features"].detach())


def test_only_pixels_are_learned(run: Run):
    state = METHOD.setup(pixels(randn(CLASSES * PER_CLASS, *SHAPE)), run)
    assert list(state.groups()) == ["student"]
    assert [name for name, _ in state.student.named_parameters()] == ["images"]


def test_the_loss_is_the_papers_sum_whatever_the_number_of_classes(run: Run, batch: Any):
    """loss / count is what the authors minimise, so their learning rate is ours."""
    student = pixels(randn(CLASSES * PER_CLASS, *SHAPE))
    made = update(METHOD, student, batch, run)
    paper = 100 * (made.logs["attention"] + 0.01 * made.logs["features"])
    assert float(made.loss.detach() / made.count) == pytest.approx(float(paper.detach()), rel=1e-12)


def test_what_it_cannot_learn(run: Run, tmp_path: Path):
    with pytest.raises(RunError, match="datadam learns a models.condensed.Condensed, not a Perceptron"):
        METHOD.setup(MLP(inputs=4, classes=2).build(run), run)
    with pytest.raises(ValueError, match="power must be above 0, not 0"):
        DataDAM(power=0)
    with pytest.raises(RunError, match="a step takes 11 classes, but the data have 10: --set train.batch=10"):
        execute(recipe("smoke").set("train.batch", 11), Run(tmp_path / "eleven", device=torch.device("cpu")))


def test_fewer_classes_a_step_than_there_are(tmp_path: Path):
    made = recipe("smoke").set("train.batch", 4).set("train.steps", 5)
    run = Run(tmp_path / "four", device=torch.device("cpu"))
    execute(replace(made, stages={"train": made.stages["train"]}), run)
    start, moved = made.student.build(run), made.student.load(run.path("train"), run)
    apart = (start.images - moved.images).abs().amax((1, 2, 3))
    assert bool((apart > 0).all())  # 5 steps of 4 classes see every class twice
