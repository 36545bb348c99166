"""Signals: chords made up on the spot, an NPZ file, or a folder of WAV files.

A batch has `inputs` [B, 1, T] float32, `items` [B], the signals' numbers in their split, and, where there are classes,
`labels` [B], negative where a signal's class is not known. Splits are the same for every seed of the run.
"""

from __future__ import annotations

import hashlib
import math
import wave
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from ..core.run import Run, RunError, seed_of
from ..core.signal import Batch

SPLITS = ("train", "valid", "test")
UNKNOWN = -100
TRIADS = ((0, 4, 7), (2, 5, 9), (4, 7, 11), (5, 9, 12), (7, 11, 14), (9, 12, 16), (11, 14, 17), (0, 4, 8))  # half tones


@dataclass(frozen=True)
class Signals:
    """One split in memory."""

    signals: Tensor  # [N, T]
    labels: Tensor | None = None  # [N]
    names: tuple[str, ...] = ()  # of the classes
    mean: float = 0.0  # the batches' numbers are (signals - mean) / deviation
    deviation: float = 1.0

    def __len__(self) -> int:
        return len(self.signals)

    @property
    def shape(self) -> tuple[int, ...]:
        """[1, T] of one signal."""
        return (1, self.signals.shape[1])

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return len(self.names)

    def batch(self, items: Sequence[int], epoch: int) -> Batch:
        """inputs [B, 1, T] float32, items [B], and labels [B] if there are classes."""
        chosen = torch.tensor(items, dtype=torch.long)
        inputs = (self.signals[chosen].float() - self.mean) / self.deviation
        found = {"inputs": inputs.unsqueeze(1), "items": chosen}
        return found if self.labels is None else {**found, "labels": self.labels[chosen]}


