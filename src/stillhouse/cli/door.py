"""The door: recipes come in as YAML and leave as checked, frozen objects.

Nothing here trusts the file. YAML is read strictly and without tags, `use:` reaches only frozen dataclasses below
`stillhouse.` (and packages the user allowed by name), and pydantic checks every field against its annotation.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Collection, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import yaml

from ..core.recipe import Recipe, RecipeError, Scale, nearest

# -- YAML ----------------------------------------------------------------------------------------------------------
# The scalars of YAML 1.2: `1e-4` is a number, `no` and `12:30` are text. Reader and writer share them, so that what
# is written is read back as it was.

_SCALARS = (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("null", r"~|null|Null|NULL|", "~nN"),
)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[Any]] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, (str, int)):
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} cannot be a key", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is there twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: dict[str, list[Any]] = {}

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        return super().increase_indent(flow, False)


def _integer(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    return int(text, 16 if "x" in text else 10)  # YAML 1.1 reads 010 as eight


def _short_list(dumper: _Dumper, items: list[Any]) -> yaml.Node:
    inline = all(item is None or isinstance(item, (str, int, float)) for item in items)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=inline)


def _text(dumper: _Dumper, text: str) -> yaml.Node:
    breaks = any(c in text for c in "\x85\u2028\u2029\ufeff")  # PyYAML writes these line breaks raw and reads them as spaces
    style = '"' if breaks else "|" if "\n" in text else None  # a prompt keeps its lines
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


for _name, _pattern, _first in _SCALARS:
    _regex = re.compile(rf"^(?:{_pattern})$")
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", _regex, [*_first, ""] if _name == "null" else [*_first])
_Loader.add_constructor("tag:yaml.org,2002:int", _integer)
_Dumper.add_representer(list, _short_list)
_Dumper.add_representer(str, _text)


def read_yaml(text: str, where: str = "the recipe") -> Any:
    """The plain value of a YAML text; RecipeError with the line for bad syntax, tags and duplicate keys."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise RecipeError(f"{where}{line}: {getattr(error, 'problem', None) or error}") from error


def write_yaml(plain: Any) -> str:
    """YAML that `read_yaml` reads back as the same value."""
    return yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


# -- objects -------------------------------------------------------------------------------------------------------


def build(plain: Any, *, allow: Collection[str] = ()) -> Recipe:
    """The recipe that `plain` describes, every field checked; the inverse of `Recipe.plain`.

    `allow` names other packages whose classes `use:` may reach. RecipeError names the key, what is wrong with it and
    the nearest right one.
    """
    if not isinstance(plain, Mapping):
        raise RecipeError(f"a recipe is a mapping with the keys {_names(Recipe)}, not {_show(plain)}")
    stages = plain.get("stages")
    if isinstance(stages, Mapping):  # a stage that is null is left out: `--set stages.alone=null`
        plain = {**plain, "stages": {name: stage for name, stage in stages.items() if stage is not None}}
    recipe = _Door(frozenset(allow)).dataclass(Recipe, plain, ())
    for name, stage in recipe.stages.items():
        if not (dataclasses.is_dataclass(stage) and callable(stage)):
            raise RecipeError(f"{name} is not a stage; give it `use: core.stage.Train` or another stage")
        if not re.fullmatch(r"[A-Za-z][\w-]*", name):
            raise RecipeError(f"the stage {name!r} needs a name of letters, digits, '-' and '_': it becomes a folder")
    learns = any(hasattr(stage, "student") or hasattr(stage, "subjects") for stage in recipe.stages.values())
    if learns and recipe.student is None:
        raise RecipeError("the recipe needs 'student', which has no default where a stage trains or judges one")
    for path, spec, hook in [
        *([("student", recipe.student, "build")] if learns else []),
        ("data", recipe.data, "load"),
        *((f"teachers.{name}", spec, "build") for name, spec in recipe.teachers.items()),
    ]:
        if not hasattr(spec, hook):
            raise RecipeError(f"{path} is {_show(spec)}; give it a `use:` that names a class with `{hook}`")
    return recipe


def dump(recipe: Recipe) -> str:
    """The recipe as YAML: what `show --yaml` prints and every run folder holds."""
    return write_yaml(recipe.plain())


def load(path: str | Path, *, allow: Collection[str] = ()) -> Recipe:
    """The recipe in a YAML file."""
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{file} is not a text file") from error
    try:
        return build(read_yaml(text, str(file)), allow=allow)
    except RecipeError as error:
        raise error if str(error).startswith(str(file)) else RecipeError(f"{file}: {error}") from error


def spec(plain: Any, *, allow: Collection[str] = ()) -> Any:
    """One object of a recipe (data, a teacher) from its plain value; the inverse of `to_plain`."""
    return _Door(frozenset(allow)).objects(plain, ())


