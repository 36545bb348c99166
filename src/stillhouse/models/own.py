"""A user's own modules: what a function in a file of theirs makes, or what they hand over in Python.

    student: {use: models.own.OwnModule, function: "my_models.py:small", kwargs: {width: 32}}
    teachers: {teacher: {use: teachers.module.ModuleTeacher,
        spec: {use: models.own.OwnModule, function: "my_models.py:big", weights: big.safetensors}}}

A module is called with the images of a batch, `module(images)`, or with what the function `encode` makes of texts,
`module(**inputs)`. It may return a tensor, a tuple, a mapping, a dataclass or an output of Hugging Face's; where the logits
are not called `logits` and are not the only tensor, `logits` says which they are. No module is edited.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import pickle
import re
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, load_model, save_model
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from ..core.recipe import nearest
from ..core.run import Run, RunError
from ..core.signal import Logits
from .call import pick_logits
from .toys import WEIGHTS

Encode = Callable[[Sequence[str]], Mapping[str, Tensor] | Tensor]
NESTED = ("state_dict", "model_state_dict", "model")  # where checkpoints keep the weights
NAMED = 3  # keys that a refusal names


class Own:
    """What both ways share: `made` gives the module, which is kept as safetensors."""

    logits: str | None

    def made(self) -> nn.Module:
        """A module of its own, every time."""
        raise NotImplementedError

    def build(self, run: Run) -> nn.Module:
        """The module as training finds it."""
        return self._chosen(self.made())

    def save(self, module: nn.Module, folder: Path, run: Run) -> None:
        """Write the weights; tied tensors are stored once."""
        save_model(_inner(module), str(folder / WEIGHTS))

    def load(self, folder: Path, run: Run) -> nn.Module:
        """A module with the weights that `save` wrote; RunError if they do not fit."""
        module = self.made()
        try:
            load_model(module, folder / WEIGHTS)
        except (RuntimeError, OSError) as error:
            raise RunError(f"the weights in {folder} do not fit {self}: {str(error).splitlines()[0]}") from error
        return self._chosen(module)

    def _chosen(self, module: nn.Module) -> nn.Module:
        return module if self.logits is None else Chosen(module, self.logits)


@dataclass(frozen=True, kw_only=True)
class OwnModule(Own):
    """What a function of yours returns. It is your code, and runs as such: never name a file that you do not trust.

    Weights come from `.safetensors`, or from a `.pt` file that holds tensors and nothing else.
    """

    function: str  # FILE.py:NAME
    weights: str | None = None  # a file; None: as the function makes them
    kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])  # what the function is called with
    logits: str | None = None  # where they are in what the module returns, as in `out.cls` or `out.0`
    encode: str | None = None  # FILE.py:NAME, a function from a list of texts to what the module is called with

    def __post_init__(self) -> None:
        for name in (self.function, self.encode):
            if name is not None and not re.fullmatch(r".+\.py:\w+", name):
                raise ValueError(f"a function is FILE.py:NAME, not {name!r}")

    def made(self) -> nn.Module:
        """What the function gives for `kwargs`."""
        kwargs = {name: list(v) if isinstance(v, tuple) else v for name, v in self.kwargs.items()}
        module = called(self.function, **kwargs)
        if not isinstance(module, nn.Module):
            raise RunError(f"{self.function} gave {type(module).__name__}; it has to return a torch.nn.Module")
        return _sized(module, self.function)

    def build(self, run: Run) -> nn.Module:
        """The module with its weights."""
        module = self.made()
        if self.weights is not None:
            _fill(module, self.weights, self.function)
        return self._chosen(module)

    def encoder(self, run: Run) -> Callable[[Sequence[str]], Mapping[str, Tensor] | Tensor]:
        """Texts to what the module is called with."""
        name = self.encode
        if name is None:
            raise RunError(f"to read texts {self.function} needs a function that makes tensors of them: encode=FILE.py:NAME")
        return lambda texts: _tensors(called(name, list(texts)), name)


class Given(Own):
    """A module from Python; each run works on a copy of it. A recipe file names it, and cannot bring it back."""

    def __init__(self, module: nn.Module, *, logits: str | None = None, encode: Encode | None = None):
        self.module, self.logits, self.encode = module, logits, encode

    def __repr__(self) -> str:
        return f"Given({type(self.module).__name__})"

    def described(self) -> dict[str, Any]:
        """What a recipe file says of it."""
        count = sum(p.numel() for p in self.module.parameters())
        return {"use": "models.own.Given", "module": f"{type(self.module).__name__} of {count:,} parameters"}

    def made(self) -> nn.Module:
        """A copy."""
        try:
            return copy.deepcopy(_sized(self.module, repr(self)))
        except RunError:
            raise
        except Exception as error:  # whatever the module holds that cannot be copied
            raise RunError(f"{self} cannot be copied, so a run would change it: {error}") from error

    def encoder(self, run: Run) -> Callable[[Sequence[str]], Mapping[str, Tensor] | Tensor]:
        """Texts to what the module is called with."""
        encode = self.encode
        if encode is None:
            raise RunError(f"to read texts {self} needs a function that makes tensors of them: Given(module, encode=...)")
        return lambda texts: _tensors(encode(list(texts)), "encode")


class Chosen(nn.Module):
    """A module of which one field of what it returns is the logits."""

    def __init__(self, module: nn.Module, logits: str):
        super().__init__()
        self.module, self.path = module, logits

    def forward(self, *args: Any, **inputs: Any) -> Logits:
        """The logits."""
        return pick_logits(self.module(*args, **inputs), type(self.module).__name__, self.path)


def _sized(module: nn.Module, owner: str) -> nn.Module:
    """RunError if a layer waits for its first batch to know its size."""
    lazy = next((name for name, p in module.named_parameters() if isinstance(p, UninitializedParameter)), None)
    if lazy is not None:
        raise RunError(f"{owner} has no size for {lazy!r} yet: call the module once on an example before it is handed over")
    return module


def _inner(module: nn.Module) -> nn.Module:
    return module.module if isinstance(module, Chosen) else module


# -- the user's file -------------------------------------------------------------------------------------------------


def called(function: str, *args: Any, **kwargs: Any) -> Any:
    """What `FILE.py:NAME` gives; RunError in one line if it cannot be loaded or raises."""
    name = function.rpartition(":")[2]
    file = Path(function.rpartition(":")[0]).expanduser()
    if not file.is_file():
        raise RunError(f"no file {file}")
    space = _imported(file.resolve(), file.stat().st_mtime_ns)
    found = getattr(space, name, None)
    if not callable(found):
        raise RunError(f"{file} has no function {name!r}{nearest(name, [n for n, v in vars(space).items() if callable(v)])}")
    try:
        with _beside(file.resolve().parent):
            return found(*args, **kwargs)
    except RunError:
        raise
    except Exception as error:
        raise RunError(f"{function} failed: {_told(error)} (--debug shows where)") from error


@lru_cache(maxsize=64)
def _imported(file: Path, changed: int) -> ModuleType:
    """The file as a module under a name that no other file has; classes of one file are the same for all who ask."""
    name = f"{file.stem}_{hashlib.sha256(f'{file} {changed}'.encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with _beside(file.parent):
            spec.loader.exec_module(module)
    except BaseException as error:
        sys.modules.pop(name, None)
        if isinstance(error, Exception) or isinstance(error, SystemExit):
            raise RunError(f"{file} cannot be loaded: {_told(error)} (--debug shows where)") from error
        raise
    return module


@contextmanager
def _beside(folder: Path) -> Generator[None]:
    """The file may import others of its folder. Those of the same name from another user's folder are not in the way."""
    others = {
        name: module
        for name, module in sys.modules.items()
        if (found := _siblings.get(name)) is not None and found != folder
    }  # fmt: skip
    for name in others:
        del sys.modules[name]
    importlib.invalidate_caches()
    known = set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        if str(folder) in sys.path:
            sys.path.remove(str(folder))
        for name in set(sys.modules) - known:
            source = getattr(sys.modules[name], "__file__", None)
            if source and folder in Path(source).resolve().parents and "site-packages" not in source:
                _siblings[name] = folder
        for name, module in others.items():
            sys.modules.setdefault(name, module)


