"""Knowledge Distillation with Adapted Weight (Wu et al. 2025, arXiv 2501.02705).

    L = sum_i w_i l_i / sum_i w_i,     l_i = (1 - alpha) CE(y_i, q) + alpha T² KL(p_T ‖ q_T)
    w_i = 2 sigmoid(-scale phi_i / deviation),     phi_i = -g_valᵀ H^-1 grad l_i

phi_i is the influence of training item i: how the cross-entropy on a few trusted items moves if i counts more. g_val is
its gradient there, H the Hessian of the mean training cross-entropy with `damping` on its diagonal, both in the student's
last layer alone (`objectives.influence`). Items that do good count more, up to twice; wrong labels less. H^-1 g_val is
solved for every `every` steps; in between each item's weight follows its own gradient.

Sure, from the abstract and a summary: influence on a validation loss, through a sigmoid to weights of items, several ways
to update them, and semi-supervised learning, where an item without a label takes the teacher's. Ours: the last layer, the
damping and the scale. `every=0` solves once, after `warmup`; `curvature=false` takes the
identity for H; `every=1` with it is a weight by the alignment of gradients.

Differs from the paper / the authors' code: the teacher is not trained along (the paper's joint update, of which we know
no details). The trusted items are of the validation split: what is chosen on that split afterwards is chosen on items that
have been learned from, though the student never followed a gradient of their loss.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...core.engine import to_device
from ...core.method import State, Update
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Recipe, Scale, pick
from ...core.run import Run, RunError
from ...core.signal import Batch, Kind
from ...data.images import Digits, Noisy, Npz, Split
from ...models.call import dense, weight_of
from ...models.taps import as_vector, layers, penultimate, tapped
from ...objectives.divergences import ForwardKL, cross_entropy
from ...objectives.influence import extended, influence, ranked_right, residuals, solved
from ...teachers.local import same_classes
from ..classics.hinton import Hinton
from ..images import SMALL, against_hinton, arm, images
from ..outputs import added, check_temperature

PAPER = Paper(
    id="kd_aif",
    title="Knowledge Distillation with Adapted Weight",
    authors=("Sirong Wu", "Xi Luo", "Junjie Liu", "Yuhui Deng"),
    year=2025,
    arxiv="2501.02705",
    venue="Statistics (Taylor & Francis)",
    modality=("any",),
    data=("labels",),
    claim="Weighing training items by their influence on trusted ones distils better, above all where labels are wrong.",
)


@dataclass(frozen=True, kw_only=True)
class KDAIF:
    """Hinton's loss, in which an item counts by what it does to the loss on trusted items."""

    temperature: float = 4.0
    alpha: float = 0.9  # weight of the soft term
    scale: float = 1.0  # of influences, in their standard deviations
    every: int = 20  # steps between solutions; 0: one
    warmup: int = 50  # steps before the first, in which all items count alike
    damping: float = 1e-2
    curvature: bool = True  # False: H is the identity
    trusted: int = 100  # items of the validation split, over all classes
    sample: int = 2000  # training items to solve with, at most
    needs: ClassVar[frozenset[Kind]] = frozenset({"logits"})

    def __post_init__(self) -> None:
        check_temperature(self.temperature)
        if not 0.0 <= self.alpha <= 1.0 or self.damping <= 0:
            raise ValueError(f"alpha must be between 0 and 1 and damping above 0, not {self.alpha} and {self.damping}")
        if self.every < 0 or min(self.warmup, self.trusted, self.sample) < 1:
            raise ValueError("every is 0 or more; warmup, trusted and sample are 1 or more")

    @property
    def equation(self) -> str:
        """The objective with its live weights."""
        soft = self.alpha * self.temperature**2
        return f"w_i ({1 - self.alpha:g} CE(y, q) + {soft:g} KL(p ‖ q at T={self.temperature:g})), w by influence"

    def setup(self, student: nn.Module, run: Run) -> State:
        """The student, and the solution that items are weighed with: none yet."""
        found = layers(student, to_device(run.source.batch(range(min(2, len(run.source))), 0), run.device))
        tap = penultimate(found, run.source.classes)
        layer = next(layer for layer in found if f"{layer.name}:in" == tap)
        if layer.came is None or len(layer.came) != 1:
            raise RunError(f"influences are those of the last layer, and {layer.name} is not called with one vector an item")
        trusted = self._trusted(run)
        run.event("influence", layer=layer.name, trusted=len(trusted))
        empty = torch.zeros(run.source.classes, layer.came[0] + 1, dtype=torch.float64)
        return Weighed(student, tap, trusted, solution=empty, deviation=0.0)

    def step(self, s: Any, batch: Batch, run: Run) -> Iterator[Update]:
        """One update over all items; one without a label takes the teacher's."""
        seen = self._seen(s, batch, run)
        weight = weight_of(batch) * self._weights(s, seen).to(torch.float32)
        soft, here = self.alpha * self.temperature**2, seen.labels
        kl = ForwardKL()(seen.student, seen.teacher, temperature=self.temperature, weight=weight).sum()
        terms = {"kl": (soft, kl), "cross_entropy": (1 - self.alpha, cross_entropy(seen.student, here, weight=weight).sum())}
        yield added(terms, weight.sum())

    def advance(self, s: Any, logs: Mapping[str, float], run: Run) -> None:
        """Solve anew when it is time."""
        since = run.step + 1 - self.warmup
        if since == 0 or (since > 0 and self.every and since % self.every == 0):
            was = s.student.training
            s.student.eval()
            self._solve(s, run)
            s.student.train(was)

    def _solve(self, s: Weighed, run: Run) -> None:
        some = torch.randperm(len(run.source), generator=run.rng("influence"))[: self.sample].tolist()
        train = [self._seen(s, batch, run) for batch in _batches(run.source, some, run)]
        valid = run.sources()["valid"]
        judged = [(s.look(batch), batch["labels"]) for batch in _batches(valid, s.trusted, run)]
        gradient, count = torch.zeros_like(s.solution), len(s.trusted)
        for (logits, h), labels in judged:
            gradient += residuals(logits, logits, labels, 0.0, 1.0).double().T @ h / count
        p = torch.cat([seen.student for seen in train]).double().softmax(-1)
        h = torch.cat([seen.h for seen in train])
        s.solution.copy_(solved(gradient, p, h, self.damping) if self.curvature else gradient)
        phi = torch.cat([self._influences(s, seen) for seen in train])
        s.deviation.copy_(phi.std(correction=0) + 1e-12)
        truth = getattr(run.source, "truth", None)
        if truth is not None:
            right = (run.source.labels == truth)[some]
            if not bool(right.all()):
                run.event("influence", step=run.step, right_labels_ranked_first=ranked_right(-phi.cpu(), right))

    def _trusted(self, run: Run) -> list[int]:
        """Numbers of labelled items of the trusted split, of every class as many."""
        source = run.sources()["valid"]
        if len(source) == 0:
            raise RunError("the validation split has no items to trust: hold some out, data.split.valid=0.1")
        labels = torch.cat([batch["labels"] for batch in _batches(source, range(len(source)), run)]).cpu()
        rows = [(labels == label).nonzero().flatten().tolist() for label in range(run.source.classes)]
        turns = [row[i] for i in range(max(map(len, rows))) for row in rows if i < len(row)]
        return sorted(turns[: self.trusted])

    def _seen(self, s: Weighed, batch: Batch, run: Run) -> Seen:
        logits, h = s.look(batch)
        student, teacher = same_classes(logits, run.teacher(batch, self.needs).need("logits"))
        labels, teacher = batch["labels"], dense(teacher)
        return Seen(dense(student), teacher, labels.where(labels >= 0, teacher.argmax(-1)), h)

    def _influences(self, s: Weighed, seen: Seen) -> Tensor:
        args = seen.student.detach().double(), seen.teacher.double(), seen.labels
        return influence(s.solution, residuals(*args, self.alpha, self.temperature), seen.h)

    def _weights(self, s: Weighed, seen: Seen) -> Tensor:
        """[B] from 0 to 2; 1 before the first solution."""
        phi = self._influences(s, seen)
        weights = 2 * torch.sigmoid(-self.scale * phi / s.deviation.clamp(min=1e-12))
        return torch.where(s.deviation > 0, weights, torch.ones_like(weights))


