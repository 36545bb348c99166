"""How hard each training item is: the stage `Scores`, for `data.pruned.Pruned` to prune by."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..core.engine import Loop, fit, to_device
from ..core.method import Method
from ..core.optim import Optim
from ..core.run import Run, RunError, seed_of
from .call import dense
from .taps import as_vector, layers, penultimate, tapped

FILE = "scores.safetensors"


@dataclass(frozen=True, slots=True)
class Look:
    """What a probe says of every item at one moment, [n]."""

    error: Tensor  # ‖softmax - one-hot‖
    gradient: Tensor  # the norm of the cross-entropy's gradient in the last layer
    margin: Tensor  # 1 - (probability of the label - the largest other one): from 0 to 2
    entropy: Tensor  # of the probabilities, nats
    right: Tensor  # whether the label is the likeliest
    far: Tensor  # distance of the features from their class's mean


def looked(logits: Tensor, features: Tensor, labels: Tensor) -> Look:
    """From logits [n, V], what the last layer reads [n, D], and labels [n]."""
    p = logits.double().softmax(-1)
    own = p.gather(-1, labels[:, None]).squeeze(-1)
    others = p.scatter(-1, labels[:, None], 0.0).amax(-1)
    error = p.scatter_add(-1, labels[:, None], -torch.ones_like(own)[:, None]).norm(dim=-1)
    h = features.double()
    means = torch.stack([h[labels == label].mean(0) for label in range(p.shape[-1])])
    return Look(
        error=error, gradient=error * (h.square().sum(-1) + 1).sqrt(), margin=1 - (own - others),
        entropy=-(p * p.clamp(min=1e-300).log()).sum(-1), right=logits.argmax(-1) == labels,
        far=(h - means[labels]).norm(dim=-1),
    )  # fmt: skip


def scored(looks: Sequence[Look], early: int) -> dict[str, Tensor]:
    """Scores [n] of one probe by its looks in order; the larger, the harder the item.

    el2n (Paul et al. 2021, arXiv 2107.07075): the mean error of the first `early` looks. grand (ibid.): the same of the
    gradient, here of the last layer alone. forgetting (Toneva et al. 2018, arXiv 1812.05159): how often an item was right
    and then wrong at the next look; one that was never right counts one more than can be. margin, entropy and prototype
    (the distance from the class's mean) are of the last look.
    """
    right = torch.stack([look.right for look in looks])
    lost = (right[:-1] & ~right[1:]).sum(0)
    return {
        "el2n": torch.stack([look.error for look in looks[:early]]).mean(0),
        "grand": torch.stack([look.gradient for look in looks[:early]]).mean(0),
        "forgetting": lost.where(right.any(0), len(looks)).double(),
        "margin": looks[-1].margin,
        "entropy": looks[-1].entropy,
        "prototype": looks[-1].far,
    }


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Train some probes and look at what they say of the training items; the artifact is a file of every score.

    A probe is the recipe's student with its own initial weights and order. Scores are means over the probes. A run that
    is stopped here begins the stage anew.
    """

    method: Method  # how the probes learn
    steps: int = 200
    batch: int = 64
    optim: Optim = Optim()
    student: Any = None  # ModelSpec; None: the recipe's
    data: Any = None  # DataSpec; None: the recipe's
    probes: int = 2
    looks: int = 10  # at each probe, evenly over its training
    early: float = 0.3  # share of the looks that EL2N and GraNd are means of
    kind: ClassVar[str] = "scores"

    def __post_init__(self) -> None:
        if min(self.probes, self.looks) < 1 or self.looks > self.steps or not 0 < self.early <= 1:
            raise ValueError("probes and looks are 1 or more, looks at most the steps, and early a share above 0")

    def __call__(self, run: Run) -> None:
        """Train, look, write."""
        began = time.monotonic()
        source: Any = run.sources(self.data)["train"]
        plain: Any = replace(source, augment=None) if hasattr(source, "augment") else source
        labels = torch.cat([plain.batch(part, 0)["labels"] for part in _parts(plain)])
        if labels.ndim > 1 or bool((labels < 0).any()):
            why = "data.split.unlabelled=false leaves those out"
            raise RunError(f"items are scored by their labels, and some have none: {why}")
        early, found = max(1, round(self.early * self.looks)), list[dict[str, Tensor]]()
        for number in range(self.probes):
            found.append(scored(self._probe(run, source, plain, labels, number), early))
        scores = {name: torch.stack([one[name] for one in found]).mean(0) for name in found[0]}
        with run.artifact(run.stage, kind=self.kind, seconds=time.monotonic() - began) as folder:
            save_file(scores, folder / FILE)

    def _probe(self, run: Run, source: Any, plain: Any, labels: Tensor, number: int) -> list[Look]:
        own = replace(run, seed=seed_of(run.seed, "probe", number), horizon=self.steps, step=0, source=source)
        spec = self.student or run.recipe.student
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(own.seed)
            probe = spec.build(run).to(run.device).train()
            loop = Loop(self.method, self.method.setup(probe, own).to(run.device), own, self.optim)
            found = layers(probe, to_device(plain.batch(range(min(2, len(plain))), 0), run.device))
            tap, seen = penultimate(found, plain.classes), list[Look]()
            due = {round((i + 1) * self.steps / self.looks) for i in range(self.looks)}

            def on_step(step: int, logs: dict[str, float]) -> None:
                if step + 1 in due:
                    seen.append(_look(probe, tap, plain, labels, run))
                if run.progress is not None:
                    done, total = number * self.steps + step + 1, self.probes * self.steps
                    run.progress.update(run.stage, done, total, logs, 0.0)

            fit(loop, source, steps=self.steps, size=min(self.batch, len(source)), on_step=on_step)
            loop.close()
        return seen


@torch.no_grad()
def _look(probe: nn.Module, tap: str, source: Any, labels: Tensor, run: Run) -> Look:
    was = probe.training
    probe.eval()
    logits: list[Tensor] = []
    features: list[Tensor] = []
    for part in _parts(source):
        said, seen = tapped(probe, to_device(source.batch(part, 0), run.device), [tap])
        logits.append(dense(said).cpu())
        features.append(as_vector(seen[tap]).cpu())
    probe.train(was)
    return looked(torch.cat(logits), torch.cat(features), labels)


def _parts(source: Any) -> list[range]:
    return [range(begin, min(begin + 256, len(source))) for begin in range(0, len(source), 256)]
