"""How well does each client classify the common held-out items, how well do they on average, and what was sent?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.engine import to_device
from ..core.report import Finding
from ..core.run import Run, RunError
from ..core.stage import Subjects
from ..data.clients import Federated
from ..models.call import dense
from ..models.clients import Several, weight_bytes
from .significance import Interval, bootstrap_mean, paired_bootstrap


@dataclass(frozen=True, kw_only=True)
class ClientAccuracy:
    """Accuracy of each client, their mean, that of their averaged scores; bytes that all clients send and receive.

    Intervals are over items, and the last subject's mean is compared with the others' on the same items. Bytes follow
    from what the method says that it sends (`traffic`, `rounds`); nothing is sent here, all clients are in one process.
    """

    split: str = "test"
    batch: int = 256  # items at a time
    draws: int = 2000  # of the bootstrap

    def __call__(self, run: Run, subjects: Subjects) -> Iterator[Finding]:
        """The findings about every subject."""
        source = run.sources()[self.split]
        if not len(source):
            raise RunError(f"the {self.split} split is empty; hold out a share of the items to judge by")
        means: dict[str, Tensor] = {}
        for name in subjects.names:
            module = subjects.load(name)
            if not isinstance(module, Several):
                raise RunError(f"{name!r} is not several clients; judge it with audits.classification.Classification")
            right, together = self._right(module, source, run)
            means[name] = right.mean(1)
            yield self._finding("accuracy", name, self._mean(means[name]), note="Mean over the clients.")
            for number in range(len(module)):
                yield self._finding(f"accuracy_client{number}", name, self._mean(right[:, number]))
            yield self._finding("accuracy_consensus", name, self._mean(together), note="Of the clients' averaged scores.")
            yield Finding(
                name="parameters", value=sum(p.numel() for p in module.parameters()), subject=name, better="lower",
                note="Of all clients.",
            )  # fmt: skip
            yield from self._traffic(run, name, module)
        judged = list(means)[-1]
        for name, other in means.items():
            if name != judged:
                gap = paired_bootstrap(means[judged], other, draws=self.draws)
                yield self._finding("accuracy", judged, gap, versus=name)

    def _right(self, module: Several, source: Any, run: Run) -> tuple[Tensor, Tensor]:
        """Whether each client is right about each item, [n, clients], and whether their average is, [n]; float64."""
        own: list[Tensor] = []
        together: list[Tensor] = []
        with torch.no_grad():
            for begin in range(0, len(source), self.batch):
                items = range(begin, min(begin + self.batch, len(source)))
                batch: Any = to_device(source.batch(items, 0), run.device)
                scores = torch.stack([dense(s) for s in module.each(batch["inputs"])], 1)
                own.append((scores.argmax(-1) == batch["labels"][:, None]).double().cpu())
                together.append((scores.mean(1).argmax(-1) == batch["labels"]).double().cpu())
        return torch.cat(own), torch.cat(together)

    def _traffic(self, run: Run, name: str, module: Several) -> Iterator[Finding]:
        """Bytes of one round and of all rounds, and what a round would take that sends weights instead."""
        stage = run.recipe.stages.get(name)
        method: Any = getattr(stage, "method", None)
        if not hasattr(method, "traffic"):
            return
        source: Federated = run.sources(stage.data)["train"]
        shown = 0 if source.public is None else len(source.public)
        once = method.traffic(module, classes=source.classes, public=shown, items=stage.batch * source.public_each)
        facts: Any = {"subject": name, "better": "lower", "unit": "bytes"}
        yield Finding(name="bytes_per_round", value=once, note="Sent and received by all clients, as float32.", **facts)
        steps = (run.done(name) or {}).get("steps", stage.steps)
        whole = once * method.rounds(steps)
        yield Finding(name="bytes_sent", value=whole, note="Over all rounds.", **facts)
        weights = 2 * weight_bytes(module)
        note = "Of a round in which every client sends and receives its weights (FedAvg, if they had one architecture)."
        yield Finding(name="bytes_per_round_of_weights", value=weights, note=note, **facts)

    def _mean(self, values: Tensor) -> Interval:
        return bootstrap_mean(values, draws=self.draws)

    def _finding(self, what: str, subject: str, found: Interval, versus: str | None = None, note: str = "") -> Finding:
        low, high = (found.low, found.high) if versus else (max(found.low, 0.0), min(found.high, 1.0))
        return Finding(
            name=what, value=found.value, subject=subject, better="higher", low=low, high=high, n=found.n,
            over="items", versus=versus, split=self.split, note=note,
        )  # fmt: skip
