"""ERNIE-Tiny : A Progressive Distillation Framework for Pretrained Transformer Compression (Su et al. 2021).

    L = a_lat L_lat + a_soft KL(p || q) + a_hard CE(y, q)
    L_lat = sum_l [ MSE(A_s^l, A_t^m(l)) + MSE(H_s^l P, H_t^m(l)) ] + MSE(H_s^0 P, H_t^0),     m(l) = l n_t / n_s

H are hidden states (0: what the first layer gets), A attention scores before the softmax, n_s and n_t the numbers of layers,
P one linear map if the widths differ, p and q the teacher's and the student's softmax, y the label. Four stages, each going
on from the student of the one before:

    general     teacher: pre-trained    data: general    L_lat
    enhanced    teacher: fine-tuned     data: general    L_lat
    adapt       teacher: fine-tuned     data: the task   L_lat
    train       teacher: fine-tuned     data: the task   L_lat + soft + hard labels

Sure, from the abstract: the stages, their teachers and data, that the last one adds labels. Inferred, in the manner of
TinyBERT (Jiao et al. 2020): the form of L_lat, the layer map, temperature 1; recalled: the authors.

Differs from the paper / the authors' code: we know neither's details. All means are over real tokens, padding left out.
Scores are averaged over heads where the numbers of heads differ, and left out with a note where a model keeps them to
itself (`models.encoder`): then hidden states alone teach. P is ours: every stage begins with its least-squares fit on `fit`
texts, so that a stage goes on where the one before it stopped, and then trains it. Task data are not augmented.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...audits.classification import Classification
from ...core.engine import to_device
from ...core.method import State, Update
from ...core.optim import Optim
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Recipe, Scale, pick
from ...core.run import Run, RunError
from ...core.signal import Batch, Kind
from ...core.stage import Audit, Train
from ...data.labelled import Labelled, LibraryTopics
from ...data.unlabelled import LibraryTexts, Texts
from ...models.call import dense, weight_of
from ...models.earlier import Continued
from ...models.encoder import MASK, Inside, TinyEncoder, inside, real_tokens
from ...models.text import HubClassifier
from ...objectives.divergences import ForwardKL, cross_entropy
from ...objectives.latent import hidden_gap, linear_map, score_gap
from ...teachers.encoder import EncoderTeacher
from ..classics.supervised import Supervised

PAPER = Paper(
    id="ernie_tiny",
    title="ERNIE-Tiny : A Progressive Distillation Framework for Pretrained Transformer Compression",
    authors=("Weiyue Su", "Xuyi Chen", "Shikun Feng", "Jiaxiang Liu", "Weixin Liu", "Yu Sun", "Hao Tian", "Hua Wu",
             "Haifeng Wang"),
    year=2021,
    arxiv="2106.02241",
    modality=("text",),
    data=("labels",),
    claim="A small transformer that is led from general to task knowledge in four stages keeps nearly all of its teacher's"
    " accuracy.",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Latent:
    """Learn what a teacher computes inside, and what it says."""

    teacher: str = "tuned"  # which of the recipe's teachers
    latent: float = 1.0  # weight of hidden states and scores; 0: neither
    soft: float = 0.0  # weight of the teacher's labels
    hard: float = 0.0  # weight of the data's
    fit: int = 64  # texts that P is fitted on before the first step
    needs: ClassVar[frozenset[Kind]] = frozenset({"features", "logits"})
    asks_about_own: ClassVar[bool] = True  # nor can what a teacher computes inside be stored

    def setup(self, student: nn.Module, run: Run) -> State:
        """The student and P, if their widths differ; RunError if the two do not fit."""
        if self.teacher not in run.teachers:
            raise RunError(f"no teacher {self.teacher!r}; the recipe has {', '.join(run.teachers) or 'none'}")
        count = min(self.fit, len(run.source))
        batch = to_device(run.source.batch(range(count), 0), run.device)
        was = student.training
        with torch.no_grad():
            mine, theirs = inside(student.eval(), batch), self._teacher(batch, run)
        student.train(was)
        if len(theirs.hidden) < len(mine.hidden):
            raise RunError(f"the student has {len(mine.hidden) - 1} layers and its teacher only {len(theirs.hidden) - 1}")
        if not mine.scores or not theirs.scores:
            run.event("note", text="a model keeps its attention scores to itself: the hidden states alone are compared")
        if not self.latent or mine.hidden[0].shape[-1] == theirs.hidden[0].shape[-1]:
            return State(student=student)
        real = real_tokens(batch)
        pairs = [(h[real], theirs.hidden[m][real]) for h, m in zip(mine.hidden, self._map(mine, theirs), strict=True)]
        p = linear_map(torch.cat([own for own, _ in pairs]), torch.cat([other for _, other in pairs]))
        projection = nn.Linear(*p.shape, bias=False, dtype=p.dtype, device=p.device)
        projection.weight.data.copy_(p.T)
        return State(student=student, projection=projection)

    def step(self, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        """One update over the texts, of the student and of P."""
        theirs, mine, weight = self._teacher(batch, run), inside(s.student, batch), weight_of(batch)
        hidden, scores = self.gaps(s, mine, theirs, real_tokens(batch))
        known = weight * (batch["labels"] >= 0)
        values = self.latent * weight * (hidden + scores)
        if self.soft:
            values = values + self.soft * ForwardKL()(dense(mine.logits), dense(theirs.logits), weight=weight)
        if self.hard:
            values = values + self.hard * cross_entropy(mine.logits, batch["labels"].clamp(min=0), weight=known)
        logs = {"hidden": (weight * hidden).detach().sum(), "scores": (weight * scores).detach().sum()}
        yield Update(values.sum(), count=weight.sum(), logs=logs)

    def gaps(self, s: State, mine: Inside, theirs: Inside, real: Tensor) -> tuple[Tensor, Tensor]:
        """(hidden states, attention scores) of every text `[B]`, summed over the mapped layers."""
        hidden = scores = torch.zeros(len(real), device=real.device)
        if self.latent:
            projected = getattr(s, "projection", nn.Identity())
            mapped = self._map(mine, theirs)
            for own, m in zip(mine.hidden, mapped, strict=True):
                hidden = hidden + hidden_gap(projected(own), theirs.hidden[m], real)
            if theirs.scores:
                for own, m in zip(mine.scores, mapped[1:], strict=False):
                    scores = scores + score_gap(own, theirs.scores[m - 1], real)
        return hidden, scores

    def _map(self, mine: Inside, theirs: Inside) -> list[int]:
        """The teacher's layer for each of the student's, the embedding (0) first."""
        few, many = len(mine.hidden) - 1, len(theirs.hidden) - 1
        return [round(layer * many / few) for layer in range(few + 1)]

    def _teacher(self, batch: Batch, run: Run) -> Inside:
        said = run.teachers[self.teacher](batch, self.needs)
        features = said.need("features")
        parts: list[list[Tensor]] = [[v for k, v in features.items() if k.startswith(kind)] for kind in ("hidden", "scores")]
        return Inside(said.need("logits"), *parts)


@dataclass(frozen=True, kw_only=True)
class MaskedWords:
    """Guess words that are hidden from it: how the toy's general teacher comes to be. For `models.encoder.TinyEncoder`."""

    share: float = 0.15  # of the words
    needs: ClassVar[frozenset[Kind]] = frozenset()

    def setup(self, student: nn.Module, run: Run) -> State:
        """The student alone; RunError if it cannot guess."""
        if not hasattr(student, "guess"):
            raise RunError(f"{type(student).__name__} cannot be pre-trained here: take a pre-trained model in its place")
        return State(student=student)

    def step(self, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        """One update over the hidden words; which they are depends on the run's seed and step and on the text alone."""
        ids, real = batch["inputs"]["input_ids"], real_tokens(batch)
        chosen = torch.zeros_like(real)
        for row, (words, there) in enumerate(zip(ids, real, strict=True)):
            n = int(there.sum())
            drawn = torch.rand(n, generator=run.rng("hide", words[:n].tolist()))
            chosen[row, :n] = (drawn < self.share).to(real.device)
        hidden = inside(s.student, {"inputs": {**batch["inputs"], "input_ids": ids.masked_fill(chosen, MASK)}}).hidden[-1]
        loss = cross_entropy(s.student.guess(hidden[chosen]), ids[chosen])
        yield Update(loss.sum(), count=chosen.sum())


STAGES = ("general", "enhanced", "adapt", "train")


def recipe(scale: Scale = "small", stages: Sequence[str] = STAGES) -> Recipe:
    """Docstrings and what their modules are about (smoke, small); your own texts, with BERT as both teachers (paper).

    The steps are divided evenly among `stages`, which end in `train`.
    """
    steps = pick(scale, smoke=160, small=600, paper=100_000) // len(stages)
    batch, lr = pick(scale, smoke=16, small=24, paper=128), pick(scale, smoke=1e-2, small=5e-3, paper=5e-5)
    bert = "google-bert/bert-base-uncased"
    big: Any = (
        HubClassifier(path=bert) if scale == "paper" else TinyEncoder(width=48, depth=4, heads=4, vocabulary=2048, length=16)
    )
    small: Any = TinyEncoder(width=24, depth=2, vocabulary=2048, length=16)
    if scale == "small":
        small = replace(big, depth=2)
    if scale == "paper":
        small = HubClassifier(path="google/bert_uncased_L-4_H-312_A-12")
    topics: Any = pick(scale, smoke=LibraryTopics(each=30), small=LibraryTopics(), paper=Labelled(path="train.jsonl"))
    general: Any = pick(scale, smoke=LibraryTexts(limit=300), small=LibraryTexts(), paper=Texts(path="general.txt"))
    tune = Train(
        method=Supervised(), student=big, batch=batch, label="Teacher",
        steps=pick(scale, smoke=80, small=500, paper=5000), optim=Optim(lr=pick(scale, smoke=3e-3, small=3e-3, paper=2e-5)),
    )  # fmt: skip
    made: dict[str, Any] = {"tune": tune}
    if scale != "paper":
        hidden = replace(tune, method=MaskedWords(), data=general, label="Teacher, pre-trained", optim=Optim(lr=3e-3))
        hidden = replace(hidden, steps=pick(scale, smoke=40, small=400, paper=0))
        made = {"pretrain": hidden, "tune": replace(tune, student=Continued(stage="pretrain", spec=big))}
    for i, name in enumerate(stages):
        method = Latent(
            teacher="general" if name == "general" else "tuned", soft=float(name == "train"), hard=float(name == "train")
        )
        made[name] = Train(
            method=method, steps=steps, batch=batch, optim=Optim(lr=lr), data=general if name in STAGES[:2] else None,
            student=Continued(stage=stages[i - 1]) if i else None, label="" if name == "train" else f"After {name}",
        )  # fmt: skip
    made["audit"] = Audit(subjects=("start", "tune", "train"), checks=(Classification(),))
    before = EncoderTeacher(model=big, stage=None if scale == "paper" else "pretrain")
    return Recipe(
        id="ernie_tiny", student=small, data=topics, stages=made,
        teachers={"general": before, "tuned": EncoderTeacher(model=big, stage="tune")},
    )  # fmt: skip


def proof() -> Proof:
    """All four stages against labels alone and the last stage alone."""
    ours, last = recipe("small"), recipe("small", ("train",))
    return Proof(
        claim="A two-layer encoder that is led through the four stages names the topics of unseen docstrings better than one"
        " that learns as many steps from the labels, and than one that learns as many steps in the last stage.",
        arms={"ours": ours, "alone": last.set("train.method", Supervised()), "last": last},
        metric="accuracy",
        beats=("alone", "last"),
        seeds=(0, 1, 2),
        minutes=5.0,
        note="All arms take 600 steps of 24 texts at a learning rate of 5e-3, divided evenly among their stages, after the"
        " same teachers. Nothing is tuned: in a trial of 720 steps, on the validation split of another seed, a last stage at"
        " 1.5e-3 came within a point, with and without the teacher. Asking the teacher costs more than not asking it.",
    )
