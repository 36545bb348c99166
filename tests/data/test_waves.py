"""Chords, NPZ files and WAV folders: what a batch holds, who is held out, and what is refused."""

from __future__ import annotations

import math
import wave
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from stillhouse.core.run import Run, RunError
from stillhouse.data.waves import TRIADS, Chords, Folder, Held, Npz, Signals, read_wav

RAW = Held(standardised=False)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run", device=torch.device("cpu"))


def write_wav(path: Path, samples: Any, *, width: int = 2, rate: int = 8000) -> Path:
    """Samples [T] or [T, channels] from -1 to 1 as PCM."""
    found = numpy.atleast_2d(numpy.asarray(samples, dtype="float64").T).T
    whole = (
        numpy.round(found * 2.0 ** (8 * width - 1)).clip(-(2 ** (8 * width - 1)), 2 ** (8 * width - 1) - 1).astype("int64")
    )
    whole = whole + 128 if width == 1 else whole
    data = b"".join(int(v).to_bytes(width, "little", signed=width > 1) for v in whole.reshape(-1))
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(found.shape[1])
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(data)
    return path


# -- chords ------------------------------------------------------------------------------------------------------------


def test_chords_are_the_same_for_every_seed_and_standardised(run: Run):
    spec = Chords(train=160, valid=16, test=24)
    splits = spec.load(run)
    again = spec.load(Run(run.folder, seed=7))
    assert [len(splits[n]) for n in ("train", "valid", "test")] == [160, 16, 24]
    assert torch.equal(splits["train"].signals, again["train"].signals)
    batch = splits["train"].batch(range(160), 0)
    assert batch["inputs"].shape == (160, 1, 256) and batch["inputs"].dtype == torch.float32
    assert abs(float(batch["inputs"].mean())) < 1e-4 and float(batch["inputs"].std()) == pytest.approx(1.0, abs=1e-3)
    assert splits["valid"].deviation == splits["train"].deviation
    assert batch["labels"].bincount().tolist() == [20] * 8 and batch["items"].tolist() == list(range(160))


def test_the_notes_of_a_chord_are_in_its_spectrum(run: Run):
    train = Chords(train=80, length=4096, tone=0.0, noise=0.0).load(run)["train"]
    power = torch.fft.rfft(train.signals * torch.hann_window(4096)).abs().square()
    for item in range(80):
        row = power[item]
        peaks = ((row[1:-1] > row[:-2]) & (row[1:-1] > row[2:]) & (row[1:-1] > 0.05 * row.max())).nonzero().flatten() + 1
        heard = {round(12 * math.log2(float(peak) / 4096 / 0.1)) % 12 for peak in peaks}
        assert heard == {note % 12 for note in TRIADS[int(train.labels[item])]}


def test_how_many_chords():
    with pytest.raises(ValueError, match="from 2 to 8, not 9"):
        Chords(classes=9)


# -- NPZ ---------------------------------------------------------------------------------------------------------------


def saved(path: Path, **arrays: Any) -> str:
    numpy.savez(path, **arrays)
    return str(path)


def test_npz_splits_by_class_and_keeps_its_numbers(run: Run, tmp_path: Path):
    signals = numpy.random.default_rng(0).integers(-100, 100, (40, 20)).astype("int16")
    labels = numpy.array([7, 3] * 18 + [-1] * 4)
    path = saved(tmp_path / "mine.npz", signals=signals, labels=labels)
    splits = Npz(path=path, held=RAW).load(run)
    assert splits["train"].names == ("3", "7") and splits["train"].shape == (1, 20)
    rows = {tuple(row): label for row, label in zip(signals.tolist(), labels.tolist(), strict=True)}
    seen: list[tuple[int, ...]] = []
    for split in splits.values():
        batch = split.batch(range(len(split)), 0)
        for x, y in zip(batch["inputs"][:, 0].int().tolist(), batch["labels"].tolist(), strict=True):
            assert rows[tuple(x)] == (-1 if y < 0 else int(split.names[y]))
            seen.append(tuple(x))
    assert sorted(seen) == sorted(rows)
    assert (splits["train"].labels < 0).sum() == 4 and all((splits[n].labels >= 0).all() for n in ("valid", "test"))
    assert splits["test"].labels.bincount().tolist() == [3, 3]


def test_a_signal_stays_where_it_is_when_others_come(run: Run, tmp_path: Path):
    signals = numpy.random.default_rng(1).normal(size=(60, 8))
    few = Npz(path=saved(tmp_path / "a.npz", signals=signals[:50]), held=RAW).load(run)
    many = Npz(path=saved(tmp_path / "b.npz", signals=signals[::-1].copy()), held=RAW).load(run)
    kept = {tuple(row) for row in many["test"].signals.tolist()} & {tuple(row) for row in few["test"].signals.tolist()}
    assert len(kept) >= 6 and "labels" not in few["train"].batch([0], 0) and few["train"].classes == 0