class Weighed(State):
    """The student, and H^-1 g_val with the spread of influences at that time."""

    def __init__(self, student: nn.Module, tap: str, trusted: Sequence[int], **parts: Any):
        super().__init__(student=student, **parts)
        self.tap, self.trusted = tap, trusted

    def look(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(logits [B, V], what the last layer reads, and a 1, [B, D] float64 without gradient)."""
        logits, seen = tapped(self.student, batch, [self.tap])
        return dense(logits), extended(as_vector(seen[self.tap]).detach().double())


@dataclass(frozen=True, slots=True)
class Seen:
    """Student and teacher on a batch."""

    student: Tensor  # [B, V]
    teacher: Tensor  # [B, V]
    labels: Tensor  # [B], the teacher's where nobody knows them
    h: Tensor  # [B, D] float64


def _batches(source: Any, items: Sequence[int], run: Run) -> Iterator[Batch]:
    for begin in range(0, len(items), 256):
        yield to_device(source.batch(items[begin : begin + 256], 0), run.device)


def recipe(scale: Scale = "small") -> Recipe:
    """30 % of the labels wrong: digits (smoke), MNIST (small); CIFAR-10 with 4,000 labels, `cifar10.npz` (paper)."""
    noise = Noisy(share=0.3)
    data = pick(
        scale,
        smoke=Digits(split=Split(noise=noise)),
        small=replace(SMALL, split=Split(noise=noise), otherwise=Digits()),
        paper=Npz(path="cifar10.npz", split=Split(valid=0.1, labels=400)),
    )
    method = pick(scale, smoke=KDAIF(warmup=20, every=10), small=KDAIF(), paper=KDAIF(every=1000, warmup=5000, trusted=1000))
    return images("kd_aif", scale, method, data=data)


def proof() -> Proof:
    """Against all items counting alike, which is Hinton's loss, and the labels alone; beside both with alpha = 0.5."""
    ours = recipe("small")
    claim = (
        "Where 30 % of the labels are wrong, for the teacher too, a student whose items are weighed by their influence on"
        " 100 trusted ones classifies better than one whose items count alike, and than one without a teacher."
    )
    halves = {
        "half": arm(ours.set("train.method.alpha", 0.5)),
        "hinton_half": arm(ours, Hinton(alpha=0.5), name="hinton_half"),
    }
    return against_hinton(ours, claim, arms=halves, beats=("hinton", "alone"), note=NOTE)


NOTE = (
    "MNIST at 14 x 14 pixels, 1,000 images to learn from of which 300 have a wrong label (which, depends on the seed), 1,000"
    " with right ones to choose by, 100 of which `ours` weighs its items with and no other arm learns from, 10,000 to judge."
    " Every arm takes 400 steps of 64 images; the teacher's training (600 steps), its forward passes and 18 solutions in"
    " `ours` come on top."
)
