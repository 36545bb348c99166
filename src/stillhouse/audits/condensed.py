"""What do fresh networks learn from a condensed data set? And from as many real images, and from all of them?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..core.engine import Source, order, to_device
from ..core.optim import GroupOptimizer, Optim
from ..core.proof import interval
from ..core.report import Finding
from ..core.run import Run, RunError, seed_of
from ..core.signal import Batch
from ..core.stage import Subjects
from ..data.augment import Siamese
from ..models.condensed import Pixels
from ..models.convnet import ConvNetD

Reference = Literal["random_images", "kmeans_images", "all_images"]
STARTS = {"random_images": "random", "kmeans_images": "kmeans"}


@dataclass(frozen=True, kw_only=True)
class FreshNetworks:
    """Accuracy on real images of networks trained from scratch on each set, after the last step.

    Every set meets the same networks: the k-th has the same first weights, the same steps, rates, order and changes,
    and as many images a step. Intervals are over networks. `references` are judged beside the subjects: `random_images`
    and `kmeans_images` have as many of each class as the student, `all_images` is the whole training split.
    """

    references: tuple[Reference, ...] = ("random_images", "kmeans_images", "all_images")
    network: Any = ConvNetD()  # any ModelSpec for images
    networks: int = 5
    steps: int = 1000
    batch: int = 64  # images a step, or all if there are fewer
    lr: float = 0.01  # SGD; a tenth of it in the second half
    momentum: float = 0.9
    weight_decay: float = 5e-4  # of matrices and filters
    augment: Siamese = Siamese()
    split: str = "test"

    def __post_init__(self) -> None:
        if self.networks < 1:
            raise ValueError(f"networks must be 1 or more, not {self.networks}")

    def __call__(self, run: Run, subjects: Subjects) -> Iterator[Finding]:
        """The findings about every set; the last subject's paired differences to the others but the whole data."""
        sets = {name: self._subject(subjects, name) for name in subjects.names}
        sets = {name: self._reference(name, run) for name in self.references} | sets
        known: list[tuple[Source, list[float]]] = []
        rates: dict[str, list[float]] = {}
        for name, source in sets.items():
            found = next((r for s, r in known if _same(s, source)), None)  # the student may begin as a reference
            rates[name] = found or [self.accuracy(source, run, number) for number in range(self.networks)]
            known.append((source, rates[name]))
        judged = list(sets)[-1]
        for name, source in sets.items():
            yield Finding(name="images", value=len(source), subject=name, better="lower", note="Images in the set.")
            yield self._finding(name, rates[name])
        for name in sets:
            if name not in (judged, "all_images"):
                gaps = [a - b for a, b in zip(rates[judged], rates[name], strict=True)]
                yield self._finding(judged, gaps, versus=name)

    def accuracy(self, source: Source, run: Run, number: int) -> float:
        """The share of the real split that network `number` gets right after learning from `source` alone."""
        module = self.trained(source, run, number).eval()
        judged, right = run.sources()[self.split], 0
        if not len(judged):
            raise RunError(f"the {self.split} split is empty; hold out a share of the images to judge by")
        with torch.no_grad():
            for begin in range(0, len(judged), 256):
                batch = to_device(judged.batch(range(begin, min(begin + 256, len(judged))), 0), run.device)
                right += int((module(batch["inputs"]).argmax(-1) == batch["labels"]).sum())
        return right / len(judged)

    def trained(self, source: Source, run: Run, number: int) -> nn.Module:
        """Network `number` after all its steps on `source`."""
        seed = seed_of(run.seed, "fresh network", number)
        torch.manual_seed(seed)
        module = self.network.build(run).to(run.device).train()
        optim = Optim(name="sgd", lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay, clip=None)
        optimizer, draw = GroupOptimizer(module, optim), torch.Generator().manual_seed(seed)
        size = min(self.batch, len(source))
        for step in range(self.steps):
            positions = list(order(len(source), seed, step * size, size))
            batch = to_device(source.batch([item for _, item in positions], positions[0][0]), run.device)
            logits = module(self.augment.draw(draw, size)(batch["inputs"]))
            nn.functional.cross_entropy(logits, batch["labels"], reduction="sum").backward()
            optimizer.step(size, self.lr if 2 * step < self.steps else self.lr / 10)
        return module

    def _subject(self, subjects: Subjects, name: str) -> Source:
        module = subjects.load(name)
        if not isinstance(module, Pixels):
            raise RunError(f"{name!r} is a {type(module).__name__}, not a condensed data set; this check cannot judge it")
        return Kept(module.images.detach().cpu(), module.labels.cpu())

    def _reference(self, name: str, run: Run) -> Source:
        if name == "all_images":
            source: Any = run.sources()["train"]
            labels = source.labels
            return source if bool((labels >= 0).all()) else Some(source, (labels >= 0).nonzero().flatten())
        module = replace(run.recipe.student, start=STARTS[name]).build(run)
        return Kept(module.images.detach(), module.labels)

    def _finding(self, subject: str, values: Sequence[float], versus: str | None = None) -> Finding:
        found = interval(values)
        low, high = (found.low, found.high) if versus else (max(found.low, 0.0), min(found.high, 1.0))
        return Finding(
            name="accuracy", value=found.mean, subject=subject, better="higher", low=low, high=high, n=found.n,
            over="fresh networks", versus=versus, split=self.split,
            note=f"Networks trained from scratch on the set, {self.steps} steps, judged after the last one.",
        )  # fmt: skip


@dataclass(frozen=True)
class Kept:
    """Images as they are, standardised already."""

    images: Tensor  # [N, C, H, W]
    labels: Tensor  # [N]

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, items: Sequence[int], epoch: int) -> Batch:
        """inputs [B, C, H, W], labels [B]."""
        chosen = torch.tensor(items, dtype=torch.long)
        return {"inputs": self.images[chosen], "labels": self.labels[chosen]}


@dataclass(frozen=True)
class Some:
    """Some items of a source."""

    source: Source
    items: Tensor  # [N]

    def __len__(self) -> int:
        return len(self.items)

    def batch(self, items: Sequence[int], epoch: int) -> Batch:
        """The batch of these items."""
        return self.source.batch(self.items[torch.tensor(items, dtype=torch.long)].tolist(), epoch)


def _same(a: Source, b: Source) -> bool:
    return (
        isinstance(a, Kept) and isinstance(b, Kept) and a.images.shape == b.images.shape and torch.equal(a.images, b.images)
    )
