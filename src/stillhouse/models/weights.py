"""Arithmetic in the space of weights: differences, steps along them, weighted sums, cosines; of tensors or of files.

Everything here takes mappings from names to tensors: a `state_dict`, or `Stored`, which reads a model's safetensors files
one tensor at a time. `Summed`, `Change`, `Noise` and `Moved` are such mappings too and compute a tensor when it is asked
for, so that `write_like` merges stored models with about one tensor of each in memory. `merged`, `difference` and `moved`
give the same as plain dictionaries. Sums are accumulated in float32 (float64 if a tensor is) and rounded to the first
one's type.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.run import RunError, seed_of

Weights = Mapping[str, Tensor]
INDEX = "model.safetensors.index.json"
_FLOATS = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_OTHER_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")


class _Named(Mapping[str, Tensor]):
    """A mapping whose tensors are made when they are asked for."""

    names: Sequence[str]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


class Stored(_Named):
    """The tensors of a model's folder, each read when it is asked for; RunError if it holds no safetensors."""

    def __init__(self, folder: Path):
        self.folder = folder
        index, found = folder / INDEX, sorted(path.name for path in folder.glob("*.safetensors"))
        if index.exists():
            found = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        if (folder / "adapter_config.json").exists():
            raise RunError(f"{folder} holds adapters, whose sums are no sums of models: merge them into the model first")
        if not found:
            raise RunError(f"{folder} holds no weights as safetensors: load the model and save it with save_pretrained")
        self.headers = {file: _header(folder / file) for file in found}  # without what they say about themselves
        self.about = {file: header.pop("__metadata__", None) for file, header in self.headers.items()}
        self.files = {name: file for file, header in self.headers.items() for name in header}
        if sum(map(len, self.headers.values())) > len(self.files):
            raise RunError(f"two files of {folder} hold the same tensor: keep those of one model only")
        self.names = list(self.files)

    def __getitem__(self, name: str) -> Tensor:
        from safetensors import safe_open

        with safe_open(self.folder / self.files[name], framework="pt") as file:
            return file.get_tensor(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's shape, without reading it."""
        return tuple(self.headers[self.files[name]][name]["shape"])

    def floating(self, name: str) -> bool:
        """Whether it holds floating numbers, without reading it."""
        return self.headers[self.files[name]][name]["dtype"] in _FLOATS


class Summed(_Named):
    """The weighted sum of models. A model of weight 0 is not read, and a single one of weight 1 keeps its bits."""

    def __init__(self, models: Mapping[str, Weights], weights: Mapping[str, float]):
        if set(models) != set(weights) or not models:
            raise RunError(f"a sum of {', '.join(models) or 'no models'} needs one weight for each of them")
        check_alike(models)
        self.first, self.names = next(iter(models.values())), list(next(iter(models.values())))
        self.parts = [(name, model, weights[name]) for name, model in models.items() if weights[name]]

    def __getitem__(self, name: str) -> Tensor:
        if not self.parts:
            return torch.zeros_like(self.first[name])
        owner, model, weight = self.parts[0]
        total = model[name]
        if total.is_floating_point() and [part[2] for part in self.parts] != [1.0]:
            total = _wide(total) * weight
            for _, other, share in self.parts[1:]:
                total = total + _wide(other[name]) * share
        elif not total.is_floating_point():
            for other_owner, other, _ in self.parts[1:]:
                if not torch.equal(total, other[name]):
                    raise RunError(f"{name!r} holds whole numbers, which {owner} and {other_owner} do not share: no mean")
        return total if len(self.parts) == 1 and weight == 1.0 else total.to(self.first[name].dtype)


class Change(_Named):
    """`after - before` of the floating tensors, in float32 at least; tied tensors once, under their first name."""

    def __init__(self, after: Weights, before: Weights):
        check_alike({"the model after": after, "the model before": before})
        self.after, self.before, ties = after, before, _ties(before)
        self.names = [name for name in before if ties[name] == name and _floating(before, name)]

    def __getitem__(self, name: str) -> Tensor:
        return _wide(self.after[name]) - _wide(self.before[name])

    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's shape."""
        return _shape(self.before, name)


class Noise(_Named):
    """Gaussian noise with the shape and the norm of every tensor of a difference: what a direction is compared with."""

    def __init__(self, delta: Change, seed: int):
        self.delta, self.seed, self.names = delta, seed, delta.names

    def __getitem__(self, name: str) -> Tensor:
        value = self.delta[name]
        draw = torch.Generator().manual_seed(seed_of(self.seed, "noise", name))
        noise = torch.randn(value.shape, generator=draw, dtype=value.dtype)
        return noise * (value.norm() / noise.norm().clamp(min=1e-30))

    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's shape."""
        return self.delta.shape(name)


class Moved(_Named):
    """`base + scale * delta` in the base's types. What `delta` lacks stays, and scale 0 keeps the base's bits."""

    def __init__(self, base: Weights, delta: Weights, scale: float = 1.0):
        for name in delta:
            if name not in base or _shape(base, name) != _shape(delta, name):
                raise RunError(f"{name!r} of the difference has no partner of its shape in the model it is added to")
        self.base, self.delta, self.scale, self.names, self.ties = base, delta, scale, list(base), _ties(base)

    def __getitem__(self, name: str) -> Tensor:
        value, name = self.base[name], self.ties[name]
        return (_wide(value) + self.scale * self.delta[name]).to(value.dtype) if self.scale and name in self.delta else value


def difference(after: Weights, before: Weights) -> dict[str, Tensor]:
    """`Change` as a dictionary."""
    return dict(Change(after, before))


def moved(base: Weights, delta: Weights, scale: float = 1.0) -> dict[str, Tensor]:
    """`Moved` as a dictionary; tensors that are tied in the base are tied in it."""
    return _tied(Moved(base, delta, scale), base)


def merged(models: Mapping[str, Weights], weights: Mapping[str, float]) -> dict[str, Tensor]:
    """`Summed` as a dictionary; tensors that are tied in the first model are tied in it."""
    return _tied(total := Summed(models, weights), total.first)


def norms(delta: Weights) -> dict[str, float]:
    """The Euclidean norm of every tensor."""
    return {name: float(delta[name].double().norm()) for name in delta}


def cosines(a: Weights, b: Weights) -> dict[str, float]:
    """The cosine between two differences, tensor by tensor; nan where one of them is 0."""
    check_alike({"the first": a, "the second": b})
    found: dict[str, float] = {}
    for name in a:
        x, y = a[name].double().flatten(), b[name].double().flatten()
        lengths = float(x.norm() * y.norm())
        found[name] = float(x @ y) / lengths if lengths else math.nan
    return found


def check_alike(models: Mapping[str, Weights]) -> None:
    """RunError unless all models have the same tensors in the same shapes; stored ones are not read."""
    (first, ours), *others = models.items()
    for name, theirs in others:
        lost = sorted(set(ours) ^ set(theirs))
        if lost:
            owner = first if lost[0] in ours else name
            raise RunError(f"{first} and {name} are not of one architecture: {lost[0]!r} is in {owner} only")
        for tensor in ours:
            a, b = _shape(ours, tensor), _shape(theirs, tensor)
            if a != b:
                raise RunError(f"{first} and {name} are not of one architecture: {tensor!r} is {list(a)} and {list(b)}")


def write_like(folder: Path, like: Stored, values: Weights) -> None:
    """A folder with `values` in the files, types and order of `like`, and `like`'s other files: configuration, tokenizer.

    Tensors are asked for and written one after the other.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in like.folder.iterdir():
        if path.is_file() and path.suffix not in _OTHER_WEIGHTS:
            shutil.copy(path, folder / path.name)
    for name, header in like.headers.items():
        about = like.about[name]
        text = json.dumps(header if about is None else {"__metadata__": about, **header}, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with (folder / name).open("wb") as file:  # the header's length in 8 bytes, the header, the tensors in its order
            file.write(len(text).to_bytes(8, "little") + text)
            for tensor in sorted(header, key=lambda tensor: header[tensor]["data_offsets"]):
                value, told = values[tensor].detach().cpu().contiguous(), header[tensor]
                begin, end = told["data_offsets"]
                if value.nbytes != end - begin or _FLOATS.get(told["dtype"], value.dtype) != value.dtype:
                    raise RunError(f"{tensor!r} has changed its shape or its type, and cannot be written in its place")
                file.write(value.reshape(-1).view(torch.uint8).numpy().data)


def _header(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > path.stat().st_size:
                raise ValueError("it is cut short, or no safetensors file")
            return json.loads(file.read(size))
    except (OSError, ValueError) as error:
        raise RunError(f"cannot read the weights in {path}: {error}") from error


def _wide(value: Tensor) -> Tensor:
    return value.to(torch.promote_types(value.dtype, torch.float32))


def _shape(model: Weights, name: str) -> tuple[int, ...]:
    asked: Any = getattr(model, "shape", None)
    return tuple(model[name].shape) if asked is None else asked(name)


def _floating(model: Weights, name: str) -> bool:
    return model.floating(name) if isinstance(model, Stored) else model[name].is_floating_point()


def _ties(model: Weights) -> dict[str, str]:
    """Under which name each tensor is first: two names of one piece of memory are one tensor."""
    if not isinstance(model, dict):
        return {name: name for name in model}  # files hold each tensor once
    first: dict[Any, str] = {}
    places = {
        name: (v.data_ptr(), v.shape, v.stride(), v.dtype) if v.numel() else name for name, v in model.items()
    }  # fmt: skip
    return {name: first.setdefault(place, name) for name, place in places.items()}


def _tied(values: Weights, like: Weights) -> dict[str, Tensor]:
    ties = _ties(like)
    made = {name: values[name] for name, first in ties.items() if name == first}
    return {name: made[first] for name, first in ties.items()}
