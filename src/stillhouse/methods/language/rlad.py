"""Reinforcement-aware Knowledge Distillation for LLM Reasoning (Zhang et al. 2026, arXiv 2602.22495): RLAD.

    L = 1/G sum_i 1/|y_i| sum_t -min(r A_i, clip(r, 1 - low, 1 + high) A_i),    r = (q / q_old)^alpha (q / p)^(1 - alpha)

GRPO (y_i, A_i, low and high are its) with another ratio: that of the student q not to what it was when it wrote the token,
q_old, but to a geometric mixture of that and the teacher p, `objectives.policy.anchored`. The reward says whether a token
is to become more or less likely, the teacher how far. Where a token is rewarded and the teacher finds it far less likely
than the student, r begins above 1 + high and nothing moves; where the teacher finds it more likely, there is more room
than GRPO has. Punished tokens that the teacher likes are spared, those that it dislikes are punished harder.

alpha = 1 is GRPO, to the bit. With `teacher_kl` beside it, it is KDRL: GRPO with a price on KL(q || p), as k3 estimates it
from the drawn tokens; the paper's main rival.

Differs from the paper / the authors' code: written from the paper's equations, without its code. Its alpha is not known to
us: 0.5 is ours, and so are `low`, `high` and no KL term to the student before training, which are GRPO's customs. The log
ratio of teacher to q_old is bounded at 20 nats. Both are taken at the sampling temperature; the teacher must have the
student's tokenizer. The first gradient step on fresh answers takes its own probabilities for the old ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...audits.solved import Solved
from ...core.method import State, Update
from ...core.optim import Optim
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Recipe, Scale, pick
from ...core.run import Run
from ...core.signal import Batch, Kind
from ...core.stage import Audit, Train
from ...data.tasks import Gym, tasks_of
from ...models.before import before
from ...models.generate import Sampling
from ...models.hub import HubLM
from ...objectives.policy import Norm, anchored, clipped, group_advantage, k3
from ...teachers.local import LocalLM
from ..classics.grpo import GRPO
from ..classics.supervised import Supervised
from ..groups import Answers, Average, drawn, on_chains, told

PAPER = Paper(
    id="rlad",
    title="Reinforcement-aware Knowledge Distillation for LLM Reasoning",
    authors=(
        "Zhaoyang Zhang", "Shuli Jiang", "Yantao Shen", "Yuting Zhang", "Dhananjay Ram", "Shuo Yang", "Zhuowen Tu",
        "Wei Xia", "Stefano Soatto",
    ),
    year=2026,
    arxiv="2602.22495",
    modality=("text",),
    data=("tasks",),
    claim="A teacher in the anchor of the clipped ratio helps reinforcement learning more than a KL term to the teacher.",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RLAD:
    """GRPO whose ratio is taken to a mixture of the old student and the teacher. A batch counts questions."""

    alpha: float = 0.5  # of the old student in the anchor; 1: GRPO, 0: the teacher alone
    teacher_kl: float = 0.0  # weight of k3 to the teacher; with alpha = 1 KDRL
    group: int = 8  # answers to a question
    inner: int = 1  # gradient steps a batch of answers
    low: float = 0.2  # the ratio is clipped below 1 - low
    high: float = 0.2  # and above 1 + high
    kl: float = 0.0  # weight of k3 to the student before training; 0 needs no reference
    norm: Norm = "std"  # of the advantages within a group
    average: Average = "answer"  # what counts alike
    sampling: Sampling = Sampling(temperature=1.0, max_new=256)
    needs: ClassVar[frozenset[Kind]] = frozenset({"logits"})
    asks_about_own: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha is the old student's share in the anchor, from 0 to 1, not {self.alpha}")
        if self.group < 2 or self.inner < 1 or self.sampling.temperature == 0:
            raise ValueError("RLAD needs groups of two different answers or more, hence a temperature, and one inner step")

    def setup(self, student: nn.Module, run: Run) -> State:
        """The student, and with `kl` what it was."""
        tasks_of(run)
        return State(student=student, reference=before(student, run)) if self.kl else State(student=student)

    def step(self, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        """`inner` updates over the answers to the batch's questions."""
        made, rewards = drawn(s.student, batch, run, self.sampling, self.group)
        answers = Answers(made, self.sampling.temperature)
        share, count = answers.shares(self.average)
        advantage = answers.each(group_advantage(rewards, self.norm))
        said = run.teacher(made, self.needs).need("logits")
        with torch.no_grad():
            before = answers.logp(answers.logits(s.reference)) if self.kl else None
        for _ in range(self.inner):
            z = answers.logits(s.student)
            teacher = answers.taught(z, said)
            moved: dict[str, Tensor] = {}

            def loss(logp: Tensor, old: Tensor, teacher: Tensor = teacher, moved: dict[str, Tensor] = moved) -> Tensor:
                anchor = anchored(old, teacher, self.alpha)
                values = clipped(logp, anchor, advantage, self.low, self.high)
                ratio = (logp.detach() - anchor).exp()
                moved["held_back"] = (share * ((ratio > 1 + self.high) & (advantage > 0))).sum()
                moved["spared"] = (share * ((ratio < 1 - self.low) & (advantage < 0))).sum()
                moved["reverse_kl"] = (share * (old - teacher)).sum()
                if self.teacher_kl:
                    values = values + self.teacher_kl * k3(logp, teacher)
                return values if before is None else values + self.kl * k3(logp, before)

            total = answers.values(z, loss, weight=share).sum()
            yield Update(total, count=count, logs=told(rewards, answers, count) | moved)


