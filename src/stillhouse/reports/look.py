"""`stillhouse look`: a page on made data, or on any data file: served to this machine only, or written as one file.

A page of rows is read at a time; a search, a filter or an order holds the numbers of the rows that it found, and of the
column to order by no more than its first letters. What the rows say is never trusted: it reaches the page as JSON, and the
page writes it as text; its Content-Security-Policy lets nothing else run and nothing be loaded.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import secrets
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import parse_qs, urlsplit

from ..core.files import write_atomically
from ..core.run import Run, RunError
from ..data.tables import read_rows
from ..synth import ancestry
from ..synth.synthesize import ROWS, STEPS
from ..synth.table import JSON, Row, Table, hash_of
from ..synth.table import write as write_table
from .html import template

BATCH = 1024  # rows held at a time
PAGE, MOST = 50, 500  # rows of a page, and the most that one request gets
PREVIEW, WHOLE, EXPORTED = 300, 100_000, 4_000  # letters of a cell in a list, of a row looked at, in an exported file
SORTED = 64  # letters of a text that decide where it stands in an order
BARS, BINS = 30, 20
DIFFERENT = 10_000  # values of a column that are told apart; with more of them only lengths are shown
LABEL = 200  # letters of a value that can be a bar
ANCESTORS = 200  # rows of an ancestry that are shown
TOKENS = 600  # words of a changed stretch that are compared one by one
HERE = re.compile(r"(127\.0\.0\.1|localhost)(:\d{1,5})?")  # any port: a tunnel may end at another than it begins at


@dataclass(frozen=True)
class View:
    """One table to look at. `path` is never read off a request."""

    name: str
    table: Table
    source: int  # 0: what was asked for; 1: what it is compared with
    step: str = ""
    lost: bool = False

    @property
    def coded(self) -> frozenset[str]:
        """The columns that hold JSON."""
        return _coded(self.table.path)


@dataclass
class Source:
    """A run's stage or a data file."""

    name: str
    views: list[View]  # in the order of the steps; the last one that is not `lost` is what came out
    steps: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])  # the waterfall
    tables: ancestry.Tables | None = None
    notes: list[str] = field(default_factory=list[str])


@dataclass(frozen=True)
class Asked:
    """What rows somebody wants to see, in which order."""

    words: str = ""
    where: tuple[tuple[str, str | None], ...] = ()  # (column, value as text; None: those without one)
    sort: str = ""
    down: bool = False


def opened(given: Path, stage: str | None, scratch: Callable[[], Path], number: int = 0) -> Source:
    """A run folder (`stage`: which one of those that made data), a stage's data, or a data file; RunError if it is none.

    A file of text is written as a table into the folder that `scratch` makes.
    """
    place = given.expanduser()
    if place.name == ROWS and (place.parent / STEPS).is_dir():
        place = place.parent
    if place.is_dir():
        tables = ancestry.Tables(place) if (place / STEPS).is_dir() else ancestry.opened(place, stage)
        views = list[View]()
        for step, made, lost in zip(tables.steps, tables.made, tables.lost, strict=True):
            views.append(View(f"after {step}", made, number, step))
            if lost:
                views.append(View(f"lost in {step}", lost, number, step, lost=True))
        name = tables.data.resolve().parents[2].name  # RUN/artifacts/STAGE/data
        return Source(name, views, ancestry.waterfall(tables.data), tables)
    if stage is not None:
        raise RunError(f"--stage is for a run folder; {given} is not one")
    if place.suffix.lower() == ".parquet" and place.exists():
        return Source(place.name, [View(place.name, Table(place), number)])
    folder = scratch() / str(number)
    run = Run(folder)
    rows = read_rows(place, run)
    notes = [str(e["text"]) for e in run.read("events.jsonl") if e["event"] == "warning"]
    table = write_table(folder / "rows.parquet", _evened(rows))
    return Source(place.name, [View(place.name, table, number)], notes=notes)


