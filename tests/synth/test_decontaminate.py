"""Rows that hold a test: found by their words and as near copies, with the test row they hold."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from language import write_jsonl
from stillhouse.core.run import RunError
from stillhouse.data.labelled import Labelled
from stillhouse.data.tasks import Questions
from stillhouse.synth.decontaminate import Decontaminate
from stillhouse.synth.dedup import Hashed

from .lab import Numbers, made
from .onestep import named, once, through, whys

TEST = "a farmer has seventeen sheep and all but nine of them run away how many are left"
TESTS = [
    {"question": TEST, "answer": "9"},
    {"question": "Name the capital of France", "answer": "Paris"},
    {"question": "Why?"},
]


@pytest.fixture
def path(tmp_path: Path) -> str:
    write_jsonl(tmp_path / "mmlu.jsonl", TESTS)
    return str(tmp_path / "mmlu.jsonl")


def recipe(data: Any) -> Any:
    found = made("http://localhost:1")
    object.__setattr__(found, "data", data)
    return found


def test_shared_words_and_near_copies(path: str, tmp_path: Path) -> None:
    rows = [
        {"question": f"Here is one. {TEST.upper()}! Say why."},  # words, other case and punctuation
        {"question": "A farmer has seventeen cows and all but nine of them run off; how many are there?"},
        {"question": "Please NAME the capital of France, now."},  # a short test, as a whole
        {"question": "Name the capitals of France"},
        {"question": "Why? Because."},
        {"question": "Why?"},  # too short to be looked for by its words, but the same
        {"question": ""},
        {"other": "Why?"},
    ]
    step = Decontaminate(columns=("question",), paths=(path,), gram=8)
    kept, gone = through(step, rows, tmp_path)
    assert [row.get("question") for row in kept] == [rows[1]["question"], rows[3]["question"], "Why? Because.", "", None]
    told = {each["row"]["question"]: (each["why"], each["numbers"]["test"]) for each in gone}
    assert told[rows[0]["question"]] == ("it holds words of a test", "mmlu.jsonl row 1")
    assert told[rows[2]["question"]] == ("it holds words of a test", "mmlu.jsonl row 2")
    assert told["Why?"] == ("it is nearly the same as a test", "mmlu.jsonl row 3")
    assert all(each["numbers"]["says"] in {t["question"] for t in TESTS} for each in gone)
    assert "Why?" not in whys(
        through(Decontaminate(columns=("question",), paths=(path,), alike=None), rows, tmp_path)[1], "question"
    )


def test_near_copies_by_n_grams_and_by_vectors(path: str, tmp_path: Path) -> None:
    rows = [
        {"question": f"{TEST} on this farm"},
        {"question": "name the capital of france!"},
        {"question": "something else"},
    ]
    for embed in (None, Hashed()):
        step = Decontaminate(columns=("question",), paths=(path,), gram=50, least=50, alike=0.8, embed=embed)
        kept, gone = through(step, rows, tmp_path)
        assert [row["question"] for row in kept] == ["something else"]
        assert sorted(each["numbers"]["test"] for each in gone) == ["mmlu.jsonl row 1", "mmlu.jsonl row 2"]
        assert all(0.8 <= each["numbers"]["alike"] <= 1 for each in gone)


def test_as_found_by_looking_at_all_pairs(tmp_path: Path) -> None:
    draw = random.Random(0)
    words = "red green one two".split()
    tests = [" ".join(draw.choices(words, k=draw.randrange(3, 9))) for _ in range(12)]
    rows = [{"text": " ".join(draw.choices(words, k=draw.randrange(1, 14)))} for _ in range(150)]
    write_jsonl(tmp_path / "t.jsonl", [{"text": text} for text in tests])
    for share in (0.0, 0.5):
        step = Decontaminate(paths=(str(tmp_path / "t.jsonl"),), gram=4, least=4, alike=None, share=share)
        kept, gone = through(step, rows, tmp_path)

        def hits(text: str, test: str, share: float = share) -> float:
            count = min(4, len(test.split()))
            grams = {" ".join(test.split()[i : i + count]) for i in range(len(test.split()) - count + 1)}
            found = sum(f" {gram} " in f" {text} " for gram in grams) / len(grams)
            return found if len(test.split()) >= 4 and found and found >= share else 0.0

        wanted = [row for row in named(rows) if not any(hits(row["text"], test) for test in tests)]
        assert [row["_id"] for row in kept] == [row["_id"] for row in wanted] and 10 < len(gone) < 140
        for each in gone:
            best = [hits(each["row"]["text"], test) for test in tests]
            assert each["numbers"]["test"] == f"t.jsonl row {best.index(max(best)) + 1}"
            assert each["numbers"]["share"] == pytest.approx(max(best), abs=1e-4)


def test_letters_for_texts_without_blanks(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "t.jsonl", [{"text": "東京は日本の首都です"}])
    rows = [{"text": "問題、東京は日本の首都ですか"}, {"text": "京都は日本の首都でした"}]
    step = Decontaminate(paths=(str(tmp_path / "t.jsonl"),), of="letters", gram=8, alike=None)
    assert [row["text"] for row in through(step, rows, tmp_path)[0]] == ["京都は日本の首都でした"]


def test_the_recipes_own_test_split(tmp_path: Path) -> None:
    rows = [{"text": f"the number {i} of many texts that are here", "label": "ab"[i % 2]} for i in range(40)]
    write_jsonl(tmp_path / "d.jsonl", rows)
    data = Labelled(path=str(tmp_path / "d.jsonl"), test=0.2)
    kept, gone = through(Decontaminate(gram=9, alike=None), rows, tmp_path, recipe(data))
    assert len(gone) == 8 and {each["numbers"]["test"] for each in gone} == {f"test row {i}" for i in range(1, 9)}
    both, _ = through(Decontaminate(gram=9, alike=None, data=data, splits=("valid", "test")), rows, tmp_path, recipe(None))
    assert len(both) == len(kept) - 4
    assert Decontaminate(data=data, paths=("x",)).files == [Path("x"), tmp_path / "d.jsonl"]


def test_what_every_question_ends_with_is_no_test(tmp_path: Path) -> None:
    rows = [{"question": f"What is {i} plus {2 * i}?", "answer": str(3 * i)} for i in range(30)]
    write_jsonl(tmp_path / "q.jsonl", rows)
    data = Questions(path=str(tmp_path / "q.jsonl"))
    asked = [{"question": row["question"] + "\n" + data.instruction} for row in rows]
    step = Decontaminate(columns=("question",), gram=5, alike=None)
    kept, gone = through(step, asked, tmp_path, recipe(data))
    assert len(gone) == 3 and len(kept) == 27


def test_what_cannot_be_is_said(path: str, tmp_path: Path) -> None:
    rows = named([{"text": "a"}])
    with pytest.raises(RunError, match="'text', which no row has.*'question'"):
        once(Decontaminate(paths=(path,)), rows, tmp_path)
    assert once(Decontaminate(paths=(path,), theirs=("question", "answer")), rows, tmp_path)[0] == rows
    with pytest.raises(RunError, match="no split 'test'"):
        once(Decontaminate(), rows, tmp_path, recipe(Numbers()))
    with pytest.raises(RunError, match="give paths of tests"):
        once(Decontaminate(), rows, tmp_path, recipe(None))
    with pytest.raises(RunError, match="no data file"):
        once(Decontaminate(paths=("nowhere.jsonl",)), rows, tmp_path)
    with pytest.raises(RunError, match="did you mean 'text'"):
        once(Decontaminate(columns=("texts",), theirs=("question",), paths=(path,)), rows, tmp_path)
    for wrong in ({"columns": ()}, {"gram": 0}, {"share": 2.0}, {"alike": 1.5}):
        with pytest.raises(ValueError, match="columns|alike"):
            Decontaminate(**wrong)