_siblings: dict[str, Path] = {}  # modules that users' files imported from beside them, and where they were


def _told(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _tensors(found: Any, owner: str) -> Mapping[str, Tensor] | Tensor:
    values = found.values() if isinstance(found, Mapping) else [found]
    if not all(isinstance(v, Tensor) for v in values):
        raise RunError(f"{owner} gave {type(found).__name__}; it has to return a tensor, or a mapping of names to tensors")
    return dict(found) if isinstance(found, Mapping) else found


# -- weights ---------------------------------------------------------------------------------------------------------


def _fill(module: nn.Module, path: str, owner: str) -> None:
    """Load a file's weights into the module; RunError that names the first that do not fit."""
    found, mine = _weights(Path(path).expanduser()), module.state_dict()
    tied = _tied(module)
    missing = [n for n in mine if n not in found and not (tied.get(n, set()) & set(found))]
    extra = [name for name in found if name not in mine]
    wrong = [
        f"{name} is {list(found[name].shape)} there and {list(mine[name].shape)} here"
        for name in mine
        if name in found and isinstance(mine[name], Tensor) and found[name].shape != mine[name].shape
    ]
    told = [("it lacks", missing), ("it has besides", extra), ("", wrong)]
    faults = [f"{what} {_few(names)}".strip() for what, names in told if names]
    if faults:
        raise RunError(f"the weights in {path} do not fit the module of {owner}: {'; '.join(faults)}")
    module.load_state_dict(found, strict=False)


def _tied(module: nn.Module) -> dict[str, set[str]]:
    """The other names of each parameter that has several: safetensors keeps one of them."""
    names: dict[int, set[str]] = {}
    for name, value in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(value), set()).add(name)
    return {name: group for group in names.values() for name in group}


def _weights(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise RunError(f"no file {file}")
    if file.suffix == ".safetensors":
        try:
            return load_file(file)
        except (SafetensorError, OSError) as error:
            raise RunError(f"cannot read {file} as safetensors: {error}") from error
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise RunError(
            f"{file} holds more than tensors, and to read it is to run the code in it. If you trust it, save its weights "
            "alone, with safetensors.torch.save_file or torch.save(module.state_dict(), path)"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise RunError(f"cannot read {file} as weights: {_told(error)}") from error
    inner = next((found[key] for key in NESTED if isinstance(found, Mapping) and isinstance(found.get(key), Mapping)), found)
    if not isinstance(inner, Mapping) or not inner or not all(isinstance(v, Tensor) for v in inner.values()):
        raise RunError(f"{file} is no mapping of names to tensors; save module.state_dict()")
    return dict(inner)


def _few(names: Sequence[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
