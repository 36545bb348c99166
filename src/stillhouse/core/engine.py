"""The one training loop: lock-step streams.

A method's `step` is a generator of updates. For the micro-batches of one batch the engine makes one generator each,
takes the i-th update of every one, calls `backward` on each sum, adds the counts over micro-batches and ranks, divides
the group's gradient by the total, clips, steps that group's optimizer, and resumes the generators for update i + 1.
Accumulation, several optimizers, alternation, several gradient steps per rollout and data parallelism all follow.
"""

# pyright: reportUnknownMemberType=false
# (torch leaves arguments of some methods untyped)
from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor

from .method import Method, State, Update, advance
from .method import cast as cast_to
from .optim import GroupOptimizer, Optim
from .run import Run, seed_of
from .signal import Batch


class EngineError(RuntimeError):
    """Training cannot go on; the message says what happened and where."""


class Source(Protocol):
    """Items that batches are made of. Pure: the same items and epoch give the same batch, so a resume is exact."""

    def __len__(self) -> int: ...

    def batch(self, items: Sequence[int], epoch: int) -> Batch:
        """The batch of these items; `epoch` seeds whatever is drawn per epoch (augmentation)."""
        ...


def order(n: int, seed: int, start: int, count: int) -> Iterator[tuple[int, int]]:
    """(epoch, item) for the positions start .. start + count of an endless walk, reshuffled every epoch."""
    while count > 0:
        epoch, at = divmod(start, n)
        items = cast("list[int]", _shuffled(n, seed, epoch)[at : at + count].tolist())
        yield from ((epoch, item) for item in items)
        start, count = start + len(items), count - len(items)


@lru_cache(maxsize=4)  # shuffling a million items at every step would cost more than a small model's step
def _shuffled(n: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed_of(seed, "order", epoch)))


def micro_batches(source: Source, *, step: int, size: int, accumulate: int, seed: int) -> list[Batch]:
    """This rank's micro-batches of optimizer step `step`: `size` items over all ranks, in `accumulate` parts each.

    A batch that reaches into the next epoch belongs to the one it begins in, so that what is drawn for an item does
    not depend on how the batch is split.
    """
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    parts = ranks * accumulate
    if size < parts:
        raise EngineError(f"a batch of {size} items cannot be split into {parts} parts; raise the batch size")
    positions = list(order(len(source), seed, step * size, size))
    cuts = [round(i * size / parts) for i in range(parts + 1)]
    mine = range(rank * accumulate, (rank + 1) * accumulate)
    epoch, items = positions[0][0], [item for _, item in positions]
    return [source.batch(items[cuts[part] : cuts[part + 1]], epoch) for part in mine]


