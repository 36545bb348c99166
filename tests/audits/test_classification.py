"""The audit of classifiers, against numbers made by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stillhouse.audits.classification import ECE, Classification
from stillhouse.core.recipe import Recipe
from stillhouse.core.report import Finding
from stillhouse.core.run import Run
from stillhouse.core.signal import HeadLogits
from stillhouse.core.teacher import Teacher
from stillhouse.data.toys import Points
from stillhouse.teachers.module import Frozen


class Table(nn.Module):
    """Says what a table says about each item."""

    def __init__(self, probabilities: list[list[float]], head: bool = False):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(probabilities).log())
        self.head = head

    def forward(self, inputs: Tensor) -> Tensor | HeadLogits:
        rows = self.logits[inputs.long().flatten()]
        return HeadLogits(rows, torch.eye(rows.shape[-1])) if self.head else rows


LABELS = [0, 0, 1, 1]
GOOD = Table([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7]])
BAD = Table([[0.9, 0.1], [0.4, 0.6], [0.8, 0.2], [0.3, 0.7]])


@dataclass(frozen=True)
class Four:
    def load(self, run: Run) -> dict[str, Points]:
        return {"test": Points(torch.arange(4.0).unsqueeze(1), torch.tensor(LABELS), 2)}


@dataclass
class Given:
    """Subjects without stages behind them."""

    modules: dict[str, nn.Module]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.modules)

    def load(self, name: str) -> nn.Module:
        return self.modules[name]


def audit(tmp_path: Path, modules: dict[str, nn.Module], teacher: Teacher | None = None) -> dict[Any, Finding]:
    run = Run(tmp_path / "run", device=torch.device("cpu"))
    run.recipe = Recipe(id="r", student=None, data=Four(), stages={})
    run.teachers = {} if teacher is None else {"teacher": teacher}
    given: Any = Given(modules)
    return {(f.name, f.subject, f.versus): f for f in Classification(batch=3)(run, given)}


@pytest.mark.parametrize("head", [False, True])
def test_numbers_by_hand(tmp_path: Path, head: bool):
    good = Table(GOOD.logits.exp().tolist(), head)
    found = audit(tmp_path, {"bad": BAD, "good": good}, Frozen(Table(GOOD.logits.exp().tolist())))

    def value(*key: Any) -> float:
        return found[key].value

    assert value("accuracy", "good", None) == 1.0 and value("accuracy", "bad", None) == 0.5
    assert value("nll", "good", None) == pytest.approx(-sum(map(math.log, (0.9, 0.6, 0.8, 0.7))) / 4)
    assert value("accuracy", "good", "bad") == 0.5 and ("accuracy", "bad", "good") not in found
    assert value("agreement", "good", None) == 1.0 and value("agreement", "bad", None) == 0.5
    assert value("kl", "good", None) == pytest.approx(0.0, abs=1e-6)
    expected = (0.6 * math.log(0.6 / 0.4) + 0.4 * math.log(0.4 / 0.6) + 0.6 * math.log(4)) / 4
    assert value("kl", "bad", None) == pytest.approx(expected, abs=1e-6)
    # every item lies in a bin of its own: |confidence - right| on average
    assert value("ece", "good", None) == pytest.approx((0.1 + 0.4 + 0.2 + 0.3) / 4, abs=1e-6)
    assert value("ece", "bad", None) == pytest.approx((0.1 + 0.6 + 0.8 + 0.3) / 4, abs=1e-6)
    assert value("parameters", "good", None) == 8 and value("items_per_second", "good", None) > 0
    for f in found.values():
        assert f.low is None or f.low <= f.value <= f.high  # type: ignore[operator]
        assert f.versus is not None or f.low is None or f.low >= 0


def test_without_a_teacher_nothing_is_said_about_one(tmp_path: Path):
    names = {key[0] for key in audit(tmp_path, {"good": GOOD})}
    assert names == {"parameters", "items_per_second", "accuracy", "nll", "ece"}


def test_calibration_pools_what_is_equally_sure():
    """Four items at confidence 0.75, three right: perfectly calibrated, although each one is off."""
    log_q = torch.tensor([[0.75, 0.25]] * 4).double().log()
    columns = ECE.columns(log_q, torch.tensor([0, 0, 0, 1]))
    assert float(ECE.statistic(columns.mean(0, keepdim=True))) == pytest.approx(0, abs=1e-12)
    sure = torch.tensor([[1.0, 0.0]]).double().log()
    assert float(ECE.statistic(ECE.columns(sure, torch.tensor([1])))) == pytest.approx(1.0)
