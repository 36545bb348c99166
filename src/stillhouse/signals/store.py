"""A folder of teacher signals: shards that only grow, checksums, memory maps.

    signals.json      what the signals are: format, teacher, tokenizer, data; written before the first shard
    shard-00000.bin   records, one after another
    index.bin         blocks: which records a shard's next bytes are, and their checksum
    head.safetensors  what is kept once (format `hidden`)
    done.json         the end mark: totals, the checksums of index and head, the measured fidelity

A block goes to the shard first and to the index when it is safe there. A capture that is killed between two bytes thus
leaves at most one block that the index does not know; going on, it is cut off and made again, so that the files come
out the same as if nothing had happened.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from ..core.files import file_hash, write_atomically
from ..core.run import RunError
from .keys import KEY_BYTES

HEADER, INDEX, END = "signals.json", "index.bin", "done.json"
SHARD_BYTES = 2**30
MAGIC = b"SHsg"
BLOCK = struct.Struct("<4sIIQQI")  # magic, records, shard, offset, bytes, checksum of the bytes
RECORD = numpy.dtype([("key", "u1", KEY_BYTES), ("items", "<u4"), ("bytes", "<u8")])
CHECK = struct.Struct("<I")  # of the block's own description


class SignalError(RunError):
    """A folder of signals cannot be used as asked; the message says what to do."""


def is_store(path: str | Path) -> bool:
    """Whether `path` is a folder of signals, finished or not."""
    return (Path(path) / HEADER).is_file()


def _shard(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.bin"


@dataclass(frozen=True, slots=True)
class _Block:
    shard: int
    offset: int
    size: int
    checksum: int
    records: Any  # numpy array of RECORD


def _blocks(data: bytes) -> tuple[list[_Block], int]:
    """The whole blocks of an index, and how many bytes they take: what follows was cut short by a kill."""
    found: list[_Block] = []
    at = 0
    while at + BLOCK.size <= len(data):
        magic, count, shard, offset, size, checksum = BLOCK.unpack_from(data, at)
        end = at + BLOCK.size + count * RECORD.itemsize
        if magic != MAGIC or end + CHECK.size > len(data) or CHECK.unpack_from(data, end)[0] != zlib.crc32(data[at:end]):
            break
        records = numpy.frombuffer(data, RECORD, count, at + BLOCK.size)
        found.append(_Block(shard, offset, size, checksum, records))
        at = end + CHECK.size
    return found, at


class Writer:
    """Appends records to a folder of signals; goes on where a killed capture stopped. A context manager."""

    def __init__(self, folder: Path, header: Mapping[str, Any], *, shard_bytes: int = SHARD_BYTES):
        self.folder, self.header, self.shard_bytes = folder, header, shard_bytes
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SignalError(f"cannot write to {folder}: {error.strerror}; choose another folder") from error
        self._lock = (folder / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise SignalError(f"another capture is writing to {folder}; wait for it, or choose another folder") from error
        try:
            self._open(header)
        except BaseException:
            self._lock.close()
            raise

    def _open(self, header: Mapping[str, Any]) -> None:
        folder = self.folder
        if (folder / HEADER).exists():
            same_header(read_header(folder), header, folder)
        elif others := sorted(p.name for p in folder.iterdir() if p.name != "lock" and not p.name.endswith(".part")):
            if not set(others) <= {"head.safetensors"}:
                raise SignalError(f"{folder} is not empty and holds no signals ({others[0]}); choose another folder")
        (folder / END).unlink(missing_ok=True)
        index = folder / INDEX
        data = index.read_bytes() if index.exists() else b""
        self.blocks, used = _blocks(data)
        _check_blocks(folder, self.blocks, whole=False)
        self.known = {bytes(key) for block in self.blocks for key in block.records["key"]}
        self.items = sum(int(block.records["items"].sum()) for block in self.blocks)
        self.shard = self.blocks[-1].shard if self.blocks else 0
        self.offset = self.blocks[-1].offset + self.blocks[-1].size if self.blocks else 0
        write_atomically(folder / HEADER, json.dumps(header, indent=1) + "\n")
        self._index = index.open("r+b" if index.exists() else "w+b")
        self._index.truncate(used)
        self._index.seek(used)
        self._bytes = self._open_shard()
        for later in folder.glob("shard-*.bin"):  # begun, but not known to the index
            if later > _shard(folder, self.shard):
                later.unlink()

    def _open_shard(self) -> Any:
        path = _shard(self.folder, self.shard)
        file = path.open("r+b" if path.exists() else "w+b")
        file.truncate(self.offset)
        file.seek(self.offset)
        return file

    def append(self, keys: Sequence[bytes], items: Sequence[int], blobs: Sequence[bytes]) -> None:
        """One block: the records of `keys`, `items[i]` items in `blobs[i]`. Keys that are there must be left out."""
        if not keys:
            return
        data = b"".join(blobs)
        if self.offset and self.offset + len(data) > self.shard_bytes:
            self._bytes.close()
            self.shard, self.offset = self.shard + 1, 0
            self._bytes = self._open_shard()
        records = numpy.zeros(len(keys), RECORD)
        records["key"] = numpy.frombuffer(b"".join(keys), numpy.uint8).reshape(-1, KEY_BYTES)
        records["items"] = items
        records["bytes"] = [len(blob) for blob in blobs]
        head = BLOCK.pack(MAGIC, len(keys), self.shard, self.offset, len(data), zlib.crc32(data)) + records.tobytes()
        _put(self._bytes, data)
        _put(self._index, head + CHECK.pack(zlib.crc32(head)))
        self.offset += len(data)
        self.known.update(keys)
        self.items += int(sum(items))

    def finish(self, facts: Mapping[str, Any]) -> None:
        """The end mark; the folder can be read from now on."""
        total = sum(path.stat().st_size for path in self.folder.glob("shard-*.bin"))
        beside = {path.name: file_hash(path) for path in sorted(self.folder.glob("*.safetensors"))}
        mark = {
            "beside": beside,
            "records": len(self.known), "items": self.items, "bytes": total,
            "index_sha256": file_hash(self.folder / INDEX), **facts,
        }  # fmt: skip
        write_atomically(self.folder / END, json.dumps(mark, indent=1) + "\n")

    def close(self) -> None:
        """Let go of the files."""
        for file in (self._bytes, self._index, self._lock):
            file.close()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _put(file: Any, data: bytes) -> None:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())


class Store:
    """A finished folder of signals, read through memory maps: any number of processes share its pages."""

    def __init__(self, folder: str | Path, *, check: bool = True):
        """Open and, if `check`, read every byte once against its checksum; SignalError if anything is not as written."""
        self.folder = Path(folder)
        self.header = read_header(self.folder)
        self.done = _read_json(self.folder / END)
        if self.done is None:
            raise SignalError(f"the signals in {folder} are not finished; the same `stillhouse label` command goes on")
        for name, told in {INDEX: self.done.get("index_sha256"), **self.done.get("beside", {})}.items():
            path = self.folder / name
            if not path.is_file() or file_hash(path) != told:
                raise SignalError(f"{path} is missing or was altered; label again into an empty folder")
        index = self.folder / INDEX
        blocks, _ = _blocks(index.read_bytes())
        _check_blocks(self.folder, blocks, whole=check)
        self._shards = {b.shard: _map(_shard(self.folder, b.shard)) for b in blocks if b.size}
        records = numpy.concatenate([b.records for b in blocks]) if blocks else numpy.zeros(0, RECORD)
        sizes = records["bytes"].astype(numpy.int64)
        starts = [b.offset + numpy.cumsum([0, *b.records["bytes"][:-1]]).astype(numpy.int64) for b in blocks]
        shards = [numpy.full(len(b.records), b.shard, numpy.int32) for b in blocks]
        names = records["key"].copy().view("<u8").reshape(-1, 2)
        order = numpy.argsort(names[:, 0], kind="stable")
        self._names, self._items, self._sizes = names[order], records["items"][order], sizes[order]
        self._starts = (numpy.concatenate(starts) if blocks else sizes)[order]
        self._shard_of = (numpy.concatenate(shards) if blocks else sizes)[order]

    def __len__(self) -> int:
        return len(self._names)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}  # a worker process opens its own maps

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folder"], check=False)

    @property
    def items(self) -> int:
        """How many items (counted tokens, images) there are answers for."""
        return int(self.done["items"])  # type: ignore[index]

    @property
    def bytes(self) -> int:
        """Of all records, without the index."""
        return int(self.done["bytes"])  # type: ignore[index]

    def find(self, keys: Sequence[bytes]) -> Any:
        """The record numbers of `keys`, -1 where there is none."""
        if not keys or not len(self):
            return numpy.full(len(keys), -1)
        wanted = numpy.frombuffer(b"".join(keys), "<u8").reshape(-1, 2)
        at = numpy.searchsorted(self._names[:, 0], wanted[:, 0]).clip(max=len(self) - 1)
        while True:
            here = self._names[at]
            twin = (here[:, 0] == wanted[:, 0]) & (here[:, 1] != wanted[:, 1]) & (at < len(self) - 1)
            if not twin.any():  # of a billion keys, some two begin with the same 8 bytes
                return numpy.where((here == wanted).all(-1), at, -1)
            at = at + twin

    def record(self, number: int) -> tuple[memoryview, int]:
        """The bytes of one record, and how many items they hold."""
        begin = int(self._starts[number])
        size = int(self._sizes[number])
        data = self._shards[int(self._shard_of[number])][begin : begin + size] if size else memoryview(b"")
        return data, int(self._items[number])


def _map(path: Path) -> memoryview:
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _check_blocks(folder: Path, blocks: Sequence[_Block], *, whole: bool) -> None:
    """Every block must be on disk; `whole`: with no byte beside them, and as its checksum says."""
    sizes: dict[int, int] = {}
    for block in blocks:
        sizes[block.shard] = max(sizes.get(block.shard, 0), block.offset + block.size)
    for number, size in sizes.items():
        path = _shard(folder, number)
        held = path.stat().st_size if path.exists() else 0
        if held < size:
            raise SignalError(f"{path} is cut short ({held:,} of {size:,} bytes); label again into an empty folder")
    if not whole:
        return
    for block in blocks:
        path = _shard(folder, block.shard)
        with path.open("rb") as file:
            file.seek(block.offset)
            if zlib.crc32(file.read(block.size)) != block.checksum:
                raise SignalError(f"{path} was altered: bytes {block.offset:,} to {block.offset + block.size:,} do not "
                                  "match their checksum; label again into an empty folder")  # fmt: skip


def read_header(folder: Path) -> dict[str, Any]:
    """What the signals are; SignalError if the folder holds none."""
    header = _read_json(folder / HEADER)
    if header is None:
        raise SignalError(f"{folder} holds no signals (no readable {HEADER}); `stillhouse label` makes them")
    return header


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def same_header(found: Mapping[str, Any], wanted: Mapping[str, Any], folder: Path) -> None:
    """Refuse to mix signals of two kinds, teachers, tokenizers or data sets in one folder."""
    plain = json.loads(json.dumps(wanted))
    for part in ("format", "teacher", "tokenizer", "data"):
        if found.get(part) != plain.get(part):
            raise SignalError(
                f"{folder} holds signals of another {part} ({_short(found.get(part))}, now {_short(plain.get(part))}); "
                "choose another folder"
            )


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
