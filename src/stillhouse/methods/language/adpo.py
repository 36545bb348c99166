"""ADPO: Anchored Direct Preference Optimization: a listwise loss over the answers to a prompt, measured from an anchor.

    p_i = softmax_i( (l_i - l_i^0) / tau ),      L = KL(q || p)

l_i is the log-probability of answer i of n to one prompt under the student (the sum over its tokens), l_i^0 the same under
the anchor, p how the student has come to prefer the answers, and q how it should. tau sets how far it may go: the loss
curves as 1 / tau^2 around the anchor. What q is makes the method:

    (1, 0) for two answers              DPO with beta = 1 / tau, exactly
    (1 - doubt, doubt)                  DPO that reckons with labels that are wrong
    softmax(a / heat), a the scores standardised in their set     what the authors train language models with
    softmax(scores / heat)              maximum-entropy RL for rewards; a teacher's distribution for its log-probabilities

`ADPO` learns from stored pairs or sets, with the student's own beginning as anchor; `OnlineADPO` from answers that the
student draws as it learns, with the one that drew them as anchor. There tau follows the answers: with H the mean of
-log p of their tokens over log V, and R the mean reward,

    tau = base (1 + 0.5 H + 0.5 (1 - H) (1 - R)),  within [0.05, 5]

Sure, from the abstract and the authors' code: the loss and its special cases; for language models eight answers, sums over
tokens, heat 0.5, base 0.8, the rule for tau, no gradient through it.

Differs from the authors' code: H and R belong to a question's own group, not to the batch, and R is the reward as it is, not
brought to [0, 1] by the batch's least and largest: otherwise a gradient would depend on how a batch is split. Rewards are
taken as lying in [0, 1] for it. The KL term to the anchor, whose weight is 0 there, and the choice to drop groups that are
all wrong are not here: such a group has a flat q, and pulls towards the anchor alone. `doubt` is a number that you give. The
experiment, its sizes and its kind of noise (a verifier that errs) are ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...audits.candidates import SetScores
from ...audits.solved import Solved
from ...core.method import State, Update
from ...core.optim import Optim
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Recipe, Scale, pick
from ...core.run import Run, RunError
from ...core.signal import Batch, Kind
from ...core.stage import Audit, Train
from ...data.candidates import Best, Candidates, Drafts, StageCandidates
from ...data.pairs import StagePairs
from ...data.tasks import tasks_of
from ...data.tastes import Tastes
from ...models.call import logits_of, weight_of
from ...models.earlier import Continued
from ...models.generate import Sampling
from ...models.hub import HubLM
from ...models.toys import TinyLM
from ...objectives.divergences import token_logp
from ...objectives.policy import tempered
from ...objectives.preference import along_scores, listwise, sequence_logp
from ...teachers.module import ModuleTeacher
from ..classics.dpo import DPO
from ..classics.supervised import Supervised
from ..groups import drawn

PAPER = Paper(
    id="adpo",
    title="ADPO: Anchored Direct Preference Optimization",
    authors=("Wang Zixian",),
    year=2025,
    arxiv="2510.18913",
    modality=("text",),
    data=("pairs", "tasks"),
    claim="A listwise loss on scores measured from an anchor bears wrong preference labels better than DPO.",
)


@dataclass(frozen=True, kw_only=True)
class ADPO:
    """Prefer the answers of stored pairs or sets as their labels or scores say, measured from where the student began."""

    tau: float = 0.8  # temperature of the student's preferences; 1 / beta of DPO
    doubt: float = 0.0  # of pairs: the chance that a label is wrong
    heat: float = 0.5  # of sets: temperature of the target
    standardised: bool = True  # of sets: whether scores are brought to mean 0 and deviation 1 first
    needs: ClassVar[frozenset[Kind]] = frozenset()

    def __post_init__(self) -> None:
        if self.tau <= 0 or self.heat <= 0:
            raise ValueError(f"tau and heat must be above 0, not {self.tau} and {self.heat}")
        if not 0 <= self.doubt <= 0.5:
            raise ValueError(f"doubt is a chance between 0 and 0.5, not {self.doubt}")

    def setup(self, student: nn.Module, run: Run) -> State:
        """The student and what it was, the anchor, as DPO keeps them."""
        return DPO().setup(student, run)

    def step(self, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        """One update over the pairs or sets."""
        labels, weight = batch["labels"], weight_of(batch)
        order, target = self._target(batch)
        present = order >= 0
        with torch.no_grad():
            anchor = sequence_logp(logits_of(s.reference, batch), labels, weight=weight)[order]

        def objective(scores: Tensor) -> Tensor:
            return listwise(scores[order], target, anchor, tau=self.tau, present=present)

        loss, scores = along_scores(objective, logits_of(s.student, batch), labels, weight=weight)
        moved = (scores[order] - anchor).masked_fill(~present, -torch.inf)
        right = target.gather(-1, moved.argmax(-1, keepdim=True)).squeeze(-1) == target.amax(-1)
        yield Update(loss, count=len(order), logs={"best_first": right.sum()})

    def _target(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Which rows of the batch belong together `[sets, n]`, -1 for none, and the distribution q over them."""
        device = batch["labels"].device
        if "pairs" in batch:
            pairs = torch.arange(batch["pairs"], device=device)
            order = torch.stack([pairs, pairs + len(pairs)], -1)
            return order, torch.tensor([1 - self.doubt, self.doubt], device=device).expand(len(pairs), 2)
        if "sizes" not in batch:
            raise RunError("this method learns from pairs or from sets of scored answers: give it sets, as in "
                           "--set 'train.data={use: data.candidates.Candidates, path: sets.jsonl}'")  # fmt: skip
        order = rows_of(batch["sizes"], device)
        return order, wanted(batch["scores"][order], self.heat, self.standardised, order >= 0)


