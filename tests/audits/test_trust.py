"""Trust: accuracy less calibration error, from sums over documents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from language import run_of
from stillhouse.audits.trust import Trust, calibration_error, gaps
from stillhouse.core.run import RunError
from stillhouse.core.stage import Subjects
from stillhouse.data.choices import Choices
from stillhouse.models.toys import TinyLM

DATA = Choices(train=10, valid=10, test=400)


class Knows(nn.Module):
    """Says the true odds, their logarithms multiplied by `times`."""

    def __init__(self, times: float):
        super().__init__()
        self.times = nn.Parameter(torch.tensor(times))

    def forward(self, tokens: torch.Tensor, **rest: Any) -> torch.Tensor:
        z = torch.full((*tokens.shape, DATA.classes), -30.0)
        z[:, DATA.words - 1, DATA.symbols :] = self.times * DATA.odds(tokens[:, : DATA.words]).log()
        return z


def found(folder: Path, monkeypatch: pytest.MonkeyPatch, models: dict[str, Any], **settings: Any) -> dict[Any, Any]:
    run = run_of(folder, TinyLM(), data=DATA)
    monkeypatch.setattr(Subjects, "load", lambda self, name: models[name])
    check = Trust(**{"draws": 200, "versus": tuple(n for n in models if n != "train"), **settings})
    return {(f.name, f.subject, f.versus): f for f in check(run, Subjects(run, tuple(models)))}


def test_by_brute_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = found(tmp_path, monkeypatch, {"train": Knows(1.0), "start": Knows(5.0)}, bins=10, batch=37)
    run = run_of(tmp_path / "again", TinyLM(), data=DATA)
    batch = run.sources()["test"].batch(range(400), 0)
    odds = DATA.odds(batch["inputs"]["tokens"][:, : DATA.words])
    labels = batch["labels"][:, DATA.words - 1] - DATA.symbols
    values = {}
    for name, times in (("train", 1.0), ("start", 5.0)):
        sure, said = (times * odds.log()).softmax(-1).max(-1)
        bins: dict[int, list[float]] = {}
        for confidence, right in zip(sure.tolist(), (said == labels).tolist(), strict=True):
            bins.setdefault(min(9, int(confidence * 10)), []).append(confidence - right)
        error = sum(abs(sum(gap)) for gap in bins.values()) / 400
        values[name] = (float((said == labels).double().mean()) - error, error)
        trust, ece = made["trust", name, None], made["ece_answers", name, None]
        assert trust.value == pytest.approx(values[name][0], abs=1e-5) and ece.value == pytest.approx(error, abs=1e-5)
        assert trust.low < trust.value < trust.high and trust.better == "higher" and ece.better == "lower"
    apart = made["trust", "train", "start"]
    assert apart.value == pytest.approx(values["train"][0] - values["start"][0], abs=1e-5)
    assert apart.low > 0.05  # who says the true odds is trusted more than who exaggerates them
    assert made["ece_answers", "train", None].value < 0.08 < 0.2 < made["ece_answers", "start", None].value


def test_other_data_and_empty_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = {"train": Knows(1.0)}
    here = found(tmp_path / "a", monkeypatch, models)["trust", "train", None]
    other = found(tmp_path / "b", monkeypatch, models, data=Choices(train=5, valid=5, test=50))["trust", "train", None]
    assert here.n == 400 and other.n == 50
    with pytest.raises(RunError, match="valid split is empty"):
        found(tmp_path / "c", monkeypatch, models, split="valid", data=Choices(valid=0))


def test_gaps() -> None:
    made = gaps(torch.tensor([0.0, 0.34, 1.0]), torch.tensor([0, 1, 1]), 3)
    torch.testing.assert_close(made, torch.tensor([[0.0, 0, 0], [0, 0.34 - 1, 0], [0, 0, 0.0]], dtype=torch.float64))
    assert calibration_error(torch.ones(4), torch.tensor([1, 1, 0, 0])) == 0.5