def _evened(rows: Sequence[Row]) -> Iterator[Row]:
    """The rows, with text in columns that hold different things, so that each is one column of a table."""
    kinds: dict[str, set[str]] = {}
    for row in rows:
        for name, value in row.items():
            kinds.setdefault(name, set()).add(_kind(value))
    mixed = {name for name, found in kinds.items() if _unlike(found - {""})}
    for row in rows:
        told = {k: _json(v) if k in mixed and not isinstance(v, str) and v is not None else v for k, v in row.items()}
        yield {_encodable(k): _encodable(v) for k, v in told.items()}


def _unlike(kinds: set[str]) -> bool:
    """Whether no column can hold values of all these kinds; one of JSON holds anything."""
    lists = {kind for kind in kinds if kind.startswith("list ")}
    kinds = kinds - {"list "} if len(lists) > 1 else kinds
    return "json" not in kinds and (len(kinds) > 1 or bool(kinds & {"big", "list big", "list of all sorts"}))


def _kind(value: Any) -> str:
    if value is None or isinstance(value, bool | str):
        return type(value).__name__ if value is not None else ""
    if isinstance(value, int | float):
        return "big" if isinstance(value, int) and abs(value) >= 2**63 else "number"
    inside = {_kind(each) for each in value} - {""} if isinstance(value, list) else {"json"}
    if any(kind == "json" or kind.startswith("list") for kind in inside):
        return "json"
    return f"list {inside.pop() if inside else ''}" if len(inside) < 2 else "list of all sorts"


