"""How well are the common and the rare classes told apart, and by which head?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core.engine import to_device
from ..core.report import Finding
from ..core.run import Run
from ..core.stage import Subjects
from ..models.call import dense
from ..models.taps import tapped
from ..objectives.balance import thirds
from .significance import bootstrap_mean

HEADS = ("head", "head_distilled")  # of a transformer with a distillation token, see `models.vision.ViT`


@dataclass(frozen=True, kw_only=True)
class Tails:
    """Accuracy over the most common third of the classes, the middle and the rarest, as training has them.

    Of a model with two heads also each one's, and the cosine between what they read: 1 if both tokens say the same.
    """

    split: str = "test"
    batch: int = 256  # items at a time
    draws: int = 2000

    def __call__(self, run: Run, subjects: Subjects) -> Iterator[Finding]:
        """The findings about every subject."""
        counts = run.sources()["train"].labels
        parts = dict(zip(("head", "middle", "tail"), thirds(counts[counts >= 0].bincount()), strict=True))
        for name in subjects.names:
            said, labels, cosines = self._said(subjects.load(name), run)
            for which, logits in said.items():
                right = (logits.argmax(-1) == labels).double()
                for part, classes in parts.items():
                    here = torch.isin(labels, classes)
                    if bool(here.any()):
                        yield self._finding(f"accuracy_{part}{which}", right[here], name, "higher")
            if cosines is not None:
                yield self._finding("token_cosine", cosines, name, "neither")

    def _finding(self, name: str, values: Tensor, subject: str, better: Any) -> Finding:
        found = bootstrap_mean(values.double(), draws=self.draws)
        return Finding(
            name=name, value=found.value, low=found.low, high=found.high, n=found.n, over="items", subject=subject,
            better=better, split=self.split,
        )  # fmt: skip

    @torch.no_grad()
    def _said(self, module: nn.Module, run: Run) -> tuple[dict[str, Tensor], Tensor, Tensor | None]:
        """(logits [n, V] of the model and of its heads by the end of a finding's name, labels [n], cosines [n] or
        None)."""
        two = all(getattr(module, head, None) is not None for head in HEADS)
        taps = [tap for head in HEADS for tap in (head, f"{head}:in")] if two else []
        rows: dict[str, list[Tensor]] = {}
        source = run.sources()[self.split]
        for begin in range(0, len(source), self.batch):
            batch = to_device(source.batch(range(begin, min(begin + self.batch, len(source))), 0), run.device)
            logits, seen = tapped(module, batch, taps)
            found = {"": dense(logits), "labels": batch["labels"]}
            if two:
                one, other = (seen[f"{head}:in"].float() for head in HEADS)
                found |= {"_class": seen["head"], "_distilled": seen["head_distilled"]}
                found["cosine"] = torch.nn.functional.cosine_similarity(one, other)
            for key, value in found.items():
                rows.setdefault(key, []).append(value.cpu())
        whole = {key: torch.cat(values) for key, values in rows.items()}
        labels, cosines = whole.pop("labels"), whole.pop("cosine", None)
        return whole, labels, cosines
