"""The probe, mutual information and reconstruction against independent references."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import nn

from language import run_of
from stillhouse.audits.codes import Codes, fitted, information, scores
from stillhouse.core.stage import Subjects
from stillhouse.data.waves import Chords, Npz
from stillhouse.models.codec import Codec, SignalCodec

SPEC = Codec(strides=(4,), width=4, latent=4, semantic=6, acoustic=4)
DATA = Chords(classes=3, length=32, train=90, valid=30, test=60)


class Fixed(SignalCodec):
    """A codec whose semantic vectors say what `say(signals)` [B, steps] says: one of its codes."""

    def __init__(self, say: Any):
        super().__init__(SPEC)
        self.say = say
        with torch.no_grad():
            self.books[0].books[0].vectors[:] = 10 * torch.eye(6, 4) - 10 * torch.eye(6, 4).roll(4, 0)

    def vectors(self, signals: torch.Tensor) -> list[torch.Tensor]:
        found = super().vectors(signals)
        return [self.books[0].books[0].vectors[self.say(signals)], found[1]]


def found(folder: Path, monkeypatch: pytest.MonkeyPatch, models: dict[str, nn.Module], data: Any = DATA) -> dict[Any, Any]:
    run = run_of(folder, SPEC, data=data)
    monkeypatch.setattr(Subjects, "load", lambda self, name: models[name].eval())
    return {(f.name, f.subject, f.versus): f for f in Codes(draws=200, batch=17)(run, Subjects(run, tuple(models)))}


def naming(data: Any, folder: Path, wrong: int = 0) -> Any:
    """A function that tells each known signal's class as its code, of `wrong` test signals the next one."""
    splits = run_of(folder / "names", SPEC, data=data).sources()
    known: dict[tuple[float, ...], int] = {}
    for name, split in splits.items():
        batch = split.batch(range(len(split)), 0)
        for item, (x, y) in enumerate(zip(batch["inputs"][:, 0].tolist(), batch["labels"].tolist(), strict=True)):
            known[tuple(x)] = (y + (name == "test" and item < wrong)) % 3
    return lambda signals: torch.tensor([[known[tuple(x)]] * 8 for x in signals[:, 0].tolist()])


def test_tokens_that_name_the_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    models = {"start": Fixed(lambda x: torch.zeros(len(x), 8, dtype=torch.long)), "train": Fixed(naming(DATA, tmp_path, 12))}
    made = found(tmp_path, monkeypatch, models)
    assert made["accuracy", "train", None].value == pytest.approx(48 / 60)
    assert made["accuracy", "start", None].value == pytest.approx(1 / 3)
    assert made["mutual_information", "start", None].value == pytest.approx(0.0, abs=1e-12)
    assert made["perplexity", "start", None].value == pytest.approx(1.0)
    assert made["perplexity", "train", None].value == pytest.approx(3.0, rel=0.02)
    apart = made["accuracy", "train", "start"]
    assert apart.value == pytest.approx(48 / 60 - 1 / 3) and apart.low < apart.value < apart.high and apart.n == 60
    whole = found(tmp_path / "b", monkeypatch, {"train": Fixed(naming(DATA, tmp_path))})["mutual_information", "train", None]
    assert whole.value == pytest.approx(math.log2(3)) and whole.unit == "bits/token"


def test_reconstruction_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    module = SignalCodec(SPEC)
    made = found(tmp_path, monkeypatch, {"train": module})["reconstruction", "train", None]
    x = run_of(tmp_path / "b", SPEC, data=DATA).sources()["test"].batch(range(60), 0)["inputs"]
    wanted = float(((module(x).heard - x) ** 2).mean() / (x**2).mean())
    assert made.value == pytest.approx(wanted, rel=1e-4) and made.better == "lower"


def test_a_classifier_is_judged_by_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Says(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tensor([[0.0, 1.0, 0.0]]).expand(len(x), 3)

    made = found(tmp_path, monkeypatch, {"teacher": Says()})
    assert set(made) == {("accuracy", "teacher", None)}
    assert made["accuracy", "teacher", None].value == pytest.approx(1 / 3)


def test_without_classes_there_is_no_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    numpy.savez(tmp_path / "x.npz", signals=numpy.random.default_rng(0).normal(size=(20, 16)))
    made = found(
        tmp_path, monkeypatch, {"start": SignalCodec(SPEC), "train": SignalCodec(SPEC)}, Npz(path=str(tmp_path / "x.npz"))
    )
    assert {name for name, _, _ in made} == {"reconstruction", "perplexity"}


def test_the_probe_is_at_its_minimum():
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 4, generator=draw, dtype=torch.float64), torch.randint(3, (60,), generator=draw)
    from sklearn.linear_model import LogisticRegression

    ours = scores(x, fitted(x, y, 3, 0.01)).softmax(-1)
    theirs = (
        LogisticRegression(C=1 / (2 * 60 * 0.01), tol=1e-9, max_iter=2000).fit(x.numpy(), y.numpy()).predict_proba(x.numpy())
    )
    assert numpy.allclose(ours.numpy(), theirs, atol=1e-4)


def test_information_by_a_loop():
    joint = torch.tensor([[3.0, 1.0, 0.0], [1.0, 2.0, 5.0]], dtype=torch.float64)
    wanted = sum(
        float(joint[a, b]) / 12 * math.log2(float(joint[a, b]) * 12 / float(joint[a].sum() * joint[:, b].sum()))
        for a in range(2)
        for b in range(3)
        if joint[a, b]
    )
    assert float(information(joint)) == pytest.approx(wanted)
    assert float(information(torch.ones(4, 5, dtype=torch.float64))) == pytest.approx(0.0, abs=1e-12)
    assert float(information(torch.zeros(2, 2, dtype=torch.float64))) == 0.0
    assert float(information(7 * torch.eye(4, dtype=torch.float64))) == pytest.approx(2.0)
