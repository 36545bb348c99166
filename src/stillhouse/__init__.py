"""Distil a big model into a small one, and prove that it was worth it.

The public names, each imported when it is first used: `import stillhouse` costs nothing and loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .cli.launch import run as run
    from .core.method import Method as Method
    from .core.method import State as State
    from .core.method import Update as Update
    from .core.optim import Optim as Optim
    from .core.paper import Paper as Paper
    from .core.proof import Proof as Proof
    from .core.recipe import Recipe as Recipe
    from .core.report import Finding as Finding
    from .core.run import Run as Run
    from .core.signal import HeadLogits as HeadLogits
    from .core.signal import Signal as Signal
    from .core.signal import TopK as TopK
    from .core.stage import Audit as Audit
    from .core.stage import Stage as Stage
    from .core.stage import Train as Train
    from .core.stage import execute as execute
    from .core.teacher import Teacher as Teacher
    from .shortcut import distil as distil
    from .shortcut import plan as plan

_HOME = {
    "Audit": "core.stage",
    "Finding": "core.report",
    "HeadLogits": "core.signal",
    "Method": "core.method",
    "Optim": "core.optim",
    "Paper": "core.paper",
    "Proof": "core.proof",
    "Recipe": "core.recipe",
    "Run": "core.run",
    "Signal": "core.signal",
    "Stage": "core.stage",
    "State": "core.method",
    "Teacher": "core.teacher",
    "TopK": "core.signal",
    "Train": "core.stage",
    "Update": "core.method",
    "distil": "shortcut",
    "execute": "core.stage",
    "plan": "shortcut",
    "run": "cli.launch",
}

__all__ = ["__version__", *_HOME]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'stillhouse' has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
