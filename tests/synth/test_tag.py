"""A name out of some for every row, or a reason why not."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from stillhouse.core.run import RunError
from stillhouse.synth.tag import Tag
from stillhouse.teachers.text import Ask, Lost

from .talk import Seen, outcome, plan, stands

NAMES = {"algebra": "unknowns", "geometry > circles": "", "geometry > triangles": ""}
SAID = ["Algebra", "geometry > circles.", "It is geometry > triangles", "???", "cooking", "", None, "ALGEBRA"]
ROWS = [{"question": f"q{i} ü", "n": i} for i in range(len(SAID))]


def say(ask: Ask, rng: random.Random) -> Any:
    said = SAID[ask.about["n"]]
    return Lost("away") if said is None else said


def test_names_are_read_as_they_are_meant(tmp_path: Path) -> None:
    seen = Seen(say)
    found = stands(Tag(names=NAMES, into="topic"), ROWS, tmp_path, judge=seen)
    named = {row["n"]: row["topic"] for row in found.rows}
    assert named == {0: "algebra", 1: "geometry > circles", 2: "geometry > triangles", 7: "algebra"}
    assert found.why() == ["away"] + ["the answer is no name of a topic"] * 3
    assert "- algebra: unknowns\n- geometry > circles\n" in seen.asked[0].messages[0][1]
    assert [row["_id"] for row in found.rows] == [row["_id"] for row in found.rows if row["_from"] == []]


def test_others_can_have_a_name_too(tmp_path: Path) -> None:
    found = outcome(plan(Tag(names=NAMES, otherwise="rest"), ROWS, judge=say), tmp_path / "run")
    assert [row["tag"] for row in sorted(found.rows, key=lambda row: row["n"])].count("rest") == 3 and found.why() == [
        "away"
    ]


def test_what_cannot_be_asked(tmp_path: Path) -> None:
    found = outcome(plan(Tag(names=NAMES), [*ROWS[:1], {"question": " ", "n": 9}], judge=say), tmp_path / "a" / "run")
    assert found.why() == ["nothing to ask about"] and len(found.rows) == 1
    with pytest.raises(RunError, match="'question', which no row has"):
        outcome(plan(Tag(names=NAMES), [{"questions": "q"}], judge=say), tmp_path / "b" / "run")
    for names in ({}, {"a": ""}, {"a": "", "A!": ""}):
        with pytest.raises(ValueError, match="two names"):
            Tag(names=names)
