"""Texts with a marked word: the label is the marked word's kind, and nothing is in two splits."""

from __future__ import annotations

from pathlib import Path

from stillhouse.core.run import Run
from stillhouse.data.marked import MARK, Marked, kinds


def test_the_word_behind_the_mark_is_the_label(tmp_path: Path) -> None:
    data = Marked(words=20, classes=4, each=5, train=200, valid=50, test=60, shots=3)
    every, known = data.all_rows(Run(tmp_path)), kinds(20, 4)
    assert {name: len(rows) for name, rows in every.items()} == {"train": 200, "valid": 50, "test": 60}
    for row in (row for rows in every.values() for row in rows):
        words = row["text"].split()
        assert len(words) == 6 and words.count(MARK) == 1 and set(words) <= {MARK, *known}
        assert row["label"] == known[words[words.index(MARK) + 1]]
    assert len({row["text"] for rows in every.values() for row in rows}) == 310
    assert sorted(known.values()) == sorted(f"kind {i}" for i in range(4) for _ in range(5))


def test_a_few_shots_depend_on_the_seed_and_the_texts_do_not(tmp_path: Path) -> None:
    data = Marked(words=20, classes=4, each=5, train=200, valid=50, test=60, shots=3)
    one, two = (data.rows(Run(tmp_path / str(seed), seed=seed)) for seed in (1, 2))
    assert len(one["train"]) == 12 and one["train"] != two["train"] and one["test"] == two["test"]
    assert data.names(Run(tmp_path)) == ("kind 0", "kind 1", "kind 2", "kind 3")
