"""The teacher contract, and the checks that fail before the first expensive second."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import nn

from .signal import Batch, Kind, Signal


@runtime_checkable
class Teacher(Protocol):
    """Answers a batch with a Signal. `gives` says which kinds it can be asked for."""

    gives: frozenset[Kind]

    def __call__(self, batch: Batch, want: frozenset[Kind]) -> Signal:
        """The signal for `batch`, with at least the kinds in `want`."""
        ...


class TeacherMismatch(ValueError):
    """Teacher and student (or method) do not fit; the message says what to do."""


def freeze(module: nn.Module) -> nn.Module:
    """Put a module into the state a teacher has: evaluation mode, no gradients. Returns it."""
    return module.requires_grad_(False).eval()


def check_gives(name: str, teacher: Teacher, needs: frozenset[Kind], *, takes_topk: bool = False) -> None:
    """Refuse a teacher that cannot give what the method needs; `takes_topk`: a top k will do in place of logits."""
    missing = needs - teacher.gives
    if takes_topk and "topk" in teacher.gives:
        missing -= {"logits"}
    if missing:
        raise TeacherMismatch(
            f"the method needs {', '.join(sorted(missing))} from teacher {name!r}, which gives "
            f"{', '.join(sorted(teacher.gives)) or 'nothing'}; choose a teacher that gives it, or another method "
            "(`stillhouse list --needs ...`)"
        )
