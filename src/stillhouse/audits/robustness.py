"""How often is a model right on held-out images, and how often still when they were changed to fool it?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core.engine import to_device
from ..core.report import Finding
from ..core.run import Run, RunError
from ..core.stage import Subjects
from ..models.attacks import Attack, light_of, noise_by_item
from ..models.elastic import logits_by, members_of, recalibrated
from ..objectives.divergences import cross_entropy
from .significance import bootstrap_mean

NOTES = {"accuracy": "as they are", "robust_accuracy": "each changed so that this network errs"}


@dataclass(frozen=True, kw_only=True)
class Robustness:
    """Accuracy, and accuracy under an attack that knows the network; of a family of networks the mean over its members.

    The attack raises the cross-entropy with the label. An image that is wrong as it is counts as wrong under attack.
    """

    split: str = "test"
    attack: Attack = Attack(steps=20)
    items: int | None = None  # look at the first so many images alone: attacks take long
    batch: int = 250  # items at a time
    calibration: int = 512  # training images that batch norms of a family's members are recalibrated on

    def __call__(self, run: Run, subjects: Subjects) -> Iterator[Finding]:
        """The findings about every subject."""
        source = run.sources()[self.split]
        if not hasattr(source, "light"):
            raise RunError("robustness is about images: give data of images")
        count = len(source) if self.items is None else min(self.items, len(source))
        batches = [b for b in self._batches(source, count, run) if len(b["labels"])]
        train = run.sources()["train"]
        seen = list(self._batches(train, min(self.calibration, len(train)), run))
        for name in subjects.names:
            module = subjects.load(name)
            each = torch.stack([self._right(module, i, batches, seen, run) for i in range(len(members_of(module)))])
            several = f", mean of {len(each)} networks" if len(each) > 1 else ""
            for column, metric in enumerate(NOTES):
                found = bootstrap_mean(each[:, :, column].mean(0))
                yield Finding(
                    name=metric, value=found.value, subject=name, better="higher", low=found.low, high=found.high,
                    n=found.n, over="items", split=self.split, note=f"{NOTES[metric]}{several}",
                )  # fmt: skip

    def _right(
        self, module: nn.Module, member: int, batches: Sequence[Mapping[str, Any]], seen: Sequence[Any], run: Run
    ) -> Tensor:
        """[n, 2]: is this member right, and is it under attack?"""
        light = light_of(run.sources()["train"]).to(run.device)
        found: list[Tensor] = []
        with recalibrated(module, member, seen) as network:
            for number, batch in enumerate(batches):
                labels = batch["labels"]

                def value(images: Tensor, batch: Any = batch, labels: Tensor = labels) -> Tensor:
                    return cross_entropy(logits_by(network, {**batch, "inputs": images}, member), labels)

                items = range(number * self.batch, number * self.batch + len(labels))
                noise = noise_by_item(batch["inputs"], items, "audit")
                changed = self.attack(value, batch["inputs"], light, noise=noise)
                with torch.no_grad():
                    right = logits_by(network, batch, member).argmax(-1) == labels
                    still = logits_by(network, {**batch, "inputs": changed}, member).argmax(-1) == labels
                found.append(torch.stack([right, right & still], -1)[labels >= 0].cpu())
        return torch.cat(found).double()

    def _batches(self, source: Any, count: int, run: Run) -> Iterator[Mapping[str, Any]]:
        for begin in range(0, count, self.batch):
            yield to_device(source.batch(range(begin, min(begin + self.batch, count)), 0), run.device)
