"""`logits`, `features`, `text`, `score`, `reward`: signals kept as they are, tensor by tensor, to the bit."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..core.run import RunError
from ..core.signal import Completion, Kind, Signal
from ..models.call import dense
from .formats import Facts

RAW = ("logits", "features", "text", "score", "reward")


@dataclass(frozen=True, kw_only=True)
class Raw:
    """Keep one kind of signal without any loss."""

    kind: Literal["logits", "features", "text", "score", "reward"] = "logits"
    name: ClassVar[str] = "raw"

    @property
    def kinds(self) -> frozenset[Kind]:
        """That kind."""
        return frozenset({self.kind})

    def ask(self) -> frozenset[Kind]:
        """That kind."""
        return frozenset({self.kind})

    def size(self, classes: int, width: int) -> float:
        """Of logits in float32; other kinds are not known before."""
        return 4.0 * classes

    def facts(self, items: Signal, classes: int | None) -> dict[str, Any]:
        """Names, shapes and dtypes of the tensors, from the first items."""
        if self.kind == "text":
            return {}
        parts = self._tensors(items)
        return {
            "tensors": {
                name: {"shape": list(value.shape[1:]), "dtype": str(value.dtype).removeprefix("torch.")}
                for name, value in parts.items()
            }
        }

    def prepare(self, items: Signal, folder: Path) -> None:
        """Nothing is kept once."""

    def encode(self, items: Signal, counts: Sequence[int], keys: Sequence[bytes], facts: Facts) -> list[bytes]:
        """The tensors' bytes, one after another; text as JSON."""
        if self.kind == "text":
            return [json.dumps([_plain(c) for c in answers], ensure_ascii=False).encode() for answers in items.need("text")]
        parts = self._tensors(items)
        for name, shape in facts["tensors"].items():
            if name not in parts or list(parts[name].shape[1:]) != shape["shape"]:
                raise RunError(f"the teacher's {self.kind} {name!r} changed its shape from one batch to the next")
        pieces = {name: value.detach().cpu().contiguous().split(list(counts)) for name, value in parts.items()}
        return [b"".join(_bytes(pieces[name][i]) for name in facts["tensors"]) for i in range(len(keys))]

    def decode(self, records: Sequence[memoryview], counts: Sequence[int], facts: Facts, folder: Path) -> Signal:
        """The tensors as the teacher gave them."""
        if self.kind == "text":
            return Signal(text=[[Completion(**c) for c in json.loads(bytes(record))] for record in records])
        found: dict[str, list[Tensor]] = {name: [] for name in facts["tensors"]}
        for record, count in zip(records, counts, strict=True):
            data, at = bytearray(record), 0
            for name, told in facts["tensors"].items():
                dtype: torch.dtype = getattr(torch, told["dtype"])
                shape = (count, *told["shape"])
                size = dtype.itemsize * torch.Size(shape).numel()
                found[name].append(
                    torch.frombuffer(data, dtype=torch.uint8, count=size, offset=at).clone().view(dtype).view(shape)
                )
                at += size
        parts = {name: torch.cat(pieces) for name, pieces in found.items() if pieces}
        return Signal(features=parts) if self.kind == "features" else Signal(**{self.kind: parts[self.kind]})  # type: ignore[arg-type]

    def _tensors(self, items: Signal) -> Mapping[str, Tensor]:
        value = items.need(self.kind)
        if self.kind == "features":
            return value
        return {self.kind: value if self.kind == "score" else dense(value)}


def _bytes(value: Tensor) -> bytes:
    return value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _plain(answer: Completion) -> dict[str, Any]:
    return {key: list(v) if isinstance(v, (list, tuple)) else v for key, v in asdict(answer).items() if v is not None}