def _encodable(value: Any) -> Any:
    """Without the halves of letters that JSON can hold and UTF-8 cannot."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, list):
        return [_encodable(each) for each in value]
    return {_encodable(k): _encodable(v) for k, v in value.items()} if isinstance(value, dict) else value


# -- reading a table ---------------------------------------------------------------------------------------------------


def _compute() -> Any:
    """pyarrow.compute, whose functions are made when it is loaded and so are known to no type checker."""
    import pyarrow.compute

    return pyarrow.compute


@lru_cache(maxsize=256)
def _coded(path: Path) -> frozenset[str]:
    import pyarrow.parquet as pq

    return frozenset(f.name for f in pq.read_schema(path) if f.metadata and JSON.items() <= f.metadata.items())


def _words(column: Any) -> Any:
    """A column as text, as filters and bars name its values."""
    import pyarrow as pa

    kind = column.type
    if pa.types.is_dictionary(kind):
        return _words(column.dictionary_decode())
    if _textual(kind) or pa.types.is_null(kind) or pa.types.is_boolean(kind) or pa.types.is_temporal(kind):
        return column.cast(pa.large_string())
    values = column.to_pylist()
    return pa.array([None if v is None else str(v) if _numeric(kind) else _json(v) for v in values], pa.large_string())


def _textual(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or str(kind) == "string_view"


def _numeric(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def _holding(column: Any, words: str, coded: bool) -> Any:
    """Which cells of a column of text, or of lists of it, hold these words, large or small; None: it is none of those."""
    import numpy
    import pyarrow as pa

    pc = _compute()

    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.dictionary_decode(), kind.value_type
    if _textual(kind):
        pattern = json.dumps(words, ensure_ascii=False)[1:-1] if coded else words
        return pc.fill_null(pc.match_substring(column.cast(pa.large_string()), pattern, ignore_case=True), False)
    if (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and _textual(kind.value_type):
        hits = _holding(pc.list_flatten(column), words, False)
        found = numpy.zeros(len(column), dtype=bool)
        found[pc.list_parent_indices(column).filter(hits).to_numpy(zero_copy_only=False)] = True
        return pa.array(found)
    return None


def _mask(batch: Any, view: View, asked: Asked) -> Any:
    """Which rows of a batch are asked for."""
    import numpy
    import pyarrow as pa

    pc = _compute()

    mask = pa.array(numpy.ones(len(batch), dtype=bool))
    for name, value in asked.where:
        words = _words(batch.column(name))
        mask = pc.and_(mask, pc.is_null(words) if value is None else pc.fill_null(pc.equal(words, value), False))
    if asked.words:
        hits = [_holding(batch.column(name), asked.words, name in view.coded) for name in batch.schema.names]
        any_of = pa.array(numpy.zeros(len(batch), dtype=bool))
        for hit in hits:
            any_of = any_of if hit is None else pc.or_(any_of, hit)
        mask = pc.and_(mask, any_of)
    return mask


def _scan(view: View, asked: Asked, column: str = "") -> Iterator[tuple[int, Any, Any]]:
    """Of every batch: the number of its first row, the batch, which of its rows are asked for (None: all)."""
    import pyarrow.parquet as pq

    known = set(view.table.columns)
    names = [*(name for name, _ in asked.where), *([column] if column else [])]
    if unknown := [name for name in names if name not in known]:
        raise RunError(f"{view.name} has no column {unknown[0]!r}; it has {', '.join(view.table.columns)}")
    every = asked.words or not names
    first = 0
    with pq.ParquetFile(view.table.path) as file:
        for batch in file.iter_batches(BATCH, columns=None if every else list(dict.fromkeys(names))):
            yield first, batch, _mask(batch, view, asked) if asked.words or asked.where else None
            first += len(batch)


@lru_cache(maxsize=8)
def _found(view: View, asked: Asked) -> Any:
    """The numbers of the rows asked for, in their order."""
    import numpy
    import pyarrow as pa

    pc = _compute()

    if not (asked.words or asked.where or asked.sort):
        return range(len(view.table))
    numbers, keys = list[Any](), list[Any]()
    for first, batch, mask in _scan(view, asked, asked.sort):
        numbers.append(numpy.arange(first, first + len(batch)))
        if mask is not None:
            numbers[-1] = numbers[-1][mask.to_numpy(zero_copy_only=False)]
        if asked.sort:
            key = batch.column(asked.sort)
            key = key if mask is None else key.filter(mask)
            keys.append(key if _numeric(key.type) else pc.utf8_slice_codeunits(_words(key), 0, SORTED))
    found = numpy.concatenate(numbers) if numbers else numpy.empty(0, numpy.int64)
    if asked.sort and keys:
        order = pc.sort_indices(
            pa.table([pa.chunked_array(keys)], names=["key"]), [("key", "descending" if asked.down else "ascending")]
        )
        found = found[order.to_numpy()]
    return found


def _take(view: View, numbers: Sequence[int]) -> list[Row]:
    """Rows by number, in the order asked for; reads the groups that they are in, one after the other."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    wanted, rows, first = sorted(set(map(int, numbers))), dict[int, Row](), 0
    with pq.ParquetFile(view.table.path) as file:
        for group in range(file.num_row_groups):
            size = file.metadata.row_group(group).num_rows
            start = first
            first += size
            if not any(start <= number < first for number in wanted):
                continue
            for batch in file.iter_batches(BATCH, row_groups=[group]):
                inside = [number for number in wanted if start <= number < start + len(batch)]
                if inside:
                    part = pa.Table.from_batches([batch]).take([number - start for number in inside])
                    rows |= zip(inside, part.to_pylist(), strict=True)
                start += len(batch)
    return [_plain(view, rows[int(number)]) for number in numbers if int(number) in rows]


def _plain(view: View, row: Row) -> dict[str, Any]:
    """A row as it was written; of a lost one, its columns beside the reason."""
    told = {k: json.loads(v) if k in view.coded and v is not None else v for k, v in row.items() if v is not None}
    if view.lost:
        told |= {name: value for name, value in (told.pop("row", None) or {}).items() if name not in ("_id", "_from")}
    return told


def _json(value: Any) -> str:
    def other(each: Any) -> str:
        return f"({len(each):,} bytes)" if isinstance(each, bytes | bytearray) else str(each)

    if isinstance(value, bytes | bytearray):
        return other(value)
    return json.dumps(value, ensure_ascii=False, default=other)


