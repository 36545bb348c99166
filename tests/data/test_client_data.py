"""Who holds what: a partition, skewed as asked, the same whenever it is made again."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

from stillhouse.core.recipe import Recipe
from stillhouse.core.run import Run, RunError
from stillhouse.data.clients import Federated, Federation, dirichlet, federated
from stillhouse.data.images import Digits, Folder, Npz, Split
from stillhouse.data.toys import Clusters, Points


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run", device=torch.device("cpu"))


def labels(classes: int, each: int) -> Tensor:
    return torch.arange(classes * each) % classes


@dataclass(frozen=True)
class Numbered:
    """Item i is the number i."""

    count: int = 60
    classes: int = 3
    names: tuple[str, ...] | None = None
    unknown: bool = False

    def load(self, run: Run) -> Any:
        said = labels(self.classes, self.count // self.classes)
        known = said.where(torch.arange(len(said)) > 0, -100) if self.unknown else said
        splits = {
            n: Points(torch.arange(len(known)).float()[:, None], known, self.classes) for n in ("train", "valid", "test")
        }
        for source in splits.values():
            if self.names is not None:
                object.__setattr__(source, "names", self.names)
        return splits


def held(federation: Federated) -> list[list[int]]:
    parts = [*federation.private, *([federation.public] if federation.public else [])]
    return [part.items.tolist() for part in parts]


@pytest.mark.parametrize("alpha", [1e-6, 0.1, 1.0, 100.0, math.inf])
def test_every_item_has_one_place(run: Run, alpha: float):
    source = Federation(source=Numbered(), clients=5, alpha=alpha).load(run)["train"]
    everything = held(source)
    assert sorted(sum(everything, [])) == list(range(60))
    assert all(everything) and len(everything[-1]) == 18  # 30 % of 20, three times


@pytest.mark.parametrize("alpha", [math.inf, 1e9])
def test_a_large_alpha_shares_every_class_evenly(alpha: float):
    said = labels(4, 50)
    counts = torch.stack([said[part].bincount(minlength=4) for part in dirichlet(said, 6, alpha, seed=1)])
    assert int((counts.amax(0) - counts.amin(0)).max()) <= 1
    assert len(set(counts.sum(1).tolist())) > 1  # 50 is no multiple of 6, and the odd ones go to different clients


def test_a_small_alpha_gives_a_class_to_one_client():
    said = labels(30, 20)
    counts = torch.stack([said[part].bincount(minlength=30) for part in dirichlet(said, 3, 1e-6, seed=2)])
    assert bool((counts.amax(0) == 20).all())
    assert bool((counts.sum(1) > 0).all())


@pytest.mark.parametrize("alpha", [0.1, 0.5, 3.0])
def test_the_shares_have_the_moments_of_a_dirichlet(alpha: float):
    """Mean 1/K, variance (K - 1) / (K² (K alpha + 1)); a class is one draw."""
    classes, each, clients = 600, 100, 4
    said = labels(classes, each)
    parts = dirichlet(said, clients, alpha, seed=3)
    shares = torch.stack([said[part].bincount(minlength=classes) for part in parts]).double() / each
    assert shares.mean(1).numpy() == pytest.approx(0.25, abs=0.04)
    assert float(shares.var(1).mean()) == pytest.approx(3 / (16 * (4 * alpha + 1)), rel=0.15)


def test_nobody_is_left_with_nothing():
    for seed in range(20):
        parts = dirichlet(labels(2, 6), 8, 1e-3, seed)
        assert all(len(part) for part in parts) and len(torch.cat(parts).unique()) == 12
    with pytest.raises(RunError, match="3 items cannot be divided between 4 clients"):
        dirichlet(labels(3, 1), 4, 1.0, 0)


def test_a_client_keeps_few_of_a_class():
    said = labels(4, 40)
    for part in dirichlet(said, 3, math.inf, 0, most=5):
        assert said[part].bincount().tolist() == [5, 5, 5, 5]


def test_it_depends_on_the_seed_and_the_test_does_not(run: Run):
    def load(seed: int) -> Any:
        run.seed = seed
        return Federation(source=Clusters(), clients=3).load(run)

    first, again, other = load(0), load(0), load(1)
    assert held(first["train"]) == held(again["train"]) != held(other["train"])
    for split in ("valid", "test"):
        everything = range(len(first[split]))
        a, b = first[split].batch(everything, 0), other[split].batch(everything, 0)
        assert torch.equal(a["inputs"], b["inputs"]) and torch.equal(a["labels"], b["labels"])
        assert torch.equal(a["inputs"], Clusters().load(run)[split].inputs)


def test_a_batch_in_parts_is_the_batch(run: Run):
    source = Federation(source=Numbered(), clients=3, public_each=2, labelled=True).load(run)["train"]
    whole = source.batch([4, 0, 7, 2], 5)
    parts = [source.batch([4], 5), source.batch([0, 7, 2], 5)]
    assert whole["public"]["inputs"].shape == (8, 1)
    for key in ("inputs", "labels"):
        assert torch.equal(whole["public"][key], torch.cat([p["public"][key] for p in parts]))
        for client in range(3):
            assert torch.equal(whole["private"][client][key], torch.cat([p["private"][client][key] for p in parts]))


def test_everybody_meets_the_own_items_equally_often(run: Run):
    source = Federation(source=Numbered(), clients=4, alpha=0.3).load(run)["train"]
    met: list[list[int]] = [[] for _ in source.private]
    shown: list[int] = []
    epochs = 6
    for epoch in range(epochs):
        batch = source.batch(range(len(source)), epoch)
        for client, own in enumerate(batch["private"]):
            met[client] += own["inputs"].flatten().int().tolist()
        shown += batch["public"]["inputs"].flatten().int().tolist()
    for part, seen in [*zip(source.private, met, strict=True), (source.public, shown)]:
        counts = torch.tensor(seen).bincount(minlength=60)[part.items]
        assert int(counts.sum()) == epochs * len(source) and int(counts.max() - counts.min()) <= 1


def test_public_labels_are_hidden_unless_they_are_known(run: Run):
    hidden = Federation(source=Numbered()).load(run)["train"].batch([0, 1], 0)
    assert set(hidden["public"]) == {"inputs"} and set(hidden["private"][0]) == {"inputs", "labels"}
    known = Federation(source=Numbered(), labelled=True).load(run)["train"].batch([0, 1], 0)
    assert known["public"]["labels"].tolist() == (known["public"]["inputs"].flatten() % 3).tolist()
    assert "public" not in Federation(source=Numbered(), public=0.0).load(run)["train"].batch([0], 0)


def test_public_data_of_their_own_join_by_the_names_of_classes(run: Run):
    data = Federation(
        source=Numbered(names=("b", "c", "d")), public_source=Numbered(count=20, classes=2, names=("a", "b")), labelled=True
    )
    splits = data.load(run)
    source = splits["train"]
    assert source.names == ("a", "b", "c", "d") and source.classes == 4 and len(source.public) == 20
    assert sum(map(len, source.private)) == 60
    batch = source.batch(range(len(source)), 0)
    assert torch.equal(batch["public"]["labels"], batch["public"]["inputs"].flatten().long() % 2)
    for own in batch["private"]:
        assert torch.equal(own["labels"], 1 + own["inputs"].flatten().long() % 3)
    assert splits["test"].labels[:3].tolist() == [1, 2, 3] == splits["test"].batch([0, 1, 2], 0)["labels"].tolist()


def test_images_of_a_user(run: Run, tmp_path: Path):
    pytest.importorskip("PIL")
    from PIL import Image

    draw = numpy.random.default_rng(0)
    pixels, said = draw.integers(0, 255, (60, 6, 6, 3), dtype=numpy.uint8), numpy.arange(60) % 3
    numpy.savez(tmp_path / "mine.npz", images=pixels, labels=said)
    for label in range(3):
        (tmp_path / "mine" / f"kind{label}").mkdir(parents=True)
        for number in range(20):
            Image.fromarray(pixels[3 * number + label]).save(tmp_path / "mine" / f"kind{label}" / f"{number}.png")
    for source in (Npz(path=str(tmp_path / "mine.npz")), Folder(path=str(tmp_path / "mine"), size=6)):
        train = Federation(source=source, clients=2).load(run)["train"]
        assert train.shape == (3, 6, 6) and train.classes == 3
        assert train.batch([0, 1], 0)["public"]["inputs"].shape == (2, 3, 6, 6)
    with pytest.raises(RunError, match=r"public items are \[1, 8, 8\], private ones \[3, 6, 6\]"):
        Federation(source=source, public_source=Digits()).load(run)


def test_what_cannot_be_divided(run: Run):
    with pytest.raises(RunError, match="every label"):
        Federation(source=Numbered(unknown=True)).load(run)
    with pytest.raises(RunError, match="every label"):
        Federation(source=Digits(split=Split(labels=4))).load(run)


@pytest.mark.parametrize(("settings", "message"), [
    ({"clients": 0}, "clients must be 1"), ({"alpha": 0.0}, "alpha must be above 0"), ({"public": 1.0}, "public must be"),
    ({"public_each": 0}, "public_each must be"), ({"per_class": 0}, "per_class must be"),
])  # fmt: skip
def test_settings_that_mean_nothing(settings: Any, message: str):
    with pytest.raises(ValueError, match=message):
        Federation(**settings)


def test_a_stage_without_clients(run: Run):
    run.recipe = Recipe(id="none", student=None, data=Numbered(), stages={})
    with pytest.raises(RunError, match="data that clients hold"):
        federated(run)