def recipe(scale: Scale = "small") -> Recipe:
    """Arithmetic chains with a teacher that has read all of their solutions (smoke, small); knights and knaves, made by
    reasoning-gym, for Qwen3-0.6B with Qwen3-8B as its teacher (paper; the pair is ours)."""
    if scale == "paper":
        sampling = Sampling(temperature=1.0, max_new=4096)
        train = Train(
            method=RLAD(sampling=sampling), steps=500, batch=32, accumulate=32, precision="bfloat16", checkpointing=True,
            optim=Optim(lr=1e-6, schedule="constant"), label="RLAD",
        )  # fmt: skip
        judged = Solved(versus=("start",), sampling=replace(sampling, temperature=0.0))
        return Recipe(
            id="rlad",
            student=HubLM(path="Qwen/Qwen3-0.6B"),
            data=Gym(task="knights_knaves", train=4000, length=2048),
            teachers={"teacher": LocalLM(model=HubLM(path="Qwen/Qwen3-8B", dtype="bfloat16"))},
            stages={"train": train, "audit": Audit(subjects=("start", "train"), checks=(judged,))},
        )
    sampling = Sampling(max_new=pick(scale, smoke=4, small=8, paper=0), batch=512)
    group, steps = pick(scale, smoke=4, small=8, paper=0), pick(scale, smoke=60, small=400, paper=0)

    def teacher(warm: Train) -> Train:
        return replace(warm, data=None, steps=steps)

    return on_chains("rlad", scale, RLAD(group=group, sampling=sampling), teacher, batch=16, steps=100, label="RLAD")


def proof() -> Proof:
    """RLAD against GRPO and against KDRL, on as many answers, and against the worked chains again."""
    ours = recipe("small")
    train = ours.stages["train"]
    few = replace(train, method=Supervised(), data=ours.stages["warm"].data, batch=train.batch * train.method.group)
    return Proof(
        claim="A student that has learned what 400 worked chains teach it solves more unseen chains after 100 steps of RLAD"
        " than after as many of GRPO, of GRPO with a KL term to the same teacher, or on the worked chains again.",
        arms={
            "ours": ours,
            "grpo": ours.set("train.method", GRPO(group=train.method.group, sampling=train.method.sampling, kl=0.0)),
            "kdrl": ours.set("train.method", replace(train.method, alpha=1.0, teacher_kl=1.0)),
            "alone": ours.set("stages", {**ours.stages, "train": few}),
        },
        metric="solved",
        beats=("grpo", "kdrl", "alone"),
        seeds=(0, 1, 2),
        tune={"train.optim.lr": (3e-4, 1e-3)},
        minutes=8.0,
        note="Chains modulo 10 of two operators, `+` and `-`. For each seed a student learns 400 worked chains (stage"
        " `warm`), a teacher of its size 1,500, and every arm goes on from `warm` for 100 steps of 128 answers, 8 to a"
        " question, or of 128 worked chains. RLAD, GRPO and KDRL meet the 1,500 questions that the teacher has"
        " learned. KDRL has alpha = 1 and teacher_kl = 1. No arm has a KL term to the student before training.",
    )
