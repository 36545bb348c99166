"""Labelled texts of a user: every row that cannot be used has a reason, and the splits share no text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from language import run_of, write_jsonl
from stillhouse.core.run import RunError
from stillhouse.data.labelled import Labelled, LibraryTopics, names_of
from stillhouse.data.toys import Sentences
from stillhouse.models.text import NGrams
from stillhouse.models.toys import MLP

NAMES = ("cat", "dog", "bird")
ROWS = [{"text": f"text {i} about a {NAMES[i % 3]}", "label": NAMES[i % 3]} for i in range(60)]


def loaded(tmp_path: Path, rows: Any, student: Any = None, seed: int = 0, **settings: Any) -> tuple[Any, Any]:
    data = Labelled(path=str(write_jsonl(tmp_path / "rows.jsonl", rows)), **settings)
    run = run_of(tmp_path / "run", student or NGrams(), data=data, seed=seed)
    return data.load(run), run


def test_the_splits_are_all_rows_once(tmp_path: Path) -> None:
    splits, _ = loaded(tmp_path, ROWS)
    assert {name: len(split) for name, split in splits.items()} == {"train": 48, "valid": 6, "test": 6}
    texts = [text for split in splits.values() for text in split.texts]
    assert sorted(texts) == sorted(row["text"] for row in ROWS)
    assert splits["train"].names == ("bird", "cat", "dog") and splits["train"].classes == 3
    batch = splits["train"].batch([3, 5], 0)
    truth = {row["text"]: row["label"] for row in ROWS}
    assert [splits["train"].names[i] for i in batch["labels"]] == [truth[splits["train"].texts[i]] for i in (3, 5)]
    assert batch["inputs"]["grams"].shape[0] == 2


def test_shots_are_drawn_by_the_seed_and_leave_the_rest_alone(tmp_path: Path) -> None:
    few = [loaded(tmp_path, ROWS, shots=2, seed=seed)[0] for seed in (0, 0, 1)]
    chosen = [set(splits["train"].texts) for splits in few]
    assert chosen[0] == chosen[1] != chosen[2]
    assert torch.bincount(few[0]["train"].labels).tolist() == [2, 2, 2]
    assert few[0]["test"].texts == few[2]["test"].texts == loaded(tmp_path, ROWS)[0]["test"].texts
    with pytest.raises(RunError, match="class .* has .* rows to learn from, and 30 were asked for"):
        loaded(tmp_path, ROWS, shots=30)


def test_rows_that_cannot_be_used_have_a_reason(tmp_path: Path) -> None:
    bad = [
        {"text": "", "label": "cat"}, {"text": "no label"}, {"text": "empty label", "label": " "}, {"label": "dog"},
        {"text": "both", "label": "cat"}, {"text": "both", "label": "dog"}, ROWS[0],
    ]  # fmt: skip
    splits, run = loaded(tmp_path, [*ROWS, *bad])
    assert sum(map(len, splits.values())) == 60
    reasons = sorted(reject["why"] for reject in run.read("rejects.jsonl"))
    assert reasons == ["nothing in column 'label'"] * 2 + ["nothing in column 'text'"] * 2 + ["the same text has two labels"]


def test_other_columns_numbers_and_names(tmp_path: Path) -> None:
    rows = [{"question": row["text"], "kind": i % 3} for i, row in enumerate(ROWS)]
    splits, _ = loaded(tmp_path, rows, text="question", label="kind", called={"0": "cats", "1": "dogs"})
    assert splits["train"].names == ("2", "cats", "dogs")


def test_a_test_file_of_its_own_shares_no_text(tmp_path: Path) -> None:
    test = write_jsonl(tmp_path / "test.jsonl", [*ROWS[:2], {"text": "a new cat", "label": "cat"}])
    splits, run = loaded(tmp_path, ROWS, test_path=str(test))
    assert splits["test"].texts == ("a new cat",) and len(splits["train"]) + len(splits["valid"]) == 60
    assert [r["why"] for r in run.read("rejects.jsonl")] == ["a test text that is in the training file too"] * 2


@pytest.mark.parametrize(
    ("rows", "settings", "why"),
    [
        (ROWS, {"label": "lable"}, "no row of .* has a text in 'text' and a label in 'lable'"),
        ([{**row, "label": "x"} for row in ROWS], {}, "holds one label only"),
        (ROWS[:2], {}, "too few"),
    ],
)
def test_data_that_cannot_be_learned_from_are_one_line(tmp_path: Path, rows: Any, settings: Any, why: str) -> None:
    with pytest.raises(RunError, match=why):
        loaded(tmp_path, rows, **settings)


def test_a_student_that_reads_no_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="the student MLP reads no text"):
        loaded(tmp_path, ROWS, MLP(inputs=3, classes=3))
    with pytest.raises(RunError, match="the data Sentences have no labelled texts"):
        names_of(Sentences(), run_of(tmp_path / "other", NGrams()))


def test_every_python_brings_a_set_along(tmp_path: Path) -> None:
    data = LibraryTopics(each=40)
    run = run_of(tmp_path / "run", NGrams(), data=data)
    splits = data.load(run)
    assert splits["train"].classes == 9 and all(len(split) > 20 for split in splits.values())
    texts = [text for split in splits.values() for text in split.texts]
    assert len(set(texts)) == len(texts) == 9 * 40
