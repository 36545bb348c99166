"""How well does each model classify nodes, those that arrive after training among them, and how fast does it answer?"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ..core.engine import to_device
from ..core.report import Finding
from ..core.run import Run, seed_of
from ..core.stage import Subjects
from ..models.call import logits_of
from .classification import Classification


@dataclass(frozen=True, kw_only=True)
class NodeClassification:
    """What `Classification` asks, about nodes, and the time from a question to its answer.

    In the inductive setting `accuracy` is about nodes that no training saw, in the whole graph, and `accuracy_observed`
    about the other test nodes, in the graph that training saw. `latency` is the time to answer for a few nodes: a graph
    network fetches what it needs of their neighbourhood, a network on features its rows.
    """

    split: str = "test"
    draws: int = 2000  # of the bootstrap
    asked: int = 10  # nodes in one question
    repeats: int = 40  # questions

    def __call__(self, run: Run, subjects: Subjects) -> Iterator[Finding]:
        """The findings about every subject."""
        source: Any = run.sources()[self.split]
        usual = Classification(split=self.split, batch=max(1, len(source)), draws=self.draws)
        for found in usual(run, subjects):
            if found.name != "items_per_second":  # says how fast a graph is gone through at once, which nobody does
                yield replace(found, note="; ".join(part for part in (found.note, source.origin) if part))
        if self.split == "test" and "observed" in run.sources():
            size = max(1, len(run.sources()["observed"]))
            for found in replace(usual, split="observed", batch=size)(run, subjects):
                if found.name == "accuracy":
                    yield replace(found, name="accuracy_observed", note="test nodes that training saw without a label")
        for name in subjects.names:
            times = sorted(self._times(subjects.load(name), source, run))
            low, high = around_median(len(times))
            yield Finding(
                name="latency", value=statistics.median(times), subject=name, better="lower", unit="ms", low=times[low],
                high=times[high], n=len(times), over="questions", split=self.split,
                note=f"median for {self.asked} nodes at a time, {run.device.type}, {torch.get_num_threads()} threads",
            )  # fmt: skip

    @torch.no_grad()
    def _times(self, module: nn.Module, source: Any, run: Run) -> Iterator[float]:
        """Milliseconds of every question, after a few that do not count."""
        draw = torch.Generator().manual_seed(seed_of("latency"))
        hops = getattr(module, "hops", 0)
        for number in range(-3, self.repeats):
            items = torch.randperm(len(source), generator=draw)[: self.asked]
            batch = to_device(source.batch(items.tolist(), 0), run.device)
            inputs = batch["inputs"]
            graph, node = inputs["graph"].on(run.device), inputs["node"]
            if hops:
                graph.around(node[:0], 0)  # the index of the edges is built once, not for every question
            began = time.perf_counter()
            if hops:
                graph, node = graph.around(node, hops)
            logits = logits_of(module, {"inputs": {**inputs, "node": node, "graph": graph}})
            float(logits.sum())  # type: ignore[union-attr]  # waits for an accelerator
            if number >= 0:
                yield 1000 * (time.perf_counter() - began)


def around_median(n: int) -> tuple[int, int]:
    """Which of n sorted numbers bound the 95 % interval of their median (from the binomial's normal limit)."""
    half = 0.98 * math.sqrt(n)
    return max(0, math.floor((n - 1) / 2 - half)), min(n - 1, math.ceil((n - 1) / 2 + half))
