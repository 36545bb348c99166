"""Learning with Less: Knowledge Distillation from Large Language Models via Unlabeled Data (Li et al. 2024).

    y = argmax_c p_T(c | x),   c_T(x) = p_T(y | x),   u_S(x) = 1 - max_c q(c | x)
    chosen: c_T(x) >= tau_T(y) and u_S(x) >= tau_S(y)
    L = sum_chosen w(x) CE(y, q(x)) / sum_chosen w(x),   w = c_T u_S

A language model labels texts that nobody has labelled and says how sure it is of each label (c_T). The student q learns
only from those that its teacher is sure of and it is not itself (u_S), by thresholds for every class that follow the
values of the batches so far, and so from few of them. The choice is made anew in every batch with the student as it is.

Differs from the authors' code, which we have not seen: how the thresholds move (running means, those of a class by the
largest of all classes times that of everything, as in FreeMatch) and that the weight is the product are our reading; the
paper's summaries name the parts. The thresholds of a batch come from the batches before it, so that a batch may be split;
the first batch is only looked at. Labelled rows are learned from too, with confidence 1 and under the same thresholds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...audits.classification import Classification
from ...audits.consumed import EVENT, Consumed
from ...audits.made_labels import MadeLabels
from ...core.method import State, Update
from ...core.optim import Optim
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Recipe, Scale, pick
from ...core.run import Run, RunError
from ...core.signal import Batch, Kind
from ...core.stage import Audit, Train
from ...data.labelled import Labelled, LibraryTopics
from ...data.rest import Rest
from ...models.call import dense, logits_of
from ...models.text import HubClassifier, NGrams
from ...models.thresholds import ClassThresholds
from ...objectives.divergences import cross_entropy
from ...synth.classify import Classify
from ...synth.pseudo import Pseudo
from ...synth.scripts.unsure import Unsure
from ...synth.synthesize import Synthesize
from ...teachers.chat import HttpChat
from ...teachers.scripted import Scripted
from ..classics.supervised import Supervised

PAPER = Paper(
    id="llkd",
    title="Learning with Less: Knowledge Distillation from Large Language Models via Unlabeled Data",
    authors=("Juanhui Li", "Sreyashi Nag", "Hui Liu", "Xianfeng Tang", "Sheikh Sarwar", "Limeng Cui", "Hansu Gu",
             "Suhang Wang", "Qi He", "Jiliang Tang"),
    year=2024,
    arxiv="2411.08028",
    modality=("text",),
    data=("labels", "unlabelled"),
    claim="A small classifier learns more from fewer of a language model's labels: those it is sure of and the student not.",
)  # fmt: skip


class Choosing(State):
    """A student, what is high for each class, and how often every row was learned from; changed between steps alone."""

    def __init__(self, student: nn.Module, classes: int, rows: int, momentum: float):
        super().__init__(student=student, examples=0.0)
        self.sure, self.unsure = ClassThresholds(classes, momentum), ClassThresholds(classes, momentum)
        self.passing = ClassThresholds(1, momentum)  # of a batch: its mean is how many items pass
        self.register_buffer("used", torch.zeros(rows, dtype=torch.long))
        self.noted: list[tuple[Tensor, int]] = []  # (items learned from, how many passed) of the step's micro-batches


@dataclass(frozen=True, kw_only=True)
class LLKD:
    """Learn the labels that the teacher is sure of and the student is not."""

    by_teacher: bool = True  # choose by the teacher's confidence, and weigh by it
    by_student: bool = True  # choose by the student's uncertainty, and weigh by it
    weighted: bool = True  # False: those chosen count alike
    momentum: float = 0.95  # of the running means
    examples: float | None = None  # learned from in a step, on average, of those that pass; None: all
    needs: ClassVar[frozenset[Kind]] = frozenset()

    def __post_init__(self) -> None:
        if not 0.0 <= self.momentum < 1.0:
            raise ValueError(f"momentum must be at least 0 and below 1, not {self.momentum}")
        if self.examples is not None and self.examples <= 0:
            raise ValueError(f"examples must be above 0, not {self.examples}")

    def setup(self, student: nn.Module, run: Run) -> State:
        """The student, thresholds that know nothing yet, and a count for each row."""
        source: Any = run.source
        if "confidence" not in source.batch([0], 0):
            raise RunError(
                f"stage {run.stage!r} chooses by a teacher's confidence, which its data do not hold: label texts with "
                "synth.classify.Classify in a stage before it and give it data={use: synth.pseudo.Pseudo, stage: THAT}"
            )
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            raise RunError("what is chosen is counted in one process: run llkd on one device")
        return Choosing(student, source.classes, len(source), self.momentum)

    def step(self, s: Any, batch: Batch, run: Run) -> Iterator[Update]:
        """One update over the chosen items; none if there are none."""
        labels, confidence = batch["labels"], batch["confidence"]
        was = s.student.training
        with torch.no_grad():
            q = dense(logits_of(s.student.eval(), batch)).float().softmax(-1)
        s.student.train(was)
        uncertainty = 1 - q.amax(-1)
        passed = torch.ones_like(labels, dtype=torch.bool)
        if self.by_teacher:
            passed &= s.sure.passed(confidence, labels)
        if self.by_student:
            passed &= s.unsure.passed(uncertainty, labels)
        chosen = (passed & self._drawn(s, batch["items"], run)) if s.sure.ready else torch.zeros_like(passed)
        s.sure.note(confidence, labels)
        s.unsure.note(uncertainty, labels)
        s.noted.append((batch["items"][chosen], int(passed.sum())))
        if not chosen.any():
            yield Update(q.new_zeros(()), count=0, logs={"cross_entropy": 0.0, "confidence": 0.0, "uncertainty": 0.0})
            return
        weight = torch.ones_like(confidence)
        if self.weighted and self.by_teacher:
            weight = weight * confidence
        if self.weighted and self.by_student:
            weight = weight * uncertainty
        weight = weight[chosen]
        loss = cross_entropy(logits_of(s.student, part_of(batch, chosen)), labels[chosen], weight=weight).sum()
        means = {"confidence": (weight * confidence[chosen]).sum(), "uncertainty": (weight * uncertainty[chosen]).sum()}
        yield Update(loss, count=weight.sum(), logs={"cross_entropy": loss.detach(), **means})

    def advance(self, s: Any, logs: Mapping[str, float], run: Run) -> None:
        """Move the thresholds, count what was learned from, and say so at the end."""
        passed = torch.tensor([float(sum(count for _, count in s.noted))], dtype=torch.float64, device=s.used.device)
        items = torch.cat([found for found, _ in s.noted])
        s.noted.clear()
        s.passing.note(passed, torch.zeros(1, dtype=torch.long, device=passed.device))
        for part in (s.sure, s.unsure, s.passing):
            part.advance()
        s.used.index_add_(0, items, torch.ones_like(items))
        s.examples.add_(len(items))
        if run.step + 1 == run.horizon:
            run.event(EVENT, rows=int((s.used > 0).sum()), of=len(s.used), examples=int(s.examples), **_wrong(s.used, run))

    def _drawn(self, s: Any, items: Tensor, run: Run) -> Tensor:
        """Which items [B] are taken if more pass than are wanted: each by a chance of its own, however a batch is split."""
        if self.examples is None:
            return torch.ones_like(items, dtype=torch.bool)
        expected = float(s.passing.means[-1] / (1 - self.momentum ** s.passing.updates[-1]))
        chance = torch.rand(len(s.used), generator=run.rng("taken"))[items.cpu()].to(items.device)
        return chance < (self.examples / expected if expected else 1.0)


def part_of(batch: Batch, chosen: Tensor) -> Batch:
    """What the student is called with for some items."""
    inputs = batch["inputs"]
    return {"inputs": {k: v[chosen] for k, v in inputs.items()} if isinstance(inputs, Mapping) else inputs[chosen]}


def _wrong(used: Tensor, run: Run) -> dict[str, float]:
    """The shares of wrong labels among what was learned from (by how often) and among all rows, where the truth is known."""
    source: Any = run.source
    known = source.truth >= 0
    often, wrong = used.cpu().double()[known], (source.labels != source.truth)[known].double()
    if not often.sum():
        return {}
    return {"wrong_labels_learned": float((often * wrong).sum() / often.sum()), "wrong_labels_of_all": float(wrong.mean())}


def recipe(scale: Scale = "small") -> Recipe:
    """Topics of docstrings with a script as teacher (smoke, small); files of yours, a served model, RoBERTa (paper).

    The script's labels are wrong about where two classes meet, and it knows how often. The stage `alone` has the labelled
    rows alone.
    """
    if scale == "paper":
        student = HubClassifier(path="FacebookAI/roberta-base")
        teacher = HttpChat(url="http://localhost:8000/v1", model="teacher")
        data, rest = Labelled(path="labelled.csv"), Rest(path="unlabelled.csv")
        optim = Optim(lr=2e-5, warmup=0.1)
    else:
        student = NGrams(width=pick(scale, smoke=16, small=64, paper=64))
        data, rest = LibraryTopics(each=pick(scale, smoke=40, small=250, paper=250), shots=2), Rest()
        teacher, optim = Scripted(script=Unsure(data=replace(data, shots=None))), Optim(lr=1e-2)
    train = Train(
        method=LLKD(), data=Pseudo(stage="label"), optim=optim,
        steps=pick(scale, smoke=40, small=400, paper=3000), batch=pick(scale, smoke=16, small=128, paper=64),
    )  # fmt: skip
    return Recipe(
        id="llkd",
        student=student,
        data=data,
        teachers={"teacher": teacher},
        stages={
            "label": Synthesize(steps={"classify": Classify()}, data=rest),
            "train": train,
            "alone": replace(train, method=Supervised(), data=None, batch=8),
            "audit": Audit(
                subjects=("start", "alone", "train"),
                checks=(Classification(), MadeLabels(stage="label"), Consumed()),
            ),
        },
    )


def proof() -> Proof:
    """Both choices against each alone, against none, and against a tenth of the labels, at equal gradient examples."""
    whole = recipe("small")
    audit = replace(whole.stages["audit"], subjects=("start", "train"))
    train = replace(whole.stages["train"], method=LLKD(examples=3.0))
    ours = replace(whole, stages={"label": whole.stages["label"], "train": train, "audit": audit})
    neither = ours.set("train.method.by_teacher", False).set("train.method.by_student", False)
    few = {"train": replace(whole.stages["alone"], batch=3), "audit": replace(audit, checks=audit.checks[:1])}
    return Proof(
        claim="At equal steps and equally many gradient examples a classifier learns more from the labels that its teacher"
        " is sure of and it is not than from all of them alike, from a random tenth, by the teacher's confidence alone, by"
        " its own uncertainty alone, or from the labelled rows alone.",
        arms={
            "ours": ours,
            "alone": replace(ours, teachers={}, stages=few),
            "all": neither,
            "tenth": neither.set("train.data.share", 0.1),
            "teacher_only": ours.set("train.method.by_student", False),
            "student_only": ours.set("train.method.by_teacher", False),
            "everything": neither.set("train.method.examples", None),
        },
        metric="accuracy",
        beats=("alone", "all", "tenth", "teacher_only", "student_only"),
        seeds=(0, 1, 2, 3, 4),
        tune={"train.optim.lr": (3e-3, 1e-2, 3e-2)},
        minutes=12.0,
        note="400 steps for all, each over 128 candidates of which 3 are learned from on average; `everything` learns from"
        " all 128 and is shown for scale. The teacher is a script whose errors are real and whose confidence is right on"
        " average.",
    )
