"""Scores of students that were not trained, to choose one by; beside them, what training would have said.

A proxy is a frozen dataclass that is called with the student, its teacher (both with weights drawn at random) and the run,
and gives a number: the larger, the better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..core.engine import Loop, fit, to_device
from ..core.method import Method
from ..core.optim import Optim
from ..core.run import Run, RunError, seed_of
from ..core.stage import Judge
from ..models.call import dense
from ..models.own import OwnModule
from ..models.space import flops_of, parameters_of
from ..models.taps import layers, penultimate, tapped
from ..objectives.divergences import cross_entropy
from ..objectives.proxies import code_products, log_volume
from .validation import Validation


@dataclass(frozen=True, slots=True)
class Look:
    """What an untrained network makes of one labelled batch."""

    features: Tensor  # [B, ...] the last map or tokens, before they are pooled; without either what the last layer reads
    head: Tensor  # [K, d] gradient of the mean cross-entropy in the last layer's weights
    gradient: float  # its length in all weights
    agreement: Tensor  # [B, B] on how many activations two items agree


class Untrained:
    """A network of random weights beside the items that it is looked at with; made and looked at when first asked."""

    def __init__(self, spec: Any, items: Sequence[int], run: Run, draw: int = 0, *, teacher: bool = False):
        self.spec, self.items, self.run = spec, items, run
        self.seed, self.teacher = seed_of(run.seed, "untrained", draw, teacher), teacher

    @cached_property
    def module(self) -> nn.Module:
        """The network, all of it free to learn."""
        module = _forgotten(self.spec, self.run, self.seed) if self.teacher else _drawn(self.spec, self.run, self.seed)
        return module.to(self.run.device).train().requires_grad_(True)

    @cached_property
    def parameters(self) -> int:
        """How many it has."""
        return parameters_of(self.module)

    @cached_property
    def flops(self) -> int:
        """Operations for one item."""
        return flops_of(self.module, self._batch(1))

    @cached_property
    def look(self) -> Look:
        """One forward and one backward pass."""
        module, classes = self.module, self.run.source.classes
        found = layers(module, self._batch(2))
        read = penultimate(found, classes)
        places = {"map": slice(1, None), "tokens": slice(0, 1)}  # the axes of an item that are places, not channels
        maps = [x.name for x in found if x.form in places and min(x.shape[places[x.form]]) > 1]
        tap = [read, *maps][-1]
        codes, batch = _Codes(len(self.items)), self._batch(len(self.items))
        with torch.random.fork_rng(devices=[]), codes:
            torch.manual_seed(self.seed)  # of dropout
            logits, seen = tapped(module, batch, [tap])
        loss = cross_entropy(dense(logits), batch["labels"]).mean()
        head: Any = module.get_submodule(read.removesuffix(":in")).weight
        weights = list(module.parameters())
        slopes = torch.autograd.grad(loss, weights, allow_unused=True)
        own = next(slope for weight, slope in zip(weights, slopes, strict=True) if weight is head)
        norm = sum(float(slope.double().square().sum()) for slope in slopes if slope is not None) ** 0.5
        return Look(seen[tap].detach(), torch.as_tensor(own), norm, codes.agreement)

    def _batch(self, count: int) -> Any:
        return to_device(self.run.source.batch(self.items[:count], 0), self.run.device)


def _drawn(spec: Any, run: Run, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return spec.build(run)


def _forgotten(spec: Any, run: Run, seed: int) -> nn.Module:
    """The module with weights drawn at random, whatever weights its spec brings along."""
    spec = replace(spec, weights=None) if isinstance(spec, OwnModule) else spec
    module = _drawn(spec, run, seed)
    other = dict(_drawn(spec, run, seed + 1).named_parameters())
    if all(torch.equal(weight, other[name]) for name, weight in module.named_parameters()):  # so they were not drawn
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for part in module.modules():
                again: Any = getattr(part, "reset_parameters", None)
                if callable(again):
                    again()
    return module


class _Codes(TorchDispatchMode):
    """Sees which units are on after every activation function, in modules and in plain calls alike."""

    KINDS = ("relu", "relu_", "gelu", "silu", "silu_", "hardtanh", "hardtanh_", "leaky_relu", "leaky_relu_")

    def __init__(self, items: int):
        super().__init__()
        self.items, self.agreement = items, torch.zeros(items, items, dtype=torch.float64)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in self.KINDS and given.shape[:1] == (self.items,):
            self.agreement += code_products(given.detach() > 0).cpu()
        return given


class Proxy(Protocol):
    """A number about a student, the larger the better: a frozen dataclass.

    One that has nothing to do with the draw of random weights says so with `once: ClassVar[bool] = True`.
    """

    def __call__(self, student: Untrained, teacher: Untrained, run: Run) -> float:
        """What it says of this student for this teacher."""
        ...


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """The number of parameters: the more, the better."""

    def __call__(self, student: Untrained, teacher: Untrained, run: Run) -> float:
        """Of the student."""
        return float(student.parameters)


@dataclass(frozen=True, kw_only=True)
class GradientNorm:
    """The length of the gradient of the cross-entropy in all weights before training."""

    def __call__(self, student: Untrained, teacher: Untrained, run: Run) -> float:
        """Of the student."""
        return student.look.gradient


@dataclass(frozen=True, kw_only=True)
class Activity:
    """How unlike the items of a batch are by which units they switch on, as in "Neural Architecture Search without Training"
    (Mellor et al. 2020, arXiv 2006.04647; written from memory). Units of other functions than ReLU are on where they give
    more than 0, which is ours."""

    def __call__(self, student: Untrained, teacher: Untrained, run: Run) -> float:
        """Of the student."""
        return log_volume(student.look.agreement)


@dataclass(frozen=True, kw_only=True)
class Chance:
    """A number drawn at random for each student; other seeds draw others."""

    def __call__(self, student: Untrained, teacher: Untrained, run: Run) -> float:
        """From 0 to 1."""
        return seed_of(run.seed, "chance", repr(student.spec)) / 2**63


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a judge says of the student after some training: no proxy, but what proxies stand for, at its price."""

    method: Method
    steps: int
    batch: int = 64
    optim: Optim = Optim()
    judge: Judge = Validation(quantity="accuracy")
    once: ClassVar[bool] = True

    def __call__(self, student: Untrained, teacher: Untrained, run: Run) -> float:
        """Trained from the weights that a training stage would begin with."""
        own = replace(run, horizon=self.steps, step=0)
        with torch.random.fork_rng(devices=[]):
            module = _drawn(student.spec, run, run.seed).to(run.device).train()
            state = self.method.setup(module, own).to(run.device)
            loop = Loop(self.method, state, own, self.optim)
            fit(loop, run.source, steps=self.steps, size=min(self.batch, len(run.source)))
            loop.close()
            with torch.no_grad():
                return self.judge(state.get_submodule("student").eval(), own)


def labelled(source: Any, count: int, draw: torch.Generator) -> list[int]:
    """Up to `count` items of known class, at random; RunError if there are none."""
    order: list[int] = torch.randperm(len(source), generator=draw).tolist()
    kept: list[int] = []
    for begin in range(0, len(order), count):
        part = order[begin : begin + count]
        labels = source.batch(part, 0)["labels"]
        if labels.ndim != 1:
            raise RunError("a student is looked at with items that have one class each; these have more")
        kept += [item for item, label in zip(part, labels.tolist(), strict=True) if label >= 0]
        if len(kept) >= count:
            break
    if not kept:
        raise RunError("a student is looked at with labelled items, and no label of the training split is known")
    return kept[:count]
