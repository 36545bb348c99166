"""Images: splits that stay, labels that are taken away, changes that are drawn per image, and files that are broken."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from stillhouse.core.run import Run, RunError
from stillhouse.data import pictures
from stillhouse.data.images import (
    UNKNOWN,
    Augment,
    Digits,
    Folder,
    LongTail,
    Noisy,
    Npz,
    Split,
    Standard,
    Table,
    find,
)

SHELF = Path(__file__).parents[3] / "shared" / "data"


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
    with pytest.raises(RunError, match="the test labels have a class that the training labels have not: 9"):
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
def test_a_broken_image_among_many_is_left_out_and_named(run: Run, tmp_path: Path, content: bytes | None):
    spec = folder(tmp_path / "pets")
    broken = tmp_path / "pets" / "dog" / "4.jpg"
    broken.write_bytes(broken.read_bytes()[:200] if content is None else content)
    splits = spec.load(run)
    assert sum(map(len, splits.values())) == 19
    (lost,) = run.read("rejects.jsonl")
    assert lost["row"]["path"].endswith("dog/4.jpg") and lost["why"].startswith("an image that cannot be read: ")
    assert "1 of the 20 images" in run.read("events.jsonl")[0]["text"]
    spec.load(run)
    assert len(run.read("rejects.jsonl")) == 1  # once, however often the data are read
    (tmp_path / "pets" / "dog" / "5.png").write_bytes(b"")
    with pytest.raises(RunError, match=r"2 of the 20 images of .*pets cannot be read; .* \(first .*dog/4\.jpg: ") as caught:
        spec.load(run)
    assert "\n" not in str(caught.value)


def test_pictures_of_every_kind(run: Run, tmp_path: Path):
    """Palettes, transparency, 16 bits, grey, one bit, CMYK, held sideways: each as a person would see it."""
    pillow = pytest.importorskip("PIL.Image")

    def seen(picture: Any, ending: str = "png", colour: bool = True, **more: Any) -> torch.Tensor:
        path = tmp_path / f"one.{ending}"
        picture.save(path, **more)
        return pictures.picture(path, 2, colour)

    red = pillow.new("RGB", (2, 2), (200, 0, 0))
    assert seen(red).flatten(1).amax(1).tolist() == seen(red.quantize()).flatten(1).amax(1).tolist() == [200, 0, 0]
    assert seen(pillow.new("RGBA", (2, 2), (200, 0, 0, 0))).unique().tolist() == [255]  # transparent: white
    assert seen(pillow.new("LA", (2, 2), (90, 255)), colour=False).unique().tolist() == [90]
    assert seen(red.quantize(), transparency=red.quantize().getpixel((0, 0))).unique().tolist() == [255]
    deep = pillow.fromarray(numpy.array([[0, 65535], [32896, 257]], dtype="uint16"))
    assert seen(deep, colour=False).flatten().tolist() == [0, 255, 128, 1]
    assert seen(pillow.new("L", (2, 2), 77)).unique().tolist() == [77]  # grey in a colour folder
    assert seen(pillow.new("1", (2, 2), 1)).unique().tolist() == [255]
    assert seen(red.convert("CMYK"), "jpg").shape == (3, 2, 2)
    half = pillow.new("L", (16, 16), 0)
    half.paste(255, (0, 0, 16, 8))  # bright above
    assert seen(half, "jpg", False, exif=bytes.fromhex(TURNED)).flatten().tolist() == pytest.approx([0, 255, 0, 255], abs=40)


TURNED = "457869660000" + "4d4d002a00000008" + "0001" + "0112000300000001" + "00060000" + "00000000"  # 90 degrees


def rows(file: Path, /, **columns: list[Any]) -> str:
    """A table."""
    names = list(columns)
    lines = [",".join(str(cell) for cell in cells) for cells in zip(*columns.values(), strict=True)]
    file.write_text("\n".join([",".join(names), *lines]) + "\n")
    return str(file)


def test_a_table_of_images(run: Run, tmp_path: Path):
    folder(tmp_path / "pets")
    files = sorted(p.relative_to(tmp_path).as_posix() for p in (tmp_path / "pets").rglob("*.*"))
    labels = [Path(file).parts[1] for file in files]
    path = rows(tmp_path / "t.csv", path=files, label=labels)
    splits = Table(path=path, size=8).load(run)
    assert splits["train"].names == ("cat", "dog") and {n: len(s) for n, s in splits.items()} == {
        "train": 12,
        "valid": 4,
        "test": 4,
    }
    lines = [json.dumps({"file": file, "breed": label}) for file, label in zip(files, labels, strict=True)]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    again = Table(path=str(tmp_path / "t.jsonl"), image="file", label="breed", size=8).load(run)
    assert all(torch.equal(again[name].images, splits[name].images) for name in splits)
    assert run.read("rejects.jsonl") == []


def test_tables_with_faults(run: Run, tmp_path: Path):
    folder(tmp_path / "pets", n=12)
    files = sorted(p.relative_to(tmp_path).as_posix() for p in (tmp_path / "pets").rglob("*.*"))
    labels = [Path(file).parts[1] for file in files]
    path = rows(tmp_path / "t.csv", path=[*files, "", "gone.png"], label=[*labels, "cat", "cat"])
    assert sum(map(len, Table(path=path, size=8).load(run).values())) == 24
    assert [line["why"].split(":")[0] for line in run.read("rejects.jsonl")] == [
        "nothing in column 'path'", "an image that cannot be read"
    ]  # fmt: skip
    unlabelled = Table(path=rows(tmp_path / "u.csv", path=files, label=["", *labels[1:]]), size=8).load(run)
    assert unlabelled["train"].labels.tolist().count(UNKNOWN) == 1
    with pytest.raises(
        RunError, match=r"no row of .*t.csv has a picture in 'path' and a label in 'klass'; the columns are path, label"
    ):
        Table(path=path, label="klass").load(run)
    twice = rows(tmp_path / "v.csv", path=[files[0], files[0]], label=["cat", "dog"])
    with pytest.raises(RunError, match="has two labels, 'cat' and 'dog'"):
        Table(path=twice).load(run)


@pytest.mark.parametrize("value", [numpy.nan, numpy.inf])
def test_pixels_that_are_no_numbers(run: Run, tmp_path: Path, value: float):
    images = numpy.ones((40, 4, 4), "float32")
    images[17, 1, 2] = value
    numpy.savez(tmp_path / "a.npz", images=images, labels=numpy.arange(40) % 2)
    splits = Npz(path=str(tmp_path / "a.npz")).load(run)
    assert sum(map(len, splits.values())) == 39 and bool(torch.cat([s.images for s in splits.values()]).isfinite().all())
    assert run.read("rejects.jsonl")[0]["row"] == {"image": 17}
    images[:10] = value
    numpy.savez(tmp_path / "a.npz", images=images, labels=numpy.arange(40) % 2)
    with pytest.raises(
        RunError, match=r"11 of the 40 images of .* have pixels that are not finite.*\(first 0: NaN or infinite\)"
    ):
        Npz(path=str(tmp_path / "a.npz")).load(run)


def test_labels_as_people_write_them(run: Run, tmp_path: Path):
    """Negative is not known, names are names, a column is a list; numbers need not begin at 0."""

    def train(labels: Any) -> Any:
        numpy.savez(tmp_path / "a.npz", images=numpy.zeros((20, 4, 4), "uint8"), labels=labels)
        return Npz(path=str(tmp_path / "a.npz")).load(run)["train"]

    some = numpy.where(numpy.arange(20) < 5, -1, numpy.arange(20) % 2 * 7)
    assert train(some).names == ("0", "7") and train(some).labels.tolist().count(UNKNOWN) == 5
    assert train(numpy.array(["b", "a"] * 10)).names == ("a", "b")
    assert len(train(numpy.arange(20)[:, None] % 2)) == 12
    numpy.savez(tmp_path / "a.npz", images=numpy.zeros((20, 4, 4), "uint8"), labels=some)
    assert bool((Npz(path=str(tmp_path / "a.npz"), split=Split(unlabelled=False)).load(run)["train"].labels >= 0).all())


def test_a_test_split_of_another_shape_or_with_fewer_classes(run: Run, tmp_path: Path):
    path = npz(tmp_path / "a.npz", test_images=numpy.zeros((1, 6, 5, 3)), test_labels=numpy.array([1]))
    with pytest.raises(RunError, match=r"`test_images` are \[3, 6, 5\] and `images` \[1, 6, 5\]; make them alike"):
        Npz(path=path).load(run)
    path = npz(tmp_path / "b.npz", test_images=numpy.zeros((1, 6, 5)), test_labels=numpy.array([1]))
    assert len(Npz(path=path).load(run)["test"]) == 1
    assert run.read("events.jsonl")[0]["text"] == "the test split has no image of class 0, 2, 3"


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float16", "float64", ">f4"])
def test_images_of_any_type_stay_what_they_are_until_a_batch(run: Run, tmp_path: Path, dtype: str):
    path = npz(tmp_path / "a.npz")
    as_bytes = Npz(path=path).load(run)["train"].batch(range(24), 0)["inputs"]
    arrays = dict(numpy.load(path))
    numpy.savez(path, images=arrays["images"].astype(dtype), labels=arrays["labels"])
    train = Npz(path=path).load(run)["train"]
    assert train.images.element_size() == numpy.dtype(dtype).itemsize * (2 if dtype == "uint16" else 1)
    inputs = train.batch(range(24), 0)["inputs"]
    assert inputs.dtype == torch.float32
    torch.testing.assert_close(inputs, as_bytes, atol=2e-3, rtol=0)
    changed = Npz(path=path, augment=Augment(operations=1, shift=1)).load(run)["train"].batch(range(24), 0)["inputs"]
    dark, bright = ((level - train.mean) / train.deviation for level in train.light)
    assert bool((changed >= dark - 1e-4).all() and (changed <= bright + 1e-4).all()) and not changed.equal(inputs)


def test_more_than_the_memory_holds(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    spec, path = folder(tmp_path / "pets"), npz(tmp_path / "a.npz")
    monkeypatch.setattr(pictures.os, "sysconf", lambda name: 40)  # 40 pages of 40 bytes
    with pytest.raises(
        RunError, match=r"the images of .*pets take 0.0 GB of memory to divide.*lower data.size or give fewer images"
    ):
        spec.load(run)
    with pytest.raises(RunError, match=r"a.npz take .*this machine has 0.0 GB: give fewer or smaller images"):
        Npz(path=path).load(run)


def test_a_long_tail(run: Run, tmp_path: Path):
    """n_k = n_max factor^(-k / (K - 1)): 48, 48 / 10^(1/3), 48 / 10^(2/3), 48 / 10."""
    path = npz(tmp_path / "a.npz", n=320)
    whole, tail = (Npz(path=path, split=Split(tail=t)).load(run) for t in (None, LongTail(factor=10.0)))
    assert whole["train"].labels.bincount().tolist() == [48] * 4
    assert tail["train"].labels.bincount().tolist() == [48, 22, 10, 4]
    assert all(torch.equal(tail[name].images, whole[name].images) for name in ("valid", "test"))
    assert torch.equal(tail["train"].mean, whole["train"].mean)
    assert LongTail(factor=1e9).kept(torch.arange(12) % 3, 3, 0).sum() == 4 + 1 + 1
    run.seed = 1
    assert not torch.equal(
        Npz(path=path, split=Split(tail=LongTail(factor=10.0))).load(run)["train"].images, tail["train"].images
    )


def test_wrong_labels(run: Run, tmp_path: Path):
    path = npz(tmp_path / "a.npz", n=400)

    def train(noise: Noisy | None) -> Any:
        return Npz(path=path, split=Split(noise=noise)).load(run)["train"]

    clean, pair, any_other = train(None), train(Noisy(share=0.25, kind="pair")), train(Noisy(share=0.5))
    assert torch.equal(clean.truth, clean.labels) and torch.equal(pair.truth, clean.labels)
    wrong = pair.labels != pair.truth
    assert int(wrong.sum()) == 60 and torch.equal(pair.labels[wrong], (pair.truth[wrong] + 1) % 4)
    wrong = any_other.labels != any_other.truth
    assert int(wrong.sum()) == 120 and set(((any_other.labels - any_other.truth)[wrong] % 4).tolist()) == {1, 2, 3}
    assert torch.equal(train(Noisy(share=0.5)).labels, any_other.labels)
    run.seed = 1
    assert not torch.equal(train(Noisy(share=0.5)).labels, any_other.labels)
    few = Npz(path=path, split=Split(noise=Noisy(share=1.0), labels=2)).load(run)
    assert int((few["train"].labels >= 0).sum()) == 8 and bool((few["train"].labels != few["train"].truth).all())
    assert torch.equal(few["test"].labels, Npz(path=path).load(run)["test"].labels)


# -- standard sets -------------------------------------------------------------------------------------------------


def jpegs(path: Path, n: int = 60) -> None:
    """JPEG files one after the other: class c has brightness about 60 c; every third image is for testing."""
    pillow = pytest.importorskip("PIL.Image")
    files: list[bytes] = []
    for i in range(n):
        noise = numpy.random.default_rng(i).integers(0, 20, (8, 8, 3))
        buffer = io.BytesIO()
        pillow.fromarray((60 * (i % 4) + noise).astype("uint8")).save(buffer, "JPEG", quality=95)
        files.append(buffer.getvalue())
    path.parent.mkdir(parents=True)
    numpy.savez(
        path, blob=numpy.frombuffer(b"".join(files), "uint8"), offs=numpy.cumsum([0, *map(len, files)]),
        y=numpy.arange(n) % 4, split=(numpy.arange(n) % 3 == 0).astype("uint8"), classes=numpy.array(["a", "b", "c", "d"]),
    )  # fmt: skip


def test_a_standard_set_is_found_by_its_name(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("STILLHOUSE_DATA", str(tmp_path / "shelf"))
    jpegs(tmp_path / "shelf" / "tiny" / "tiny_jpeg.npz")
    splits = Standard(name="tiny", train=16, valid=8).load(run)
    assert {name: len(source) for name, source in splits.items()} == {"train": 16, "valid": 8, "test": 20}
    assert splits["train"].names == ("a", "b", "c", "d") and splits["train"].images.dtype == torch.uint8
    for source in splits.values():
        assert torch.equal(((source.images.float().mean((1, 2, 3)) - 10) / 60).round().long(), source.labels)
    assert splits["train"].labels.bincount().tolist() == [4] * 4 and splits["valid"].labels.bincount().tolist() == [2] * 4
    run.seed = 3
    again = Standard(name="tiny", train=20, valid=8, test=4).load(run)
    assert torch.equal(again["valid"].images, splits["valid"].images) and len(again["test"]) == 4
    held = {image.numpy().tobytes() for image in again["train"].images}
    assert {image.numpy().tobytes() for image in splits["train"].images} < held  # more images are more of the same
    assert not held & {image.numpy().tobytes() for image in again["valid"].images}
    assert len(Standard(name="tiny", train=None, valid=8).load(run)["train"]) == 32
    with pytest.raises(RunError, match="too few images of class a for 44 images that are spread evenly over 4 classes"):
        Standard(name="tiny", train=44, valid=8).load(run)
    assert len(Npz(path=str(tmp_path / "shelf" / "tiny" / "tiny_jpeg.npz")).load(run)["test"]) == 20


def test_a_standard_set_that_is_not_there(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STILLHOUSE_DATA", raising=False)
    spec = Standard(name="mnist", split=Split(labels=4), augment=Augment(shift=1), otherwise=Digits())
    splits = spec.load(run)
    assert splits["train"].shape == (1, 8, 8) and int((splits["train"].labels >= 0).sum()) == 40
    assert splits["train"].augment == Augment(shift=1) and len(splits["test"]) == 539
    assert run.read("events.jsonl")[0]["text"] == "the data are Digits, because mnist was not found in data"
    with pytest.raises(RunError, match=r"no mnist in data; set \$STILLHOUSE_DATA to the folder of mnist/mnist.npz"):
        Standard(name="mnist").load(run)
    (tmp_path / "data").mkdir()
    npz(tmp_path / "data" / "mnist.npz")
    with pytest.raises(RunError, match="brings no test split; a standard set has one"):
        spec.load(run)
    with pytest.raises(ValueError, match="otherwise takes data of images"):
        Standard(otherwise=Split())
    with pytest.raises(ValueError, match="numbers of images, 0 or more"):
        Standard(valid=-1)


@pytest.mark.parametrize(("name", "shape"), [("mnist", (1, 28, 28)), ("cifar10", (3, 32, 32))])
def test_the_real_ones(run: Run, monkeypatch: pytest.MonkeyPatch, name: str, shape: tuple[int, ...]):
    monkeypatch.setenv("STILLHOUSE_DATA", str(SHELF))
    if find(name) is None:
        pytest.skip(f"no {name} in shared/data")
    splits = Standard(name=name, train=200, valid=100, test=100).load(run)
    assert splits["train"].shape == shape and splits["train"].labels.bincount().tolist() == [20] * 10
    assert {n: len(source) for n, source in splits.items()} == {"train": 200, "valid": 100, "test": 100}
    assert float(splits["test"].batch(range(100), 0)["inputs"].mean().abs()) < 0.2


def test_missing_packages_say_how_to_get_them(run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(RunError, match=r"needs scikit-learn: pip install 'stillhouse\[vision\]'"):
        Digits().load(run)