@dataclass(frozen=True, kw_only=True)
class Chords:
    """Three notes at once; the class is which chord. A tone of any other pitch and noise are in the way.

    Every note is in the octave of c' or the one above, as loud as it happens to be, a little out of tune, and at any phase;
    so two signals of a class look nothing alike. The tuning is that of a piano and time is counted in samples: c' makes 0.1
    turns in one.
    """

    classes: int = 8  # the seven triads of C major, and C augmented
    length: int = 256  # samples
    train: int = 6000
    valid: int = 1000
    test: int = 2000
    tone: float = 1.0  # how loud the other tone is; a note is from 0.5 to 1
    noise: float = 0.2  # deviation

    def __post_init__(self) -> None:
        if not 2 <= self.classes <= len(TRIADS):
            raise ValueError(f"classes must be from 2 to {len(TRIADS)}, not {self.classes}")

    def load(self, run: Run) -> Mapping[str, Signals]:
        """The splits."""
        draw = torch.Generator().manual_seed(seed_of("chords", self.classes, self.length))
        names = tuple(str(number) for number in range(self.classes))
        sizes = zip(SPLITS, (self.train, self.valid, self.test), strict=True)
        made = {name: self._draw(n, draw) for name, n in sizes}
        return {name: _standardised(Signals(*pair, names), made["train"][0]) for name, pair in made.items()}

    def _draw(self, n: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        def even(low: float, high: float, *shape: int) -> Tensor:
            return low + (high - low) * torch.rand(*shape, generator=draw)

        labels = torch.arange(n) % self.classes
        octave = 12 * torch.randint(2, (n, 3), generator=draw) + even(-0.1, 0.1, n, 3)
        halftones = torch.tensor(TRIADS)[labels] % 12 + octave
        pitch = torch.cat([halftones, even(-6.0, 24.0, n, 1)], 1)
        loud = torch.cat([even(0.5, 1.0, n, 3), torch.full((n, 1), self.tone)], 1)
        turns = 0.1 * 2 ** (pitch / 12)
        time = torch.arange(self.length)
        angle = 2 * math.pi * (turns[..., None] * time + even(0.0, 1.0, n, 4, 1))
        clean = (loud[..., None] * angle.sin()).sum(1)
        return clean + self.noise * torch.randn(n, self.length, generator=draw), labels


@dataclass(frozen=True, kw_only=True)
class Held:
    """Which signals are held out, of every class alike, and in which numbers they are given.

    `standardised`: with mean 0 and deviation 1 over the training split. False is for a teacher that knows them as they are.
    """

    valid: float = 0.15  # shares
    test: float = 0.15
    standardised: bool = True

    def __post_init__(self) -> None:
        if min(self.valid, self.test) <= 0 or self.valid + self.test >= 1:
            raise ValueError("valid and test are shares above 0, together below 1")

    def divided(self, signals: Tensor, labels: Tensor | None, names: tuple[str, ...], keys: list[str], owner: str) -> Any:
        """The splits; signals of one key stay together, and which split a key is in depends on nothing else."""
        if not torch.isfinite(signals).all():
            bad = int((~torch.isfinite(signals).all(1)).nonzero()[0])
            raise RunError(f"{owner}: signal {bad} has samples that are no numbers; mend it or leave it out")
        parts: dict[str, list[int]] = {name: [] for name in SPLITS}
        kinds = torch.zeros(len(signals), dtype=torch.long) if labels is None else labels.clamp(min=-1)
        for kind in sorted(set(kinds.tolist())):
            members: dict[str, list[int]] = {}
            for item in (kinds == kind).nonzero().flatten().tolist():
                members.setdefault(keys[item], []).append(item)
            order = sorted(members, key=lambda key: seed_of("signals", key))
            test, valid = (0, 0) if kind < 0 else (max(1, round(s * len(order))) for s in (self.test, self.valid))
            if test + valid >= len(order):
                of = "" if labels is None else f" of class {names[kind]}"
                raise RunError(f"{owner} has too few signals{of} ({len(order)}) to hold some out; it takes three")
            cuts = {"test": order[:test], "valid": order[test : test + valid], "train": order[test + valid :]}
            for name, chosen in cuts.items():
                parts[name] += [item for key in chosen for item in members[key]]
        found = {
            name: Signals(signals[sorted(part)], None if labels is None else labels[sorted(part)], names)
            for name, part in parts.items()
        }
        return {n: _standardised(s, found["train"].signals) for n, s in found.items()} if self.standardised else found


@dataclass(frozen=True, kw_only=True)
class Npz:
    """An NPZ file with `signals` [N, T] of numbers and, if there are classes, `labels` [N]: numbers (negative: not known) or
    names."""

    path: str
    held: Held = Held()

    def load(self, run: Run) -> Mapping[str, Signals]:
        """The splits; a signal's is told by its samples, so that others may be added."""
        arrays = self._arrays()
        if "signals" not in arrays:
            raise RunError(f"{self.path} holds {', '.join(arrays) or 'nothing'}; it needs an array `signals`")
        signals = arrays["signals"]
        if signals.ndim != 2 or signals.dtype.kind not in "uif" or 0 in signals.shape:
            found = f"{signals.dtype} {list(signals.shape)}"
            raise RunError(f"{self.path}: `signals` is {found}; it should be numbers [N, T], a signal a row")
        keys = [hashlib.sha256(row.tobytes()).hexdigest() for row in signals]
        labels, names = self._labels(arrays.get("labels"), len(signals))
        return self.held.divided(torch.from_numpy(signals.astype("float32")), labels, names, keys, self.path)

    def _arrays(self) -> dict[str, Any]:
        if not Path(self.path).is_file():
            raise RunError(f"no file {self.path}")
        try:
            with numpy.load(self.path, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except Exception as error:  # numpy raises whatever zip, zlib and its own parser raise
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise RunError(f"cannot read {self.path} as an NPZ file: {reason}") from error

    def _labels(self, said: Any, n: int) -> tuple[Tensor | None, tuple[str, ...]]:
        if said is None:
            return None, ()
        if said.shape != (n,) or said.dtype.kind not in "uiU":
            raise RunError(
                f"{self.path}: `labels` is {said.dtype} {list(said.shape)}; it should hold one whole number or one name for "
                f"each of the {n} signals"
            )
        if said.dtype.kind == "U":
            names, numbers = numpy.unique(said, return_inverse=True)
            return torch.from_numpy(numbers.astype("int64")), tuple(map(str, names))
        known = sorted({int(value) for value in said if value >= 0})
        place = {value: number for number, value in enumerate(known)}
        return torch.tensor([place.get(int(value), UNKNOWN) for value in said]), tuple(map(str, known))


@dataclass(frozen=True, kw_only=True)
class Folder:
    """WAV files, PCM of 8 to 32 bits, channels averaged, from -1 to 1; those of a class in a subfolder of its own, or all
    directly in the folder if there are no classes.

    Each is cut into signals of `length` samples; what is left over is dropped, and a file that is shorter is filled up with
    silence. Signals of one file are in the same split. Files of different rates are refused: nothing is resampled.
    """

    path: str
    length: int = 16_000  # samples: a second, for speech
    held: Held = Held()

    def __post_init__(self) -> None:
        if self.length < 2:
            raise ValueError(f"length is 2 samples or more, not {self.length}")

    def load(self, run: Run) -> Mapping[str, Signals]:
        """The splits."""
        root = Path(self.path)
        if not root.is_dir():
            raise RunError(f"no folder {self.path}")
        files = sorted(p for p in root.rglob("*") if p.suffix.lower() == ".wav" and not p.name.startswith("."))
        if not files:
            raise RunError(f"no .wav files in {self.path}; convert others to WAV first")
        where = [file.relative_to(root) for file in files]
        classed = [len(place.parts) > 1 for place in where]
        if any(classed) and not all(classed):
            stray = where[classed.index(False)]
            raise RunError(
                f"{self.path} has files in subfolders and others, as {stray}: put all of them into those of classes"
            )
        names = tuple(sorted({place.parts[0] for place in where})) if all(classed) else ()
        signals: list[Tensor] = []
        keys: list[str] = []
        kinds: list[int] = []
        rates: dict[int, Path] = {}
        for file, place in zip(files, where, strict=True):
            samples, rate = read_wav(file)
            rates.setdefault(rate, file)
            if len(rates) > 1:
                told = " and ".join(f"{p} of {r}" for r, p in rates.items())
                raise RunError(f"the files in {self.path} have different rates, {told} samples a second: make them alike")
            pieces = samples[: len(samples) // self.length * self.length].view(-1, self.length)
            if not len(pieces):
                pieces = torch.nn.functional.pad(samples, (0, self.length - len(samples))).unsqueeze(0)
            signals.append(pieces)
            keys += [place.as_posix()] * len(pieces)
            kinds += [names.index(place.parts[0]) if names else 0] * len(pieces)
        labels = torch.tensor(kinds) if names else None
        return self.held.divided(torch.cat(signals), labels, names, keys, self.path)


def read_wav(path: Path) -> tuple[Tensor, int]:
    """(samples [T] float32 from -1 to 1, samples a second) of a WAV file; RunError if it cannot be read."""
    try:
        with wave.open(str(path), "rb") as file:
            channels, width, rate = file.getnchannels(), file.getsampwidth(), file.getframerate()
            data = file.readframes(file.getnframes())
    except (wave.Error, EOFError, OSError) as error:
        reason = str(error) or "it ends too early"
        raise RunError(f"cannot read {path} as a WAV file ({reason}); it should be PCM of 8 to 32 bits") from error
    data = data[: len(data) // (width * channels) * (width * channels)]
    if not data:
        raise RunError(f"{path} holds no samples; leave it out")
    if width == 1:  # bytes of WAV are the only width without a sign
        found = numpy.frombuffer(data, "u1").astype("float32") / 128 - 1
    elif width == 3:
        parts = numpy.frombuffer(data, "u1").reshape(-1, 3).astype("int32")
        found = ((parts[:, 0] << 8 | parts[:, 1] << 16 | parts[:, 2] << 24) / 2.0**31).astype("float32")
    else:
        found = (numpy.frombuffer(data, f"<i{width}") / 2.0 ** (8 * width - 1)).astype("float32")
    return torch.from_numpy(found.reshape(-1, channels).mean(1)), rate


def _standardised(split: Signals, train: Tensor) -> Signals:
    return replace(split, mean=float(train.double().mean()), deviation=max(float(train.double().std(correction=0)), 1e-6))
