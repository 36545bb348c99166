"""A student that classifies with its teacher's own head: its features are brought to the teacher's, and the head is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.engine import to_device
from ..core.run import Run, RunError
from .call import logits_of
from .taps import as_map, chosen, ends_of_stages, layers, penultimate, shape_at, tapped
from .toys import Kept


@dataclass(frozen=True, kw_only=True)
class Borrowing(Kept):
    """`own`, a block that brings its last map to its teacher's, and the teacher's last linear layer, which stays as it is.

    What is brought to the teacher's is the end of the student's last stage. If the teacher's head reads the mean of the map
    at the end of its last stage, that map is to be reached; else the vector that the head reads, as a map of one cell. The
    block is that of SimKD (Chen et al. 2022, arXiv 2203.14001): 1x1, 3x3 and 1x1 convolutions with batch norms and ReLUs,
    after the larger map was averaged down to the smaller one's size.
    """

    own: Any  # ModelSpec
    teacher: str = "teacher"  # whose head
    layer: str = ""  # of the student; empty: found by a dry run
    reached: str = ""  # of the teacher; empty: found by a dry run

    def build(self, run: Run) -> nn.Module:
        """Inputs `[B, ...]` to logits `[B, classes]`, those of the teacher's head."""
        module = teacher_module(run, self.teacher)
        own = self.own.build(run)
        source = run.sources()["train"]
        batch = source.batch(range(min(4, len(source))), 0)
        mine = layers(own, batch)
        tap = (
            chosen(mine, [self.layer])[0]
            if self.layer
            else (ends_of_stages(mine) or [penultimate(mine, source.classes)])[-1]
        )
        own_shape = tuple(as_map(torch.empty(1, *shape_at(mine, tap), device="meta")).shape[1:])
        found = target(module, to_device(batch, run.device), source.classes, self.reached)
        return Borrower(own, tap, own_shape, found.shape, module.get_submodule(found.head))


class Target(NamedTuple):
    """Where a teacher's head is and what is to be reached in front of it."""

    head: str  # name of the linear layer
    tap: str
    shape: tuple[int, int, int]  # of one item at the tap, as a map


def target(module: nn.Module, batch: Any, classes: int, layer: str = "") -> Target:
    """What a student that borrows this module's head has to compute; RunError if a named layer's mean is not what the
    head reads, or if the logits are not what the head gives."""
    found = layers(module, batch)
    read = penultimate(found, classes)
    head = read.removesuffix(":in")
    names = [layer] if layer else ends_of_stages(found)[-1:]
    with torch.no_grad():
        logits, seen = tapped(module.eval(), batch, [read, head, *chosen(found, names)])
        vector = seen[read]
        if vector.ndim != 2 or not torch.equal(seen[head], torch.as_tensor(logits)):
            raise RunError(f"the teacher's logits are not what its layer {head!r} makes of one vector, so it cannot be lent")
        for name in names:
            reached = as_map(seen[name])
            mean = reached.mean((2, 3))
            if mean.shape == vector.shape and torch.allclose(mean, vector, rtol=1e-3, atol=1e-4):
                return Target(head, name, (reached.shape[1], reached.shape[2], reached.shape[3]))
            if layer:
                raise RunError(f"the teacher's head {head!r} does not read the mean of {layer!r}; leave `reached` out")
    return Target(head, read, (vector.shape[1], 1, 1))


def teacher_module(run: Run, name: str) -> nn.Module:
    """The module of a teacher of the run; RunError if there is none."""
    teacher: Any = run.teachers.get(name)
    if not hasattr(teacher, "module"):
        raise RunError(f"no teacher {name!r} that is a model here (teachers.module.ModuleTeacher), whose head could be lent")
    return teacher.module


class Borrower(nn.Module):
    """`own`, `transfer`, `head`: what `transfer` gives is to be like the teacher's map, and `head` reads its mean."""

    def __init__(self, own: nn.Module, tap: str, mine: tuple[int, ...], theirs: tuple[int, int, int], head: Any):
        super().__init__()
        self.own, self.tap = own, tap
        self.size = min(mine[1], theirs[1]), min(mine[2], theirs[2])
        between = max(1, theirs[0] // 2)
        self.transfer = nn.Sequential(
            *_normed(mine[0], between, 1), *_normed(between, between, 3), *_normed(between, theirs[0], 1)
        )
        weight: Tensor = head.weight.detach()
        self.head = nn.Linear(weight.shape[1], weight.shape[0], bias=head.bias is not None)
        with torch.no_grad():
            self.head.weight.copy_(weight)
            if head.bias is not None:
                self.head.bias.copy_(head.bias)
        self.head.requires_grad_(False)

    def forward(self, inputs: Any) -> Tensor:
        """The teacher's head on the student's features, `[B, classes]`."""
        own = as_map(tapped(self.own, {"inputs": inputs}, [self.tap])[1][self.tap])
        found = self.transfer(F.adaptive_avg_pool2d(own, self.size))
        return self.head(found.mean((2, 3)))


def _normed(inputs: int, width: int, size: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, width, size, padding=size // 2, bias=False), nn.BatchNorm2d(width), nn.ReLU()


def plain_logits(module: nn.Module, batch: Any) -> Tensor:
    """The module's logits in evaluation mode and without gradient, its mode as before."""
    was = module.training
    with torch.no_grad():
        logits = logits_of(module.eval(), batch)
    module.train(was)
    return logits if isinstance(logits, Tensor) else logits.dense()
