"""Several files under common names."""

from __future__ import annotations

from pathlib import Path

import pytest

from language import write_jsonl
from stillhouse.core.run import Run, RunError
from stillhouse.synth.union import Source, Union


def test_columns_get_common_names(tmp_path: Path) -> None:
    books = write_jsonl(tmp_path / "books.jsonl", [{"problem": "1+1?", "key": 2, "why": "x"}, {"problem": "", "key": 3}])
    (tmp_path / "web.csv").write_text("question,response\nwie groß?,sehr\nnoch eins,\n", encoding="utf-8")
    code = write_jsonl(tmp_path / "code.jsonl", [{"question": "add", "tests": ["assert 1"]}, {"question": "b", "tests": []}])
    made = Union(sources={
        "books": Source(path=str(books), question="problem", truth="key"), "web": Source(path=str(tmp_path / "web.csv")),
        "code": Source(path=str(code), limit=1),
    })  # fmt: skip
    run = Run(tmp_path / "run")
    assert made.rows(run)["train"] == [
        {"question": "1+1?", "truth": 2, "source": "books"},
        {"question": "wie groß?", "response": "sehr", "source": "web"},
        {"question": "noch eins", "source": "web"},
        {"question": "add", "tests": ["assert 1"], "source": "code"},
    ]
    assert [line["why"] for line in run.read("rejects.jsonl")] == ["nothing in column 'problem' of books"]


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    path = str(write_jsonl(tmp_path / "a.jsonl", [{"questio": "a"}]))
    with pytest.raises(RunError, match="no row of .* column 'question'.*questio"):
        Union(sources={"a": Source(path=path)}).rows(run)
    with pytest.raises(RunError, match="no sources"):
        Union().rows(run)
    with pytest.raises(RunError, match="no split 'test'"):
        list(Union(sources={"a": Source(path=path)}).stream(run, "test"))
    with pytest.raises(RunError, match="no data file"):
        Union(sources={"a": Source(path="nowhere.jsonl")}).rows(run)