def override(recipe: Recipe, settings: Collection[str], *, allow: Collection[str] = ()) -> Recipe:
    """The recipe with every `a.b=value` of `settings` applied; values are YAML, and are checked like a file."""
    allowed = {*allow, *packages_of(recipe)}
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals or not path:
            raise RecipeError(f"--set {setting}: write it as key.key=value, as in --set train.optim.lr=1e-4")
        value = read_yaml(text, f"--set {path}")
        recipe = build(_changed(recipe.plain(), recipe.keys(path), value, path), allow=allowed)
    return recipe


def of_method(name: str, scale: Scale = "small") -> Recipe:
    """The recipe of a paper file in `methods/`."""
    from ..core.paper import find

    return import_module(find(name).module).recipe(scale)


class _Door:
    """Builds objects from plain values, bottom up: first what has a `use`, then each field against its annotation."""

    def __init__(self, allow: frozenset[str]):
        self.allow = allow

    def dataclass(self, cls: type, plain: Mapping[str, Any], path: tuple[str, ...]) -> Any:
        """An instance of a frozen dataclass."""
        fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
        given = {key: value for key, value in plain.items() if key != "use"}
        for key in given:
            if key not in fields:
                raise RecipeError(f"no {key!r} in {_dotted(path)}{nearest(str(key), fields)}")
        for name, item in fields.items():
            if name not in given and item.default is item.default_factory is dataclasses.MISSING:
                raise RecipeError(f"{_dotted(path)} needs {name!r}, which has no default")
        hints = _hints(cls)
        values = {key: self.value(value, hints[key], (*path, key)) for key, value in given.items()}
        try:
            return cls(**values)
        except (ValueError, TypeError) as error:  # __post_init__ looks at several fields together
            raise error if isinstance(error, RecipeError) else RecipeError(f"{_dotted(path)}: {error}") from error

    def value(self, plain: Any, hint: Any, path: tuple[str, ...]) -> Any:
        """`plain` with its objects built, checked against an annotation."""
        from pydantic import ConfigDict, TypeAdapter, ValidationError

        built = self.objects(plain, path)
        try:
            config = ConfigDict(arbitrary_types_allowed=True)
            return TypeAdapter(self.checked(hint, path), config=config).validate_python(built)
        except ValidationError as error:
            # A union reports one error per member; the deepest says most about what was meant.
            first = max(error.errors(include_url=False), key=lambda e: len(e["loc"]))
            where = (*path, *(str(part) for part in first["loc"] if _is_key(part, built)))
            cause = first.get("ctx", {}).get("error")
            if isinstance(cause, RecipeError):
                raise cause from error
            message = str(cause or first["msg"]).removeprefix("Input ")
            raise RecipeError(f"{_dotted(where)} {message}, not {_show(first['input'])}") from error

    def objects(self, plain: Any, path: tuple[str, ...]) -> Any:
        """`plain` with every mapping that has a `use` turned into that object, at any depth."""
        if isinstance(plain, Mapping):
            if "use" in plain:
                return self.dataclass(self.resolve(plain["use"], path), plain, path)
            return {key: self.objects(value, (*path, str(key))) for key, value in plain.items()}
        if isinstance(plain, (list, tuple)):
            return tuple(self.objects(value, (*path, str(i))) for i, value in enumerate(plain))
        return plain

    def resolve(self, use: Any, path: tuple[str, ...]) -> type:
        """The frozen dataclass that `use` names."""
        if not isinstance(use, str) or not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", use):
            raise RecipeError(f"{_dotted(path)}: `use: {use}` is not an import path like methods.classics.hinton.Hinton")
        outside = use.split(".")[0] in self.allow
        module, _, name = (use if outside else f"stillhouse.{use.removeprefix('stillhouse.')}").rpartition(".")
        try:
            found = getattr(import_module(module), name, None)
        except ModuleNotFoundError as error:
            if error.name is None or not module.startswith(error.name):
                raise
            raise RecipeError(
                f"{_dotted(path)}: stillhouse has no `{use}`; classes of another package need "
                f"--allow {use.split('.')[0]} (only allow code you trust)"
            ) from error
        if not isinstance(found, type):
            near = nearest(name, [n for n, v in vars(import_module(module)).items() if _is_spec(v)])
            raise RecipeError(f"{_dotted(path)}: no {name!r} in {module}{near}")
        if hasattr(found, "described"):
            raise RecipeError(
                f"{_dotted(path)}: a module that Python code handed over is not in the file: go on with this run from "
                "there, with distil(..., folder=FOLDER)"
            )
        if not _is_spec(found) or found.__module__.split(".")[0] not in {"stillhouse", *self.allow}:
            raise RecipeError(f"{_dotted(path)}: {use} is not a frozen dataclass, so a recipe cannot hold it")
        return found

    def checked(self, hint: Any, path: tuple[str, ...]) -> Any:
        """An annotation that pydantic can check: dataclasses and protocols inside it become checks of our own."""
        from pydantic import PlainValidator

        origin, args = get_origin(hint), get_args(hint)
        if hint is Any or hint is object:
            return Any
        if origin is Annotated:
            return Annotated[self.checked(args[0], path), *args[1:]]
        if origin in (Union, UnionType):
            return Union[tuple(self.checked(a, path) for a in args)]  # noqa: UP007 - built at run time
        if origin is tuple:
            return tuple[tuple(a if a is Ellipsis else self.checked(a, path) for a in args)]
        if isinstance(origin, type) and issubclass(origin, Mapping):
            return dict[self.checked(args[0], path), self.checked(args[1], path)]
        if isinstance(origin, type) and issubclass(origin, Sequence):  # a frozen object holds its items in a tuple
            return tuple[self.checked(args[0], path), ...]
        if dataclasses.is_dataclass(hint):
            return Annotated[Any, PlainValidator(lambda value: self.instance(hint, value, path))]
        if getattr(hint, "_is_protocol", False):
            return Annotated[Any, PlainValidator(lambda value: _implements(hint, value))]
        return hint

    def instance(self, cls: Any, value: Any, path: tuple[str, ...]) -> Any:
        """`value` if it is a `cls`, or a `cls` made from a mapping without `use`."""
        if isinstance(value, cls):
            return value
        if isinstance(value, Mapping):
            return self.dataclass(cls, value, path)
        raise ValueError(f"should be a {cls.__name__}: its fields as a mapping, or a mapping with `use`")


