"""Two tokenizers over one text: chunks end where both have a boundary, and cover what both can predict."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from language import Folders, run_of, write_jsonl
from stillhouse.core.run import RunError
from stillhouse.data.tokens import Text
from stillhouse.data.twofold import (
    STOP,
    ByteSpelling,
    HubSpelling,
    PairSpelling,
    Spelled,
    Twofold,
    aligned,
)
from stillhouse.models.hub import HubLM, load_tokenizer
from stillhouse.models.toys import TinyLM

ROWS = [
    {"prompt": "how many?", "completion": "twenty one, or twenty two"}, {"text": "a b\u00e4r and a bar, banana bread"},
    {"text": "\u65e5\u672c is where banana bread is not from"}, {"text": "x"},
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The same few rows in every split."""

    def rows(self, run: Any) -> dict[str, list[dict[str, str]]]:
        return {name: ROWS for name in ("train", "valid", "test")}


def spelled(spelling: Any, coded: tuple[list[int], list[bool]], chunk: list[int]) -> dict[int, bytes]:
    """The bytes of every chunk."""
    found: dict[int, bytes] = {}
    for token, number in zip(coded[0], chunk, strict=True):
        if number >= 0:
            found[number] = found.get(number, b"") + spelling.spell(token)
    return found


@pytest.fixture(params=["pairs", "hub"])
def other(request: pytest.FixtureRequest, folders: Folders, tmp_path: Path) -> Any:
    if request.param == "hub":
        return HubSpelling(load_tokenizer(str(folders.student)))
    return PairSpelling(base=Rows(), pairs=30).build(run_of(tmp_path, TinyLM()))


def test_chunks_are_the_same_bytes_on_both_sides_and_as_short_as_can_be(other: Any) -> None:
    mine = ByteSpelling()
    for row in ROWS:
        if isinstance(other, HubSpelling):
            row = {"text": row.get("text", row.get("completion"))}
        codes = mine.encode(row), other.encode(row)
        chunks = aligned(*codes, mine, other)
        assert not isinstance(chunks, str), chunks
        parts = [spelled(s, c, k) for s, c, k in zip((mine, other), codes, chunks, strict=True)]
        assert parts[0] == parts[1] and sorted(parts[0]) == list(range(len(parts[0])))
        text = row.get("completion", row.get("text")).encode()
        assert b"".join(parts[0][i] for i in range(len(parts[0]))).removesuffix(STOP) == text
        counted = [k for k in chunks[1] if k >= 0]
        assert len(set(counted)) == len(counted)  # against bytes, every token of the other is a chunk of its own


def test_texts_that_differ_are_refused() -> None:
    mine = ByteSpelling()
    assert "same bytes" in aligned(mine.encode({"text": "abc"}), mine.encode({"text": "abd"}), mine, mine)  # type: ignore[arg-type]
    blank = aligned(mine.encode({"text": "abc"}), mine.encode({"text": " abc"}), mine, mine)  # type: ignore[arg-type]
    assert blank == ([0, 1, 2, 3], [0, 0, 1, 2, 3]) or not isinstance(blank, str)


def test_a_tokenizers_pieces_are_its_texts_bytes(folders: Folders) -> None:
    spelling = HubSpelling(load_tokenizer(str(folders.student)))
    for text in ("plain words", "\u00e4\u00f6 \u65e5\u672c", "tabs\tand\nlines  two blanks"):
        tokens, _ = spelling.encode({"text": text})  # type: ignore[misc]
        assert b"".join(spelling.spell(t) for t in tokens).strip(STOP) == text.encode()


def test_batches_hold_both_sides(tmp_path: Path) -> None:
    data = Twofold(base=Rows(), teacher=PairSpelling(base=Rows(), pairs=30), length=64)
    run = run_of(tmp_path, TinyLM(), data=data)
    train = run.sources()["train"]
    assert (
        train.classes == 256
        and len(train) == 4
        and train.targets == sum(train.batch(range(4), 0)["weight"].flatten().tolist())
    )
    batch = train.batch([1, 0, 3], 0)
    theirs = batch["teacher"]
    assert batch["chunks"] == theirs["chunks"] and theirs["labels"].max() >= 256 > batch["labels"].max()
    ids = [side["chunk"][side["chunk"] >= 0].unique() for side in (batch, theirs)]
    assert torch.equal(*ids) and len(ids[0])
    for side in (batch, theirs):
        assert torch.equal(side["weight"] > 0, side["chunk"] >= 0)
    rows = [set(row[row >= 0].tolist()) for row in batch["chunk"]]
    assert not rows[0] & rows[1] and not rows[0] & rows[2]
    spelling = data.teacher.build(run)
    for row in range(3):  # what a chunk's labels spell is the same on both sides
        for number in rows[row]:
            mine = b"".join(ByteSpelling().spell(int(t)) for t in batch["labels"][row][batch["chunk"][row] == number])
            other = b"".join(spelling.spell(int(t)) for t in theirs["labels"][row][theirs["chunk"][row] == number])
            assert mine == other


def test_long_rows_are_cut_at_a_common_boundary(tmp_path: Path) -> None:
    whole, cut = (Twofold(base=Rows(), teacher=PairSpelling(base=Rows(), pairs=30), length=n) for n in (64, 15))
    run = run_of(tmp_path, TinyLM(), data=whole)
    long, short = whole.load(run)["train"].rows[1], cut.load(run)["train"].rows[1]
    assert 10 < len(short[0].tokens) <= 15 and short[0].tokens == long[0].tokens[: len(short[0].tokens)]
    assert max(short[2]) == max(short[3]) and short[1].tokens == long[1].tokens[: len(short[1].tokens)]
    tight = Twofold(base=Rows(), teacher=PairSpelling(base=Rows(), pairs=30), length=64, teacher_length=3)
    assert len(tight.load(run)["train"]) < 4 and "teacher_length" in (tmp_path / "rejects.jsonl").read_text()


def test_nothing_that_both_can_read(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "chat.jsonl", [
        {"messages": [{"role": "user", "content": f"hi {n}"}, {"role": "assistant", "content": "ho"}]} for n in range(9)
    ])  # fmt: skip
    data = Twofold(base=Text(path=str(path)), teacher=ByteSpelling())
    with pytest.raises(RunError, match="no row can be read by both"):
        data.load(run_of(tmp_path / "run", TinyLM()))


def test_a_spelling_as_data(tmp_path: Path) -> None:
    pairs = PairSpelling(base=Rows(), pairs=30)
    rows = Spelled(base=Rows(), spelling=pairs, length=16).load(run_of(tmp_path, TinyLM()))["train"]
    assert rows.classes == 286 and rows.batch([0], 0)["labels"].max() >= 256


def test_a_models_tokenizer_is_taken(folders: Folders, tmp_path: Path) -> None:
    data = Twofold(base=Rows(), teacher=HubLM(path=str(folders.teacher)))
    assert len(data.load(run_of(tmp_path, TinyLM(), data=data))["train"]) >= 2
