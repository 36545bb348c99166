"""What any module computes on the way, read with forward hooks that live for one pass: no module is edited.

A tap is a submodule's name, `stages.1`, which stands for what it gives, or `head:in` for what it is called with. What it
gives may be a tensor, the first tensor of a tuple, or the `last_hidden_state` of a Hugging Face output. A submodule that
runs several times in one pass is read the last time.
"""

from __future__ import annotations

import difflib
import fnmatch
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..core.run import RunError
from ..core.signal import Batch, Logits
from .call import logits_of

Form = Literal["map", "tokens", "vector"]
BLOCKS = 4  # taps of a model whose layers all have the same shape


@dataclass(frozen=True, slots=True)
class Layer:
    """One submodule, as a pass over a batch found it."""

    name: str
    kind: str  # its class
    shape: tuple[int, ...]  # of what it gives for one item
    came: tuple[int, ...] | None  # of what it is called with, for one item; None: no tensor
    parameters: int  # of itself and all within

    @property
    def form(self) -> Form | None:
        """A map [C, H, W], tokens [N, D], a vector [D], or None of these."""
        return _FORMS.get(len(self.shape))


_FORMS: dict[int, Form] = {1: "vector", 2: "tokens", 3: "map"}


def tapped(module: nn.Module, batch: Batch, names: Sequence[str]) -> tuple[Logits, dict[str, Tensor]]:
    """The module's logits for the batch, and what was seen at each tap; RunError for one that gave no tensor."""
    seen: dict[str, Tensor] = {}
    hooks: list[Any] = []
    try:
        for name in names:
            owner, _, side = name.partition(":")
            try:
                part = module.get_submodule(owner)
            except AttributeError as error:
                raise _unknown(name, [known for known, _ in module.named_modules()]) from error
            hooks.append(_watch(part, name, side == "in", seen))
        logits = logits_of(module, batch)
    finally:
        for hook in hooks:
            hook.remove()
    silent = [name for name in names if name not in seen]
    if silent:
        raise RunError(f"layer {silent[0]!r} of {type(module).__name__} did not run, or gave no tensor")
    return logits, seen


def _watch(part: nn.Module, name: str, inward: bool, seen: dict[str, Tensor]) -> Any:
    if inward:

        def before(_: nn.Module, args: tuple[Any, ...], named: Mapping[str, Any]) -> None:
            _keep(seen, name, (*args, *named.values()))

        return part.register_forward_pre_hook(before, with_kwargs=True)
    return part.register_forward_hook(lambda _, args, output: _keep(seen, name, output))


def _keep(seen: dict[str, Tensor], name: str, value: Any) -> None:
    found = first_tensor(value)
    if found is not None:
        seen[name] = found


def first_tensor(value: Any) -> Tensor | None:
    """The tensor that stands for what a submodule gave."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Mapping) or hasattr(value, "last_hidden_state"):
        named = value.get("last_hidden_state") if isinstance(value, Mapping) else value.last_hidden_state
        values: Any = value.values() if named is None and isinstance(value, Mapping) else (named,)
        return next((v for v in values if isinstance(v, Tensor)), None)
    if isinstance(value, (tuple, list)):
        return next((found for part in value if (found := first_tensor(part)) is not None), None)
    return None


@torch.no_grad()
def layers(module: nn.Module, batch: Batch) -> list[Layer]:
    """Every submodule that gives floating-point numbers for each item, in the order in which they finish.

    A dry run: the module is in evaluation mode meanwhile, so that nothing in it changes.
    """
    found: dict[str, Layer] = {}
    size = len(batch["labels"])

    def watch(name: str, part: nn.Module) -> Callable[..., None]:
        count = sum(p.numel() for p in part.parameters())

        def ended(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            given, came = first_tensor(output), first_tensor(args)
            if given is None or not given.is_floating_point() or given.ndim < 2 or given.shape[0] != size:
                return
            entered = None if came is None or came.shape[:1] != given.shape[:1] else tuple(came.shape[1:])
            found.pop(name, None)
            found[name] = Layer(name, type(part).__name__, tuple(given.shape[1:]), entered, count)

        return ended

    modes = [(part, part.training) for part in module.modules()]
    hooks = [part.register_forward_hook(watch(name, part)) for name, part in module.named_modules() if name]
    try:
        logits_of(module.eval(), batch)
    finally:
        for hook in hooks:
            hook.remove()
        for part, was in modes:
            part.training = was
    return list(found.values())


def chosen(found: Sequence[Layer], patterns: Sequence[str]) -> list[str]:
    """The taps that names and globs (`stages.*`) stand for, in the order given; a glob's in the order of execution."""
    names = [layer.name for layer in found]
    taps: list[str] = []
    for pattern in patterns:
        owner, colon, side = pattern.partition(":")
        hits = [name for name in names if fnmatch.fnmatchcase(name, owner) and _same_depth(name, owner)]
        if not hits:
            raise _unknown(owner, names)
        if colon and side != "in":
            raise RunError(f"{pattern!r} is no tap: write {owner} for what a layer gives, {owner}:in for what it gets")
        taps += [name + colon + side for name in hits]
    return list(dict.fromkeys(taps))


