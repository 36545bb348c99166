"""Images: splits that stay, labels that are taken away, changes that are drawn per image, and files that are broken."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from stillhouse.core.run import Run, RunError
from stillhouse.data.images import UNKNOWN, Augment, Digits, Folder, Npz, Split


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run", device=torch.device("cpu"))


def npz(path: Path, n: int = 40, classes: int = 4, shape: tuple[int, ...] = (6, 5), **more: Any) -> str:
    """Images that say which class they are: class c has brightness about 10 c."""
    labels = numpy.arange(n) % classes
    noise = numpy.random.default_rng(0).integers(0, 5, (n, *shape))
    images = (10 * labels.reshape(-1, *[1] * len(shape)) + noise).astype("uint8")
    numpy.savez(path, **{"images": images, "labels": labels, **more})
    return str(path)


def test_digits(run: Run):
    pytest.importorskip("sklearn")
    splits = Digits().load(run)
    assert {name: len(source) for name, source in splits.items()} == {"train": 899, "valid": 359, "test": 539}
    train = splits["train"]
    assert (train.shape, train.classes, train.names[3]) == ((1, 8, 8), 10, "3")
    batch = train.batch(range(len(train)), 0)
    assert batch["inputs"].dtype == torch.float32 and batch["labels"].bincount().min() > 80
    assert batch["inputs"].mean().abs() < 1e-5 and batch["inputs"].std() == pytest.approx(1, abs=1e-3)


def test_splits_stay_and_do_not_overlap(run: Run, tmp_path: Path):
    path = npz(tmp_path / "a.npz", shape=(30, 30))
    first = Npz(path=path).load(run)
    run.seed = 5
    second = Npz(path=path).load(run)
    seen: set[bytes] = set()
    for name, source in first.items():
        assert torch.equal(source.images, second[name].images)
        content = {image.numpy().tobytes() for image in source.images}
        assert len(content) == len(source) and not content & seen
        seen |= content
    assert len(seen) == 40
    assert first["valid"].labels.bincount().tolist() == first["test"].labels.bincount().tolist() == [2, 2, 2, 2]


def test_few_labels_depend_on_the_seed(run: Run, tmp_path: Path):
    path = npz(tmp_path / "a.npz")

    def known(seed: int, unlabelled: bool = True) -> torch.Tensor:
        run.seed = seed
        return Npz(path=path, split=Split(labels=2, unlabelled=unlabelled)).load(run)["train"].labels

    assert known(0)[known(0) >= 0].bincount().tolist() == [2, 2, 2, 2]
    assert torch.equal(known(0), known(0)) and not torch.equal(known(0) >= 0, known(1) >= 0)
    assert len(known(0)) == 24 and (known(0) == UNKNOWN).sum() == 16
    assert torch.equal(known(0, unlabelled=False), known(0)[known(0) >= 0])


def test_taking_labels_away_changes_no_pixel(run: Run, tmp_path: Path):
    path = npz(tmp_path / "a.npz")
    every, few = (Npz(path=path, split=Split(labels=k)).load(run) for k in (None, 1))
    items = range(len(every["train"]))
    assert torch.equal(every["train"].batch(items, 0)["inputs"], few["train"].batch(items, 0)["inputs"])
    assert bool((few["test"].labels >= 0).all())


def test_changes_depend_on_image_and_epoch_alone(run: Run, tmp_path: Path):
    path = npz(tmp_path / "a.npz", shape=(9, 9, 3))
    train = Npz(path=path, augment=Augment(shift=2, flip=True)).load(run)["train"]
    whole = train.batch([3, 1, 4, 5], 0)["inputs"]
    parts = torch.cat([train.batch([3], 0)["inputs"], train.batch([1, 4, 5], 0)["inputs"]])
    assert torch.equal(whole, parts)
    assert not torch.equal(whole, train.batch([3, 1, 4, 5], 1)["inputs"])
    assert train.augment is not None and Npz(path=path, augment=Augment(shift=2)).load(run)["test"].augment is None


def test_a_shift_is_a_shift_and_a_flip_a_flip():
    image = torch.arange(25.0).reshape(1, 1, 5, 5)
    seen = {tuple(Augment(shift=1)(image, [0], epoch, 0).flatten().tolist()) for epoch in range(100)}
    padded = torch.nn.functional.pad(image, (1, 1, 1, 1), mode="replicate")
    expected = {tuple(padded[0, 0, r : r + 5, c : c + 5].flatten().tolist()) for r in range(3) for c in range(3)}
    assert seen == expected
    flips = {tuple(Augment(flip=True)(image, [0], epoch, 0).flatten().tolist()) for epoch in range(20)}
    assert flips == {tuple(image.flatten().tolist()), tuple(image.flip(-1).flatten().tolist())}


def test_arrays_in_keras_fashion(run: Run, tmp_path: Path):
    values = numpy.zeros((12, 4, 4, 3), "float32")
    labels = numpy.array([3, 7] * 6)
    numpy.savez(tmp_path / "k.npz", x_train=values, y_train=labels, x_test=values[:4], y_test=labels[:4])
    splits = Npz(path=str(tmp_path / "k.npz")).load(run)
    assert {name: len(source) for name, source in splits.items()} == {"train": 10, "valid": 2, "test": 4}
    assert splits["test"].names == ("3", "7") and splits["test"].labels.tolist() == [0, 1, 0, 1]
    assert splits["train"].shape == (3, 4, 4)
    assert bool(splits["train"].batch([0], 0)["inputs"].isfinite().all())  # although nothing varies


@pytest.mark.parametrize(("arrays", "message"), [
    ({"pictures": numpy.zeros(3)}, "holds pictures; it needs the arrays `images` and `labels`"),
    ({"images": numpy.zeros((4, 3)), "labels": numpy.zeros(4, int)}, r"`images` is float64 \[4, 3\]"),
    ({"images": numpy.zeros((4, 3, 3)), "labels": numpy.zeros(3, int)}, "one whole number for each of the 4 images"),
    ({"images": numpy.zeros((4, 3, 3)), "labels": numpy.zeros(4)}, "`labels` is float64"),
    ({"images": numpy.zeros((9, 3, 3)), "labels": numpy.ones(9, int)}, "has only the class 1; to classify takes two"),
    ({"images": numpy.zeros((5, 3, 3)), "labels": numpy.array([0, 0, 0, 0, 1])}, r"too few images of class 1 \(1\)"),
])  # fmt: skip
def test_arrays_that_do_not_fit(run: Run, tmp_path: Path, arrays: Any, message: str):
    numpy.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(RunError, match=message):
        Npz(path=str(tmp_path / "a.npz")).load(run)


def test_a_test_class_that_was_never_trained(run: Run, tmp_path: Path):
    path = npz(tmp_path / "a.npz", test_images=numpy.zeros((1, 6, 5)), test_labels=numpy.array([9]))
    with pytest.raises(RunError, match="`test_labels` has a class that `labels` has not"):
        Npz(path=path).load(run)


@pytest.mark.parametrize("damage", ["gone", "text", "short", "pickle"])
def test_files_that_are_no_arrays(run: Run, tmp_path: Path, damage: str):
    path = tmp_path / "a.npz"
    if damage == "text":
        path.write_text("no arrays")
    elif damage == "short":
        npz(path)
        path.write_bytes(path.read_bytes()[:300])
    elif damage == "pickle":
        numpy.savez(path, images=numpy.array([{}], dtype=object), labels=numpy.zeros(1, int))
    with pytest.raises(RunError, match="no file" if damage == "gone" else "cannot read .* as an NPZ file") as caught:
        Npz(path=str(path)).load(run)
    assert "\n" not in str(caught.value)


def folder(root: Path, classes: tuple[str, ...] = ("cat", "dog"), n: int = 10) -> Folder:
    pillow = pytest.importorskip("PIL.Image")
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(n):
            picture = pillow.new("RGB", (7 + i, 9), (80 * number, 10 * i, 0))
            picture.save(root / name / f"{i}.{'png' if i % 2 else 'jpg'}")
    return Folder(path=str(root), size=8)


def test_a_folder_of_images(run: Run, tmp_path: Path):
    splits = folder(tmp_path / "pets").load(run)
    assert splits["train"].names == ("cat", "dog") and splits["train"].shape == (3, 8, 8)
    assert {name: len(source) for name, source in splits.items()} == {"train": 12, "valid": 4, "test": 4}
    grey = Folder(path=str(tmp_path / "pets"), size=8, colour=False).load(run)
    assert grey["test"].shape == (1, 8, 8)


def test_an_image_stays_in_its_split_when_others_come(run: Run, tmp_path: Path):
    spec = folder(tmp_path / "pets", n=20)
    before = {image.numpy().tobytes() for image in spec.load(run)["test"].images}
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name / "19.png").unlink()
    after = {image.numpy().tobytes() for image in spec.load(run)["test"].images}
    assert len(before & after) >= len(after) - 2


def test_folders_without_images(run: Run, tmp_path: Path):
    with pytest.raises(RunError, match="no folder"):
        Folder(path=str(tmp_path / "gone")).load(run)
    (tmp_path / "empty" / "cat").mkdir(parents=True)
    (tmp_path / "empty" / "cat" / "notes.txt").write_text("none yet")
    with pytest.raises(RunError, match="no images in the subfolders of .*; put those of each class into a folder"):
        Folder(path=str(tmp_path / "empty")).load(run)


def test_one_class_is_none(run: Run, tmp_path: Path):
    with pytest.raises(RunError, match="has only the class cat; to classify takes two or more"):
        folder(tmp_path / "pets", ("cat",)).load(run)


@pytest.mark.parametrize("content", [b"", b"no picture", None])
def test_a_broken_image_is_named(run: Run, tmp_path: Path, content: bytes | None):
    spec = folder(tmp_path / "pets")
    broken = tmp_path / "pets" / "dog" / "4.jpg"
    broken.write_bytes(broken.read_bytes()[:200] if content is None else content)
    with pytest.raises(RunError, match=r"cannot read the image .*dog/4\.jpg; remove it or replace it") as caught:
        spec.load(run)
    assert "\n" not in str(caught.value)


def test_missing_packages_say_how_to_get_them(run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(RunError, match=r"needs scikit-learn: pip install 'stillhouse\[vision\]'"):
        Digits().load(run)
