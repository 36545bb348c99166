"""Sets of log-probabilities that other tools have written, as signals: DistillKit, axolotl and vLLM (see `dumps`).

Two things are told apart that those tools mix up. Where a set keeps true probabilities, what the k kept ones lack to 1
is the mass of all other classes, and is kept. Where it was renormalised to 1, or taken at another temperature, nobody
knows that mass any more: the k classes then hold everything, and the header's facts say `renormalised`.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from ..core.files import file_hash
from ..core.recipe import nearest, to_plain
from ..core.run import RunError
from ..core.signal import Batch, Kind, Signal, TopK
from ..data.tokens import Document, Packed
from ..models.hub import load_tokenizer
from . import formats
from .dumps import NOTHING, Found, Reader, files_of, kind_of, reader_of, rows_of
from .fidelity import measure
from .items import put
from .keys import document_key, places_of
from .reader import StoredTeacher
from .store import Store, Writer
from .tokenizers import classes_of, tokenizer_hash
from .topk import MOST, KeptTopK

KINDS = ("distillkit", "axolotl", "vllm")
PEEK = 64  # documents that are looked at before the first is converted
BLOCK = 32  # documents written at a time
SAMPLE = 32  # documents on which the finished signals are compared with the teacher or with the set
SURE = 32  # tokens before a shift is believed
EXACT = 4e-6  # what float32 probabilities that were made to add up to 1 may lack
ABOVE = 0.01  # what rounding can make of a log-probability of 0
HINT = {"distillkit": "is this its compression config?", "axolotl": "give log-probabilities", "vllm": "dump it again"}
OVER = {"distillkit": 2.0, "axolotl": 1.02, "vllm": 1.02}  # mass a token that a document can reach by its encoding's errors

Labelled = tuple[list[int], list[bool], TopK]


class Foreign:
    """A set of another tool. Iterates over (token ids, `Document.counts`, TopK of the counted tokens [n, k]).

    `kind` is one of KINDS, or `auto`. `config` is DistillKit's compression config where it does not lie beside the set.
    `temperature` is the one that the set's probabilities were taken at. RunError, with the row, for what is not right.
    """

    def __init__(
        self, path: str | Path, kind: str = "auto", *, tokenizer: Any, config: Any = None, temperature: float = 1.0
    ):
        self.path = Path(path).expanduser()
        if kind not in ("auto", *KINDS):
            raise RunError(f"no kind {kind!r} of log-probabilities{nearest(kind, ('auto', *KINDS))}")
        if temperature <= 0:
            raise RunError(f"the temperature of the set must be above 0, not {temperature:g}")
        first = next(rows_of(self.path), None)
        if first is None:
            raise RunError(f"{path} holds no rows")
        self.kind = kind_of(first[1], self.path) if kind == "auto" else kind
        self.temperature, self.classes = temperature, classes_of(tokenizer)
        self._reader: Reader = reader_of(self.kind, self.path, tokenizer, config)
        self._facts: dict[str, Any] | None = None

    def documents(self) -> Iterator[Found]:
        """Every document, its log-probabilities not yet read."""
        for where, row in rows_of(self.path):
            for found in self._reader(where, row):
                if found.tokens and not 0 <= min(found.tokens) <= max(found.tokens) < self.classes:
                    raise self._outside(found.where, [i for i in found.tokens if not 0 <= i < self.classes][0])
                yield found

    @property
    def facts(self) -> dict[str, Any]:
        """What the header of the signals says: k, classes, whether the rest is unknown. From the first documents."""
        if self._facts is None:
            widths: Counter[int] = Counter()
            masses: list[Any] = []
            either = True
            for found in islice((f for f in self.documents() if any(f.counts[1:])), PEEK):
                _, logs = self._entries(found)
                widths.update((logs > NOTHING).sum(-1).tolist())
                masses.append(numpy.exp(logs.clip(max=99.0)).sum(-1))
                either = either and found.logits
            if not masses:
                raise RunError(f"{self.path} holds no log-probabilities for any of its tokens")
            most = max(widths.values())
            usual = min(width for width, times in widths.items() if times == most)
            if self.kind == "vllm" and widths[usual - 1]:
                usual -= 1  # the longer entries hold the token that stands there too
            k = min(max(1, usual), self.classes, MOST)
            mass = numpy.concatenate(masses)
            logits = either and bool((mass > OVER[self.kind]).mean() > 0.5)
            cut = k < self.classes and bool((abs(mass - 1) < 10 * EXACT).all())
            self._facts = {"k": k, "classes": self.classes, "renormalised": logits or cut or self.temperature != 1.0}
            if logits:
                self._facts["from_logits"] = True
            if self.temperature != 1.0:
                self._facts["taken_at_temperature"] = self.temperature
        return self._facts

    def __iter__(self) -> Iterator[Labelled]:
        k, unknown = self.facts["k"], self.facts.get("from_logits", False) or self.temperature != 1.0
        shift = _Shift()
        for found in self.documents():
            ids, logs = self._entries(found)
            shift.add(found, ids)
            if unknown:
                logs = logs * self.temperature
                peak = logs.max(-1, keepdims=True, initial=NOTHING)
                logs = logs - peak - numpy.log(numpy.exp(logs - peak).sum(-1, keepdims=True))
            else:
                self._check_mass(found, logs)
            yield found.tokens, found.counts, top_of(ids, logs, k, self.classes, fitted=found.fitted and not unknown)

    def _entries(self, found: Found) -> tuple[Any, Any]:
        """Ids and logs `[n, m]` by falling probability, each class once; ids -1 and logs -inf where there is none."""
        ids, logs = found.entries()
        if len(logs) != sum(found.counts[1:]):
            raise AssertionError(f"{found.where}: {len(logs)} entries for {sum(found.counts[1:])} tokens")
        if numpy.isnan(logs).any() or (logs == numpy.inf).any():
            raise RunError(f"{found.where}: a log-probability is not a number; write the row again")
        ids, logs = _once(ids, logs)
        if len(logs) and (~numpy.isfinite(logs)).all(-1).any():
            raise RunError(f"{found.where}: a token has no log-probability at all; write the row again")
        if ids.size and int(ids.max()) >= self.classes:
            raise self._outside(found.where, int(ids.max()))
        if ids.size and bool(((ids < 0) & numpy.isfinite(logs)).any()):
            raise self._outside(found.where, int(ids[numpy.isfinite(logs)].min()))
        return ids, logs

    def _check_mass(self, found: Found, logs: Any) -> None:
        if logs.size and logs.max() > ABOVE:
            raise RunError(f"{found.where}: a log-probability of {logs.max():.3g} is above 0; {HINT[self.kind]}")
        mass = numpy.exp(logs).sum(-1)
        if mass.size and mass.mean() > OVER[self.kind]:
            raise RunError(
                f"{found.where}: the probabilities of a token add up to {mass.mean():.3g} on average; {HINT[self.kind]}"
            )

    def _outside(self, where: str, token: int) -> RunError:
        return RunError(f"{where}: token id {token} is outside the tokenizer's {self.classes:,}; give the set's tokenizer")


class _Shift:
    """Whether the distributions fit the tokens before or after their own better: then the set is shifted by one."""

    def __init__(self) -> None:
        self.hits, self.tokens = numpy.zeros(3, dtype=numpy.int64), 0

    def add(self, found: Found, ids: Any) -> None:
        """Take in a document; RunError as soon as it is clear."""
        tokens = numpy.asarray(found.tokens)
        at = numpy.flatnonzero([False, *found.counts[1:]])
        whole = at + 1 < len(tokens)
        at, ids = at[whole], ids[whole]
        self.hits += [int((ids == tokens[at + step, None]).any(-1).sum()) for step in (0, -1, 1)]
        self.tokens += len(at)
        own, before, after = (float(h) / max(1, self.tokens) for h in self.hits)
        if self.tokens >= SURE and max(before, after) > own + 0.1:
            other, share = ("before", before) if before > after else ("after", after)
            raise RunError(
                f"{found.where}: of {self.tokens} tokens so far the kept classes name {own:.0%}, and the token {other} for "
                f"{share:.0%}: the log-probabilities are shifted by one"
            )


def _once(ids: Any, logs: Any) -> tuple[Any, Any]:
    """Entries `[n, m]` sorted by falling probability; absent ones, and a class's second one, become -1 with -inf."""
    absent = ~(logs > NOTHING)  # whatever id stands there: DistillKit leaves it as the memory was
    ids, logs = numpy.where(absent, -1, ids), numpy.where(absent, -numpy.inf, logs)
    order = numpy.argsort(-logs, axis=-1, kind="stable")
    ids, logs = numpy.take_along_axis(ids, order, -1), numpy.take_along_axis(logs, order, -1)
    order = numpy.argsort(ids, axis=-1, kind="stable")
    same = numpy.zeros(ids.shape, dtype=bool)
    by_id = numpy.take_along_axis(ids, order, -1)
    numpy.put_along_axis(same, order[:, 1:], by_id[:, 1:] == by_id[:, :-1], -1)
    if same.any() and (same & ~numpy.isneginf(logs)).any():
        return _once(ids, numpy.where(same, -numpy.inf, logs))
    return ids, logs


