"""A user's file as rows: every format, and one clear line for every way in which a file can be wrong."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from language import run_of
from stillhouse.core.run import RunError
from stillhouse.data.tables import content_key, read_rows, split_rows

ROWS = [{"text": 'two\nlines, and a "comma"', "n": "007"}, {"text": "naïve 漢字", "n": "8"}]


def as_csv(rows: list[dict[str, Any]], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


WRITERS: dict[str, Callable[[list[dict[str, Any]], Path], Any]] = {
    "a.jsonl": lambda rows, path: path.write_text("\n\n".join(json.dumps(r) for r in rows)),
    "a.json": lambda rows, path: path.write_text(json.dumps(rows)),
    "a.csv": as_csv,
    "a.parquet": lambda rows, path: pq.write_table(pa.Table.from_pylist(rows), path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_formats(tmp_path: Path, name: str) -> None:
    WRITERS[name](ROWS, tmp_path / name)
    assert read_rows(tmp_path / name) == ROWS
    (tmp_path / name).rename(tmp_path / name.upper())
    assert read_rows(tmp_path / name.upper()) == ROWS


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_compressed_and_marked(tmp_path: Path, name: str) -> None:
    WRITERS[name](ROWS, tmp_path / name)
    plain = (tmp_path / name).read_bytes()
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(plain))
    assert read_rows(tmp_path / f"{name}.gz") == ROWS
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + plain)  # as spreadsheets write it
    assert read_rows(tmp_path / name) == ROWS


def test_text_is_cut_at_blank_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\nstill one\n\n\n\n  two\n\n")
    assert read_rows(tmp_path / "a.txt") == [{"text": "one\nstill one"}, {"text": "  two"}]
    (tmp_path / "a.txt").write_text(" = Title = \n \n some words \n \t\n more\n")  # as WikiText has it
    assert read_rows(tmp_path / "a.txt") == [{"text": " = Title = "}, {"text": " some words "}, {"text": " more"}]
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"zipped"))
    assert read_rows(tmp_path / "a.txt.gz") == [{"text": "zipped"}]


def test_broken_lines_are_rejected_with_their_number(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n{"text": \n[1, 2]\n{"text": "good too"}\n')
    run = run_of(tmp_path / "run", None)
    assert len(read_rows(tmp_path / "a.jsonl", run)) == 2
    assert [r["why"].split(" is")[0] for r in run.read("rejects.jsonl")] == ["line 2 of a.jsonl", "line 3 of a.jsonl"]
    (warning,) = [e["text"] for e in run.read("events.jsonl") if e["event"] == "warning"]
    assert warning.startswith("2 lines of a.jsonl") and "line 2" in warning


def test_csv_lines_of_the_wrong_width(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,n\ngood,1\ntoo,many,cells\nfew\n")
    run = run_of(tmp_path / "run", None)
    assert read_rows(tmp_path / "a.csv", run) == [{"text": "good", "n": "1"}]
    assert [r["why"].split(" is")[0] for r in run.read("rejects.jsonl")] == ["line 3 of a.csv", "line 4 of a.csv"]


WRONG = {
    "nothing.jsonl": (None, "no data file"),
    "empty.jsonl": (b"", "no rows"),
    "blank.txt": (b"\n\n \n", "no rows"),
    "header.csv": (b"text,n\n", "no rows"),
    "empty.csv": (b"", "no rows"),
    "list.jsonl": (b'[\n"a"\n]', "no line of list.jsonl is a JSON object"),
    "object.json": (b'{"text": "a"}', "list of objects"),
    "numbers.json": (b"[1, 2]", "list of objects"),
    "broken.json": (b"[", "cannot read"),
    "latin.csv": (b"text,n\ncaf\xe9,1\n", "cannot read"),
    "latin.txt": (b"caf\xe9", "cannot read"),
    "quote.csv": (b'text,n\n"open,1\n', "cannot read"),
    "a.parquet": (b"not parquet at all", "cannot read"),
    "a.jsonl.gz": (b"not zipped", "cannot read"),
    "cut.jsonl.gz": (gzip.compress(b'{"text": "x"}' * 99)[:-12], "cannot read"),
    "a.docx": (b"x", "give .jsonl"),
    "a": (b"x", "give .jsonl"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_read(tmp_path: Path, name: str) -> None:
    content, says = WRONG[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(RunError, match=says) as caught:
        read_rows(tmp_path / name)
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is a folder; name a file"):
        read_rows(tmp_path)


# -- splits --------------------------------------------------------------------------------------------------------

rows = st.lists(st.fixed_dictionaries({"text": st.text(max_size=3)}), min_size=3, max_size=60)


@given(rows, st.randoms())
def test_splits_hold_every_row_once_in_whatever_order_they_came(rows: list[dict[str, Any]], random: Any) -> None:
    different = {content_key(r) for r in rows}
    if len(different) < 3:
        with pytest.raises(RunError, match="too few"):
            split_rows(rows, valid=0.2, test=0.2)
        return
    splits = split_rows(rows, valid=0.2, test=0.2)
    keys = [content_key(r) for part in splits.values() for r in part]
    assert sorted(keys) == sorted(different)  # no row twice, hence none in two splits
    shuffled = random.sample(rows, len(rows))
    assert split_rows(shuffled, valid=0.2, test=0.2) == splits
    for share in ("valid", "test"):
        assert len(splits[share]) == max(1, round(0.2 * len(different)))


def test_adding_a_row_moves_few_others() -> None:
    many = [{"text": str(i)} for i in range(200)]
    before, after = (split_rows(many[:n], valid=0.1, test=0.1)["test"] for n in (199, 200))
    assert len({r["text"] for r in before} ^ {r["text"] for r in after}) <= 3


def test_nothing_is_held_out_unless_asked(tmp_path: Path) -> None:
    assert [len(v) for v in split_rows([{"text": "a"}], valid=0.0, test=0.0).values()] == [0, 0, 1]
    run = run_of(tmp_path, None)
    split_rows([{"text": "a"}] * 3, valid=0.0, test=0.0, run=run)
    split_rows([{"text": "a"}] * 3, valid=0.0, test=0.0, run=run)  # read again, as every stage does: told once
    assert [r["why"] for r in run.read("rejects.jsonl")] == ["duplicate of an earlier row"]
