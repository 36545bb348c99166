"""A pool grows by what is new to it, shown some of people's rows and some of its own."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from stillhouse.cli.door import spec
from stillhouse.core.recipe import to_plain
from stillhouse.core.run import RunError
from stillhouse.core.signal import Completion
from stillhouse.models.text import n_grams
from stillhouse.synth.flow import Grow
from stillhouse.synth.instruct import Instruct
from stillhouse.synth.synthesize import DataPlan
from stillhouse.teachers.text import Ask, Decoding, Lost

from .talk import Seen, known, outcome, plan, stands

WORDS = "apfel birne zug maus regen lampe straße über tal wolke kanne feder".split()
ROWS = [{"text": f"write about {a} and {b}"} for a, b in zip(WORDS[:6], WORDS[6:], strict=True)]


def lists(ask: Ask, rng: random.Random) -> str:
    return "Sure:\n" + "\n".join(f"{i}. tell {' '.join(rng.choices(WORDS, k=4))}" for i in range(1, ask.about["wanted"] + 1))


def similar(a: str, b: str) -> float:
    one, other = set(n_grams(a)), set(n_grams(b))
    return len(one & other) / (len(one) * len(other)) ** 0.5


def test_only_what_is_new_comes_out(tmp_path: Path) -> None:
    found = stands(Instruct(asks=12, wanted=4, alike=0.5), ROWS, tmp_path, teacher=lists)
    texts = [row["text"] for row in ROWS]
    assert found.rows and {why for why in found.why()} == {"too like a row that is there"}
    assert len(found.rows) + len(found.lost) == 48
    for row in found.rows:  # in their order: none like one before it
        assert row["machine"] is True and max(similar(row["text"], text) for text in texts) < 0.5
        texts.append(row["text"])
        assert len(row["_from"]) == 6
    by_name = {row["_id"]: row["text"] for row in found.rows} | {name: "" for row in found.rows for name in row["_from"]}
    for row in found.lost:
        assert row["numbers"]["alike"] >= 0.5 and row["numbers"]["like"] in by_name
        other = by_name[row["numbers"]["like"]]
        assert not other or similar(row["row"]["text"], other) == pytest.approx(row["numbers"]["alike"])


def test_a_pool_grows_in_rounds_and_shows_both_kinds(tmp_path: Path) -> None:
    seen = Seen(lists)
    step = Instruct(asks=6, wanted=3, people=3, own=2, alike=0.8, decoding=Decoding(max_new=64))
    recipe = plan(Grow(steps={"more": step}, to=40, rounds=5), ROWS, teacher=seen)
    found = outcome(recipe, tmp_path / "a" / "run")
    assert len(found.rows) == 40 and {row["text"] for row in ROWS} <= {row["text"] for row in found.rows}
    kinds = [Counter(bool(row.get("machine")) for row in ask.about["shown"]) for ask in seen.asked]
    assert kinds[:6] == [Counter({False: 5})] * 6  # nothing of its own yet: people's in its place
    assert kinds[6:] and set(map(str, kinds[6:])) == {str(Counter({False: 3, True: 2}))}
    need = DataPlan.of(recipe).needs["teacher"]
    assert found.paid["teacher"]["calls"] <= need.calls and found.paid["teacher"]["tokens"] <= need.read + need.wrote
    other = outcome(plan(Grow(steps={"more": step}, to=40, rounds=5), ROWS[::-1], teacher=seen), tmp_path / "b" / "run")
    assert known(other.rows) == known(found.rows)
    assert len({row["text"] for row in found.rows}) == 40


def test_without_rows_of_people_its_own_are_shown(tmp_path: Path) -> None:
    seen = Seen(lists)
    outcome(plan(Instruct(asks=2), [{**row, "machine": True} for row in ROWS], teacher=seen), tmp_path / "run")
    assert all(len(ask.about["shown"]) == 6 for ask in seen.asked)
    outcome(plan(Instruct(asks=2), ROWS[:1], teacher=seen), tmp_path / "one")
    assert len(seen.asked[-1].about["shown"]) == 1


def bad(ask: Ask, rng: random.Random) -> Any:
    n = rng.randrange(4)
    if n == 0:
        return Lost("away")
    if n == 1:
        return Completion(f"1. all of zebra {rng.random()}\n2. cut off here", finished=False, read=9, wrote=9)
    return " " if n == 2 else "1. quokka\n2. numbat\n3. quoll"


def test_what_cannot_be_used_is_lost(tmp_path: Path) -> None:
    found = stands(Instruct(asks=30, wanted=2), ROWS, tmp_path, teacher=bad)
    why = Counter(found.why())
    assert set(why) == {
        "away", "the answer was cut off", "no text in the answer", "more texts than were asked for",
        "too like a row that is there",
    }  # fmt: skip
    assert {"quokka", "numbat"} < {row["text"] for row in found.rows} and "quoll" not in found.column("text")
    assert not any("cut off here" in text for text in found.column("text"))


def test_what_cannot_be_is_one_line(tmp_path: Path) -> None:
    seen = Seen(lists)
    with pytest.raises(RunError, match="the pool reads a column 'txt', which no row has; did you mean 'text'"):
        outcome(plan(Instruct(column="txt"), ROWS, teacher=seen), tmp_path / "a")
    with pytest.raises(RunError, match="reads `texts` and `wanted`, and not 'text'"):
        outcome(plan(Instruct(prompt="{{ text }}"), ROWS, teacher=seen), tmp_path / "b")
    assert not seen.asked
    for settings in ({"asks": 0}, {"people": 0, "own": 0}, {"alike": 0}, {"alike": 1.1}):
        with pytest.raises(ValueError):
            Instruct(**settings)  # type: ignore[arg-type]
    assert spec(to_plain(Instruct(asks=3))) == Instruct(asks=3)
