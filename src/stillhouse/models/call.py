"""Ask any module for logits, whatever its forward looks like.

A batch is a mapping. `inputs` is what the module is called with: a tensor (`module(inputs)`) or a mapping
(`module(**inputs)`). `labels` [*N] are class ids, `weight` [*N] says how much each item counts (absent: one each).
Where images are mixed (mixup, CutMix), `labels` and `mix` [B] are the first image's class and share, and `labels_b` [B] is
the other's class: `answers` knows about it.
In language batches `labels[b, t]` is the token that follows `inputs["tokens"][b, t]`, so logits need no shift.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..core.method import cast as cast
from ..core.recipe import nearest
from ..core.run import RunError
from ..core.signal import Batch, HeadLogits, Logits


def logits_of(module: nn.Module, batch: Batch) -> Logits:
    """The module's logits for the batch, `[*N, V]`: a tensor, or `HeadLogits` from a language model."""
    inputs = batch["inputs"]
    if isinstance(inputs, Tensor) and inputs.is_floating_point():
        first = next(module.parameters(), inputs)
        inputs = inputs.to(first.dtype) if first.is_floating_point() else inputs
    output: Any = module(**inputs) if isinstance(inputs, Mapping) else module(inputs)
    return pick_logits(output, type(module).__name__)


def pick_logits(output: Any, owner: str = "the module", path: str | None = None) -> Logits:
    """The logits in whatever a module returned: a tensor, `logits` of an object or mapping, the first tensor of a tuple,
    or the only tensor of a mapping or dataclass. `path` says where else: `out.cls`, `0.scores`. RunError if nowhere."""
    found = output if path is None else _at(output, path, owner)
    if isinstance(found, (Tensor, HeadLogits)):
        return found
    fields = _fields(found)
    said = {name: value for name, value in fields.items() if isinstance(value, (Tensor, HeadLogits))}
    named = fields.get("logits", getattr(found, "logits", None))
    if isinstance(named, (Tensor, HeadLogits)):
        return named
    if said and (len(said) == 1 or isinstance(found, (tuple, list))):
        return next(iter(said.values()))
    held = f"with {', '.join(fields)}" if fields else "without a tensor"
    raise RunError(
        f"{owner} returned {type(found).__name__} {held}: say which are the logits (logits=NAME of models.own.OwnModule), "
        "or return a tensor or a field `logits`"
    )


def _fields(value: Any) -> dict[str, Any]:
    """What is in a mapping, a tuple, a dataclass or another object."""
    if isinstance(value, Mapping):
        return {str(name): part for name, part in value.items()}
    if isinstance(value, (tuple, list)):
        names = getattr(value, "_fields", None) or range(len(value))
        return {str(name): part for name, part in zip(names, value, strict=True)}
    return (
        dict(vars(value)) if hasattr(value, "__dict__") else {n: getattr(value, n) for n in getattr(value, "__slots__", ())}
    )


def _at(value: Any, path: str, owner: str) -> Any:
    """What lies at `out.cls`; RunError that names what there is instead."""
    for name in path.split("."):
        fields = _fields(value)
        if name not in fields:
            raise RunError(f"{owner} returned {type(value).__name__} without {name!r} (of {path!r}){nearest(name, fields)}")
        value = fields[name]
    return value


def dense(logits: Logits) -> Tensor:
    """Logits as a tensor, whatever the head hands back."""
    return logits if isinstance(logits, Tensor) else logits.dense()


def weights_hash(module: nn.Module) -> str:
    """One SHA-256 over the names, types and values of all weights and buffers that are saved."""
    total = hashlib.sha256()
    for name, value in module.state_dict().items():
        total.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        total.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def weight_of(batch: Batch) -> Tensor:
    """How much each item counts, `[*N]` float32; ones if the batch does not say."""
    weight = batch.get("weight")
    return torch.ones_like(batch["labels"], dtype=torch.float32) if weight is None else weight.float()


def answers(batch: Batch) -> list[tuple[Tensor, Tensor]]:
    """(labels, weight) [*N] to learn from: one pair, or two where images are mixed, the weight divided by their shares.

    A cross-entropy summed over the pairs is that with the mixed label. Method classes that use it say so with
    `takes_mixed: ClassVar[bool] = True`.
    """
    weight = weight_of(batch)
    if "mix" not in batch:
        return [(batch["labels"], weight)]
    share = batch["mix"].to(weight.dtype)
    return [(batch["labels"], weight * share), (batch["labels_b"], weight * (1 - share))]