def cell(value: Any, most: int) -> Any:
    """A value for the page: as it is if that is short, else its beginning (`text`) and how long it is (`of`)."""
    if value is None or isinstance(value, bool) or (isinstance(value, int) and abs(value) < 2**53):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, str):
        return value if len(value) <= most else {"text": value[:most], "of": len(value)}
    if not isinstance(value, dict | list | tuple | bytes):
        return cell(str(value), most)
    text = _json(value)
    return {"text": text[:most], "of": len(text), "parts": True}


def _row(number: int, row: Row, most: int) -> dict[str, Any]:
    return {"n": number, "id": str(row.get("_id", "")), "cells": {str(k): cell(v, most) for k, v in row.items()}}


def page(view: View, asked: Asked, first: int = 0, most: int = PAGE, letters: int = PREVIEW) -> dict[str, Any]:
    """So many of the rows asked for, from the `first` on, and how many there are in all."""
    found = _found(view, asked)
    numbers = [int(number) for number in found[first : first + most]]
    rows = [_row(number, row, letters) for number, row in zip(numbers, _take(view, numbers), strict=True)]
    names = dict.fromkeys(name for row in rows for name in row["cells"])
    order = {
        name: place for place, name in enumerate(dict.fromkeys(["_id", "_from", "_why", "numbers", *view.table.columns]))
    }
    columns = sorted(names, key=lambda name: order.get(name, len(order)))
    return {"total": len(found), "rows": rows, "columns": columns}


# -- what a column holds ------------------------------------------------------------------------------------------------


def spread(view: View, column: str, asked: Asked) -> dict[str, Any]:
    """The values of a column among the rows asked for: the commonest, and as a histogram the numbers or the lengths."""
    import numpy

    pc = _compute()

    values: Counter[str] | None = Counter()
    rows = none = longer = 0
    parts, what, whole = list[Any](), "", False
    for _, batch, mask in _scan(view, asked, column):
        held = batch.column(column)
        held = held if mask is None else held.filter(mask)
        rows, none = rows + len(held), none + held.null_count
        held = held.drop_null()
        words = _words(held)
        lengths = pc.utf8_length(words)
        short = pc.less_equal(lengths, LABEL)
        longer += len(held) - int(pc.sum(short).as_py() or 0)
        if values is not None:
            for pair in words.filter(short).value_counts().to_pylist():
                values[pair["values"]] += pair["counts"]
            values = values if len(values) <= DIFFERENT else None
        numbers = _numeric(held.type)
        what = "value" if numbers else "letters"
        whole = not numbers or "int" in str(held.type)
        parts.append((held.cast("float64", safe=False) if numbers else lengths).to_numpy(zero_copy_only=False))
    measured = numpy.concatenate(parts) if parts else numpy.empty(0)
    measured = measured[numpy.isfinite(measured)]
    told: dict[str, Any] = {
        "column": column,
        "rows": rows,
        "none": none,
        "what": what,
        "values": [],
        "others": 0,
        "bins": [],
    }
    if values and (len(values) <= BARS or len(values) < (rows - none - longer) * 0.9):
        told["values"] = values.most_common(BARS)
        told["others"] = rows - none - sum(count for _, count in told["values"])
        told["different"] = len(values)
    if len(measured) and measured.min() < measured.max() and not (told["values"] and not told["others"]):
        counts, edges = numpy.histogram(measured, _bins(float(measured.min()), float(measured.max()), whole))
        told["bins"] = [[float(low), float(high), int(n)] for low, high, n in zip(edges, edges[1:], counts, strict=False)]
    return told


def _bins(low: float, high: float, whole: bool) -> Any:
    """Edges of at most BINS stretches between round numbers."""
    import numpy

    raw = (high - low) / (BINS - 2)
    if not 0 < raw < math.inf:
        return numpy.array([low, high])
    size = next(s for s in (10 ** math.floor(math.log10(raw)) * f for f in (1, 2, 5, 10)) if s >= raw)
    size = max(1.0, size) if whole else size
    start = math.floor(low / size)
    return numpy.array([(start + i) * size for i in range(int((high / size) - start) + 2)])


