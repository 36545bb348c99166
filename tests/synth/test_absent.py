"""Absent values: never one that is there, drawn as often as they should be, whatever the order of the rows."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from pathlib import Path

import pytest

from stillhouse.synth.absent import Absent, without_replacement

from .onestep import through

ROWS = [
    {"text": f"row {i}", "types": ["a"] * (i % 2) + ["b"] * (i % 5 == 0) + [f"rare {i}"] * (i % 10 == 0)} for i in range(200)
]


@pytest.mark.parametrize("by", ["frequency", "uniform", "none"])
def test_nothing_that_is_there_is_drawn(by: str, tmp_path: Path) -> None:
    kept, gone = through(Absent(by=by, count=3), ROWS, tmp_path)  # type: ignore[arg-type]
    assert len(kept) == 200 and not gone
    for row in kept:
        assert not set(row["absent"]) & set(row["types"]) and len(set(row["absent"])) == len(row["absent"])
        assert len(row["absent"]) == (0 if by == "none" else 3)


def test_by_frequency_common_ones_come_first(tmp_path: Path) -> None:
    common = {}
    for by in ("frequency", "uniform"):
        kept, _ = through(Absent(by=by, count=1), ROWS, tmp_path / by)  # type: ignore[arg-type]
        common[by] = sum(row["absent"][0] in ("a", "b") for row in kept) / len(kept)
    assert common["frequency"] > 0.6 and common["uniform"] < 0.25


def test_a_row_that_has_all_gets_none_and_fewer_where_there_are_fewer(tmp_path: Path) -> None:
    rows = [{"types": ["a", "b"], "n": 1}, {"types": [], "n": 2}, {"types": "über", "n": 3}]
    kept, _ = through(Absent(count=5), rows, tmp_path)
    found = {row["n"]: set(row["absent"]) for row in kept}
    assert found == {1: {"über"}, 2: {"a", "b", "über"}, 3: {"a", "b"}}


def test_drawing_without_replacement_has_the_chances_of_drawing_one_after_the_other() -> None:
    weights = {"a": 1.0, "b": 2.0, "c": 5.0}
    chance = {
        (x, y): weights[x] / 8 * weights[y] / (8 - weights[x]) for x, y in itertools.permutations(weights, 2)
    }  # by hand
    rng = random.Random(0)
    seen = Counter(tuple(without_replacement(weights, 2, rng)) for _ in range(20_000))
    for pair, p in chance.items():
        assert seen[pair] / 20_000 == pytest.approx(p, abs=0.012)
    assert sum(chance.values()) == pytest.approx(1.0)
