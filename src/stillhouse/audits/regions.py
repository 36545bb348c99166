"""Does a model still know what an image shows when its region of interest stands somewhere else?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ..core.engine import to_device
from ..core.report import Finding
from ..core.run import Run
from ..core.stage import Subjects
from ..data.regions import moved
from ..models.call import dense, logits_of
from .significance import bootstrap_mean


@dataclass(frozen=True, kw_only=True)
class Moved:
    """Accuracy on pairs (`data.regions`) whose region was moved by half the image's sides, around its border."""

    split: str = "test"
    batch: int = 256

    @torch.no_grad()
    def __call__(self, run: Run, subjects: Subjects) -> Iterator[Finding]:
        """One finding for each subject."""
        source = run.sources()[self.split]
        down, right = source.shape[1] // 2, source.shape[2] // 2
        for name in subjects.names:
            module, right_ones = subjects.load(name), []
            for begin in range(0, len(source), self.batch):
                batch = to_device(source.batch(range(begin, min(begin + self.batch, len(source))), 0), run.device)
                said = dense(logits_of(module, {**batch, "inputs": moved(batch["inputs"], down, right)})).argmax(-1)
                known = batch["labels"] >= 0
                right_ones.append((said == batch["labels"])[known].double().cpu())
            found = bootstrap_mean(torch.cat(right_ones))
            yield Finding(
                name="accuracy_moved", value=found.value, subject=name, better="higher", low=found.low, high=found.high,
                n=found.n, over="items", split=self.split, note=f"the region moved by {down} and {right} pixels",
            )  # fmt: skip
