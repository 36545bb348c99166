"""The raw files of Planetoid (Yang et al. 2016): Cora, Citeseer and Pubmed as `ind.NAME.{x,tx,allx,y,ty,ally,graph}`.

They are pickles of Python 2. A pickle is a program, and none is run here: `parse` walks its opcodes with `pickletools`,
knows the twenty-odd that these files consist of, and builds numbers, texts, lists and arrays of numbers itself. A name
of anything but an array, a sparse matrix or a dictionary of lists, or any other opcode, is refused.
"""

from __future__ import annotations

import pickletools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from ..core.run import RunError

PARTS = ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index")
NAMES = {
    "numpy.core.multiarray _reconstruct": "array", "numpy._core.multiarray _reconstruct": "array",
    "numpy ndarray": "ndarray", "numpy dtype": "dtype", "scipy.sparse.csr csr_matrix": "csr",
    "scipy.sparse._csr csr_matrix": "csr", "collections defaultdict": "dict", "__builtin__ list": "list",
}  # fmt: skip
KINDS = {"i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f4", "f8"}
_VALUES = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINSTRING", "SHORT_BINSTRING", "BINUNICODE"}
_CONSTANTS = {"NONE": None, "NEWFALSE": False, "NEWTRUE": True}
_MARK = object()


class _Named:
    """What a name in the file stands for, and what was said of it; nothing is ever called."""

    def __init__(self, name: str, arguments: tuple[Any, ...] = ()):
        self.name, self.arguments, self.state = name, arguments, None


def parse(data: bytes) -> Any:
    """The value that a pickle of arrays, sparse matrices and lists describes, without running it; ValueError if it
    holds anything else."""
    stack: list[Any] = []
    memory: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        at = len(stack) - 1 - stack[::-1].index(_MARK)
        items = stack[at + 1 :]
        del stack[at:]
        return items

    try:
        found: Any
        for op, found, _ in pickletools.genops(data):
            name, argument = op.name, found
            if name in _VALUES:
                stack.append(argument)
            elif name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            elif name == "GLOBAL":
                if argument not in NAMES:
                    raise ValueError(f"it names {argument!r}, which is no array, sparse matrix or list")
                stack.append(_Named(NAMES[argument]))
            elif name in ("BINPUT", "LONG_BINPUT"):
                memory[argument] = stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                stack.append(memory[argument])
            elif name == "MARK":
                stack.append(_MARK)
            elif name in ("EMPTY_LIST", "EMPTY_DICT", "EMPTY_TUPLE"):
                stack.append({"EMPTY_LIST": [], "EMPTY_DICT": {}, "EMPTY_TUPLE": ()}[name])
            elif name == "TUPLE":
                stack.append(tuple(since_mark()))
            elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
                size = int(name[-1])
                stack[-size:] = [tuple(stack[-size:])]
            elif name == "APPEND":
                item = stack.pop()
                stack[-1].append(item)
            elif name == "APPENDS":
                items = since_mark()
                stack[-1].extend(items)
            elif name in ("SETITEM", "SETITEMS"):
                items = since_mark() if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
                target = stack[-1]
                target.update(zip(items[::2], items[1::2], strict=True))
            elif name in ("REDUCE", "NEWOBJ"):
                arguments, named = stack.pop(), stack.pop()
                stack.append({} if named.name == "dict" else _Named(named.name, arguments))
            elif name == "BUILD":
                state = stack.pop()
                stack[-1].state = state
            elif name == "STOP":
                return _value(stack.pop())
            elif name != "PROTO":
                raise ValueError(f"it uses {name}, which arrays and lists of numbers do not need")
    except (LookupError, AttributeError, TypeError, OverflowError, MemoryError, UnicodeError) as error:
        raise ValueError(f"it is damaged ({type(error).__name__})") from error
    raise ValueError("it has no end")


def _value(found: Any) -> Any:
    """Arrays out of their descriptions."""
    if isinstance(found, dict):
        return {key: _value(value) for key, value in found.items()}
    if not isinstance(found, _Named):
        return found
    if found.name == "array":
        _, shape, kind, fortran, content = found.state  # type: ignore[misc]
        if kind.name != "dtype" or kind.arguments[0] not in KINDS or not isinstance(content, str):
            raise ValueError("an array in it does not hold plain numbers")
        order = "<" if kind.state is None or kind.state[1] in ("<", "|") else ">"
        numbers = numpy.frombuffer(content.encode("latin-1"), dtype=order + kind.arguments[0])
        return numbers.reshape(shape, order="F" if fortran else "C").astype(kind.arguments[0])
    if found.name == "csr":
        state = {key: _value(value) for key, value in found.state.items()}  # type: ignore[union-attr]
        rows = numpy.repeat(numpy.arange(state["_shape"][0]), numpy.diff(state["indptr"]))
        dense = numpy.zeros(state["_shape"], dtype=numpy.float32)
        numpy.add.at(dense, (rows, state["indices"]), state["data"])
        return dense
    raise ValueError(f"it holds a bare {found.name}")


def read(folder: Path) -> tuple[Tensor, Tensor, Tensor]:
    """(features [N, d], edges [2, E], labels [N], -100 where there is none) of the files `ind.NAME.*` in a folder."""
    found = sorted(folder.glob("ind.*.graph"))
    if len(found) != 1:
        raise RunError(f"{folder} should hold the files of one graph, ind.NAME.graph and so on; it has {len(found)}")
    stem = found[0].name.removesuffix(".graph")
    parts: dict[str, Any] = {}
    for part in PARTS:
        path = folder / f"{stem}.{part}"
        try:
            text = path.read_bytes()
            parts[part] = [int(line) for line in text.split()] if part == "test.index" else parse(text)
        except FileNotFoundError as error:
            raise RunError(f"{folder} lacks {path.name}") from error
        except ValueError as error:
            raise RunError(f"{path} is not read: {error}") from error
    return assemble(parts)


def assemble(parts: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """The graph of the parsed parts: test nodes stand in the order of `test.index`; those it skips (Citeseer's 15
    nodes without features) have zero features and no label."""
    where = torch.tensor(parts["test.index"])
    known = torch.from_numpy(parts["allx"]).float()
    total = max(len(known), int(where.max()) + 1, max(parts["graph"]) + 1)
    features = torch.zeros(total, known.shape[1])
    features[: len(known)], features[where] = known, torch.from_numpy(parts["tx"]).float()
    classes = torch.zeros(total, parts["ally"].shape[1], dtype=torch.long)
    classes[: len(known)] = torch.from_numpy(parts["ally"]).long()
    classes[where] = torch.from_numpy(parts["ty"]).long()
    labels = classes.argmax(1).where(classes.sum(1) > 0, -100)
    pairs = [(node, other) for node, others in parts["graph"].items() for other in others]
    return features, torch.tensor(pairs).T.contiguous(), labels
