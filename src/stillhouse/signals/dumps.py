"""Rows of log-probabilities as other tools write them, and which token each of their entries is about.

    kind         columns                                              entry j is what the teacher said ...
    distillkit   input_ids + one of three encodings (`distillkit`)    after token j, about token j + 1
    axolotl      input_ids or messages + a column `...logprobs`       about token n - m + j: m entries for the last m of
                 (`token_id:N` strings, or ids in                     n tokens, or of the last answer
                 `target_token_ids`)
    vllm         prompt_token_ids + prompt_logprobs                   about token j; the first entry is null

Read from distillkit/{sample_logits_vllm,pack_logits,signals}.py of arcee-ai/DistillKit, src/axolotl/integrations/kd/ of
axolotl-ai-cloud/axolotl (067b021c) and vllm/logprobs.py with its completions protocol. Every row that is not as it
should be is refused by its number; none is left out.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy

from ..core.run import RunError
from ..data.tokens import encode, example_of
from .distillkit import LEGACY, NEW, PLAIN, Legacy, Quantized, packing_of

NOTHING = -1000.0  # vLLM writes -9999, axolotl -1e9 and DistillKit -inf where there is no log-probability
ENDINGS = (".parquet", ".arrow", ".jsonl", ".jsonl.gz", ".json")

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Found:
    """One document of a set. `counts[t]`: the set holds the distribution that token t was to be drawn from."""

    where: str
    tokens: list[int]
    counts: list[bool]
    entries: Callable[[], tuple[Any, Any]]  # ids and logs [n, m] of the n counted tokens; -inf where an entry is missing
    fitted: bool = False  # a curve was fitted to some of the log-probabilities, so that their sum can be far off
    logits: bool = False  # the numbers may be logits less a constant: this encoding serves both, and does not say


Reader = Callable[[str, Row], Iterator[Found]]


# -- files ---------------------------------------------------------------------------------------------------------


def files_of(path: Path) -> list[Path]:
    """The files of a set in order: the file itself, or what a folder holds of it. RunError if there is none."""
    if path.is_file():
        if not path.name.lower().endswith(ENDINGS):
            raise RunError(f"cannot read {path.name}: give {', '.join(ENDINGS)} or a folder of them")
        return [path]
    if not path.is_dir():
        raise RunError(f"no file or folder {path}")
    found = [p for p in path.iterdir() if p.name.endswith(ENDINGS[:-1])]  # .json describes a folder
    if not found:
        raise RunError(f"{path} holds no set of log-probabilities ({', '.join(ENDINGS[:-1])}); name a split below it")
    return sorted(found, key=lambda p: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", p.name)])


def rows_of(path: Path) -> Iterator[tuple[str, Row]]:
    """(where it stands, row) of every row of a set; a row of a Parquet or Arrow file holds Arrow scalars."""
    for file in files_of(path):
        number = 0
        try:
            for number, row in enumerate(_rows(file), 1):  # noqa: B007 the number is told when reading fails
                yield f"row {number} of {file.name}", row
        except (OSError, EOFError, ValueError) as error:  # pyarrow's and json's errors are ValueErrors
            raise RunError(f"cannot read {file} after row {number}: {str(error).splitlines()[0]}") from error


def _rows(file: Path) -> Iterator[Row]:
    if file.suffix in (".parquet", ".arrow"):
        for batch in _batches(file):
            columns = dict(zip(batch.schema.names, batch.columns, strict=True))
            for i in range(batch.num_rows):
                yield {name: column[i] for name, column in columns.items()}
        return
    opened: Any = gzip.open if file.suffix == ".gz" else open
    with opened(file, "rt", encoding="utf-8") as text:
        rows = json.load(text) if file.suffix == ".json" else (json.loads(line) for line in text if line.strip())
        for row in [rows] if isinstance(rows, dict) else rows:
            if not isinstance(row, dict):
                raise ValueError("not an object")
            yield row


def _batches(file: Path) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if file.suffix == ".parquet":
        yield from pq.ParquetFile(file).iter_batches(batch_size=64)
        return
    with pa.memory_map(str(file)) as data:
        try:
            whole: Any = pa.ipc.open_stream(data)  # what `datasets` saves
        except pa.ArrowInvalid:
            opened: Any = pa.ipc.open_file(data)
            whole = (opened.get_batch(i) for i in range(opened.num_record_batches))
        for batch in whole:
            yield from (batch.slice(begin, 64) for begin in range(0, batch.num_rows, 64))


def _plain(value: Any) -> Any:
    """A cell as Python objects; a nested cell that is kept as JSON text is parsed."""
    value = value.as_py() if hasattr(value, "as_py") else value
    try:
        return json.loads(value) if isinstance(value, str) and value[:1] in ("[", "{") else value
    except ValueError:
        return value


def _ids(row: Row, name: str, where: str) -> list[int]:
    found = _plain(row.get(name))
    if not isinstance(found, list) or not all(isinstance(i, int) and not isinstance(i, bool) for i in found):
        raise RunError(f"{where}: {name} is no list of token ids")
    return found


def _matrix(value: Any, where: str, name: str) -> Any:
    """A list of lists of equal length as an array `[n, m]`."""
    try:
        if hasattr(value, "as_py"):
            outer = value.values  # an Arrow list of lists
            if outer is None or outer.null_count:
                raise ValueError
            width = outer.value_lengths() if hasattr(outer, "value_lengths") else None
            flat = outer.flatten()
            if flat.null_count or (width is not None and len(width.unique()) > 1):
                raise ValueError
            return flat.to_numpy(zero_copy_only=False).reshape(len(outer), -1 if len(flat) else 0)
        found = numpy.array(value)
        if found.ndim != 2 or found.dtype.kind not in "iuf":
            raise ValueError
        return found
    except (ValueError, AttributeError) as error:
        raise RunError(f"{where}: {name} is not as many numbers for every token") from error


# -- kinds ---------------------------------------------------------------------------------------------------------


def kind_of(row: Row, path: Path) -> str:
    """Which tool wrote a row, by its columns; RunError if none that is known."""
    names = set(row)
    first = _plain(row["choices"])[:1] if "choices" in names else []
    if "prompt_logprobs" in names or (first and "prompt_logprobs" in first[0]):
        return "vllm"
    if any(names >= set(form) for form in (NEW, LEGACY, PLAIN)):
        return "distillkit"
    if _column(row):
        return "axolotl"
    raise RunError(
        f"{path} has the columns {', '.join(sorted(names))}: no set of DistillKit (compressed_logprobs), "
        "axolotl (...logprobs) or vLLM (prompt_logprobs)"
    )


def reader_of(kind: str, path: Path, tokenizer: Any, config: Any) -> Reader:
    """What turns a row of this kind into its documents."""
    if kind == "distillkit":
        return _distillkit(path, tokenizer, config)
    return {"axolotl": partial(_axolotl, tokenizer), "vllm": _vllm}[kind]


def _distillkit(path: Path, tokenizer: Any, config: Any) -> Reader:
    """A row is one document, or several that `attention_mask` numbers 1, 2 ... (distillkit-pack-logits).

    There is a distribution after every token or, straight from vLLM, after every one but the last. DistillKit appends a
    pad token to short documents to get the one after their last word; where that is not the end-of-text token too, it
    does not count.
    """
    packing: Quantized | Legacy | None = None
    pad = getattr(tokenizer, "pad_token_id", None)
    pad = None if pad == getattr(tokenizer, "eos_token_id", None) else pad

    def read(where: str, row: Row) -> Iterator[Found]:
        nonlocal packing
        form = next((form for form in (NEW, LEGACY, PLAIN) if set(row) >= set(form)), None)
        if form is None:
            raise RunError(f"{where}: no {' + '.join(NEW)}, {' + '.join(LEGACY)} or {' + '.join(PLAIN)}")
        if form is not PLAIN and packing is None:
            packing = packing_of(config, path)
        if form is not PLAIN and (form is LEGACY) != isinstance(packing, Legacy):
            raise RunError(f"{where}: its columns are {', '.join(form)}, and the compression config is for others")
        tokens, parts = _ids(row, "input_ids", where), [_matrix(row[name], where, name) for name in form]
        n, m = len(tokens), len(parts[0])
        if {len(part) for part in parts} != {m} or m not in (n, n - 1):
            lengths = ", ".join(f"{len(part)} {name}" for part, name in zip(parts, form, strict=True))
            raise RunError(f"{where}: {n} tokens, {lengths}; there must be one a token, but for the last")
        widths = packing.widths if packing is not None and form is not PLAIN else (parts[0].shape[1],) * 2
        for part, name, width in zip(parts, form, widths, strict=True):
            if part.shape[1] != width:
                raise RunError(f"{where}: {part.shape[1]} numbers a token in {name}; by its compression config, {width}")
        fitted = packing is not None and packing.exact_k < packing.k
        labels = _ids(row, "labels", where) if "labels" in row else tokens
        mask = _ids(row, "attention_mask", where) if "attention_mask" in row else [1] * n
        if not len(labels) == len(mask) == n:
            raise RunError(f"{where}: {n} tokens, {len(labels)} labels, attention_mask of {len(mask)}")
        cuts = [0, *(i for i in range(1, n) if mask[i] != mask[i - 1]), n]
        for a, b in pairwise(cuts):
            if a == b or mask[a] == 0:
                continue
            counts = [False, *(t - 1 < m and labels[t] >= 0 for t in range(a + 1, b))]
            if m == n - 1 and b == n and tokens[-1] == pad:
                counts[-1] = False
            after = [a + t - 1 for t, counted in enumerate(counts) if counted]
            yield Found(where, tokens[a:b], counts, partial(_unpacked, packing, form, parts, after), fitted, form is not NEW)

    return read


def _unpacked(packing: Any, form: Sequence[str], parts: Sequence[Any], after: list[int]) -> tuple[Any, Any]:
    """Ids and logs. Ranks were sorted before a curve was fitted to them, so where it rises it is wrong, and held down.

    Of SmolLM2 through DistillKit's "budget pick" this takes the KL to what was compressed from 0.10 to 0.05 nats, and
    the largest mass from 11 to 1.7.
    """
    some = [part[after] for part in parts]
    if form is PLAIN:
        return some[1].astype(numpy.int64), some[0].astype(numpy.float64)
    with numpy.errstate(all="ignore"):  # bytes can say NaN; that is found out later
        if form is NEW:
            data = [part.astype(numpy.uint8) for part in some]
            logs = packing.logs(data[0]) if packing.exact_k else packing.logs(data[0]).clip(max=0.0)
            return packing.ids(data[1]), numpy.minimum.accumulate(logs, -1)
        return packing.ids(some[0]), numpy.minimum.accumulate(packing.logs(*some[1:]), -1)


def _axolotl(tokenizer: Any, where: str, row: Row) -> Iterator[Found]:
    """A row has entries for its last tokens; `labels` (-100) and `target_mask` (0) say which do not count."""
    name = _column(row)
    told = _plain(row.get(name)) if name else None
    if isinstance(told, dict) and isinstance(told.get("content"), list):  # as an OpenAI chat answer has them
        told = [each.get("top_logprobs") for each in told["content"]]
    if not isinstance(told, list):
        raise RunError(f"{where}: {name or '...logprobs'} is no list with an entry for every token")
    m = len(told)
    if "input_ids" in row:
        tokens = _ids(row, "input_ids", where)
        labels = _ids(row, "labels", where) if "labels" in row else tokens
        wanted, end = [label >= 0 for label in labels], len(tokens)
        if len(labels) != end or m > end:
            raise RunError(f"{where}: {end} tokens, {len(labels)} labels, {m} entries in {name}")
    else:
        tokens, wanted = _rendered(tokenizer, where, row)
        end = max((t for t, counted in enumerate(wanted) if counted), default=-1) + 1
        answer = next((end - 1 - t for t in range(end - 1, -1, -1) if not wanted[t]), end)
        if answer != m:
            raise RunError(f"{where}: {m} entries in {name} for an answer of {answer} tokens: it does not tokenise to what "
                           "the teacher wrote; give input_ids")  # fmt: skip
    ids = _plain(row.get("target_token_ids")) if "target_token_ids" in row else [None] * m
    mask = _plain(row.get("target_mask")) if "target_mask" in row else [True] * m
    if not (isinstance(ids, list) and isinstance(mask, list) and len(ids) == len(mask) == m):
        raise RunError(f"{where}: target_token_ids and target_mask must have {m} entries, as {name} has")
    counts, entries = [False] * len(tokens), []
    for j, t in enumerate(range(end - m, end)):
        said: Any = mask[j]
        kept = any(said) if isinstance(said, list) else bool(said)
        if t and wanted[t] and kept and told[j]:
            entry = _pairs(told[j], ids[j], f"{where}, token {t}")
            counts[t] = any(not value <= NOTHING for _, value in entry)
            entries += [entry] if counts[t] else []
    yield Found(where, tokens, counts, partial(_table, entries))


def _column(row: Row) -> str | None:
    return next((name for name in ("target_logprobs", "logprobs") if name in row), None) or next(
        (name for name in row if name.endswith("logprobs")), None
    )


def _rendered(tokenizer: Any, where: str, row: Row) -> tuple[list[int], list[bool]]:
    """A conversation's tokens, and which of them the assistant wrote."""
    column = next((name for name in row if name.startswith(("messages", "conversation"))), None)
    if column is None:
        raise RunError(f"{where}: neither input_ids nor messages beside the log-probabilities")
    example = example_of({column: _plain(row[column])}, column)
    made = example if isinstance(example, str) else encode(example, tokenizer)
    if isinstance(made, str):
        raise RunError(f"{where}: {made}")
    return made


