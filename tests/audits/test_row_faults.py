"""Precision and recall of a curation and of its steps, counted by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stillhouse.audits.faults import Faults
from stillhouse.synth.select import Between
from synth.talk import outcome, plan

ROWS = [
    {"number": i, "fault": "bad" if i < 4 else "odd" if i < 6 else "", "n": i, "said": f"so {i % 5}", "fact": str(i % 10)}
    for i in range(20)
]


def found(folder: Path, rows: list[dict[str, Any]], check: Faults, **steps: Any) -> dict[tuple[str, str], Any]:
    run = outcome(plan(steps, rows), folder / "run").run
    return {(f.name, f.subject): f for f in check(run, None)}  # type: ignore[arg-type]


def test_kept_rows_and_every_step(tmp_path: Path) -> None:
    check = Faults(hunts={"low": ("bad",), "high": ("odd",)})
    numbers = found(tmp_path, ROWS, check, low=Between(by="n", least=3), high=Between(by="n", most=17))
    value = {name: f.value for name, f in numbers.items()}
    assert value["kept_precision", "start"] == pytest.approx(14 / 20) and value["kept_recall", "start"] == 1.0
    # kept: 3..17, of which 3, 4 and 5 are faulty; good ones are 6..19
    precision, recall = 12 / 15, 12 / 14
    assert value["kept_precision", "make"] == pytest.approx(precision)
    assert value["kept_recall", "make"] == pytest.approx(recall)
    assert value["kept_f1", "make"] == pytest.approx(2 * precision * recall / (precision + recall))
    assert value["low_lost", "make"] == 3 and value["high_lost", "make"] == 2
    assert value["low_precision", "make"] == 1.0 and value["low_recall", "make"] == pytest.approx(3 / 4)
    assert value["high_precision", "make"] == 0.0 and value["high_recall", "make"] == 0.0
    assert numbers["low_recall", "make"].n == 4 and numbers["high_recall", "make"].n == 2


def test_answers_and_twins_count(tmp_path: Path) -> None:
    rows = [*ROWS, *({**row, "twin": True} for row in ROWS[6:8])]
    check = Faults(fault=None, answer="said", right="fact")
    value = {name: f.value for name, f in found(tmp_path, rows, check, all=Between(by="n", least=0)).items()}
    right = [i for i in range(20) if i % 5 == i % 10]  # 0..4 and 10..14
    assert value["kept_precision", "make"] == pytest.approx(len(right) / 22)
    assert value["kept_recall", "make"] == pytest.approx(len(right) / 20)
    doubled = {name: f.value for name, f in found(tmp_path / "b", rows, Faults(), all=Between(by="n", least=0)).items()}
    assert doubled["kept_precision", "make"] == pytest.approx(14 / 22)  # 6 and 7 are there twice
    assert "all_precision" not in {name for name, _ in value}