# -- differences --------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def _digests(view: View, key: str | None) -> Any:
    """Of every row: a number for its key column; for all it holds beside its name, if `key` is None."""
    import numpy

    found = numpy.empty(len(view.table), dtype=numpy.uint64)
    for number, row in enumerate(view.table):
        told = {k: v for k, v in row.items() if k not in ("_id", "_from")} if key is None else row.get(key)
        found[number] = int(hash_of(told)[:16], 16)
    return found


def _names(keys: Any) -> Any:
    """Keys that are all different: the second row with a key is told from the first."""
    import numpy

    order = numpy.argsort(keys, kind="stable")
    ordered = keys[order]
    before = numpy.arange(len(keys)) - numpy.searchsorted(ordered, ordered, "left")
    named = numpy.empty_like(keys)
    named[order] = ordered + before.astype(numpy.uint64) * numpy.uint64(0x9E3779B97F4A7C15)
    return named


@lru_cache(maxsize=4)
def _compared(one: View, other: View, key: str | None) -> dict[str, Any]:
    """Numbers of rows: `added` in the other, `removed` from the one, `changed` (pairs); how many are the `same`."""
    import numpy

    before, after = _names(_digests(one, key)), _names(_digests(other, key))
    _, left, right = numpy.intersect1d(before, after, assume_unique=True, return_indices=True)
    changed = _digests(one, None)[left] != _digests(other, None)[right]
    pairs = numpy.stack([left[changed], right[changed]], axis=1)
    gone, new = numpy.ones(len(before), dtype=bool), numpy.ones(len(after), dtype=bool)
    gone[left], new[right] = False, False
    return {
        "added": numpy.flatnonzero(new), "removed": numpy.flatnonzero(gone),
        "changed": pairs[numpy.argsort(pairs[:, 1])], "same": int((~changed).sum()),
    }  # fmt: skip


def difference(
    one: View, other: View, kind: str = "changed", key: str = "", first: int = 0, most: int = 20
) -> dict[str, Any]:
    """Rows that were added, removed or changed between two tables; those with the same value of `key` are one row.

    Without a key, `_id` if both have it; else all that a row holds, and then no row is changed.
    """
    both = [name for name in one.table.columns if name in other.table.columns]
    key = key or ("_id" if "_id" in both else "")
    if key and key not in both:
        raise RunError(f"{key!r} is no column of both {one.name} and {other.name}; both have {', '.join(both) or 'none'}")
    found = _compared(one, other, key or None)
    if kind not in ("added", "removed", "changed"):
        raise RunError(f"rows are added, removed or changed, not {kind!r}")
    chosen = found[kind][first : first + most].tolist()
    rows = list[dict[str, Any]]()
    if kind == "changed":
        befores, afters = _take(one, [a for a, _ in chosen]), _take(other, [b for _, b in chosen])
        for (_, number), before, after in zip(chosen, befores, afters, strict=True):
            names = [
                n for n in dict.fromkeys([*before, *after]) if n not in ("_id", "_from") and before.get(n) != after.get(n)
            ]
            told = {name: marked(_text(before.get(name)), _text(after.get(name))) for name in names}
            rows.append({"n": number, "id": str(after.get("_id", "")), "columns": told})
    else:
        view = other if kind == "added" else one
        rows = [_row(number, row, PREVIEW) for number, row in zip(chosen, _take(view, chosen), strict=True)]
    counts = {name: value if isinstance(value, int) else len(value) for name, value in found.items()}
    return {"counts": counts, "kind": kind, "key": key, "keys": both, "rows": rows, "total": counts[kind]}


