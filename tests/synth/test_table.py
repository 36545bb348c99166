"""A table gives back what was written into it, however its columns come and whether or not it fits into memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stillhouse.core.run import RunError
from stillhouse.synth.table import CHUNK, Row, Table, Writing, settled, write

ROWS: list[dict[str, Any]] = [
    {"_id": "1", "_from": [], "text": "Grüße\u2028", "n": 3, "deep": {"a": [1, 2]}},
    {"_id": "2", "_from": ["1"], "text": "", "extra": 0.5, "turns": [{"role": "user"}, {"words": None}], "empty": {}},
]


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    table = write(tmp_path / "t.parquet", ROWS)
    assert list(table) == ROWS == list(table) and len(table) == 2
    assert table[1] == ROWS[1] and table[-1] == ROWS[1] and table[:1] == ROWS[:1] and table[5:] == []
    assert table.columns == ["_id", "_from", "text", "n", "deep", "extra", "turns", "empty"]
    with pytest.raises(IndexError):
        table[2]


def test_no_row_is_a_table(tmp_path: Path) -> None:
    table = write(tmp_path / "t.parquet", [])
    assert list(table) == [] and len(table) == 0 and table.having("text", ["a"]) == []


@pytest.mark.parametrize("first", [{"list": []}, {"list": ["a"]}, {}, {"list": None}])
def test_columns_may_come_and_widen_later(tmp_path: Path, first: dict[str, Any]) -> None:
    rows = [{"_id": f"{i:032x}", "n": i, **first} for i in range(CHUNK)]
    rows += [{"_id": "a", "n": 0.5, "list": [{"deep": 1}], "new": True}, {"_id": "b"}]
    table = write(tmp_path / "t.parquet", rows)
    assert list(table) == [{k: v for k, v in row.items() if v is not None} for row in rows]
    assert not list(tmp_path.glob("*.old")) and not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("far", [1, CHUNK])
def test_words_and_numbers_in_one_column_are_refused(tmp_path: Path, far: int) -> None:
    rows = [{"_id": f"{i}", "score": 1} for i in range(far)] + [{"_id": "x", "score": "high"}]
    write(tmp_path / "t.parquet", ROWS)
    with pytest.raises(RunError, match=r"cannot write t.parquet: column 'score'"):
        write(tmp_path / "t.parquet", rows)
    assert list(Table(tmp_path / "t.parquet")) == ROWS and not list(tmp_path.glob("*.part"))


def test_what_is_no_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"PAR1 or not")
    with pytest.raises(RunError, match=r"cannot read the table .*t.parquet"):
        Table(tmp_path / "t.parquet")


def test_rows_are_found_by_a_value(tmp_path: Path) -> None:
    table = write(tmp_path / "t.parquet", ({"_id": f"{i}", "deep": {"i": i}} for i in range(3 * CHUNK)))
    assert table.having("_id", ["5", "10000", "none"]) == [
        {"_id": "5", "deep": {"i": 5}},
        {"_id": "10000", "deep": {"i": 10000}},
    ]


def test_the_digest_is_of_the_content_in_its_order(tmp_path: Path) -> None:
    def digest(rows: list[Row]) -> str:
        writing = Writing(tmp_path / "t.parquet")
        for row in rows:
            writing.add(row)
        return settled(writing, lambda row, new, before: row)[1]

    assert digest(list(ROWS)) == digest([dict(reversed(row.items())) for row in ROWS])
    assert len({digest(list(ROWS)), digest(ROWS[::-1]), digest([{**ROWS[0], "n": 4}, ROWS[1]])}) == 3


def test_twins_are_told_apart_by_how_many_came_before(tmp_path: Path) -> None:
    writing = Writing(tmp_path / "t.parquet")
    for name, new in [("a", True), ("b", False), ("a", True), ("b", False), ("a", True)]:
        writing.add({"_id": name}, new)
    seen: list[tuple[str, bool, int]] = []

    def twin(row: Row, new: bool, before: int) -> Row | None:
        seen.append((str(row["_id"]), new, before))
        return {"_id": f"{row['_id']}{before}"} if new else None

    table, digest = settled(writing, twin)
    assert [row["_id"] for row in table] == ["a", "b", "a1", "a2"]
    assert seen == [("a", True, 1), ("b", False, 1), ("a", True, 2)]
    plain = Writing(tmp_path / "u.parquet")
    for row in table:
        plain.add(row)
    assert settled(plain, twin)[1] == digest


GROWING = """
import resource, sys
from pathlib import Path
from stillhouse.synth.table import write
write(Path(sys.argv[1]), [{"_id": "0"}])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
write(Path(sys.argv[1]), ({"_id": f"{i:032x}", "text": "word " * 40} for i in range(int(sys.argv[2]))))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is told in other units elsewhere")
def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    def used(rows: int) -> int:
        command = [sys.executable, "-c", GROWING, str(tmp_path / "t.parquet"), str(rows)]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)  # KiB

    few, many = used(4 * CHUNK), used(40 * CHUNK)
    assert many - few < 20_000  # the rows alone are 33 MB of text
