"""Two networks that see two parts of an image, and one that makes an answer of both of theirs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..core.run import Run
from .call import dense, logits_of
from .toys import Kept, sizes_of

Part = Literal["inside", "around", "whole"]


@dataclass(frozen=True)
class Half:
    """What a model spec may ask of a run, if its images were one part of a pair: their shape has half the channels."""

    run: Run

    def sources(self, spec: Any = None) -> Any:
        """The splits, their shape alone changed."""
        return {name: _Seen(source) for name, source in self.run.sources(spec).items()}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.run, name)


class _Seen:
    def __init__(self, source: Any):
        self.source = source
        channels = source.shape[0] // 2
        self.shape = (channels, *source.shape[1:])
        self.mean, self.deviation = source.mean[:channels], source.deviation[:channels]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)


@dataclass(frozen=True, kw_only=True)
class View(Kept):
    """A model that sees one part of each pair of images (`data.regions`)."""

    of: Any  # ModelSpec
    part: Part = "inside"  # the region, what is around it, or the image

    def build(self, run: Run) -> nn.Module:
        """Pairs `[B, 2 C, H, W]` to logits `[B, classes]`."""
        return Viewing(self.of.build(Half(run)), self.part)


class Viewing(nn.Module):
    """`module` with one part of what it is called with."""

    def __init__(self, module: nn.Module, part: Part):
        super().__init__()
        self.module, self.part = module, part

    def forward(self, pairs: Tensor, **more: Any) -> Any:
        """What the module makes of its part."""
        channels = pairs.shape[1] // 2
        inside, around = pairs[:, :channels], pairs[:, channels:]
        return self.module({"inside": inside, "around": around, "whole": inside + around}[self.part], **more)


@dataclass(frozen=True, kw_only=True)
class LateFusion(Kept):
    """The networks that earlier stages left, frozen, and a perceptron over their logits.

    With `unfrozen` they learn on.
    """

    stages: tuple[str, ...] = ("inside", "around")
    width: int = 640  # of the perceptron's hidden layer
    unfrozen: bool = False

    def build(self, run: Run) -> nn.Module:
        """What the parts are called with to logits `[B, classes]`."""
        parts: list[nn.Module] = []
        for name in self.stages:
            stage: Any = run.recipe.stages[name]
            spec = stage.student or run.recipe.student
            parts.append(spec.load(run.path(name), run) if run.done(name) else spec.build(run))
        _, classes = sizes_of(run, None, None)
        return Fused(parts, classes, self.width, self.unfrozen)


class Fused(nn.Module):
    """`parts` and `head`; parts that are frozen stay in evaluation mode."""

    def __init__(self, parts: list[nn.Module], classes: int, width: int, unfrozen: bool):
        super().__init__()
        self.parts, self.unfrozen = nn.ModuleList(parts), unfrozen
        self.parts.requires_grad_(unfrozen)
        self.head = nn.Sequential(nn.Linear(classes * len(parts), width), nn.ReLU(), nn.Linear(width, classes))
        self.train()

    def train(self, mode: bool = True) -> Fused:
        """As usual, the frozen parts left out."""
        super().train(mode)
        if not self.unfrozen:
            self.parts.eval()
        return self

    def forward(self, inputs: Tensor) -> Tensor:
        """`[B, ...]` to `[B, classes]`."""
        with torch.set_grad_enabled(self.unfrozen and torch.is_grad_enabled()):
            said = torch.cat([dense(logits_of(part, {"inputs": inputs})) for part in self.parts], -1)
        return self.head(said)
