"""What methods that compare features share: which layers, what they are brought to, and what their term stands beside."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core.engine import to_device
from ..core.method import Update
from ..core.run import Run, RunError
from ..core.signal import Batch
from ..models.adapters import Adapted, adapter, shaped
from ..models.call import answers, dense, weight_of
from ..models.taps import AS, Form, Layer, chosen, ends_of_stages, layers, penultimate, shape_at, tapped
from ..objectives.divergences import ForwardKL, cross_entropy
from ..objectives.reduce import weighted_sum
from .outputs import told


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Which layers are compared: names or globs, the first of the student's with the first of the teacher's and so on.

    Left out, they are found by a dry run: the ends of the stages, the last with the last, as many as both have; the features
    in front of the heads where vectors are compared, or where one of the two has no maps or tokens.
    """

    student: tuple[str, ...] = ()
    teacher: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if bool(self.student) != bool(self.teacher):
            raise ValueError("name the layers of both, student and teacher, or of neither")


@dataclass(frozen=True, kw_only=True)
class Beside:
    """What a feature term stands beside: `labels` CE(y, q) + `soft` T² KL(p_T ‖ q_T)."""

    labels: float = 1.0
    soft: float = 0.0
    temperature: float = 4.0

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above 0, not {self.temperature}")

    def terms(self, seen: Seen) -> Iterator[tuple[str, float, Tensor]]:
        """(name, weight, sum over the items) of the terms that count; mixed images have both their labels."""
        if self.labels:
            pairs = answers(seen.batch)
            nll = sum(weighted_sum(cross_entropy(seen.logits, labels), weight) for labels, weight in pairs)
            yield "cross_entropy", self.labels, torch.as_tensor(nll)
        if self.soft:
            if seen.said.shape != seen.logits.shape:
                here, there = seen.logits.shape[-1], seen.said.shape[-1]
                raise RunError(f"the student tells {here} classes apart and the teacher {there}: set beside.soft to 0")
            kl = ForwardKL()(seen.logits, seen.said, temperature=self.temperature)
            yield "kl", self.soft * self.temperature**2, weighted_sum(kl, weight_of(seen.batch))


@dataclass(frozen=True, slots=True)
class Seen:
    """One pass of student and teacher over a batch."""

    batch: Batch
    logits: Tensor  # [B, V], the student's
    said: Tensor  # [B, V], the teacher's
    mine: list[Tensor]  # what the student computes at each pair, in the form that was asked for
    theirs: list[Tensor]  # the teacher's, without gradient

    def summed(self, gap: Callable[..., Tensor], **settings: Any) -> Tensor:
        """`gap(student's, teacher's, **settings)` [B] summed over the pairs."""
        return torch.stack([gap(a, b, **settings) for a, b in zip(self.mine, self.theirs, strict=True)]).sum(0)


class Compared(Adapted):
    """A student whose layers are compared with its teacher's."""

    form: Form  # that the features are brought to
    taps: tuple[tuple[str, str], ...]  # the student's and the teacher's
    shapes: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]  # of single items there, in that form

    def __init__(
        self, student: nn.Module, adapters: Sequence[nn.Module], form: Form, taps: Sequence[tuple[str, str]],
        shapes: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], **parts: Any,
    ):  # fmt: skip
        super().__init__(student, adapters, **parts)
        self.form, self.taps, self.shapes = form, tuple(taps), tuple(shapes)

    def see(self, batch: Batch, run: Run, *, adapted: bool = True) -> Seen:
        """Run both on the batch; `adapted`: the student's features go through the adapters, if there are any."""
        brought = AS[self.form]
        logits, mine = tapped(self.student, batch, [own for own, _ in self.taps])
        signal = run.teacher(batch, frozenset({"features", "logits"}))
        features = signal.need("features")
        own = [brought(mine[tap]) for tap, _ in self.taps]
        if adapted and len(self.adapters):
            own = [change(x) for change, x in zip(self.adapters, own, strict=True)]
        theirs = [brought(features[tap]) for _, tap in self.taps]
        return Seen(batch, dense(logits), dense(signal.need("logits")), own, theirs)


