"""How well does each model classify held-out items, how sure is it, and how near is it to its teacher?"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..core.engine import to_device
from ..core.report import Finding
from ..core.run import Run
from ..core.signal import HeadLogits
from ..core.stage import Subjects
from ..models.call import dense, logits_of
from .significance import Interval, bootstrap

Better = Literal["higher", "lower", "neither"]
BINS = 15  # of equal width, for the calibration error


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number about predictions: what is summed over items, and what is made of the sums."""

    name: str
    better: Better
    unit: str
    columns: Callable[[Tensor, Tensor], Tensor]  # log-probabilities [n, V], labels or the teacher's -> [n, k]
    statistic: Callable[[Tensor], Tensor]  # means [draws, k] over items -> [draws]
    most: float = 1.0  # the largest value there can be; the smallest is 0


@dataclass(frozen=True, kw_only=True)
class Classification:
    """Accuracy, calibration and loss with their intervals, and the last subject's paired differences to the others.

    Agreement and divergence are measured against the recipe's teacher, if it has exactly one. Not for language models,
    whose tokens are not independent items.
    """

    split: str = "test"
    batch: int = 256  # items at a time
    draws: int = 2000  # of the bootstrap

    def __call__(self, run: Run, subjects: Subjects) -> Iterator[Finding]:
        """The findings about every subject."""
        batches = list(self._batches(run))
        labels = torch.cat([batch["labels"] for batch in batches])
        teacher = self._teacher(run, batches)
        said: dict[str, Tensor] = {}
        for name in subjects.names:
            module = subjects.load(name)
            began = time.perf_counter()
            said[name] = _log_probabilities(module, batches, run)
            seconds = time.perf_counter() - began
            yield Finding(name="parameters", value=_parameters(module), subject=name, better="lower")
            yield Finding(
                name="items_per_second", value=len(labels) / seconds, subject=name, better="higher", split=self.split,
                n=len(labels), note=f"{run.device.type}, {torch.get_num_threads()} threads, {self.batch} at a time",
            )  # fmt: skip
        for quantity, target in _questions(labels, teacher):
            yield from self._findings(quantity, target, said)

    def _findings(self, quantity: Quantity, target: Tensor, said: Mapping[str, Tensor]) -> Iterator[Finding]:
        known: Any = slice(None) if target.ndim > 1 else target >= 0
        columns = {name: quantity.columns(log_q[known], target[known]) for name, log_q in said.items()}
        width = next(iter(columns.values())).shape[1]

        def value(sums: Tensor, n: int) -> Tensor:
            return quantity.statistic(sums / n)

        def finding(subject: str, found: Interval, versus: str | None = None) -> Finding:
            return Finding(
                name=quantity.name, value=found.value, subject=subject, better=quantity.better, unit=quantity.unit,
                low=found.low, high=found.high, n=found.n, over="items", versus=versus, split=self.split,
            )  # fmt: skip

        for name, own in columns.items():
            n = len(own)
            found = bootstrap(own, lambda s, n=n: value(s, n), draws=self.draws)
            inside = replace(found, low=max(found.low, 0.0), high=min(found.high, quantity.most))
            yield finding(name, inside)
        judged = list(columns)[-1]
        for name, other in columns.items():
            if name == judged:
                continue
            both = torch.cat([columns[judged], other], -1)

            def gap(sums: Tensor, n: int = len(both)) -> Tensor:
                return value(sums[:, :width], n) - value(sums[:, width:], n)

            yield finding(judged, bootstrap(both, gap, draws=self.draws), versus=name)

    def _batches(self, run: Run) -> Iterable[Mapping[str, Any]]:
        source = run.sources()[self.split]
        for begin in range(0, len(source), self.batch):
            yield source.batch(range(begin, min(begin + self.batch, len(source))), 0)

    def _teacher(self, run: Run, batches: Iterable[Mapping[str, Any]]) -> Tensor | None:
        if len(run.teachers) != 1 or "logits" not in run.teacher.gives:
            return None
        given = (run.teacher(to_device(b, run.device), frozenset({"logits"})).need("logits") for b in batches)
        return torch.cat([_normalised(logits) for logits in given])


def _questions(labels: Tensor, teacher: Tensor | None) -> Iterator[tuple[Quantity, Tensor]]:
    for quantity in (ACCURACY, NLL, ECE):
        yield quantity, labels
    if teacher is not None:
        for quantity in (AGREEMENT, KL):
            yield quantity, teacher


def _log_probabilities(module: nn.Module, batches: Iterable[Mapping[str, Any]], run: Run) -> Tensor:
    """[n, V] float64 on the CPU."""
    with torch.no_grad():
        return torch.cat([_normalised(logits_of(module, to_device(batch, run.device))) for batch in batches])


def _normalised(logits: Tensor | HeadLogits) -> Tensor:
    return dense(logits).detach().to("cpu", torch.float64).log_softmax(-1)


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _first(means: Tensor) -> Tensor:
    return means[:, 0]


def _right(log_q: Tensor, labels: Tensor) -> Tensor:
    return (log_q.argmax(-1) == labels).double().unsqueeze(-1)


def _surprise(log_q: Tensor, labels: Tensor) -> Tensor:
    return -log_q.gather(-1, labels.unsqueeze(-1))


def _overconfidence(log_q: Tensor, labels: Tensor) -> Tensor:
    """Confidence minus rightness, in the column of the bin that the confidence falls into."""
    confidence = log_q.amax(-1).exp()
    bins = (confidence * BINS).long().clamp(max=BINS - 1)
    return torch.nn.functional.one_hot(bins, BINS) * (confidence.unsqueeze(-1) - _right(log_q, labels))


def _calibration_error(means: Tensor) -> Tensor:
    return means.abs().sum(-1)


def _same_choice(log_q: Tensor, log_p: Tensor) -> Tensor:
    return _right(log_q, log_p.argmax(-1))


def _divergence(log_q: Tensor, log_p: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(-1, keepdim=True)


ACCURACY = Quantity("accuracy", "higher", "", _right, _first)
NLL = Quantity("nll", "lower", "nats/item", _surprise, _first, math.inf)
ECE = Quantity("ece", "lower", "", _overconfidence, _calibration_error)  # Guo et al. 2017, Eq. 3
AGREEMENT = Quantity("agreement", "higher", "", _same_choice, _first)
KL = Quantity("kl", "lower", "nats/item", _divergence, _first, math.inf)