def top_of(ids: Any, logs: Any, k: int, classes: int, *, fitted: bool = False) -> TopK:
    """The k likeliest of the entries `[n, m]` (see `_once`), and log1p(-their mass) as the rest.

    Entries beyond k join the rest. Where there are fewer than k, unnamed classes are named with an even share of the
    rest each, which is what is known of them. A mass above 1, an error of the encoding, is scaled down to it. `fitted`:
    the mass itself is a guess, which leaves the rest at least what the least likely entry has, and never nothing.
    """
    n = len(logs)
    if logs.shape[-1] < k:
        gap = ((0, 0), (0, k - logs.shape[-1]))
        ids, logs = numpy.pad(ids, gap, constant_values=-1), numpy.pad(logs, gap, constant_values=-numpy.inf)
    with numpy.errstate(divide="ignore"):
        whole = numpy.exp(logs).sum(-1, keepdims=True)
        room = 1 - numpy.exp(logs).min(-1, where=ids >= 0, initial=0.5, keepdims=True) * (fitted and k < classes)
        logs = logs + numpy.log(numpy.minimum(room / whole, 1.0))
        whole = numpy.exp(logs).sum(-1)
        tail = numpy.exp(logs[:, k:]).sum(-1)
        rest = numpy.where((1 - whole > EXACT) | fitted, 1 - whole, 0.0) + tail
        ids, logs = ids[:, :k].copy(), logs[:, :k].copy()
        for row in numpy.flatnonzero((ids < 0).any(-1)):
            named = set(ids[row].tolist())
            free = [slot for slot, i in enumerate(ids[row]) if i < 0]
            unnamed = (i for i in range(classes) if i not in named)
            share = rest[row] / (classes - k + len(free))
            ids[row, free] = list(islice(unnamed, len(free)))
            logs[row, free] = numpy.log(share)
            rest[row] -= share * len(free)
        rest = numpy.log(rest.clip(min=0.0))
    values, index = torch.from_numpy(logs).float(), torch.from_numpy(ids)
    return TopK(values.reshape(n, k), index.reshape(n, k), torch.from_numpy(rest).float(), classes=classes)


