"""`hidden`: the last hidden state of each item, and the head that projects it, kept once.

Head times state gives the teacher's logits over all classes, so every divergence and every temperature works as with
the live teacher. In float32 it is the same to the bit; float16 (if it holds the values) is off by about 4e-7 nats,
bfloat16 by 2e-5, int8 with a scale for every 64 numbers by 2e-3 (SmolLM2-135M). Bytes per item: 2 d, or 1.03 d.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy
import torch
from torch import Tensor

from ..core.run import RunError
from ..core.signal import HeadLogits, Kind, Signal
from .formats import Facts

HEAD = "head.safetensors"
GROUP = 64  # numbers that share a scale in int8
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, kw_only=True)
class Hidden:
    """Keep the state that the head projects."""

    dtype: Literal["float32", "float16", "bfloat16", "int8"] = "float16"
    name: ClassVar[str] = "hidden"

    def __post_init__(self) -> None:
        if self.dtype not in (*BYTES, "int8"):
            raise ValueError(f"the dtype must be float32, float16, bfloat16 or int8, not {self.dtype}")

    @property
    def kinds(self) -> frozenset[Kind]:
        """Logits over all classes."""
        return frozenset({"logits"})

    def ask(self) -> frozenset[Kind]:
        """Logits."""
        return frozenset({"logits"})

    def size(self, classes: int, width: int) -> float:
        """Without the head."""
        return width * (1 + 2 / GROUP if self.dtype == "int8" else BYTES[self.dtype])

    def facts(self, items: Signal, classes: int | None) -> dict[str, Any]:
        """The state's width and how the head is to be used."""
        head = _head_of(items)
        return {
            "width": head.hidden.shape[-1], "classes": head.vocabulary, "scale": head.scale, "softcap": head.softcap,
            "dtype": str(head.hidden.dtype).removeprefix("torch."),
        }  # fmt: skip

    def prepare(self, items: Signal, folder: Path) -> None:
        """Write the head."""
        from safetensors.torch import save_file

        head = _head_of(items)
        parts = {"weight": head.weight[: head.vocabulary]}
        if head.bias is not None:
            parts["bias"] = head.bias[: head.vocabulary]
        part = folder / (HEAD + ".part")
        save_file({name: value.detach().cpu().contiguous() for name, value in parts.items()}, part)
        part.replace(folder / HEAD)

    def encode(self, items: Signal, counts: Sequence[int], keys: Sequence[bytes], facts: Facts) -> list[bytes]:
        """The states as they are, or rounded."""
        hidden = _head_of(items).hidden.detach().cpu()
        if not bool(hidden.isfinite().all()):
            raise RunError("the teacher's hidden states are not finite; they cannot be kept")
        data = _int8(hidden) if self.dtype == "int8" else _rounded(hidden, getattr(torch, self.dtype))
        return [part.tobytes() for part in numpy.split(data, numpy.cumsum(counts)[:-1])]

    def decode(self, records: Sequence[memoryview], counts: Sequence[int], facts: Facts, folder: Path) -> Signal:
        """`HeadLogits` in the dtype that the teacher had."""
        data = (
            torch.frombuffer(bytearray(b"".join(records)), dtype=torch.uint8).view(sum(counts), -1) if sum(counts) else None
        )
        dtype: torch.dtype = getattr(torch, facts["dtype"])
        head = _head(folder / HEAD)
        if data is None:
            hidden = torch.zeros(0, facts["width"], dtype=dtype)
        elif self.dtype == "int8":
            hidden = _from_int8(data, facts["width"]).to(dtype)
        else:
            hidden = data.view(getattr(torch, self.dtype)).to(dtype)
        return Signal(logits=HeadLogits(hidden, head["weight"], head.get("bias"), facts["scale"], facts["softcap"]))


def _head_of(items: Signal) -> HeadLogits:
    logits = items.need("logits")
    if not isinstance(logits, HeadLogits):
        raise RunError("this teacher gives logits without the state behind them: keep them with --signal logits or topk:64")
    return logits


@lru_cache(maxsize=4)
def _head(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    if not path.is_file():
        raise RunError(f"{path} is missing: these signals cannot be read without the teacher's head")
    return load_file(path)


def _rounded(hidden: Tensor, dtype: torch.dtype) -> Any:
    rounded = hidden.to(dtype)
    if not bool(rounded.isfinite().all()):
        raise RunError("the teacher's hidden states are too large for float16: --signal hidden:bfloat16")
    return rounded.contiguous().view(torch.uint8).numpy()


def _int8(hidden: Tensor) -> Any:
    n, width = hidden.shape
    groups = torch.nn.functional.pad(hidden.float(), (0, -width % GROUP)).view(n, -1, GROUP)
    scale = (groups.abs().amax(-1) / 127).to(torch.float16)
    if not bool(scale.isfinite().all()):
        raise RunError("the teacher's hidden states are too large for int8: --signal hidden:bfloat16")
    steps = scale.float().clamp(min=2.0**-24).unsqueeze(-1)
    codes = (groups / steps).round().clamp(-127, 127).to(torch.int8).view(n, -1)[:, :width]
    return torch.cat([codes.contiguous().view(torch.uint8), scale.contiguous().view(torch.uint8)], -1).numpy()


def _from_int8(data: Tensor, width: int) -> Tensor:
    codes = data[:, :width].contiguous().view(torch.int8).float()
    scale = data[:, width:].contiguous().view(torch.float16).float()
    return codes * scale.repeat_interleave(GROUP, -1)[:, :width]
