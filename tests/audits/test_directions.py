"""Cosines and lengths of changes, against tensors worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from language import run_of
from stillhouse.audits.directions import Directions
from stillhouse.core.report import Figure
from stillhouse.core.stage import Subjects


def models(folder: Path) -> Any:
    """Stages `base`, `a` and `b`: a and b change one matrix at right angles and the other alike, and the bias anyhow."""
    run = run_of(folder, None, base=None, a=None, b=None)
    zero = {"x": torch.ones(2, 2), "y": torch.ones(2, 2), "bias": torch.ones(2)}
    e1, e2, both = torch.tensor([[1.0, 0], [0, 0]]), torch.tensor([[0, 1.0], [0, 0]]), torch.tensor([[0.0, 0], [3, 4]])
    for name, x, bias in (("base", 0 * e1, 0.0), ("a", e1, 1.0), ("b", 2 * e2, -1.0)):
        with run.artifact(name) as place:
            y = both if name != "base" else 0 * both
            save_file({"x": zero["x"] + x, "y": zero["y"] + y, "bias": zero["bias"] + bias}, place / "model.safetensors")
    return run


def test_by_hand(tmp_path: Path) -> None:
    run = models(tmp_path)
    found = list(Directions(changes={"one": ("a", "base"), "two": ("b", "base")})(run, Subjects(run, ())))
    values = {(f.name, f.subject): f.value for f in found if not isinstance(f, Figure)}
    assert values["cosine", "one and two"] == pytest.approx((0 + 1) / 2)  # the bias is no matrix
    assert values["relative_norm", "one"] == pytest.approx(((1 + 25 + 2) / 10) ** 0.5)
    (figure,) = [f for f in found if isinstance(f, Figure)]
    assert [y for _, y in figure.series["one and two"]] == pytest.approx([0.0, 1.0])


def test_no_change_has_no_angle(tmp_path: Path) -> None:
    run = models(tmp_path)
    found = list(Directions(changes={"one": ("a", "base"), "still": ("a", "a")})(run, Subjects(run, ())))
    assert "cosine" not in {f.name for f in found if not isinstance(f, Figure)}
    (note,) = [event["text"] for event in run.read("events.jsonl") if event["event"] == "note"]
    assert "'still' has changed no matrix" in note