def _pairs(entry: Any, ids: Any, where: str) -> list[tuple[int, float]]:
    """(id, log-probability) of one position, however it is written."""
    try:
        if isinstance(entry, dict):
            return [(int(i), _number(value)) for i, value in entry.items() if value is not None]
        if ids is not None:
            return [(int(i), float(value)) for i, value in zip(ids, entry, strict=True)]
        return [(_id(each), float(each["logprob"])) for each in entry]
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise RunError(f"{where}: {str(entry)[:60]} is no list of token ids with their log-probabilities") from error


def _id(entry: Mapping[str, Any]) -> int:
    token = entry["token_id"] if "token_id" in entry else entry["token"]
    return token if isinstance(token, int) else int(token.removeprefix("token_id:"))


def _number(value: Any) -> float:
    return float(value["logprob"] if isinstance(value, dict) else value)


def _vllm(where: str, row: Row) -> Iterator[Found]:
    """A row is a RequestOutput, or a whole answer of the server with a document per choice.

    An entry holds the k likeliest tokens and the token that stands there, which makes k + 1 where it is not likely.
    """
    parts = _plain(row["choices"]) if "choices" in row else [{}]
    for number, part in enumerate(parts):
        here = f"{where}, choice {number}" if len(parts) > 1 else where
        whole = {**row, **part}
        told = _plain(whole.get("prompt_logprobs"))
        if told is None:
            raise RunError(f"{here}: prompt_logprobs is null; ask vLLM with prompt_logprobs=64")
        if isinstance(told, dict):
            told = _unflattened(told, here)
        name = "prompt_token_ids" if whole.get("prompt_token_ids") is not None or "prompt" not in whole else "prompt"
        if name == "prompt" and isinstance(_plain(whole["prompt"]), str):
            raise RunError(f"{here}: no prompt_token_ids; ask vLLM with return_token_ids=true, or put them into the row")
        tokens = _ids(whole, name, here)
        if len(tokens) != len(told):
            raise RunError(f"{here}: {len(tokens)} token ids and {len(told)} entries in prompt_logprobs")
        if told and told[0]:
            raise RunError(f"{here}: the first entry of prompt_logprobs is not null, so entry t is not about token t")
        entries = [_pairs(each, None, f"{here}, token {t}") if each else [] for t, each in enumerate(told)]
        for t, entry in enumerate(entries):
            if entry and all(i != tokens[t] for i, _ in entry):
                raise RunError(f"{here}: entry {t} of prompt_logprobs does not hold token {t} ({tokens[t]}), as vLLM's do: "
                               "the two lists are shifted, or not of one text")  # fmt: skip
        yield Found(here, tokens, [bool(entry) for entry in entries], partial(_table, [e for e in entries if e]))


def _unflattened(told: Mapping[str, Any], where: str) -> list[dict[int, float] | None]:
    """vLLM's FlatLogprobs as one mapping a token."""
    try:
        spans = zip(told["start_indices"], told["end_indices"], strict=True)
        return [dict(zip(told["token_ids"][a:b], told["logprobs"][a:b], strict=True)) or None for a, b in spans]
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{where}: prompt_logprobs is neither a list nor FlatLogprobs") from error


def _table(entries: Sequence[Sequence[tuple[int, float]]]) -> tuple[Any, Any]:
    """Entries of any length as ids (-1) and logs (-inf) `[n, the longest]`."""
    width = max(map(len, entries), default=0)
    ids = numpy.full((len(entries), width), -1, numpy.int64)
    logs = numpy.full((len(entries), width), -numpy.inf)
    for i, entry in enumerate(entries):
        ids[i, : len(entry)] = [token for token, _ in entry]
        logs[i, : len(entry)] = [value for _, value in entry]
    return ids, logs
