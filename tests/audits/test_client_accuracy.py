"""The audit of clients, against numbers made by hand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stillhouse.audits.clients import ClientAccuracy
from stillhouse.core.recipe import Recipe
from stillhouse.core.run import Run, RunError
from stillhouse.core.stage import Train
from stillhouse.data.clients import Federated, Part
from stillhouse.data.toys import Points
from stillhouse.methods.classics.fedavg import FedAvg
from stillhouse.methods.classics.fedmd import FedMD
from stillhouse.models.clients import Several


class Table(nn.Module):
    """Scores of class 1, by item; class 0 has 0."""

    def __init__(self, *scores: float):
        super().__init__()
        self.scores = nn.Parameter(torch.tensor(scores, dtype=torch.float32))

    def forward(self, inputs: Tensor) -> Tensor:
        rows = self.scores[inputs.long().flatten()]
        return torch.stack([torch.zeros_like(rows), rows], -1)


POINTS = Points(torch.arange(6.0)[:, None], torch.tensor([0, 0, 0, 1, 1, 1]), 2)
GOOD = Several((Table(-1, -1, -1, 1, 1, 1), Table(3, -1, -1, 1, 1, -1)))  # all right; 4 of 6
BAD = Several((Table(-1, 1, 1, 1, -1, -1), Table(1, -1, -1, -1, 1, 1)))  # 2 of 6; 4 of 6


@dataclass(frozen=True)
class Six:
    def load(self, run: Run) -> Any:
        names = ("0", "1")
        parts = tuple(Part(POINTS, torch.tensor(items), names) for items in ([0, 3], [1, 4]))
        return {"train": Federated(parts, Part(POINTS, torch.tensor([2, 5]), names), names), "test": POINTS, "valid": POINTS}


@dataclass
class Given:
    modules: dict[str, nn.Module]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.modules)

    def load(self, name: str) -> nn.Module:
        return self.modules[name]


def findings(tmp_path: Path, modules: dict[str, nn.Module], check: Any = None, **stages: Any) -> dict[Any, Any]:
    run = Run(tmp_path / "run", device=torch.device("cpu"))
    run.recipe = Recipe(id="clients", student=None, data=Six(), stages=stages)
    found = list((check or ClientAccuracy(draws=200))(run, Given(modules)))  # type: ignore[arg-type]
    return {(f.name, f.subject, f.versus): f for f in found}


def test_accuracies_by_hand(tmp_path: Path):
    found = findings(tmp_path, {"start": BAD, "train": GOOD})
    assert found["accuracy_client0", "train", None].value == 1.0
    assert found["accuracy_client1", "train", None].value == pytest.approx(4 / 6)
    assert found["accuracy", "train", None].value == pytest.approx(5 / 6)
    assert found["accuracy", "start", None].value == pytest.approx(3 / 6)
    assert found["accuracy_consensus", "train", None].value == pytest.approx(
        4 / 6
    )  # 3 - 1 outvotes; 1 - 1 is a tie: class 0
    assert found["parameters", "train", None].value == 12
    gap = found["accuracy", "train", "start"]
    assert gap.value == pytest.approx(2 / 6) and gap.low <= gap.value <= gap.high and gap.over == "items"
    mean = found["accuracy", "train", None]
    assert 0 <= mean.low < mean.value < mean.high <= 1 and mean.n == 6 and mean.split == "test"
    assert ("accuracy", "start", "train") not in found


def test_bytes_by_hand(tmp_path: Path):
    """FedMD: 2 public items x 2 classes x 4 bytes, both ways, for 2 clients. FedAvg: 6 weights of 4 bytes."""
    fedmd = Train(method=FedMD(digest=3, revisit=2), steps=12, batch=4)
    fedavg = Train(method=FedAvg(local=5), steps=12, batch=4)
    alone = Train(method=FedMD(digest=0), steps=12, batch=4)
    found = findings(tmp_path, {"alone": GOOD, "average": GOOD, "train": GOOD}, train=fedmd, average=fedavg, alone=alone)
    scores, sent = 2 * 2 * 4 * 2 * 2, 2 * 2 * 6 * 4
    assert found["bytes_per_round", "train", None].value == scores and found["bytes_sent", "train", None].value == 3 * scores
    assert found["bytes_per_round", "average", None].value == sent and found["bytes_sent", "average", None].value == 2 * sent
    assert found["bytes_per_round_of_weights", "train", None].value == sent
    assert found["bytes_sent", "alone", None].value == 0


def test_the_validation_split_and_small_batches_give_the_same(tmp_path: Path):
    found = findings(tmp_path, {"train": GOOD}, ClientAccuracy(split="valid", batch=4, draws=200))
    assert found["accuracy", "train", None].value == pytest.approx(5 / 6)
    assert found["accuracy", "train", None].split == "valid"


def test_one_network_is_not_several(tmp_path: Path):
    with pytest.raises(RunError, match="'train' is not several clients"):
        findings(tmp_path, {"train": Table(0, 0, 0, 0, 0, 0)})
