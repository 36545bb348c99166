"""`topk`: the k most likely classes of each item, their ids exact, and the mass of all others.

A record has a fixed width, so that any item is found without reading another. Per item, in bytes:

    ids    the k ids in ascending order, Elias-Fano coded: the low `low` bits of each, the low eight as one byte and
           any further bit as a plane of k bits; the rest in unary, k + ceil(V / 2^low) bits
    codes  k bytes: how far each log-probability lies below the highest one: 0 if it is that one, else
           gap + (span - gap) ((code - 1) / 254)^POWER
    gap    float16, how far the second highest lies below the highest
    span   float16, how far the lowest does
    rest   float32, the log of the mass outside the k classes

No highest log-probability is kept: it follows from the rest, because everything adds up to one. The gap and the power
spend the codes where there is mass: k = 64 of SmolLM2's 49,152 classes are read back with an error of 5e-6 nats (KL to
the unquantised top k), where codes spread evenly from 0 to the span err by 11e-6.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy
import torch
from torch import Tensor

from ..core.run import RunError
from ..core.signal import HeadLogits, Kind, Logits, Signal, TopK
from .formats import Facts

POWER = 1.25  # of the codes; chosen by error on a real teacher, see LOG.md
SPAN = 30.0  # nats: what is less likely than e^-30 of the likeliest class is kept as that
MOST = 1024
CHUNK = 256  # items whose logits are written down at a time


@dataclass(frozen=True, kw_only=True)
class KeptTopK:
    """Keep the k most likely classes and the mass of the rest."""

    k: int = 64
    name: ClassVar[str] = "topk"

    def __post_init__(self) -> None:
        if not 1 <= self.k <= MOST:
            raise ValueError(f"k must be between 1 and {MOST:,}, not {self.k}")

    @property
    def kinds(self) -> frozenset[Kind]:
        """A top k only."""
        return frozenset({"topk"})

    def ask(self) -> frozenset[Kind]:
        """Logits, or a top k that is long enough."""
        return frozenset({"logits", "topk"})

    def size(self, classes: int, width: int) -> float:
        """Exactly, without the index."""
        return record_width(min(self.k, classes), classes)

    def facts(self, items: Signal, classes: int | None) -> dict[str, Any]:
        """k and the number of classes."""
        if items.logits is not None:
            held = items.logits.shape[-1]
            classes = min(classes or held, held)
        elif classes is None:
            raise RunError("a teacher that gives a top k does not say of how many classes: give its tokenizer")
        if items.topk is not None and items.topk.values.shape[-1] < min(self.k, classes):
            raise RunError(
                f"the teacher gives {items.topk.values.shape[-1]} classes at most: --signal topk:N with N up to that"
            )
        return {"k": min(self.k, classes), "classes": classes}

    def prepare(self, items: Signal, folder: Path) -> None:
        """Nothing is kept once."""

    def encode(self, items: Signal, counts: Sequence[int], keys: Sequence[bytes], facts: Facts) -> list[bytes]:
        """One fixed-width row per item."""
        k, classes = facts["k"], facts["classes"]
        top = top_k(items.logits, k, classes) if items.logits is not None else shorten(items.need("topk"), k)
        table = encode(top, classes)
        return [part.tobytes() for part in numpy.split(table, numpy.cumsum(counts)[:-1])]

    def decode(self, records: Sequence[memoryview], counts: Sequence[int], facts: Facts, folder: Path) -> Signal:
        """The top k of every item."""
        data = numpy.frombuffer(b"".join(records), numpy.uint8).reshape(
            sum(counts), record_width(facts["k"], facts["classes"])
        )
        return Signal(topk=decode(data, facts["k"], facts["classes"]))


@torch.no_grad()
def top_k(logits: Logits, k: int, classes: int | None = None) -> TopK:
    """The k most likely of the first `classes` classes at temperature 1, and the log of the mass of the others."""
    logits = trimmed(logits, classes)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for begin in range(0, logits.shape[0], CHUNK):
        some = logits[begin : begin + CHUNK]
        z = some.dense().float() if isinstance(some, HeadLogits) else some.to(torch.float32, copy=True)
        values, index = z.topk(k, sorted=False)
        peak = values.amax(-1, keepdim=True)
        below = values - peak
        others = z.sub_(peak).exp_().scatter_(-1, index, 0.0).sum(-1)  # summed by itself: 1 - sum would cancel
        total = others + below.exp().sum(-1)
        if not bool(total.isfinite().all()):
            raise RunError("the teacher's logits are not finite; it cannot be kept (try float32)")
        found.append((below - total.log().unsqueeze(-1), index, (others / total).log()))
    if not found:
        empty = torch.zeros(0, k)
        return TopK(empty, empty.long(), empty[:, 0], classes=logits.shape[-1])
    values, index, rest = (torch.cat(parts) for parts in zip(*found, strict=True))
    return TopK(values, index, rest, classes=logits.shape[-1])


def shorten(top: TopK, k: int) -> TopK:
    """The k likeliest entries; the others join the rest."""
    if top.values.shape[-1] == k:
        return top
    values, order = top.values.sort(-1, descending=True)
    rest = torch.cat([values[..., k:], top.rest.unsqueeze(-1)], -1).logsumexp(-1)
    return TopK(values[..., :k], top.index.gather(-1, order)[..., :k], rest, classes=top.classes)


def trimmed(logits: Logits, classes: int | None) -> Logits:
    if classes is None or logits.shape[-1] == classes:
        return logits
    return logits.trim(classes) if isinstance(logits, HeadLogits) else logits[..., :classes]


# -- bytes ---------------------------------------------------------------------------------------------------------


def _layout(k: int, classes: int) -> tuple[int, int, int, int]:
    """Low bits per id, planes beyond the low byte (or all planes if there is no low byte), bytes of a plane, unary bits."""
    low = max(0, int(math.log2(classes / k))) if classes > k else 0
    whole = 8 if low >= 8 else 0
    return low, low - whole, (k + 7) // 8, k + math.ceil(classes / (1 << low))


def record_width(k: int, classes: int) -> int:
    """Bytes of one item."""
    low, planes, plane, unary = _layout(k, classes)
    return (k if low >= 8 else 0) + planes * plane + (unary + 7) // 8 + k + 2 + 2 + 4


def encode(top: TopK, classes: int) -> Any:
    """A table `[n, record_width]` of bytes."""
    index, order = top.index.cpu().sort(-1)
    values = top.values.float().cpu().gather(-1, order)
    ids, n, k = index.numpy(), *index.shape
    if n and (
        int(ids[:, -1].max()) >= classes or int(ids[:, 0].min()) < 0 or (k > 1 and not (ids[:, 1:] > ids[:, :-1]).all())
    ):
        raise RunError(f"a top k must name {k} different classes below {classes:,}")
    low, planes, _, unary = _layout(k, classes)
    parts: list[Any] = []
    shift = 0
    if low >= 8:
        parts.append((ids & 255).astype(numpy.uint8))
        shift = 8
    for bit in range(planes):
        parts.append(numpy.packbits((ids >> (shift + bit)) & 1 == 1, axis=-1, bitorder="little"))
    ones = numpy.zeros((n, unary), dtype=bool)
    numpy.put_along_axis(ones, (ids >> low) + numpy.arange(k), True, -1)
    parts.append(numpy.packbits(ones, axis=-1, bitorder="little"))
    below = (values.amax(-1, keepdim=True) - values).nan_to_num(nan=SPAN, posinf=SPAN).clamp(max=SPAN).numpy()
    ordered = numpy.partition(below, min(1, k - 1), axis=-1)
    gap = _half(ordered[:, min(1, k - 1), None], -numpy.inf)
    span = _half(below.max(-1, keepdims=True, initial=0.0), numpy.inf)
    room = span.astype(numpy.float32) - gap
    share = numpy.divide(below - gap, room, out=numpy.zeros_like(below), where=room > 0)
    levels = _levels()[1:]
    code = numpy.searchsorted((levels[1:] + levels[:-1]) / 2, share.ravel()).reshape(n, k) + 1  # the nearest level
    code[numpy.arange(n), below.argmin(-1)] = 0
    parts += [code.astype(numpy.uint8), _bytes(gap), _bytes(span)]
    parts.append(_bytes(top.rest.float().cpu().numpy().astype("<f4")[:, None]))
    return numpy.concatenate(parts, -1)


def decode(data: Any, k: int, classes: int) -> TopK:
    """The inverse of `encode`; ids ascend."""
    low, planes, plane, unary = _layout(k, classes)
    n, at = len(data), 0

    def read(size: int) -> Any:
        nonlocal at
        at += size
        return numpy.ascontiguousarray(data[:, at - size : at])

    lows = read(k).astype(numpy.int64) if low >= 8 else numpy.zeros((n, k), numpy.int64)
    for bit in range(planes):
        bits = numpy.unpackbits(read(plane), axis=-1, count=k, bitorder="little")
        lows |= bits.astype(numpy.int64) << (low - planes + bit)
    ones = numpy.unpackbits(read((unary + 7) // 8), axis=-1, bitorder="little")
    stride = ones.shape[1]
    found = numpy.flatnonzero(ones.reshape(-1).view(bool)).reshape(n, k)
    found -= numpy.arange(n)[:, None] * stride + numpy.arange(k)
    ids = lows | (found << low)
    codes = read(k)
    gap, span = (read(2).view("<f2").astype(numpy.float32) for _ in range(2))
    rest = read(4).view("<f4")[:, 0]
    below = _levels()[codes] * (span - gap) + (codes > 0) * gap
    mass = numpy.exp(-below).sum(-1, keepdims=True)
    with numpy.errstate(divide="ignore"):
        kept = numpy.log(-numpy.expm1(rest))[:, None]
    values = (kept - numpy.log(mass)) - below
    return TopK(torch.from_numpy(values), torch.from_numpy(ids), torch.from_numpy(rest.copy()), classes=classes)


def _levels() -> Any:
    """Where in the room between gap and span each code stands; code 0 is the highest log-probability itself."""
    return (numpy.maximum(numpy.arange(256, dtype=numpy.float32) - 1, 0) / 254) ** numpy.float32(POWER)


def _half(value: Any, towards: float) -> Any:
    """float16, rounded in one direction."""
    near = value.astype("<f2")
    past = near.astype(numpy.float32) > value if towards < 0 else near.astype(numpy.float32) < value
    return numpy.where(past, numpy.nextafter(near, numpy.float16(towards)), near).astype("<f2")


def _bytes(column: Any) -> Any:
    return numpy.ascontiguousarray(column).view(numpy.uint8)
