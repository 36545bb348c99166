"""Edited texts are made of the given words, as many as are wanted, and none twice."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from stillhouse.synth.edits import Edits, edited
from stillhouse.synth.parse import plain

from .talk import outcome, plan, stands

ROWS = [{"text": f"one two three four five six seven {i} größe 🚲", "label": "rare" if i < 3 else "other"} for i in range(9)]


def test_quotas_of_new_texts(tmp_path: Path) -> None:
    found = stands(Edits(quotas={"rare": 20}), ROWS, tmp_path)
    new = [row for row in found.rows if row["_from"]]
    assert len(new) == 20 - len(found.lost) and len(found.rows) == 9 + len(new) and len(new) > 15
    assert {row["label"] for row in new} == {"rare"}
    assert len({plain(row["text"]) for row in found.rows}) == len(found.rows)
    names = {row["_id"]: row for row in found.rows if not row["_from"]}
    turns = Counter(row["_from"][0] for row in new)
    assert all(names[name]["label"] == "rare" for name in turns) and max(turns.values()) <= 7


@pytest.mark.parametrize("seed", range(30))
def test_one_edit_in_ten_words(seed: int) -> None:
    words: list[str] = list("abcdefghij")
    new: list[str] = edited(" ".join(words), 0.1, random.Random(seed)).split()
    more, less = Counter(new) - Counter(words), Counter(words) - Counter(new)
    assert sorted((more.total(), less.total())) in ([0, 0], [0, 1])
    moved = sum(a != b for a, b in zip(words, new, strict=False)) if len(new) == 10 else 2
    assert moved in (0, 2) or len(new) != 10


def test_one_word_stays() -> None:
    assert all(edited("word", 1.0, random.Random(seed)) == "word word" for seed in range(5))


def test_a_text_that_cannot_be_edited_anew_is_lost(tmp_path: Path) -> None:
    rows = [{"text": "a a", "label": "x"}, {"text": "a", "label": "y"}, {"text": "a a a", "label": "y"}]
    found = outcome(plan(Edits(quotas={"x": 3}, share=0.01), rows), tmp_path / "run")
    assert len(found.rows) == 3 and found.why() == ["the same text was there before"] * 3
    none = outcome(plan(Edits(quotas={"z": 3}), rows), tmp_path / "none")
    assert len(none.rows) == 3 and not none.lost


def test_settings_that_make_no_sense() -> None:
    bad: list[dict[str, Any]] = [dict(share=0.0), dict(tries=0), dict(quotas={"a": -1})]
    for wrong in bad:
        with pytest.raises(ValueError):
            Edits(**wrong)
