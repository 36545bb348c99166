"""`sampled`: classes drawn from the teacher, and how often: an unbiased stand-in for the whole distribution.

A top k leaves the tail out, and a student that learns from it learns that the tail is empty or flat. Classes drawn
from the teacher with their relative counts have the teacher's distribution as their mean, so that the expected
gradient of forward KL is the exact one (random sampling knowledge distillation, Anshumann et al. 2025, arXiv
2503.16870); it holds for no other divergence. Of SmolLM2's 49,152 classes fifty draws meet 18 different ones.

`draw="systematic"` (our default) takes points at equal distances with one random offset through the cumulative
distribution: as unbiased as independent draws, with far less variance, because a class's count differs from its
expectation by less than one. `"independent"` is the paper's.

Records have no fixed width. Per item: u (one byte), u ids (2, 3 or 4 bytes each), u counts less one (one byte each).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy
import torch
from torch import Tensor

from ..core.run import RunError, seed_of
from ..core.signal import Kind, Signal, TopK
from ..models.call import dense
from .formats import Facts
from .topk import CHUNK, trimmed


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """Keep `draws` classes drawn from the teacher's distribution."""

    draws: int = 50
    draw: Literal["systematic", "independent"] = "systematic"
    seed: int = 0
    name: ClassVar[str] = "sampled"

    def __post_init__(self) -> None:
        if not 1 <= self.draws <= 255:
            raise ValueError(f"draws must be between 1 and 255, not {self.draws}")

    @property
    def kinds(self) -> frozenset[Kind]:
        """A top k whose values are relative counts."""
        return frozenset({"topk"})

    def ask(self) -> frozenset[Kind]:
        """All logits."""
        return frozenset({"logits"})

    def size(self, classes: int, width: int) -> float:
        """As many different classes as a language model gave: 6 of 12 draws, 18 of 50."""
        return 1 + (3 if classes <= 2**16 else 4) * 1.08 * self.draws**0.717

    def facts(self, items: Signal, classes: int | None) -> dict[str, Any]:
        """The number of classes."""
        held: int = items.need("logits").shape[-1]
        used = held if classes is None else min(classes, held)
        return {"classes": used, "draws": self.draws, "id_bytes": 2 if used <= 2**16 else 3 if used <= 2**24 else 4}

    def prepare(self, items: Signal, folder: Path) -> None:
        """Nothing is kept once."""

    @torch.no_grad()
    def encode(self, items: Signal, counts: Sequence[int], keys: Sequence[bytes], facts: Facts) -> list[bytes]:
        """Drawn with a seed from each key, so that neither the order nor a resume changes anything."""
        logits = trimmed(items.need("logits"), facts["classes"])
        records: list[bytes] = []
        at = 0
        for key, count in zip(keys, counts, strict=True):
            dice = torch.Generator().manual_seed(seed_of(self.seed, "sampled", key.hex()))
            parts: list[bytes] = []
            for begin in range(at, at + count, CHUNK):
                some = logits[begin : min(begin + CHUNK, at + count)]
                z = dense(some).float()
                drawn = _draw(z.softmax(-1), self.draws, self.draw, dice)
                parts.append(_pack(drawn, facts["id_bytes"]))
            records.append(b"".join(parts))
            at += count
        return records

    def decode(self, records: Sequence[memoryview], counts: Sequence[int], facts: Facts, folder: Path) -> Signal:
        """Relative counts as a `TopK` without a rest; rows with fewer classes are filled with others of probability 0."""
        return Signal(topk=_unpack(b"".join(records), sum(counts), facts))


def _draw(p: Tensor, draws: int, how: str, dice: torch.Generator) -> Tensor:
    """Drawn class ids `[n, draws]`, ascending in each row."""
    if not bool(p.isfinite().all()):
        raise RunError("the teacher's logits are not finite; it cannot be sampled (try float32)")
    total = p.cpu().double().cumsum(-1)
    if how == "systematic":
        points = (torch.arange(draws) + torch.rand(len(p), 1, generator=dice, dtype=torch.float64)) / draws
    else:
        points = torch.rand(len(p), draws, generator=dice, dtype=torch.float64).sort(-1).values
    return torch.searchsorted(total, points * total[:, -1:], right=True).clamp_(max=p.shape[-1] - 1)


def _pack(drawn: Tensor, id_bytes: int) -> bytes:
    ids = drawn.numpy()
    new = numpy.ones(ids.shape, dtype=bool)
    new[:, 1:] = ids[:, 1:] != ids[:, :-1]
    first = numpy.flatnonzero(new)
    often = numpy.diff(numpy.append(first, ids.size)).astype(numpy.uint8) - 1
    names = numpy.ascontiguousarray(ids.reshape(-1)[first].astype("<u4")).view(numpy.uint8).reshape(-1, 4)[:, :id_bytes]
    each = new.sum(-1)
    parts: list[bytes] = []
    at = 0
    for u in each.tolist():
        parts += [bytes((u,)), names[at : at + u].tobytes(), often[at : at + u].tobytes()]
        at += u
    return b"".join(parts)


def _unpack(data: bytes, n: int, facts: Facts) -> TopK:
    size, draws, classes = facts["id_bytes"], facts["draws"], facts["classes"]
    flat = numpy.frombuffer(data, numpy.uint8)
    starts = numpy.zeros(n, numpy.int64)
    at = 0
    for i in range(n):  # a record says its own length
        starts[i] = at
        at += 1 + data[at] * (size + 1)
    each = flat[starts].astype(numpy.int64) if n else numpy.zeros(0, numpy.int64)
    most = min(int(each.max(initial=1)), classes)
    slot = numpy.arange(most)
    real = slot < each[:, None]
    place = numpy.where(real, starts[:, None] + 1 + slot * size, 0)
    ids = sum(flat[place + byte].astype(numpy.int64) << (8 * byte) for byte in range(size))
    often = flat[numpy.where(real, starts[:, None] + 1 + each[:, None] * size + slot, 0)].astype(numpy.int64) + 1
    index = numpy.where(real, ids, _others(ids, real, each, most))
    with numpy.errstate(divide="ignore"):
        values = numpy.log(numpy.where(real, often, 0) / numpy.float32(draws)).astype(numpy.float32)
    rest = torch.full((n,), -torch.inf)
    return TopK(torch.from_numpy(values), torch.from_numpy(index), rest, sampled=True, classes=classes)


def _others(ids: Any, real: Any, each: Any, most: int) -> Any:
    """The smallest classes that a row does not hold, to fill it up with: each class may be named once."""
    # The j-th class outside an ascending set is j plus the number of members that lie at most that far above their rank.
    ahead = numpy.where(real, ids - numpy.arange(most), most).clip(0, most)
    histogram = numpy.zeros((len(ids), most + 1), numpy.int64)
    numpy.add.at(histogram, (numpy.arange(len(ids))[:, None], ahead), 1)
    nth = numpy.arange(most)
    outside = nth + histogram.cumsum(-1)[:, :most]
    return numpy.take_along_axis(outside, (nth - each[:, None]).clip(0), -1)
