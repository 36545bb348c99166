"""Spaces of students to choose from: every combination of some values of a spec's fields, or of arguments of your function.

space: {use: models.space.Space, of: {use: models.toys.ConvNet}, values: {width: [4, 8], depth: [1, 2, 3]}}
space: {use: models.space.Space, of: {use: models.own.OwnModule, function: "mine.py:student"},
    values: {width: [16, 32], block: [plain, residual]}}
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from ..core.recipe import nearest
from ..core.run import Run, RunError
from ..core.signal import Batch
from .call import logits_of
from .toys import Kept, sizes_of

Choice = tuple[int, ...]  # which value of each field, in the order of `Space.values`


@dataclass(frozen=True, kw_only=True)
class Compact(Kept):
    """A small convolutional network with what a search varies: width, depth, kernel and skips."""

    width: int = 8  # channels of the first stage; each further stage halves the image and doubles them
    depth: int = 2  # stages, of two convolutions each
    kernel: int = 3  # pixels a side, odd
    skip: bool = True  # add a stage's input to what it gives, through a 1x1 convolution
    features: int | None = None  # channels of one more 1x1 convolution at the end; None: there is none
    channels: int | None = None  # of the image; None: as the recipe's data have
    classes: int | None = None  # None: as the recipe's data have

    def __post_init__(self) -> None:
        if min(self.width, self.depth, self.kernel, self.features or 1) < 1 or self.kernel % 2 == 0:
            raise ValueError("width, depth and features are 1 or more, kernel is odd")

    def build(self, run: Run) -> nn.Module:
        """Images `[B, channels, H, W]` to logits `[B, classes]`."""
        shape, classes = sizes_of(run, None if self.channels is None else (self.channels,), self.classes)
        return CompactNet(self, shape[0], classes)


class CompactNet(nn.Module):
    """Stages, each but the last followed by a halving, a 1x1 convolution if asked, the mean, the head."""

    def __init__(self, spec: Compact, channels: int, classes: int):
        super().__init__()
        widths = [channels, *(spec.width * 2**i for i in range(spec.depth))]
        self.stages = nn.ModuleList(
            CompactStage(a, b, spec.kernel, spec.skip) for a, b in zip(widths, widths[1:], strict=False)
        )
        last = spec.features or widths[-1]
        end = nn.Conv2d(widths[-1], last, 1, bias=False), nn.GroupNorm(math.gcd(8, last), last), nn.ReLU()
        self.end = nn.Sequential(*end) if spec.features else nn.Identity()
        self.head = nn.Linear(last, classes)

    def forward(self, images: Tensor) -> Tensor:
        """`[B, C, H, W]` to `[B, classes]`."""
        x = images.to(self.head.weight.dtype)
        for number, stage in enumerate(self.stages):
            x = stage(F.max_pool2d(x, 2) if number and min(x.shape[-2:]) > 1 else x)
        return self.head(self.end(x).mean((-2, -1)))


class CompactStage(nn.Module):
    """Two convolutions with group norms (batch norm would see how a batch is split), and a skip around both."""

    def __init__(self, inputs: int, width: int, kernel: int, skip: bool):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, kernel, padding=kernel // 2, bias=False)
        self.conv2 = nn.Conv2d(width, width, kernel, padding=kernel // 2, bias=False)
        self.norm1, self.norm2 = (nn.GroupNorm(math.gcd(8, width), width) for _ in range(2))
        self.skip = nn.Conv2d(inputs, width, 1, bias=False) if skip else None

    def forward(self, x: Tensor) -> Tensor:
        """`[B, inputs, H, W]` to `[B, width, H, W]`."""
        inner = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))
        return (inner if self.skip is None else inner + self.skip(x)).relu()


@dataclass(frozen=True, kw_only=True)
class Space:
    """All students that `of` gives with one of its values for each field.

    A name is a field of `of` or, if that calls a function of yours (models.own.OwnModule), an argument of the function.
    """

    of: Any = Compact()  # ModelSpec
    values: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict[str, tuple[Any, ...]])

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("a space needs values: a list of them for each field that varies")
        for name, values in self.values.items():
            if not values:
                raise ValueError(f"a space needs a list of values for each field, and {name!r} has none")

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many values each field has."""
        return tuple(len(values) for values in self.values.values())

    def __len__(self) -> int:
        return math.prod(self.sizes)

    def __iter__(self) -> Iterator[Choice]:
        for number in range(len(self)):
            choice: list[int] = []
            for size in reversed(self.sizes):
                number, index = divmod(number, size)
                choice.append(index)
            yield tuple(reversed(choice))

    def settings(self, choice: Sequence[int]) -> dict[str, Any]:
        """The value of each field."""
        return {name: values[index] for (name, values), index in zip(self.values.items(), choice, strict=True)}

    def spec(self, settings: Mapping[str, Any]) -> Any:
        """The ModelSpec; ValueError if it refuses these values, RunError if it has no such field."""
        fields = {f.name for f in dataclasses.fields(self.of)}
        own = {name: value for name, value in settings.items() if name in fields}
        arguments = {name: value for name, value in settings.items() if name not in fields}
        if arguments and "kwargs" not in fields:
            raise RunError(f"{type(self.of).__name__} has no {min(arguments)!r} to vary{nearest(min(arguments), fields)}")
        if arguments:
            own["kwargs"] = {**self.of.kwargs, **own.get("kwargs", {}), **arguments}
        return dataclasses.replace(self.of, **own)

    def random(self, draw: torch.Generator) -> Choice:
        """Any student."""
        return tuple(int(torch.randint(size, (), generator=draw)) for size in self.sizes)

    def mutated(self, choice: Choice, draw: torch.Generator) -> Choice:
        """The same student with another value of one field."""
        several = [place for place, size in enumerate(self.sizes) if size > 1]
        if not several:
            return choice
        place = several[int(torch.randint(len(several), (), generator=draw))]
        other = (choice[place] + 1 + int(torch.randint(self.sizes[place] - 1, (), generator=draw))) % self.sizes[place]
        return (*choice[:place], other, *choice[place + 1 :])


@dataclass(frozen=True, kw_only=True)
class Picked:
    """The student that a stage of this run (`audits.search.Search`) chose from its space."""

    stage: str = "search"

    def spec(self, run: Run) -> Any:
        """Its ModelSpec."""
        best = run.load_json(self.stage)["ranked"][0]
        space: Space = run.recipe.stages[self.stage].space
        return space.spec(space.settings(best["choice"]))

    def build(self, run: Run) -> nn.Module:
        """The module as training finds it."""
        return self.spec(run).build(run)

    def save(self, module: nn.Module, folder: Path, run: Run) -> None:
        """As its spec keeps it."""
        self.spec(run).save(module, folder, run)

    def load(self, folder: Path, run: Run) -> nn.Module:
        """As its spec reads it."""
        return self.spec(run).load(folder, run)


def parameters_of(module: nn.Module) -> int:
    """How many numbers it learns; a tied matrix counts once."""
    return sum(p.numel() for p in module.parameters())


@torch.no_grad()
def flops_of(module: nn.Module, item: Batch) -> int:
    """Floating-point operations for one item: two for each product and sum of convolutions, linear layers and attention.

    What works number by number (norms, activations, pooling) is left out, as usual.
    """
    counter = FlopCounterMode(display=False)
    modes = [(part, part.training) for part in module.modules()]
    try:
        with counter:
            logits_of(module.eval(), item)
    finally:
        for part, was in modes:
            part.training = was
    return counter.get_total_flops()
