"""Verdicts on a sample: as many as are asked for, the same whatever the order, and silence is none."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from stillhouse.core.run import RunError
from stillhouse.synth.verdicts import Verdicts
from stillhouse.teachers.text import Ask

from .talk import outcome, plan, stands

ROWS = [{"text": f"row {i} {'ü' if i % 3 else 'no'}"} for i in range(30)]


def person(ask: Ask, rng: random.Random) -> str:
    words = ask.messages[-1][1]
    number = int(words.split()[2])
    return "Perhaps." if number % 7 == 0 else "No, never" if words.endswith("no?") else "**Yes**."


def test_a_sample_gets_verdicts_and_nothing_is_lost(tmp_path: Path) -> None:
    found = stands(Verdicts(prompt="Is {{ text }}?", count=12), ROWS, tmp_path, person=person)
    assert len(found.rows) == 30 and not found.lost and found.paid["person"]["calls"] == 12
    said = {row["text"]: row["verdict"] for row in found.rows if row.get("verdict") is not None}
    sevens = [row for row in ROWS if int(row["text"].split()[1]) % 7 == 0]
    assert 12 - len(sevens) <= len(said) <= 12
    assert all(verdict == ("ü" in text) and int(text.split()[1]) % 7 for text, verdict in said.items())
    few = outcome(plan(Verdicts(prompt="Is {{ text }}?", count=500), ROWS, person=person), tmp_path / "all" / "run")
    assert few.paid["person"]["calls"] == 30


def test_a_column_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="reads a column 'txt', which no row has; did you mean 'text'"):
        outcome(plan(Verdicts(prompt="{{ txt }}"), ROWS, person=person), tmp_path / "run")
