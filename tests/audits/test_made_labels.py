"""What is said about made rows, counted by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stillhouse.audits.made_labels import MadeLabels
from stillhouse.core.report import Figure
from stillhouse.core.run import Run
from stillhouse.synth.synthesize import ACCOUNT, ROWS
from stillhouse.synth.table import write


def found(tmp_path: Path, rows: list[dict[str, Any]]) -> tuple[dict[str, Any], list[Figure]]:
    run = Run(tmp_path / "run")
    steps = [{"step": "mix", "given": 2, "made": 20, "lost": {"copy": 3, "empty": 1}}]
    account = {"steps": steps, "teachers": {"teacher": {"calls": 44, "tokens": 1000, "money": 1.5, "borrowed": 7}}}
    with run.artifact("make") as folder:
        write(folder / ROWS, rows)
        (folder / ACCOUNT).write_text(json.dumps(account))
    all_ = list(MadeLabels()(run, subjects=None))  # type: ignore[arg-type]
    return {f.name: f for f in all_ if not isinstance(f, Figure)}, [f for f in all_ if isinstance(f, Figure)]


def test_counts_and_precision(tmp_path: Path) -> None:
    rows = [
        {"_id": str(i), "text": "t", "label": "a" if i < 15 else "b", "asked": "a", "share": 60 if i % 2 else 90,
         "_truth": "a" if i < 10 else "b"}
        for i in range(20)
    ]  # fmt: skip
    numbers, figures = found(tmp_path, rows)
    assert numbers["rows_made"].value == 20 and numbers["rows_lost"].value == 4
    assert numbers["teacher_calls"].value == 44 and "1,000 tokens, 1.50 in money, 7 kept" in numbers["teacher_calls"].note
    assert numbers["labels_changed"].value == pytest.approx(5 / 20)
    assert numbers["label_precision"].value == pytest.approx(15 / 20)  # 0..9 and 15..19
    assert numbers["asked_label_precision"].value == pytest.approx(10 / 20)
    assert numbers["label_precision"].low < 0.75 < numbers["label_precision"].high  # type: ignore[operator]
    assert {tuple(figure.series) for figure in figures} == {("as it is",), ("as asked for",)}
    right = {share: sum(i < 10 or i >= 15 for i in range(odd, 20, 2)) / 10 for share, odd in ((90.0, 0), (60.0, 1))}
    assert dict(figures[0].series["as it is"]) == pytest.approx(right)


def test_nothing_is_said_about_what_is_not_known(tmp_path: Path) -> None:
    numbers, figures = found(tmp_path, [{"_id": "1", "text": "t", "label": "a"}])
    assert set(numbers) == {"rows_made", "rows_lost", "teacher_calls"} and not figures