# -- into a store --------------------------------------------------------------------------------------------------


def convert(
    path: str | Path,
    kind: str,
    out: str | Path,
    *,
    tokenizer: Any,
    teacher_name: str = "",
    config: str | Path | Mapping[str, Any] | None = None,
    temperature: float = 1.0,
    live: Any = None,
    device: torch.device | str = "cpu",
) -> Store:
    """Write a set of another tool as a folder of signals (format `topk`), and return it opened.

    kind: `distillkit`, `axolotl`, `vllm`, or `auto` by the columns
    tokenizer: a tokenizer, or the path of the model whose ids the set holds
    teacher_name: what is known of the teacher, a path for students that are cut from it
    config: DistillKit's compression config, a file or a mapping, if it is not beside the set
    temperature: the one that the set's probabilities were taken at
    live: a teacher to measure the exactness against; without one it is measured against the set itself

    A killed conversion goes on where it stopped. `done.json` counts the documents, those that hold no distribution
    (`empty`), those that were there before (`repeated`), and the tokens whose rest is unknown (`no_rest`).
    """
    from ..data.foreign import ForeignRows

    if isinstance(tokenizer, str | Path):
        tokenizer = load_tokenizer(str(tokenizer))
    source = Foreign(path, kind, tokenizer=tokenizer, config=config, temperature=temperature)
    told = dict(config) if isinstance(config, Mapping) else None if config is None else str(config)
    spec = ForeignRows(path=str(path), kind=source.kind, config=told, valid=0.0, test=0.0)
    form = KeptTopK(k=source.facts["k"])
    header = {
        "version": 1,
        "name": teacher_name,
        "format": formats.plain(form),
        "facts": source.facts,
        "teacher": {"weights": None, "from": source.kind},
        "tokenizer": tokenizer_hash(tokenizer),
        "data": {"spec": to_plain(spec), "splits": ["train"], "draws": 1, "sha256": _hash(source.path)},
    }
    count = Counter(documents=0, empty=0, repeated=0, no_rest=0)
    sample: list[Labelled] = []
    dice = random.Random(0)
    with Writer(Path(out), header) as writer:
        every = iter(source)
        new_in_all: set[bytes] = set()
        while some := list(islice(every, BLOCK)):
            block: dict[bytes, TopK] = {}
            for tokens, counts, top in some:
                count["documents"] += 1
                key = document_key(tokens, counts) if len(tokens) else b""
                if not len(top.rest):
                    count["empty"] += 1
                elif key in new_in_all:
                    count["repeated"] += 1
                else:
                    new_in_all.add(key)
                    count["no_rest"] += int(top.rest.isneginf().sum())
                    at = dice.randrange(len(new_in_all))  # a reservoir: every document is as likely to stay
                    if len(sample) < SAMPLE:
                        sample.append((tokens, counts, top))
                    elif at < SAMPLE:
                        sample[at] = (tokens, counts, top)
                    if key not in writer.known:
                        block[key] = top
            sizes = [len(top.rest) for top in block.values()]
            if block:
                items = Signal(topk=_joined(list(block.values())))
                writer.append(list(block), sizes, form.encode(items, sizes, list(block), source.facts))
        writer.finish(count)
        found = _exactness(Store(writer.folder), sample, live, torch.device(device), source.facts["renormalised"])
        writer.finish({**count, "fidelity": found})
    return Store(out)


