"""Named stages with everything filled in. Python is the source of truth; YAML is a snapshot of it."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

Scale = Literal["smoke", "small", "paper"]
T = TypeVar("T")


class RecipeError(ValueError):
    """A recipe cannot be read or changed as asked; the message names the key and the nearest right one."""


@dataclass(frozen=True, kw_only=True)
class Expect:
    """A number that the paper reports."""

    metric: str
    value: float
    where: str  # "Table 2, row 4"
    setting: str = ""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One run: who learns, from whom, on what, and the stages in order."""

    id: str
    student: Any = None  # ModelSpec; None only where no stage trains or looks at one
    data: Any  # DataSpec
    stages: Mapping[str, Any]  # name -> Stage, in order
    teachers: Mapping[str, Any] = field(default_factory=dict[str, Any])  # name -> spec with build(run) -> Teacher
    seed: int = 0
    expect: tuple[Expect, ...] = ()

    def set(self, path: str, value: Any) -> Recipe:
        """A copy with one field changed: `seed`, `data.path`, `train.method.beta`, `teachers.teacher.path`.

        A stage name leads into that stage; `train.student` and `train.data` mean the recipe's own where the stage has
        none.
        """
        return _replaced(self, self.keys(path), value, path)

    def keys(self, path: str) -> list[str]:
        """The keys from the recipe down to `path`, which may begin with the name of a stage."""
        keys = path.split(".")
        if keys[0] in self.stages:
            if len(keys) > 2 and keys[1] in ("student", "data") and getattr(self.stages[keys[0]], keys[1], 0) is None:
                return keys[1:]
            return ["stages", *keys]
        if keys[0] not in {f.name for f in dataclasses.fields(self)}:
            known = [*self.stages, *(f.name for f in dataclasses.fields(self))]
            raise RecipeError(f"no {keys[0]!r} in recipe {self.id!r}{nearest(keys[0], known)}")
        return keys

    def plain(self) -> dict[str, Any]:
        """The recipe as mappings, lists, strings and numbers; objects carry their import path under `use`."""
        return {f.name: to_plain(getattr(self, f.name)) for f in dataclasses.fields(self)}


def pick(scale: Scale, *, smoke: T, small: T, paper: T) -> T:
    """The value for this scale."""
    return {"smoke": smoke, "small": small, "paper": paper}[scale]


def to_plain(value: Any) -> Any:
    """Dataclasses as `{"use": "methods.classics.hinton.Hinton", field: ...}`, containers element by element."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
        name = f"{type(value).__module__}.{type(value).__qualname__}"
        return {"use": name.removeprefix("stillhouse."), **fields}
    if isinstance(value, Mapping):
        return {str(k): to_plain(v) for k, v in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, (tuple, list)):
        return [to_plain(v) for v in cast("Iterable[Any]", value)]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    described = getattr(cast("object", value), "described", None)
    if callable(described):  # an object that a caller from Python holds: named, and refused when read
        return described()
    raise RecipeError(f"{value!r} cannot be written into a recipe file; it can only be used from Python")


def nearest(key: str, known: Iterable[str]) -> str:
    """`; did you mean 'lr'?` or, if nothing is near, the list of what there is."""
    names = list(known)
    close = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(map(repr, names)) or 'none'}"


def _replaced(holder: Any, keys: list[str], value: Any, path: str) -> Any:
    if not keys:
        return value
    key, rest = keys[0], keys[1:]
    if isinstance(holder, Mapping):
        entries = cast("Mapping[str, Any]", holder)
        if key not in entries:
            raise RecipeError(f"no {key!r} in {path!r}{nearest(key, entries)}")
        return {k: _replaced(v, rest, value, path) if k == key else v for k, v in entries.items()}
    if isinstance(holder, tuple):
        items = cast("tuple[Any, ...]", holder)
        if not key.isdigit() or int(key) >= len(items):
            raise RecipeError(f"no item {key!r} in {path!r}; there are {len(items)}, counted from 0")
        return tuple(_replaced(v, rest, value, path) if i == int(key) else v for i, v in enumerate(items))
    if dataclasses.is_dataclass(holder) and not isinstance(holder, type):
        names = [f.name for f in dataclasses.fields(holder) if f.init]
        if key not in names:
            raise RecipeError(f"no {key!r} in {path!r}{nearest(key, names)}")
        return dataclasses.replace(holder, **{key: _replaced(getattr(holder, key), rest, value, path)})
    raise RecipeError(f"{path!r} leads into {holder!r}, which has no fields")
