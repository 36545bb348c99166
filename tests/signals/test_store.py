"""Folders of signals: append-only, checksummed, found by key, and as if never killed."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import random
from pathlib import Path
from typing import Any

import pytest

from stillhouse.core.files import content_hash
from stillhouse.signals.store import BLOCK, CHECK, END, HEADER, INDEX, RECORD, SignalError, Store, Writer

HEAD: dict[str, Any] = {
    "format": {"name": "raw"},
    "facts": {},
    "teacher": {"weights": "a"},
    "tokenizer": "t",
    "data": {"d": 1},
}


def key(number: int) -> bytes:
    return random.Random(number).randbytes(16)


def blob(number: int) -> bytes:
    return random.Random(-number - 1).randbytes(number % 50)


def write(folder: Path, numbers: range, *, block: int = 7, shard_bytes: int = 400, stop: int | None = None) -> None:
    with Writer(folder, HEAD, shard_bytes=shard_bytes) as writer:
        for begin in range(numbers.start, numbers.stop, block):
            some = [n for n in range(begin, min(begin + block, numbers.stop)) if key(n) not in writer.known]
            if stop is not None and begin >= stop:
                return
            writer.append([key(n) for n in some], [n % 5 for n in some], [blob(n) for n in some])
        writer.finish({})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "signals", range(100))
    return tmp_path / "signals"


def test_every_record_is_found_by_its_key_in_any_order(folder: Path):
    store = Store(folder)
    order = random.Random(0).sample(range(100), 100)
    found = store.find([key(n) for n in order])
    for number, n in zip(found.tolist(), order, strict=True):
        data, items = store.record(number)
        assert bytes(data) == blob(n) and items == n % 5
    assert len(store) == 100 and store.items == sum(n % 5 for n in range(100))
    assert store.bytes == sum(n % 50 for n in range(100))
    assert len(list(folder.glob("shard-*.bin"))) > 3


def test_a_key_that_is_not_there_is_not_found(folder: Path):
    assert Store(folder).find([key(3), key(1000)]).tolist()[1] == -1
    assert Store(folder).find([]).tolist() == []


def test_a_key_that_shares_half_of_its_bytes_is_not_found(folder: Path):
    assert Store(folder).find([key(3)[:8] + bytes(8)]).tolist() == [-1]


def test_keys_that_begin_alike_are_told_apart(tmp_path: Path):
    keys = [key(0)[:8] + bytes((n,)) * 8 for n in range(5)]
    with Writer(tmp_path, HEAD) as writer:
        writer.append(keys, [1] * 5, [bytes((n,)) for n in range(5)])
        writer.finish({})
    store = Store(tmp_path)
    found = store.find([*reversed(keys), key(0), key(0)[:8] + bytes((9,)) * 8])
    assert [bytes(store.record(n)[0]) for n in found[:5].tolist()] == [bytes((n,)) for n in (4, 3, 2, 1, 0)]
    assert found[5:].tolist() == [-1, -1]


def test_an_empty_store_finds_nothing(tmp_path: Path):
    write(tmp_path, range(0))
    assert Store(tmp_path).find([key(0)]).tolist() == [-1]


@pytest.mark.parametrize("seed", range(100))
def test_killed_at_any_byte_it_goes_on_to_the_same_files(seed: int, tmp_path: Path, folder: Path):
    """A kill leaves a prefix of what was written: of the shard, then of the index. Every pair of prefixes must do."""
    dice = random.Random(seed)
    broken = tmp_path / "broken"
    write(broken, range(100), stop=7 * dice.randrange(0, 15))
    index = broken / INDEX
    if dice.random() < 0.5:  # in the middle of an index block: its shard bytes are all there
        data = index.read_bytes()
        full = (folder / INDEX).read_bytes()
        index.write_bytes(full[: min(len(full), len(data) + dice.randrange(BLOCK.size + RECORD.itemsize + CHECK.size))])
        for path in sorted(folder.glob("shard-*.bin")):
            (broken / path.name).write_bytes(path.read_bytes())
    else:  # in the middle of the shard's bytes
        last = sorted(broken.glob("shard-*.bin"))[-1]
        with last.open("ab") as file:
            file.write(dice.randbytes(dice.randrange(300)))
    write(broken, range(100))
    for path in (broken, folder):
        (path / "lock").unlink()
    assert content_hash(broken) == content_hash(folder)
    Store(broken)


def test_what_is_not_finished_is_not_read(tmp_path: Path):
    write(tmp_path, range(50), stop=21)
    with pytest.raises(SignalError, match="not finished"):
        Store(tmp_path)


def _change(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_one_changed_bit_is_noticed(folder: Path):
    for path in sorted(folder.glob("shard-*.bin")):
        for at in (0, path.stat().st_size // 2, path.stat().st_size - 1):
            _change(path, at)
            with pytest.raises(SignalError, match="altered"):
                Store(folder)
            _change(path, at)
    Store(folder)


def test_a_changed_index_is_noticed(folder: Path):
    _change(folder / INDEX, 60)
    with pytest.raises(SignalError, match="altered"):
        Store(folder)


@pytest.mark.parametrize("left", [0, 10, -1])
def test_a_truncated_shard_is_noticed(folder: Path, left: int):
    path = sorted(folder.glob("shard-*.bin"))[-1]
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(SignalError, match="cut short"):
        Store(folder)


def test_a_missing_shard_or_index_is_noticed(folder: Path):
    path = sorted(folder.glob("shard-*.bin"))[0]
    path.rename(folder / "away")
    with pytest.raises(SignalError, match="cut short"):
        Store(folder)
    (folder / "away").rename(path)
    (folder / INDEX).unlink()
    with pytest.raises(SignalError, match="missing"):
        Store(folder)


@pytest.mark.parametrize("part", ["format", "teacher", "tokenizer", "data"])
def test_another_teacher_tokenizer_or_data_set_does_not_go_on(folder: Path, part: str):
    before = content_hash(folder)
    with pytest.raises(SignalError, match=f"another {part}"):
        Writer(folder, HEAD | {part: {"other": True}})
    assert content_hash(folder) == before


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(SignalError, match="not empty"):
        Writer(tmp_path, HEAD)
    with pytest.raises(SignalError, match="no signals"):
        Store(tmp_path)


def test_two_captures_into_one_folder_are_refused(tmp_path: Path):
    with Writer(tmp_path, HEAD), pytest.raises(SignalError, match="another capture"):
        Writer(tmp_path, HEAD)


def test_a_header_that_is_no_json_is_one_line(folder: Path):
    (folder / HEADER).write_text("{")
    with pytest.raises(SignalError, match="no readable"):
        Store(folder)


def test_the_end_mark_says_what_is_there(folder: Path):
    mark = json.loads((folder / END).read_text())
    assert (mark["records"], mark["items"]) == (100, 200)


def _read(store: Store, number: int) -> bytes:
    return bytes(store.record(int(store.find([key(number)])[0]))[0])


def test_other_processes_share_a_reader(folder: Path):
    store = pickle.loads(pickle.dumps(Store(folder)))  # as a worker gets it
    assert _read(store, 42) == blob(42)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert pool.starmap(_read, [(Store(folder), n) for n in (7, 49, 99)]) == [blob(n) for n in (7, 49, 99)]