def _exactness(store: Store, sample: list[Labelled], live: Any, device: torch.device, renormalised: bool) -> dict[str, Any]:
    """The fidelity of a sample: against the live teacher, or of the bytes against the set."""
    if not sample:
        return {}
    documents = [Document(tokens, counts, i) for i, (tokens, counts, _) in enumerate(sample)]
    rows = Packed(tuple((d,) for d in documents), max(len(d.tokens) for d in documents))
    batches = (rows.batch(range(begin, min(begin + 4, len(rows))), 0) for begin in range(0, len(rows), 4))
    teacher = live if live is not None else _Told(sample)
    found = measure(StoredTeacher(store), teacher, batches, device)
    if live is None:
        found["against"] = "the set itself"
        if renormalised:
            del found["mass"]
        else:
            found["mass_at"] = {"1": found["mass"]}
    return found


class _Told:
    """The set as a teacher for some of its documents."""

    def __init__(self, sample: list[Labelled]):
        self.tops = {document_key(tokens, counts): top for tokens, counts, top in sample}

    def __call__(self, batch: Batch, want: frozenset[Kind]) -> Signal:
        places = places_of(batch)
        return put(Signal(topk=_joined([self.tops[key] for key in places.keys])), places, batch["labels"].device)


def _joined(tops: list[TopK]) -> TopK:
    def joined(parts: list[Tensor]) -> Tensor:
        return torch.cat(parts)

    return TopK(
        joined([t.values for t in tops]), joined([t.index for t in tops]), joined([t.rest for t in tops]),
        classes=tops[0].classes,
    )  # fmt: skip


def _hash(path: Path) -> str:
    """The hash of a file, or of a folder's files one after another."""
    import hashlib

    hashes = [file_hash(file) for file in files_of(path)]
    return hashes[0] if path.is_file() else hashlib.sha256("".join(hashes).encode()).hexdigest()