def _same_depth(name: str, pattern: str) -> bool:
    return name.count(".") == pattern.count(".")  # `*` stops at a dot, as in a path


def _unknown(name: str, names: Sequence[str]) -> RunError:
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return RunError(f"no layer {name!r}{hint} (`stillhouse layers MODEL` lists them)")


def shape_at(found: Sequence[Layer], tap: str) -> tuple[int, ...]:
    """The shape of one item at a tap."""
    owner, _, side = tap.partition(":")
    layer = next(layer for layer in found if layer.name == owner)
    shape = layer.came if side == "in" else layer.shape
    if shape is None:
        raise RunError(f"layer {owner!r} is called with no tensor of one row an item, so {tap!r} cannot be read")
    return shape


def penultimate(found: Sequence[Layer], classes: int) -> str:
    """The tap in front of the head: what the last linear layer with `classes` outputs is called with."""
    heads = [layer for layer in found if layer.kind.endswith("Linear") and layer.shape[-1:] == (classes,) and layer.came]
    if not heads:
        raise RunError(f"no linear layer gives the {classes} logits, so the features before them must be named: layers.NAME")
    return f"{heads[-1].name}:in"


def ends_of_stages(found: Sequence[Layer]) -> list[str]:
    """A tap at the end of every stage: of the layers at each resolution the largest one, or the last beside it; of layers
    that are all alike (a transformer's blocks) four, evenly spaced, the last one among them."""
    stages = [_end(part) for part in _resolutions(found)]
    if len(stages) > 1:
        return stages
    alike: dict[tuple[str, str, tuple[int, ...]], list[Layer]] = {}
    for layer in found:
        if layer.form in ("map", "tokens"):
            alike.setdefault((_parent(layer), layer.kind, layer.shape), []).append(layer)
    several = [part for part in alike.values() if len(part) > 1]
    if not several:
        return stages
    blocks = max(several, key=lambda part: sum(layer.parameters for layer in part))
    count = min(BLOCKS, len(blocks))
    return [blocks[math.ceil((i + 1) * len(blocks) / count) - 1].name for i in range(count)]


def _resolutions(found: Sequence[Layer]) -> list[list[Layer]]:
    """The maps by size; those of square numbers of tokens, where one size gives way to the next for good (Swin)."""
    maps = [layer for layer in found if layer.form == "map" and min(layer.shape[1:]) > 1]
    square = [layer for layer in maps if layer.shape[1] == layer.shape[2]]
    by_size: dict[tuple[int, ...], list[Layer]] = {}
    for layer in square or maps:
        by_size.setdefault(layer.shape[1:], []).append(layer)
    learned = [part for part in by_size.values() if any(layer.parameters for layer in part)]  # padding is no stage
    if len(learned) > 1:
        return learned
    tokens = [layer for layer in found if layer.form == "tokens" and math.isqrt(layer.shape[0]) ** 2 == layer.shape[0] > 1]
    runs = [list(part) for _, part in groupby(tokens, key=lambda layer: layer.shape[0])]
    return runs if len({part[0].shape[0] for part in runs}) == len(runs) > 1 else learned


def _end(stage: Sequence[Layer]) -> str:
    largest = max(stage, key=lambda layer: layer.parameters)
    return [layer for layer in stage if _parent(layer) == _parent(largest)][-1].name


def _parent(layer: Layer) -> str:
    return layer.name.rpartition(".")[0]


def as_map(x: Tensor) -> Tensor:
    """[B, C, H, W]; tokens [B, N, D] become the largest square grid, class tokens in front of it dropped."""
    if x.ndim == 4:
        return x
    if x.ndim == 2:
        return x[:, :, None, None]
    side = math.isqrt(x.shape[1])
    return x[:, x.shape[1] - side * side :].transpose(1, 2).unflatten(-1, (side, side))


def as_tokens(x: Tensor) -> Tensor:
    """[B, N, D]: the cells of a map row by row; tokens as they are; a vector is one token."""
    return x.flatten(2).transpose(1, 2) if x.ndim == 4 else x if x.ndim == 3 else x.unsqueeze(1)


def as_vector(x: Tensor) -> Tensor:
    """[B, D]: the mean over a map's cells or over all tokens; a vector as it is."""
    return x.mean((-2, -1)) if x.ndim == 4 else x.mean(1) if x.ndim == 3 else x


AS: Mapping[Form, Callable[[Tensor], Tensor]] = {"map": as_map, "tokens": as_tokens, "vector": as_vector}