def test_names_as_labels(run: Run, tmp_path: Path):
    path = saved(tmp_path / "n.npz", signals=numpy.eye(12), labels=numpy.array(["b", "a"] * 6))
    assert Npz(path=path).load(run)["train"].names == ("a", "b")


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"x": numpy.zeros((9, 4))}, "holds x; it needs an array `signals`"),
        ({"signals": numpy.zeros((9, 4, 2))}, r"`signals` is float64 \[9, 4, 2\]; it should be numbers \[N, T\]"),
        ({"signals": numpy.zeros((0, 4))}, r"\[0, 4\]"),
        ({"signals": numpy.array([["a"]])}, "it should be numbers"),
        ({"signals": numpy.full((9, 4), numpy.nan)}, "signal 0 has samples that are no numbers"),
        ({"signals": numpy.zeros((9, 4)), "labels": numpy.zeros(8, int)}, "for each of the 9 signals"),
        ({"signals": numpy.eye(9), "labels": numpy.arange(9) // 7}, r"too few signals of class 1 \(2\)"),
        ({"signals": numpy.eye(2)}, r"too few signals \(2\)"),
    ],
)  # fmt: skip
def test_npz_refusals(run: Run, tmp_path: Path, arrays: dict[str, Any], told: str):
    with pytest.raises(RunError, match=told) as error:
        Npz(path=saved(tmp_path / "bad.npz", **arrays)).load(run)
    assert "\n" not in str(error.value)


def test_files_that_are_none(run: Run, tmp_path: Path):
    with pytest.raises(RunError, match="no file"):
        Npz(path=str(tmp_path / "none.npz")).load(run)
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(RunError, match="cannot read .*text.npz as an NPZ file"):
        Npz(path=str(tmp_path / "text.npz")).load(run)
    with pytest.raises(ValueError, match="together below 1"):
        Held(valid=0.5, test=0.5)


# -- WAV ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "step"), [(1, 2**-7), (2, 2**-15), (3, 2**-23), (4, 2**-31)])
def test_every_width_of_pcm(tmp_path: Path, width: int, step: float):
    samples = numpy.array([-1.0, -0.5, 0.0, 0.25, 0.75])
    found, rate = read_wav(write_wav(tmp_path / "a.wav", samples, width=width, rate=11025))
    assert rate == 11025 and found.dtype == torch.float32
    assert numpy.allclose(found.numpy(), samples, atol=step)


def test_channels_are_averaged(tmp_path: Path):
    both = numpy.array([[0.5, -0.5], [0.5, 0.25]])
    assert read_wav(write_wav(tmp_path / "a.wav", both))[0].tolist() == [0.0, 0.375]


def test_a_folder_of_classes(run: Run, tmp_path: Path):
    draw = numpy.random.default_rng(0)
    for kind in ("yes", "no"):
        for number in range(6):
            length = (25, 8)[number == 5]  # two pieces and a rest; one that is short
            write_wav(tmp_path / "w" / kind / f"{number}.wav", draw.uniform(-0.9, 0.9, length))
    splits = Folder(path=str(tmp_path / "w"), length=10, held=RAW).load(run)
    assert splits["train"].names == ("no", "yes") and splits["train"].shape == (1, 10)
    assert sum(map(len, splits.values())) == 2 * (5 * 2 + 1)
    first, _ = read_wav(tmp_path / "w" / "no" / "0.wav")
    pieces = {tuple(row) for row in (first[:10].tolist(), first[10:20].tolist())}
    where = [n for n, split in splits.items() if pieces & {tuple(row) for row in split.signals.tolist()}]
    assert len(where) == 1 and pieces <= {tuple(row) for row in splits[where[0]].signals.tolist()}  # together
    short = [row for split in splits.values() for row in split.signals.tolist() if row[8:] == [0.0, 0.0]]
    assert len(short) == 2


def test_a_folder_without_classes(run: Run, tmp_path: Path):
    for number in range(9):
        write_wav(tmp_path / "w" / f"{number}.WAV", numpy.full(12, number / 10))
    splits = Folder(path=str(tmp_path / "w"), length=12).load(run)
    assert splits["train"].classes == 0 and "labels" not in splits["test"].batch([0], 0)
    assert float(splits["train"].batch(range(len(splits["train"])), 0)["inputs"].mean()) == pytest.approx(0.0, abs=1e-5)


def test_wav_refusals(run: Run, tmp_path: Path):
    def refused(told: str, **settings: Any) -> None:
        with pytest.raises(RunError, match=told) as error:
            Folder(path=str(tmp_path / "w"), length=4, **settings).load(run)
        assert "\n" not in str(error.value)

    refused("no folder")
    (tmp_path / "w").mkdir()
    refused("no .wav files in")
    for number in range(3):
        write_wav(tmp_path / "w" / f"{number}.wav", numpy.zeros(8))
    (tmp_path / "w" / "bad.wav").write_bytes(b"RIFF")
    refused("cannot read .*bad.wav as a WAV file .*PCM of 8 to 32 bits")
    (tmp_path / "w" / "bad.wav").write_bytes(b"nothing at all, long enough for a header")
    refused("cannot read .*bad.wav as a WAV file")
    write_wav(tmp_path / "w" / "bad.wav", numpy.zeros(0))
    refused("bad.wav holds no samples")
    write_wav(tmp_path / "w" / "bad.wav", numpy.zeros(8), rate=16000)
    refused("different rates, .*0.wav of 8000 and .*bad.wav of 16000")
    (tmp_path / "w" / "bad.wav").unlink()
    write_wav(tmp_path / "w" / "kind" / "a.wav", numpy.zeros(8))
    refused("files in subfolders and others, as 0.wav")
    with pytest.raises(ValueError, match="2 samples or more"):
        Folder(path="w", length=1)


def test_a_batch_is_what_it_is_made_of():
    split = Signals(torch.tensor([[1.0, 3.0], [5.0, 7.0]]), mean=1.0, deviation=2.0)
    assert split.batch([1, 0], 3)["inputs"].tolist() == [[[2.0, 3.0]], [[0.0, 1.0]]]