def to_device(value: Any, device: torch.device) -> Any:
    """Move every tensor of a batch, through mappings, lists and tuples."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, Mapping):
        named = cast("Mapping[Any, Any]", value)
        return {k: to_device(v, device) for k, v in named.items()}
    if isinstance(value, (list, tuple)):
        parts = cast("list[Any] | tuple[Any, ...]", value)
        if parts and isinstance(parts[0], (Tensor, Mapping)):
            return type(parts)(to_device(v, device) for v in parts)
    return cast("Any", value)


@dataclass
class Loop:
    """A method, its state and its optimizers, one optimizer step at a time."""

    method: Method
    state: State
    run: Run
    optim: Optim
    optims: Mapping[str, Optim] = field(default_factory=dict[str, Optim])
    bfloat16: bool = False
    groups: dict[str, GroupOptimizer] = field(init=False)
    between: bool = field(default=True, init=False)  # no update of the current step has moved anything yet

    def __post_init__(self) -> None:
        self.groups = {}
        unknown = set(self.optims) - set(self.state.groups())
        if unknown:
            raise EngineError(f"no group {sorted(unknown)} to optimize; there are {sorted(self.state.groups())}")
        for name, module in self.state.groups().items():
            masters = None
            if self.bfloat16:  # the masters keep the bits that rounding the parameters loses
                masters = {n: p.detach().float() for n, p in module.named_parameters() if p.requires_grad}
                cast_to(module, torch.bfloat16)
            self.groups[name] = GroupOptimizer(module, self.optims.get(name, self.optim), masters)

    def step(self, batches: Sequence[Batch], *, items: Sequence[int] = ()) -> dict[str, float]:
        """One pass over the micro-batches of one batch; returns the logged means over all items and ranks.

        `items` are what the batch holds, to be named if it breaks the training.
        """
        run, self.between = self.run, True
        streams = [self.method.step(self.state, to_device(batch, run.device), run) for batch in batches]
        totals: dict[str, float] = {}
        index = 0
        while (found := self._advance_streams(streams, index)) is not None:
            index += 1
            group, count, logs = found
            if count <= 0:
                self._clear()
            else:
                if not math.isfinite(logs["loss"]):
                    raise self._not_finite("loss", group, items)
                rate = self.groups[group].optim.rate(run.step, run.horizon)
                norm = float(self.groups[group].step(count, rate))
                if not math.isfinite(norm):
                    raise self._not_finite("gradient", group, items)
                self._clear()
                self.between = False
                totals[f"{group}/gradient_norm"] = norm
                totals[f"{group}/count"] = totals.get(f"{group}/count", 0.0) + count
                for name, value in logs.items():
                    totals[f"{group}/{name}"] = value / count
        before = {name: group.versions() for name, group in self.groups.items()}
        advance(self.method, self.state, totals, run)
        for name, group in self.groups.items():
            group.take_over(before[name])
        self.between = True
        return totals

    def _not_finite(self, what: str, group: str, items: Sequence[int]) -> EngineError:
        self._clear()
        more = f" and {len(items) - 8} more" if len(items) > 8 else ""
        named = f" (training items {', '.join(map(str, items[:8]))}{more})" if items else ""
        return EngineError(
            f"the {what} of {group!r} is not finite at step {self.run.step}; that update was not made. "
            f"Lower the learning rate, or look at that batch{named}"
        )

    def _advance_streams(
        self, streams: Sequence[Iterator[Update]], index: int
    ) -> tuple[str, float, dict[str, float]] | None:
        """Run the `index`-th update of every stream backwards: (group, total count, summed logs); None at the end."""
        groups: set[str | None] = set()
        sums: dict[str, Tensor | float] = {}
        count: Tensor | float = 0.0
        for part, stream in enumerate(streams):
            torch.manual_seed(seed_of(self.run.seed, "step", self.run.step, index, part, _rank()))
            update = next(stream, None)
            groups.add(None if update is None else update.group)
            if update is None:
                continue
            if update.loss.requires_grad:
                update.loss.backward()
            count = count + update.count
            sums["loss"] = sums.get("loss", 0.0) + update.loss.detach()
            for name, value in update.logs.items():
                sums[name] = sums.get(name, 0.0) + (value.detach() if isinstance(value, Tensor) else value)
        names = sorted(sums)
        alike = _same_on_all_ranks(f"{sorted(map(str, groups))} {names}")  # before any rank can leave this function
        if len(groups) != 1 or not alike:
            raise EngineError(
                f"the micro-batches of step {self.run.step} disagree on update {index}: {sorted(map(str, groups))}; "
                "`step` must yield the same updates whatever the batch holds (yield a zero loss with count 0)"
            )
        (group,) = groups
        if group is None:
            return None
        if group not in self.groups:
            raise EngineError(f"no trainable group {group!r}; there are {sorted(self.groups)}")
        parts = [count, *(sums[n] for n in names)]
        packed = torch.stack([torch.as_tensor(v, dtype=torch.float64).cpu() for v in parts])
        if dist.is_initialized():
            dist.all_reduce(packed)
        values = cast("list[float]", packed.tolist())
        return group, values[0], dict(zip(names, values[1:], strict=True))

    def _clear(self) -> None:
        for group in self.groups.values():
            group.clear()

    def state_dict(self) -> dict[str, Any]:
        """Everything that moves: state, masters, optimizer moments. Tensors and plain numbers only."""
        return {"state": self.state.state_dict(), "groups": {n: g.state_dict() for n, g in self.groups.items()}}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`, in place."""
        self.state.load_state_dict(saved["state"])
        for name, group in self.groups.items():
            group.load_state_dict(saved["groups"][name])

    def close(self) -> None:
        """Take the hooks off the modules."""
        for group in self.groups.values():
            group.close()


def _same_on_all_ranks(text: str) -> bool:
    """Ranks that went different ways would wait for each other for ever."""
    if not dist.is_initialized():
        return True
    digest = float(zlib.crc32(text.encode()))
    ends = torch.tensor([digest, -digest], dtype=torch.float64)
    dist.all_reduce(ends, dist.ReduceOp.MAX)
    return bool(ends[0] == -ends[1])


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def fit(
    loop: Loop,
    source: Source,
    *,
    steps: int,
    size: int,
    accumulate: int = 1,
    start: int = 0,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
) -> None:
    """Take the optimizer steps `start` .. `steps`. `run.horizon` is the planned length and is not touched."""
    for step in range(start, steps):
        loop.run.step = step
        batches = micro_batches(source, step=step, size=size, accumulate=accumulate, seed=loop.run.seed)
        logs = loop.step(batches, items=[item for _, item in order(len(source), loop.run.seed, step * size, size)])
        if on_step is not None:
            on_step(step, logs)
