"""A file is read piece by piece, and says what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stillhouse.core.run import Run, RunError
from stillhouse.synth.source import File
from stillhouse.synth.table import write


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_rows_stream_from_any_file(tmp_path: Path, ending: str) -> None:
    rows = [{"text": f"Grüße {i}", "n": str(i)} for i in range(9)]
    file = tmp_path / f"rows.{ending}"
    if ending == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif ending == "csv":
        file.write_text("text,n\n" + "".join(f"{row['text']},{row['n']}\n" for row in rows))
    else:
        write(file, rows)
    run = Run(tmp_path / "run")
    assert list(File(path=str(file)).stream(run, "train")) == rows
    assert File(path=str(file), limit=4).rows(run)["train"] == rows[:4]


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    with pytest.raises(RunError, match="no data file .*none.jsonl"):
        next(File(path=str(tmp_path / "none.jsonl")).stream(run, "train"))
    with pytest.raises(RunError, match="is read whole, as the split 'train'; there is no split 'test'"):
        next(File(path=str(tmp_path / "none.jsonl")).stream(run, "test"))
    (tmp_path / "bad.parquet").write_bytes(b"nothing")
    with pytest.raises(RunError, match="cannot read bad.parquet"):
        next(File(path=str(tmp_path / "bad.parquet")).stream(run, "train"))
    (tmp_path / "cut.jsonl").write_text('{"a": 1}\n{"a": \n')
    assert File(path=str(tmp_path / "cut.jsonl")).rows(run)["train"] == [{"a": 1}]
    assert run.read("rejects.jsonl")[0]["why"] == "line 2 of cut.jsonl is not a JSON object"