def _text(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else _json(value)


def marked(before: str, after: str, most: int = 20_000) -> list[tuple[str, str]]:
    """The words of two texts: ("=", in both), ("-", only before), ("+", only after). What is long is cut in the middle."""
    one, other = ([m[0] for m in re.finditer(r"\s+|\w+|[^\w\s]", text)] for text in (before, after))
    start = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    end, room = 0, min(len(one), len(other)) - start
    while end < room and one[-1 - end] == other[-1 - end]:
        end += 1
    left, right = one[start : len(one) - end], other[start : len(other) - end]
    parts = list[tuple[str, str]]()  # what stood there before and after, the same where nothing changed
    if max(len(left), len(right)) > TOKENS:
        parts.append(("".join(left), "".join(right)))
    else:
        for _, a, b, c, d in difflib.SequenceMatcher(None, left, right, autojunk=False).get_opcodes():
            was, now = "".join(left[a:b]), "".join(right[c:d])
            if len(parts) > 1 and was != now and parts[-1][0] == parts[-1][1] and parts[-1][0].isspace():
                (blank, _), (was_before, now_before) = parts.pop(), parts.pop()  # one change goes on over a blank
                was, now = was_before + blank + was, now_before + blank + now
            parts.append((was, now))
    told = [("=", "".join(one[:start]))]
    for was, now in parts:
        told += [("=", was)] if was == now else [("-", was), ("+", now)]
    told.append(("=", "".join(one[len(one) - end :])))
    return [(sign, _shortened(text, 300 if sign == "=" else most)) for sign, text in told if text]


def _shortened(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    return f"{text[: most // 2]} … ({len(text) - most // 2 * 2:,} letters) … {text[-(most // 2) :]}"


# -- one row's history --------------------------------------------------------------------------------------------------


def lineage(source: Source, id: str) -> dict[str, Any]:
    """What happened to a row and to those that it comes from: the row first, then its parents, each told once."""
    if source.tables is None:
        return {"rows": [], "more": False}
    waiting, told = deque([(source.tables.explain(id), 0)]), dict[str, dict[str, Any]]()
    while waiting and len(told) < ANCESTORS:
        found, depth = waiting.popleft()
        if found.id in told:
            continue
        steps = [
            {
                "step": passed.step, "lost": passed.lost,
                "columns": {k: cell(v, PREVIEW) for k, v in passed.columns.items()},
                "numbers": {k: cell(v, PREVIEW) for k, v in passed.numbers.items()},
            }
            for passed in found.steps
        ]  # fmt: skip
        told[found.id] = {"id": found.id, "depth": depth, "steps": steps, "parents": [parent.id for parent in found.parents]}
        waiting.extend((parent, depth + 1) for parent in found.parents)
    return {"rows": list(told.values()), "more": any(found.id not in told for found, _ in waiting)}


# -- the site -----------------------------------------------------------------------------------------------------------


class Looking:
    """What is looked at, and what it is compared with, opened; `close` removes what reading it took."""

    def __init__(self, given: Path, *, stage: str | None = None, against: Path | None = None):
        self._scratch: TemporaryDirectory[str] | None = None
        try:
            self.sources = [opened(given, stage, self._room)]
            if against is not None:
                other = opened(against, stage if against.is_dir() else None, self._room, 1)
                other.views = [replace(view, name=f"{other.name}: {view.name}") for view in other.views]
                self.sources.append(other)
        except BaseException:
            self.close()
            raise
        self.views = [view for source in self.sources for view in source.views]

    def close(self) -> None:
        """Remove the copies that were made of files of text."""
        if self._scratch is not None:
            self._scratch.cleanup()

    def _room(self) -> Path:
        self._scratch = self._scratch or TemporaryDirectory(prefix="stillhouse_look_")
        return Path(self._scratch.name)

    @property
    def start(self) -> int:
        """The number of the table to begin with: what came out."""
        return max(n for n, view in enumerate(self.views) if view.source == 0 and not view.lost)

    @property
    def pair(self) -> list[int]:
        """The tables whose differences are shown first: what it is compared with, or the step before."""
        made = [n for n, view in enumerate(self.views) if not view.lost]
        if len(self.sources) > 1:
            return [max(made), self.start]
        return made[-2:] if len(made) > 1 else []

    def plain(self) -> dict[str, Any]:
        """What the page is told about the tables."""
        views = [
            {
                "name": view.name, "rows": len(view.table), "columns": view.table.columns, "source": view.source,
                "step": view.step, "lost": view.lost, "history": self.sources[view.source].tables is not None,
            }
            for view in self.views
        ]  # fmt: skip
        first = self.sources[0]
        notes = [note for source in self.sources for note in source.notes]
        return {
            "name": first.name, "versus": self.sources[1].name if len(self.sources) > 1 else "", "views": views,
            "steps": first.steps, "start": self.start, "pair": self.pair, "notes": notes, "page": PAGE, "exported": None,
        }  # fmt: skip

    def view(self, number: str | None) -> View:
        """By its number as text; RunError if there is none."""
        if number is None or not number.isascii() or not number.isdigit() or int(number) >= len(self.views):
            raise RunError(f"there is no table {number!r}")
        return self.views[int(number)]

    def answer(self, name: str, asked: Mapping[str, str], where: Sequence[str] = ()) -> dict[str, Any] | None:
        """What the page asks for; None if there is no such thing."""
        answers: dict[str, Callable[[], dict[str, Any]]] = {
            "rows": lambda: page(
                self.view(asked.get("t")), _asked(asked, where), _whole(asked, "from", 0), _most(asked, PAGE)
            ),
            "row": lambda: self._one(self.view(asked.get("t")), _whole(asked, "n", 0)),
            "history": lambda: lineage(self.sources[self.view(asked.get("t")).source], asked.get("id", "")),
            "spread": lambda: spread(self.view(asked.get("t")), asked.get("column", ""), _asked(asked, where)),
            "difference": lambda: difference(
                self.view(asked.get("a")), self.view(asked.get("b")), asked.get("kind", "changed"), asked.get("key", ""),
                _whole(asked, "from", 0), min(_most(asked, 20), 100),
            ),
        }  # fmt: skip
        return answers[name]() if name in answers else None

    def _one(self, view: View, number: int) -> dict[str, Any]:
        found = _take(view, [number])
        if not found:
            raise RunError(f"{view.name} has no row {number}; it has {len(view.table)}")
        return _row(number, found[0], WHOLE)

    def export(self, most: int) -> str:
        """The page as one file with the first `most` rows of what came out, of what was lost, and of the differences."""
        told: dict[str, Any] = self.plain() | {"exported": most}
        start = self.views[self.start]
        shown = {self.start: page(start, Asked(), 0, most, EXPORTED)}
        room = most
        for number, view in enumerate(self.views):
            if view.lost and view.source == 0 and room:
                shown[number] = page(view, Asked(), 0, room, EXPORTED)
                room -= len(shown[number]["rows"])
        told["spreads"] = {column: spread(start, column, Asked()) for column in start.table.columns}
        told["tables"] = shown
        if told["pair"]:
            one, other = (self.views[number] for number in told["pair"])
            kinds = ("added", "removed", "changed")
            told["differences"] = {kind: difference(one, other, kind, "", 0, most) for kind in kinds}
        nonce = hash_of(told)
        return render(told, nonce, _policy(nonce, "'none'"))


def _asked(asked: Mapping[str, str], where: Sequence[str]) -> Asked:
    pairs = list[tuple[str, str | None]]()
    for each in where:
        column, value = json.loads(each)
        if not isinstance(column, str) or not (value is None or isinstance(value, str)):
            raise ValueError("a filter is [column, value]")
        pairs.append((column, value))
    return Asked(asked.get("q", "")[:1000], tuple(pairs), asked.get("sort", ""), asked.get("down") == "1")


def _whole(asked: Mapping[str, str], name: str, default: int) -> int:
    return max(0, min(int(asked.get(name, default)), 2**53))


def _most(asked: Mapping[str, str], default: int) -> int:
    return min(_whole(asked, "most", default), MOST)


def _policy(nonce: str, connect: str) -> str:
    return (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'unsafe-inline'; img-src data:; connect-src {connect}; "
        "base-uri 'none'; form-action 'none'"
    )


def render(told: Mapping[str, Any], nonce: str, policy: str) -> str:
    """The page. `nonce`: the word by which its own script is told from any other; `policy`: what the page may do."""
    return template("look.html.j2").render(told=told, nonce=nonce, policy=policy)


class Server(ThreadingHTTPServer):
    """Answers on 127.0.0.1 only, to those who know the address: its path begins with a word that nobody can guess."""

    daemon_threads = True

    def __init__(self, looking: Looking, port: int = 0):
        self.looking, self.word, self.nonce = looking, secrets.token_urlsafe(12), secrets.token_urlsafe(16)
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except OSError as error:
            raise RunError(f"cannot listen at port {port}: {error.strerror}; give another --port, or 0") from error

    @property
    def address(self) -> str:
        """For the browser."""
        return f"http://127.0.0.1:{self.server_address[1]}/{self.word}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away is nobody's error; everything else has been answered already."""


class _Handler(BaseHTTPRequestHandler):
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]
    server_version, sys_version = "stillhouse", ""
    timeout = 30  # seconds that a browser may take to say what it wants

    def do_GET(self) -> None:
        """The page, or JSON for it."""
        site, url = self.server, urlsplit(self.path)
        if not HERE.fullmatch(self.headers.get("Host", "")):
            return self._say(403, {"error": "this page is for the machine that it runs on"})
        if not url.path.startswith(f"/{site.word}/"):
            return self._say(404, {"error": "there is nothing here; open the address that `stillhouse look` has printed"})
        name = url.path.removeprefix(f"/{site.word}/")
        if not name:
            policy = _policy(site.nonce, "'self'")
            text = render(site.looking.plain(), site.nonce, policy)
            return self._send(200, "text/html; charset=utf-8", text.encode(), f"{policy}; frame-ancestors 'none'")
        try:
            query = parse_qs(url.query, keep_blank_values=True, max_num_fields=100)
            asked = {key: values[-1] for key, values in query.items()}
            known = name.startswith("api/")
            found = site.looking.answer(name.removeprefix("api/"), asked, query.get("where", ())) if known else None
            if found is None:
                return self._say(404, {"error": "there is nothing here"})
            self._say(200, found)
        except (RunError, ValueError, TypeError, RecursionError) as error:
            self._say(400, {"error": " ".join(str(error).split())[:500]})
        except Exception as error:  # a file that went away or is broken: said on the page, which goes on
            self._say(500, {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"})

    def _say(self, status: int, value: Any) -> None:
        text = json.dumps(value, ensure_ascii=True, allow_nan=False)
        self._send(status, "application/json", text.encode(), "default-src 'none'")

    def _send(self, status: int, kind: str, body: bytes, policy: str) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": kind, "Content-Length": str(len(body)), "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store", "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin", "X-Frame-Options": "DENY",
        }.items():  # fmt: skip
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: the terminal shows the address."""


@contextmanager
def serving(given: Path, *, stage: str | None = None, against: Path | None = None, port: int = 0) -> Iterator[Server]:
    """A server that listens; whoever has it calls `serve_forever`."""
    looking = Looking(given, stage=stage, against=against)
    try:
        with Server(looking, port) as server:
            yield server
    finally:
        looking.close()


def export(given: Path, file: Path, *, stage: str | None = None, against: Path | None = None, most: int = 500) -> Path:
    """Write the page as one file that needs no server; returns its path."""
    if file.suffix.lower() not in (".html", ".htm"):
        raise RunError(f"--export writes a page: name a file that ends in .html, not {file.name}")
    looking = Looking(given, stage=stage, against=against)
    try:
        write_atomically(file, looking.export(most))
    finally:
        looking.close()
    return file
