"""A table of rows as a Parquet file that never has to fit into memory: written once, a chunk at a time, and only read then.

A row is a mapping. `_id` names it by its content or by its ancestors, `_from` names its parents, and whatever begins
with an underscore is the engine's.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from ..core.run import RunError

Row = Mapping[str, Any]
CHUNK = 4096  # rows held at a time
JSON = {b"stillhouse": b"json"}
PLAIN = {str, int, float, bool, type(None)}
_CODER = json.JSONEncoder(sort_keys=True, ensure_ascii=False, default=str)


class Table(Sequence[Row]):
    """The rows of a file, read a chunk at a time whenever they are gone through, without columns that a row did not have."""

    def __init__(self, path: Path):
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            told = pq.read_metadata(path)
        except (OSError, pa.ArrowException) as error:
            raise RunError(f"cannot read the table {path}: {str(error).splitlines()[0]}") from error
        self.path, self.length = path, int(told.num_rows)
        self.columns: list[str] = [name for name in told.schema.to_arrow_schema().names]

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Row]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        with pq.ParquetFile(self.path) as file:
            for group in range(file.num_row_groups):  # by itself: read as one they would be held ahead of need
                for batch in file.iter_batches(CHUNK, row_groups=[group]):
                    yield from _rows(batch)
                    pa.default_memory_pool().release_unused()

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        """By number; each look reads the file from its beginning, so go through the rows where you want many."""
        numbers = range(self.length)[index]
        wanted = [numbers] if isinstance(numbers, int) else list(numbers)
        inside = set(wanted)
        found = {number: row for number, row in enumerate(self) if number in inside} if wanted else {}
        return found[wanted[0]] if isinstance(index, int) else [found[number] for number in wanted]

    def having(self, column: str, values: Iterable[Any]) -> list[Row]:
        """The rows with one of these values in a column, without turning the others into Python objects."""
        import pyarrow.dataset as ds

        if column not in self.columns:
            return []
        found = ds.dataset(self.path, format="parquet").to_table(filter=ds.field(column).isin(list(values)))
        return list(_rows(found))

    def beginning(self, column: str, text: str) -> list[str]:
        """The different values of a column that begin with a text."""
        import pyarrow.parquet as pq

        if column not in self.columns:
            return []
        values = pq.read_table(self.path, columns=[column]).column(column).unique().to_pylist()
        return sorted(value for value in values if str(value).startswith(text))


class Piece(list[Row]):
    """Some rows of a table, which know what columns the table has."""

    def __init__(self, rows: Iterable[Row], columns: Sequence[str]):
        super().__init__(rows)
        self.columns = columns


class Writing:
    """Rows on their way into `path`, which is there, whole, once `close` is called."""

    def __init__(self, path: Path):
        self.path, self.part = path, path.with_suffix(".part")
        self.count = 0
        self.digest = hashlib.blake2b(digest_size=16)
        self.names, self.new = array("Q"), array("B")  # of each row: half of its `_id` as a number, and is it a new row
        self.waiting: list[Row] = []
        self.schema: Any = None
        self.writer: Any = None
        path.parent.mkdir(parents=True, exist_ok=True)

    def add(self, row: Row, new: bool = False) -> None:
        """Take one row; `new`: its `_id` was made for it and may be changed where two have the same."""
        self.waiting.append(row)
        self.names.append(number_of(str(row.get("_id", self.count))))
        self.new.append(new)
        self.digest.update(_CODER.encode(row).encode() + b"\n")
        self.count += 1
        if len(self.waiting) >= CHUNK:
            self._flush()

    def twins(self) -> list[int]:
        """The numbers of rows whose `_id` an earlier row has."""
        import numpy

        names = numpy.array(self.names, dtype=numpy.uint64)
        names.sort()  # in place: eight bytes a row is all that this may take, and mostly all that there is to do
        if not (names[1:] == names[:-1]).any():
            return []
        names = numpy.array(self.names, dtype=numpy.uint64)
        order = numpy.argsort(names, kind="stable")
        again = order[1:][names[order][1:] == names[order][:-1]]
        return sorted(again.tolist())

    def close(self) -> Table:
        """Write what is left."""
        self._flush()
        if self.schema is None:
            self._open(_arrow([]).schema)
        self.writer.close()
        try:
            self.part.replace(self.path)
        except OSError as error:
            raise self._failed(error) from error
        return Table(self.path)

    def drop(self) -> None:
        """Leave nothing behind."""
        if self.writer is not None:
            self.writer.close()
        self.part.unlink(missing_ok=True)

    def _flush(self) -> None:
        import pyarrow as pa

        if not self.waiting:
            return
        try:
            chunk = _arrow(self.waiting)
            if self.schema is None:
                self._open(chunk.schema)
            else:
                self._widen(chunk.schema)
            self.writer.write_table(_as(chunk, self.schema))
            pa.default_memory_pool().release_unused()  # or its free memory grows with the rows
        except (pa.ArrowException, OSError) as error:
            raise self._failed(error) from error
        self.waiting = []

    def _open(self, schema: Any) -> None:
        import pyarrow.parquet as pq

        self.schema, self.writer = schema, pq.ParquetWriter(self.part, schema)

    def _widen(self, schema: Any) -> None:
        """Write what is there again, with the columns that have come since."""
        import pyarrow.parquet as pq

        if schema.equals(self.schema, check_metadata=True) or (wider := _both(self.schema, schema)) == self.schema:
            return
        self.writer.close()
        old = self.part.with_suffix(".old")
        self.part.replace(old)
        self._open(wider)
        with pq.ParquetFile(old) as file:
            for number in range(file.num_row_groups):
                self.writer.write_table(_as(file.read_row_group(number), wider))
        old.unlink()

    def _failed(self, error: BaseException) -> RunError:
        return RunError(f"cannot write {self.path.name}: {str(error).splitlines()[0]}")


def write(path: Path, rows: Iterable[Row]) -> Table:
    """A table of these rows; RunError if a column holds values that do not go together."""
    writing = Writing(path)
    try:
        for row in rows:
            writing.add(row)
        return writing.close()
    except BaseException:
        writing.drop()
        raise


def settled(writing: Writing, twin: Callable[[Row, bool, int], Row | None]) -> tuple[Table, str]:
    """The table, closed, and its digest; for a row whose `_id` an earlier row has, what `twin` says, None being left out.

    `twin` is told the row, whether it was new, and the number of earlier ones.
    """
    again, new = set(writing.twins()), writing.new
    if not again:
        return writing.close(), writing.digest.hexdigest()
    table, before = writing.close(), Counter[str]()
    other = Writing(table.path)
    try:
        for number, row in enumerate(table):
            found: Row | None = row
            if number in again:
                before[str(row["_id"])] += 1
                found = twin(row, bool(new[number]), before[str(row["_id"])])
            if found is not None:
                other.add(found)
        return other.close(), other.digest.hexdigest()
    except BaseException:
        other.drop()
        raise


def hash_of(value: Any) -> str:
    """The name of any plain value: 128 bits as hex."""
    return hashlib.blake2b(_CODER.encode(value).encode(), digest_size=16).hexdigest()


def number_of(name: str) -> int:
    """Half of a name as a number."""
    try:
        return int(name[:16], 16)
    except ValueError:
        return int(hash_of(name)[:16], 16)


def _arrow(rows: Sequence[Row]) -> Any:
    """Rows as columns. Values with parts of their own are written as JSON: Parquet would give each of them all parts."""
    import pyarrow as pa

    fields, columns = list[Any](), list[Any]()
    for name in dict.fromkeys(name for row in rows for name in row) or {"_id": None}:
        values = [row.get(name) for row in rows]
        nested = any(type(value) not in PLAIN and _nested(value) for value in values)
        if nested:
            values = [_json(value) for value in values]
        try:
            columns.append(pa.array(values, None if rows else pa.string()))
        except pa.ArrowException as error:
            raise pa.ArrowInvalid(f"column {name!r}: {str(error).splitlines()[0]}") from error
        fields.append(pa.field(name, columns[-1].type, metadata=JSON if nested else None))
    return pa.table(columns, schema=pa.schema(fields))


def _nested(value: Any) -> bool:
    return isinstance(value, Mapping) or (
        isinstance(value, list | tuple) and any(isinstance(each, Mapping | list | tuple) for each in value)
    )


def _both(one: Any, other: Any) -> Any:
    """The schema for rows of both; RunError's cause (ArrowInvalid) where a column holds words here and numbers there."""
    import pyarrow as pa

    fields = {field.name: field for field in one}
    for field in other:
        had = fields.get(field.name, field)
        if _coded(had) != _coded(field):
            fields[field.name] = had if _coded(had) else field
        elif had.type != field.type:
            try:
                schemas = [pa.schema([had]), pa.schema([field])]
                fields[field.name] = pa.unify_schemas(schemas, promote_options="permissive").field(0)
            except pa.ArrowException as error:
                raise pa.ArrowInvalid(f"column {field.name!r} holds {had.type} and later {field.type}") from error
        else:
            fields[field.name] = had
    return pa.schema(list(fields.values()))


def _as(chunk: Any, schema: Any) -> Any:
    """A chunk with all columns of the schema, in their order."""
    import pyarrow as pa

    columns = list[Any]()
    for field in schema:
        place = chunk.schema.get_field_index(field.name)
        if place < 0:
            columns.append(pa.nulls(len(chunk), field.type))
        elif _coded(field) and not _coded(chunk.schema.field(place)):
            values = chunk.column(place).to_pylist()
            columns.append(pa.array([_json(value) for value in values], field.type))
        else:
            columns.append(chunk.column(place).cast(field.type))
    return pa.table(columns, schema=schema)


def _coded(field: Any) -> bool:
    return bool(field.metadata) and JSON.items() <= field.metadata.items()


def _json(value: Any) -> str | None:
    return None if value is None else json.dumps(value, ensure_ascii=False, default=str)


def _rows(batch: Any) -> Iterator[Row]:
    """The rows of a batch or table, as they were written."""
    coded = [field.name for field in batch.schema if _coded(field)]
    for row in batch.to_pylist():
        for name in coded:
            if row[name] is not None:
                row[name] = json.loads(row[name])
        yield {name: value for name, value in row.items() if value is not None}
