"""The baseline: plain cross-entropy over whatever is labelled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from stillhouse.core.run import Run
from stillhouse.data.toys import Sentences
from stillhouse.methods.classics.supervised import Supervised
from stillhouse.models.toys import TinyLM


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run", device=torch.device("cpu"))


def update(student: nn.Module, batch: Any, run: Run) -> Any:
    (made,) = Supervised().step(Supervised().setup(student, run), batch, run)
    return made


def test_it_is_torchs_cross_entropy(run: Run):
    student, x, y = nn.Linear(5, 3), torch.randn(7, 5), torch.tensor([0, 2, 1, -100, 1, 0, -100])
    made = update(student, {"inputs": x, "labels": y}, run)
    assert int(made.count) == 5
    assert torch.allclose(made.loss, F.cross_entropy(student(x), y, reduction="sum"))


def test_weights_count(run: Run):
    student, x, y = nn.Linear(5, 3), torch.randn(3, 5), torch.tensor([0, 2, 1])
    made = update(student, {"inputs": x, "labels": y, "weight": torch.tensor([1.0, 0.0, 0.5])}, run)
    each = F.cross_entropy(student(x), y, reduction="none")
    assert float(made.count) == 1.5 and torch.allclose(made.loss, each[0] + 0.5 * each[2])


def test_nothing_labelled_is_no_update(run: Run):
    made = update(nn.Linear(5, 3), {"inputs": torch.randn(2, 5), "labels": torch.tensor([-100, -100])}, run)
    assert float(made.count) == 0 and float(made.loss) == 0


def test_a_language_model_learns_the_answers_only(run: Run):
    student = TinyLM(vocabulary=29).build(run)
    batch = Sentences().load(run)["train"].batch([0, 1], 0)
    made = update(student, batch, run)
    logits, counted = student(**batch["inputs"]).dense(), batch["weight"] > 0
    assert float(made.count) == int(counted.sum())
    assert torch.allclose(made.loss, F.cross_entropy(logits[counted], batch["labels"][counted], reduction="sum"))


def test_a_mixed_image_has_both_labels(run: Run):
    """Torch's cross-entropy with the mixed distribution; where one label is not known, the other's share counts."""
    student, x = nn.Linear(5, 3), torch.randn(4, 5)
    mix = torch.tensor([0.2, 1.0, 0.5, 0.25])
    first, second = torch.tensor([0, 2, 1, -100]), torch.tensor([1, 0, 1, 2])
    made = update(student, {"inputs": x, "labels": first, "labels_b": second, "mix": mix}, run)
    target = mix[:, None] * F.one_hot(first.clamp(min=0), 3) * (first >= 0)[:, None] + (1 - mix)[:, None] * F.one_hot(
        second, 3
    )
    assert torch.allclose(made.loss, -(target * student(x).log_softmax(-1)).sum())
    assert float(made.count) == pytest.approx(3.75)