def rows_of(sizes: Sequence[int], device: torch.device | None = None) -> Tensor:
    """The rows of sets that lie one behind the other, `[sets, largest size]`; -1 where a set has no more."""
    order = torch.full((len(sizes), max(sizes, default=0)), -1, device=device)
    begin = 0
    for row, size in zip(order, sizes, strict=True):
        row[:size] = torch.arange(begin, begin + size, device=device)
        begin += size
    return order


def wanted(scores: Tensor, heat: float, standardised: bool, present: Tensor | None = None) -> Tensor:
    """softmax(a / heat) over the answers of each set, `[sets, n]`; a: the scores, `standardised` in their set or not.

    The deviation is the unbiased one, plus 1e-4. A set of equal scores has a flat target.
    """
    there = torch.ones_like(scores, dtype=torch.bool) if present is None else present
    if standardised:
        count = there.sum(-1, keepdim=True)
        centred = (scores - scores.where(there, 0.0).sum(-1, keepdim=True) / count).where(there, 0.0)
        deviation = (centred.square().sum(-1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
        scores = centred / (deviation + 1e-4)
    return (scores / heat).masked_fill(~there, -torch.inf).softmax(-1)


@dataclass(frozen=True, kw_only=True)
class OnlineADPO:
    """The same on the student's own answers to questions with a verifier. A batch counts questions, not answers."""

    group: int = 8  # answers to a question
    inner: int = 1  # gradient steps a batch of answers
    base: float = 0.8  # of tau
    adaptive: bool = True  # whether tau follows the answers
    heat: float = 0.5  # temperature of the target
    sampling: Sampling = Sampling(temperature=1.0, max_new=256)
    needs: ClassVar[frozenset[Kind]] = frozenset()

    def __post_init__(self) -> None:
        if self.group < 2 or self.inner < 1 or self.base <= 0 or self.heat <= 0 or self.sampling.temperature <= 0:
            raise ValueError("a group needs two answers, drawn at a temperature; inner, base and heat are above 0")

    def setup(self, student: nn.Module, run: Run) -> State:
        """The student alone: the anchor is what it was when it wrote."""
        tasks_of(run)
        return State(student=student)

    def step(self, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        """`inner` updates over the answers to the batch's questions."""
        answers, rewards = drawn(s.student, batch, run, self.sampling, self.group)
        weight, labels, temperature = weight_of(answers), answers["labels"], self.sampling.temperature
        with torch.no_grad():
            z = tempered(logits_of(s.student, answers), temperature)
            logp = token_logp(z, labels, weight=weight)
        rewards = rewards.to(logp)
        anchor, target = logp.sum(-1).view_as(rewards), wanted(rewards, self.heat, True)
        tau = self._tau(logp, weight, rewards, z.shape[-1])

        def objective(scores: Tensor) -> Tensor:
            return listwise(scores.view_as(anchor), target, anchor, tau=tau)

        logs = {"reward": rewards.mean(-1).sum(), "tau": tau.sum(), "solved": (rewards >= 1).float().mean(-1).sum()}
        for _ in range(self.inner):
            z = tempered(logits_of(s.student, answers), temperature)
            loss, _ = along_scores(objective, z, labels, weight=weight)
            yield Update(loss, count=len(rewards), logs=logs)

    def _tau(self, logp: Tensor, weight: Tensor, rewards: Tensor, classes: int) -> Tensor:
        """tau of every group, `[questions]`: higher where the student is unsure, or sure and wrong."""
        if not self.adaptive:
            return torch.full_like(rewards[:, 0], self.base)
        questions = len(rewards)
        tokens = weight.view(questions, -1).sum(-1).clamp(min=1)
        unsure = (-logp.view(questions, -1).sum(-1) / tokens / math.log(classes)).clamp(0, 1)
        wrong = 1 - rewards.mean(-1).clamp(0, 1)
        return (self.base * (1 + 0.5 * unsure + 0.5 * (1 - unsure) * wrong)).clamp(0.05, 5.0)


def recipe(scale: Scale = "small") -> Recipe:
    """Questions of taste, judged by a verifier that turns 30 of 100 verdicts round (small; smoke: none); a user's sets and
    a model from the hub (paper).

    The student learns the form of an answer (`warm`), answers every question four times (`drafts`), and learns from the
    verdicts on the training questions. Those on held-out ones, by which it is judged, are all right.
    """
    if scale == "paper":
        train = Train(
            method=ADPO(), steps=800, batch=16, accumulate=16, optim=Optim(lr=1e-6, warmup=0.1), precision="bfloat16",
            checkpointing=True, label="ADPO",
        )  # fmt: skip
        check = SetScores(versus=("start",), precision="bfloat16")
        return Recipe(
            id="adpo",
            student=HubLM(path="Qwen/Qwen2.5-1.5B-Instruct"),
            data=Candidates(path="sets.jsonl"),
            stages={"train": train, "audit": Audit(subjects=("start", "train"), checks=(check,))},
        )
    easy, hard = Tastes(size=2, train=26, valid=4, test=20), Tastes(train=3500)
    tasks = pick(scale, smoke=easy, small=hard, paper=hard)
    student = TinyLM(width=pick(scale, smoke=24, small=32, paper=32))
    optim = Optim(lr=3e-3)
    warm = Train(
        method=Supervised(), steps=pick(scale, smoke=60, small=150, paper=0), optim=optim,
        batch=pick(scale, smoke=16, small=64, paper=0), label="Student before ADPO",
    )  # fmt: skip
    writing = Sampling(max_new=pick(scale, smoke=4, small=6, paper=0), batch=512)
    splits, sets = ("train", "valid", "test"), StageCandidates(stage="drafts", base=tasks)
    drafts = Drafts(
        data=tasks, splits=splits, each=4, sampling=writing, mistaken=pick(scale, smoke=0.0, small=0.3, paper=0.0)
    )
    train = Train(
        method=ADPO(), data=sets, student=Continued(stage="warm"), label="ADPO",
        steps=pick(scale, smoke=40, small=150, paper=0), batch=pick(scale, smoke=8, small=16, paper=0),
        optim=replace(optim, lr=1e-3),
    )  # fmt: skip
    judged = (SetScores(data=sets, versus=("warm",), batch=100), Solved(versus=("warm",), sampling=writing))
    return Recipe(
        id="adpo",
        student=student,
        data=tasks,
        teachers={"writer": ModuleTeacher(spec=student, stage="warm")},
        stages={
            "warm": warm,
            "drafts": drafts,
            "train": train,
            "audit": Audit(subjects=("start", "warm", "train"), checks=judged),
        },
    )


def proof() -> Proof:
    """Sets against pairs, sure and doubtful, of the same verdicts, 30 in 100 of them turned round; and with none."""
    ours = recipe("small")
    method, sets, size = ours.stages["train"].method, ours.stages["train"].data, ours.stages["train"].batch
    pairs = ours.set("train.data", StagePairs(stage="drafts", base=ours.data)).set("train.batch", 2 * size)
    alone = ours.set("train.method", Supervised()).set("train.data", Best(sets=sets)).set("train.batch", 4 * size)
    return Proof(
        claim="Where 30 of 100 verdicts on a student's answers are turned round, it orders unseen answers better after ADPO"
        " on sets of four answers than after DPO on the pairs in them, at as many steps and answers read.",
        arms={
            "ours": ours,
            "dpo": pairs,
            "doubtful": pairs.set("train.method", replace(method, doubt=0.3)),
            "alone": alone.set("train.optim.lr", 3e-3),
            "ours_clean": ours.set("drafts.mistaken", 0.0),
            "dpo_clean": pairs.set("drafts.mistaken", 0.0),
        },
        metric="ranked",
        beats=("dpo",),
        seeds=(0, 1, 2, 3, 4),
        tune={"train.optim.lr": (3e-3, 1e-2, 3e-2), "train.method.tau": (0.8, 4.0)},
        untuned=("alone",),
        minutes=10.0,
        note="Every arm goes on from the same student for 150 steps of 64 answers: 16 sets of four, 32 pairs, or (`alone`)"
        " 64 of the answers with the best verdicts of their sets, learned as text at the rate of the first stage. `dpo` is"
        " ADPO on sure pairs, which equals DPO with beta = 1 / tau (a test holds it to 1e-6). A verdict is the share of an"
        " answer's four letters that are liked, and turned round it is one minus that. Not in the claim: `doubtful` is told"
        " 0.3 as the chance that a pair's label is wrong; the `_clean` arms learn from verdicts that are all right.",
    )