def _implements(protocol: Any, value: Any) -> Any:
    """`value` if it has all that the protocol asks for."""
    wanted = {n for n in vars(protocol) if n == "__call__" or not n.startswith("_")}
    wanted |= {n for n in getattr(protocol, "__annotations__", {}) if not n.startswith("_")}
    missing = sorted(n for n in wanted if not hasattr(value, n))
    if missing or isinstance(value, (Mapping, type)):
        name = protocol.__name__
        lacks = f" with {', '.join(missing)}" if missing and not isinstance(value, Mapping) else ""
        raise ValueError(f"should be a {name}{lacks}: a mapping with `use` that names its class")
    return value


def _hints(cls: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls, include_extras=True)
    except NameError as error:
        raise RecipeError(f"{cls.__name__} is annotated with {error.name!r}, which its module does not import") from error


def _is_spec(value: Any) -> bool:
    return isinstance(value, type) and dataclasses.is_dataclass(value) and value.__dataclass_params__.frozen  # type: ignore[attr-defined]


def _is_key(part: Any, built: Any) -> bool:
    """Whether a piece of a pydantic location is a key of the user's value, not the name of a union member."""
    if isinstance(part, int):
        return True
    return isinstance(built, Mapping) and part in built


def packages_of(value: Any) -> set[str]:
    """The top packages of all classes in a built recipe: what was let in once stays let in."""
    if isinstance(value, Mapping):
        return set().union(*(packages_of(v) for v in value.values()))
    if isinstance(value, tuple):
        return set().union(*(packages_of(v) for v in value))
    if dataclasses.is_dataclass(value):
        inner = (packages_of(getattr(value, f.name)) for f in dataclasses.fields(value))
        return {type(value).__module__.split(".")[0]}.union(*inner)
    return set()


def _changed(plain: Any, keys: list[str], value: Any, path: str) -> Any:
    """A copy of a plain value with one entry replaced."""
    if not keys:
        return value
    key, rest = keys[0], keys[1:]
    if isinstance(plain, list):
        if not key.isdigit() or int(key) >= len(plain):
            raise RecipeError(f"no item {key!r} in {path!r}; there are {len(plain)}, counted from 0")
        return [_changed(v, rest, value, path) if i == int(key) else v for i, v in enumerate(plain)]
    if not isinstance(plain, Mapping):
        raise RecipeError(f"{path!r} leads into {_show(plain)}, which has no fields")
    if key not in plain:
        raise RecipeError(f"no {key!r} in {path!r}{nearest(key, [k for k in plain if k != 'use'])}")
    return {k: _changed(v, rest, value, path) if k == key else v for k, v in plain.items()}


def _dotted(path: tuple[str, ...]) -> str:
    """The key as `--set` takes it."""
    return ".".join(path[1:] if path[:1] == ("stages",) and len(path) > 1 else path) or "the recipe"


def _names(cls: type) -> str:
    return ", ".join(f.name for f in dataclasses.fields(cls))


def _show(value: Any) -> str:
    text = repr(value) if not dataclasses.is_dataclass(value) else f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."
