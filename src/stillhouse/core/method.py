"""How a paper learns: a Method yields sums, the engine does the rest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from .signal import Batch, Kind

if TYPE_CHECKING:
    from .run import Run


@dataclass(slots=True)
class Update:
    """One gradient: move `group` down `loss / count`.

    `loss` is a SUM over `count` items, never a mean: only then does the gradient not depend on how a batch was split.
    `logs` are sums over the same items; the engine divides them by the total count.
    """

    loss: Tensor
    count: int | Tensor
    group: str = "student"
    logs: Mapping[str, Tensor | float] = field(default_factory=dict[str, "Tensor | float"])


class State(nn.Module):
    """All that a method learns. Child modules are parameter groups, buffers are scalars; both survive a resume.

    `State(student=net, t=0.4)` has a group `student` and a float64 buffer `t`. Keep what must not be trained frozen:
    a child without trainable parameters gets no optimizer but is still saved. Where the student itself consists of
    several groups, override `groups`.
    """

    def __init__(self, **parts: nn.Module | float | Tensor):
        super().__init__()
        for name, part in parts.items():
            if isinstance(part, nn.Module):
                self.add_module(name, part)
            else:
                scalar = part if isinstance(part, Tensor) else torch.tensor(part, dtype=torch.float64)
                self.register_buffer(name, scalar)

    def groups(self) -> dict[str, nn.Module]:
        """The children that an optimizer moves."""
        return {n: m for n, m in self.named_children() if any(p.requires_grad for p in m.parameters())}

    if TYPE_CHECKING:  # children and buffers are reached as attributes

        def __getattr__(self, name: str) -> Any: ...


class Method(Protocol):
    """A frozen dataclass whose fields are its hyper-parameters.

    `step` is a generator: the engine runs it once per micro-batch, in lock-step. It only reads the state. `advance`
    runs once per optimizer step, after it, with the step's logged means, and is the only place that changes state.
    A method that needs logits and is content with a top k says so with `takes_topk: ClassVar[bool] = True`. One that asks
    its teacher about what the student makes, for which no answer can be stored beforehand, has `asks_about_own`: a
    `ClassVar[bool]`, or a property if its settings decide. One whose loss compares the items of a batch with one another has
    `compares_items: ClassVar[bool] = True`: what is compared are then the items of a micro-batch. `equation`, a property, is
    the objective with its live weights, told when a run begins. One that learns both labels of mixed images (see
    `models.call.answers`) has `takes_mixed: ClassVar[bool] = True`. `setup` finds the stage's training split in
    `run.source`.
    """

    needs: ClassVar[frozenset[Kind]]

    def setup(self, student: nn.Module, run: Run) -> State:
        """Build the state around the student."""
        ...

    def step(self, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        """Yield the updates of one micro-batch, in an order that does not depend on the micro-batch."""
        ...


def cast(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Convert the parameters in place; returns the module.

    Not the buffers, since rotary frequencies would be ruined, and not batch norms, whose running means are buffers.
    """
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):  # pyright: ignore[reportPrivateUsage]
            continue
        for param in part.parameters(recurse=False):
            param.data = param.data.to(dtype)
    return module


def advance(method: Method, s: State, logs: Mapping[str, float], run: Run) -> None:
    """Call the method's optional `advance`."""
    hook = getattr(method, "advance", None)
    if hook is not None:
        with torch.no_grad():
            hook(s, logs, run)