def compared(
    student: nn.Module, run: Run, pairs: Pairs, form: Form, *, adapt: bool = False, last: int | None = None
) -> Compared:
    """The state of a method that compares features in `form`, checked before the first step.

    `adapt`: an adapter for each pair brings the student's features to the teacher's shape. `last`: of pairs that are found
    and not named, only so many of the last.
    """
    found, shapes = matched(student, run, pairs, form, last=last)
    adapters = [adapter(mine, theirs) for mine, theirs in shapes] if adapt else []
    pairings = ", ".join(f"{own} {list(a)} ~ {other} {list(b)}" for (own, other), (a, b) in zip(found, shapes, strict=True))
    run.event("layers", text=pairings)
    return Compared(student, adapters, form, found, shapes)


def matched(
    student: nn.Module, run: Run, pairs: Pairs, form: Form, *, last: int | None = None
) -> tuple[list[tuple[str, str]], list[tuple[tuple[int, ...], tuple[int, ...]]]]:
    """(taps of student and teacher, shapes of single items in `form`), the teacher asked to tap its own; RunError if they
    cannot be compared."""
    teacher: Any = run.teacher
    if not hasattr(teacher, "tap"):
        raise RunError("the method looks into its teacher, which must be a model here: teachers.module.ModuleTeacher")
    batch = to_device(run.source.batch(range(min(2, len(run.source))), 0), run.device)
    mine, theirs = layers(student, batch), layers(teacher.module, batch)
    classes = run.source.classes
    if pairs.student:
        own, other = chosen(mine, pairs.student), chosen(theirs, pairs.teacher)
        if len(own) != len(other):
            raise RunError(
                f"the student's layers {', '.join(own)} are {len(own)} and the teacher's {', '.join(other)} are "
                f"{len(other)}; name as many of each"
            )
    else:
        own, other = ([], []) if form == "vector" else (ends_of_stages(mine), ends_of_stages(theirs))
        count = min(len(own), len(other), last or len(own))
        own, other = own[len(own) - count :], other[len(other) - count :]
        if not count:
            own, other = [penultimate(mine, classes)], [penultimate(theirs, classes)]
    taps = list(zip(own, other, strict=True))
    shapes = [(_shaped(mine, a, form, "student"), _shaped(theirs, b, form, "teacher")) for a, b in taps]
    teacher.tap(other)
    return taps, shapes


def _shaped(found: Sequence[Layer], tap: str, form: Form, owner: str) -> tuple[int, ...]:
    shape = shape_at(found, tap)
    if not 1 <= len(shape) <= 3:
        wanted = "a map [C, H, W], tokens [N, D] or a vector [D] is needed"
        raise RunError(f"the {owner}'s {tap!r} gives {list(shape)} an item: {wanted}")
    return shaped(shape, form)


def total(seen: Seen, beside: Beside, terms: Mapping[str, tuple[float, Tensor]]) -> Update:
    """One update of the student: what the terms stand beside, plus weight times value [B] of each.

    An item counts as much as the batch says; one without a label has no cross-entropy and keeps the rest.
    """
    weight = weight_of(seen.batch)
    own = ((name, factor, weighted_sum(values, weight)) for name, (factor, values) in terms.items())
    loss = torch.zeros((), device=weight.device)
    logs: dict[str, Tensor | float] = {}
    for name, factor, summed in (*beside.terms(seen), *own):
        loss, logs[name] = loss + factor * summed, summed.detach()
    return Update(loss, count=weight.sum(), logs=logs)


def equation(beside: Beside, terms: Mapping[str, float]) -> str:
    """The objective with its live weights: means over items, sums over classes."""
    soft = f"KL(p ‖ q at T={beside.temperature:g})"
    return told({"CE(y, q)": beside.labels, soft: beside.soft * beside.temperature**2, **terms})
