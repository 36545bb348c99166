"""FIRST: Teach A Reliable Large Language Model Through Efficient Trustworthy Distillation: few classes, recalibrated.

    L = sum over answer tokens of KL(P~ || Q~) / number of answer tokens
    P = the teacher's k likeliest classes, P~ = the same, recalibrated by one of
        Softened  P~_i = exp(P_i / c) / sum_j exp(P_j / c)     a softmax over PROBABILITIES: flat unless c is small
        Power     P~_i = P_i^(1/c) / sum_j P_j^(1/c)           temperature scaling proper (ours, not the paper's)
        Shifted   P~_1 = P_1 - c,  P~_i = P_i + c / (k - 1)    label smoothing
    Q~ = the student's probabilities of those classes, renormalised, or (`other`) with a last outcome "any other"

k = 5 classes hold nearly all of a fine-tuned teacher's mass, so that it is asked once and only they are kept. But such a
teacher is surer than it is right, and a student that copies it is too. c is therefore chosen on the validation split:
of `grid`, the one with the least expected calibration error (ECE) of what will be taught. Softened and Power do not
change which class is likeliest, so accuracy has no say in it. An empty grid keeps the c that was given.

Sure: the top 5, softmax over probabilities and label smoothing with 0.1 as the two recalibrations, linear renormalisation
(theirs adds 1e-6 to Q; here logarithms need none), the outcome "any other", c chosen by ECE. Recalled: c of about 0.3.
Ours: how recalibration goes with "any other": it moves probability among the k classes only, whose mass together, and with
it that of the rest, stays the teacher's; before it the k are renormalised. Shifted never goes beyond equal shares.

Differs from the authors' code: that code recalibrates the student's side by the same rule where it softens, which makes
P the optimum again and undoes it; with "any other" it passes probabilities where `kl_div` expects their logarithms; and
its smoothing shifts log-probabilities of both models. Here are the equations above. Sums over answer tokens are divided
by their number in the whole batch, not by its rows. With k = V and no recalibration this is forward KL.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...audits.language import HeldOutText
from ...audits.trust import Trust, calibration_error
from ...core.engine import to_device
from ...core.method import State, Update
from ...core.optim import Optim
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Recipe, Scale, pick
from ...core.run import Run, RunError
from ...core.signal import Batch, Kind, Logits, TopK
from ...core.stage import Audit, Train
from ...data.choices import Choices
from ...models.call import logits_of, weight_of
from ...models.toys import TinyLM
from ...objectives.divergences import FDivergence, ForwardKL
from ...signals.label import Label
from ...signals.topk import KeptTopK, shorten, top_k
from ...teachers.cached import Cached
from ...teachers.local import same_classes
from ...teachers.module import ModuleTeacher
from ..classics.gkd import GKD
from ..classics.supervised import Supervised
from ..settings import alone, language

PAPER = Paper(
    id="first",
    title="FIRST: Teach A Reliable Large Language Model Through Efficient Trustworthy Distillation",
    authors=(
        "KaShun Shum", "Minrui Xu", "Jianshu Zhang", "Zixin Chen", "Shizhe Diao", "Hanze Dong", "Jipeng Zhang",
        "Muhammad Omer Raza",
    ),
    year=2024,
    arxiv="2408.12168",
    venue="EMNLP",
    modality=("text", "any"),
    data=("documents",),
    claim="Five classes of a recalibrated teacher make a student that is as accurate and far better calibrated.",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Softened:
    """A softmax over probabilities."""

    c: float = 0.3

    def __call__(self, log_p: Tensor, c: float) -> Tensor:
        """Log-probabilities [*N, k] that add up to one, to such again."""
        return (log_p.exp() / c).log_softmax(-1)


@dataclass(frozen=True, kw_only=True)
class Power:
    """A softmax over log-probabilities divided by c: flatter above 1, sharper below."""

    c: float = 2.0

    def __call__(self, log_p: Tensor, c: float) -> Tensor:
        """Log-probabilities [*N, k] that add up to one, to such again."""
        return (log_p / c).log_softmax(-1)


@dataclass(frozen=True, kw_only=True)
class Shifted:
    """Some probability goes from the likeliest class to the others, in equal parts."""

    c: float = 0.1

    def __call__(self, log_p: Tensor, c: float) -> Tensor:
        """Log-probabilities [*N, k] that add up to one, to such again."""
        k = log_p.shape[-1]
        top, where = log_p.exp().max(-1, keepdim=True)
        shift = (top - 1 / k).clamp(min=0.0, max=c)
        moved = log_p.exp() + shift / max(k - 1, 1)
        return moved.scatter(-1, where, top - shift).log()


@dataclass(frozen=True, kw_only=True)
class Within(FDivergence):
    """KL(P~ ‖ Q~) over the first `k` outcomes, the student renormalised there; what else it may say is left to it."""

    k: int = 5

    def term(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        return ForwardKL().term(log_q[..., : self.k].log_softmax(-1), log_p[..., : self.k])

    def slope(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        p = log_p[..., : self.k].exp()
        kept = log_q[..., : self.k].softmax(-1) * p.sum(-1, keepdim=True) - p
        return torch.cat([kept, torch.zeros_like(log_q[..., self.k :])], -1)


@dataclass(frozen=True, kw_only=True)
class FIRST:
    """Match the teacher's likeliest classes after making it as sure as it is right."""

    top: int = 5  # classes
    recalibrate: Softened | Power | Shifted | None = Softened()
    grid: tuple[float, ...] = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 2.0)  # values of c that are tried
    rows: int = 300  # of the validation split that c is chosen on, at most
    bins: int = 10  # of the calibration error
    other: bool = True  # the mass outside the classes is matched too, as one outcome; without, the student may keep any
    needs: ClassVar[frozenset[Kind]] = frozenset({"logits"})
    takes_topk: ClassVar[bool] = True

    def setup(self, student: nn.Module, run: Run) -> State:
        """The student, and c."""
        if self.recalibrate is None:
            return State(student=student)
        return State(student=student, c=self._chosen(run) if self.grid else self.recalibrate.c)

    def step(self, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        """One update over the answer tokens."""
        weight = weight_of(batch)
        live = weight != 0
        z, teacher = same_classes(logits_of(s.student, batch), run.teacher(batch, self.needs).distribution())
        target = self.target(teacher[live], None if self.recalibrate is None else float(s.c))
        divergence = ForwardKL() if self.other else Within(k=target.index.shape[-1])
        values = divergence(z[live], target, weight=weight[live])
        yield Update(values.sum(), count=weight.sum(), logs={} if self.recalibrate is None else {"c": s.c * weight.sum()})

    def target(self, teacher: Logits | TopK, c: float | None) -> TopK:
        """What is taught about items [n]: the classes with their recalibrated probabilities, and the mass of the rest."""
        kept = isinstance(teacher, TopK)
        if kept and (teacher.sampled or teacher.values.shape[-1] < min(self.top, teacher.classes or self.top)):
            given = "drawn classes" if teacher.sampled else f"{teacher.values.shape[-1]} classes"
            raise RunError(f"the teacher gave {given}, and the method needs its {self.top} likeliest: lower method.top")
        top = shorten(teacher, min(self.top, teacher.values.shape[-1])) if kept else top_k(teacher, self._width(teacher))
        mass = top.values.logsumexp(-1, keepdim=True)
        within = top.values - mass
        if self.recalibrate is not None and c is not None:
            within = self.recalibrate(within, c)
        if self.other:
            return replace(top, values=within + mass)
        return replace(top, values=within, rest=torch.full_like(top.rest, -torch.inf))

    def _width(self, teacher: Logits) -> int:
        return min(self.top, teacher.shape[-1])

    @torch.no_grad()
    def _chosen(self, run: Run) -> float:
        """The c of the grid with which what will be taught is best calibrated on the validation split; ties: the first."""
        source = run.sources(getattr(run.recipe.stages.get(run.stage), "data", None)).get("valid", ())
        rows = range(min(self.rows, len(source)))
        if not rows:
            raise RunError("c is chosen on the validation split, which is empty: hold some out, or set method.grid=[]")
        sure: dict[float, list[Tensor]] = {c: [] for c in self.grid}
        right: dict[float, list[Tensor]] = {c: [] for c in self.grid}
        for begin in range(0, len(rows), 8):
            batch = to_device(source.batch(rows[begin : begin + 8], 0), run.device)
            live = weight_of(batch) != 0
            said = run.teacher(batch, self.needs).distribution()[live]
            for c in self.grid:
                target = self.target(said, c)
                best, where = target.values.max(-1, keepdim=True)
                sure[c].append(best[:, 0].exp())
                right[c].append(target.index.gather(-1, where)[:, 0] == batch["labels"][live])
        errors = {c: calibration_error(torch.cat(sure[c]).cpu(), torch.cat(right[c]).cpu(), self.bins) for c in self.grid}
        best = min(errors, key=lambda c: errors[c])
        run.event("calibration", c=best, errors={str(c): error for c, error in errors.items()})
        return best


def recipe(scale: Scale = "small") -> Recipe:
    """Questions whose true odds are known (smoke, small); models from the hub, the teacher's top 5 stored (paper)."""
    if scale == "paper":
        made = language("first", scale, FIRST(), lr=2e-5)
        live = made.teachers["teacher"]
        checks = (HeldOutText(versus=("start",)), Trust(versus=("start",)))  # what is stored answers for given text alone
        stages = {"label": Label(format=KeptTopK(k=5), teacher=live), **made.set("audit.checks", checks).stages}
        return replace(made, teachers={"teacher": Cached(stage="label", live=live)}, stages=stages)
    big = pick(scale, smoke=TinyLM(width=32), small=TinyLM(width=64, heads=4), paper=TinyLM())
    batch = pick(scale, smoke=16, small=32, paper=0)
    taught = Train(
        method=Supervised(), student=big, steps=pick(scale, smoke=80, small=500, paper=0), batch=batch,
        optim=Optim(lr=pick(scale, smoke=1e-2, small=3e-3, paper=0.0)),
    )  # fmt: skip
    train = replace(taught, method=FIRST(), student=None, steps=pick(scale, smoke=60, small=300, paper=0), label="FIRST")
    versus, draws = ("start",), pick(scale, smoke=200, small=2000, paper=0)
    judged = (HeldOutText(versus=versus, batch=64, draws=draws), Trust(versus=versus, draws=draws))
    return Recipe(
        id="first",
        student=pick(scale, smoke=TinyLM(width=16, depth=1), small=TinyLM(width=32), paper=TinyLM()),
        data=pick(scale, smoke=Choices(train=200, valid=60, test=100), small=Choices(), paper=Choices()),
        teachers={"teacher": ModuleTeacher(spec=big, stage="teacher")},
        stages={
            "teacher": taught,
            "train": train,
            "audit": Audit(subjects=("start", "teacher", "train"), checks=judged),
        },
    )


def proof() -> Proof:
    """Recalibrated against the labels, against all of the teacher's classes, and against its top 5 as they are."""
    ours = recipe("small")
    return Proof(
        claim="A student of five recalibrated classes of an overconfident teacher has a higher trust score (accuracy less"
        " calibration error) than the same student of the labels, of the teacher's whole distribution, and of its five"
        " classes as they are, at equal steps.",
        arms={
            "ours": ours,
            "alone": alone(ours),
            "all_classes": ours.set("train.method", GKD(on_policy=0.0, divergence=ForwardKL())),
            "as_it_is": ours.set("train.method.recalibrate", None),
        },
        metric="trust",
        beats=("alone", "all_classes", "as_it_is"),
        tune={"train.optim.lr": (3e-3, 1e-2)},
        minutes=6.0,
        note="600 questions of eight symbols whose true odds are known; four answers, none of which is certain. The teacher"
        " sees them for 27 epochs and is overconfident; students are trained for 300 steps of 32, 16 epochs. c is chosen on"
        " 300 validation questions, on which the rates are chosen too. Judged on 1,000 test questions, ECE in 10 bins.",
    )
