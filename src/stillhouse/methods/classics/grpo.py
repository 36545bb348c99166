"""GRPO, from DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models (Shao et al. 2024).

    A_i = (R_i - mean R) / std R                     over the G answers to one question          (section 4.1.2)
    L = 1/G sum_i 1/|y_i| sum_t [ -min(r A_i, clip(r, 1 - low, 1 + high) A_i) + kl k3(q || ref) ]      (Eq. 3, 4)

y_1 .. y_G are drawn from the student, R_i in [0, 1] is the verifier's judgement of y_i, and r = q(y_t) / q_old(y_t)
the ratio of the student's probabilities now and when it wrote the answer; the engine averages over questions. `ref` is
the student before training; k3 estimates KL(q || ref) from the drawn token, see `objectives.policy`. Every batch of
answers serves `inner` gradient steps (mu in the paper).

Differs from the paper / the authors' code: the reward is a verifier, not a learned reward model, and judges whole
answers ("outcome supervision"). The reference is not replaced during training (the paper's iterative GRPO). The first
gradient step on fresh answers takes its own probabilities for the old ones, in place of a pass of its own. Settings that
are not the paper's: `kl=0`, later practice, saves the reference (small students here did not survive it); `high` above
`low` (DAPO, Yu et al. 2025, arXiv 2503.14476: 0.28); `average="token"` weighs all tokens alike, also DAPO's; with it
`norm="none"` is nearly Dr. GRPO (Liu et al. 2025, arXiv 2503.20783). Where answers are drawn at a temperature, the ratio and
k3 are those of the distribution at that temperature; `top_p` below 1 is ignored in them.
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
from ...data.tasks import Chain, Questions, tasks_of
from ...models.before import before
from ...models.earlier import Continued
from ...models.generate import Sampling
from ...models.hub import HubLM
from ...models.toys import TinyLM
from ...objectives.policy import Norm, clipped, group_advantage, k3
from ..groups import Answers, Average, drawn, told
from .supervised import Supervised

PAPER = Paper(
    id="grpo",
    title="DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models",
    authors=(
        "Zhihong Shao", "Peiyi Wang", "Qihao Zhu", "Runxin Xu", "Junxiao Song", "Xiao Bi", "Haowei Zhang",
        "Mingchuan Zhang", "Y. K. Li", "Y. Wu", "Daya Guo",
    ),
    year=2024,
    arxiv="2402.03300",
    modality=("text",),
    data=("tasks",),
    claim="Rewarding an answer by how much better it is than its group's mean teaches a model to reason, without a critic.",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class GRPO:
    """Make answers that a verifier likes better than their group more likely. A batch counts questions, not answers."""

    group: int = 8  # answers to a question (paper: 64)
    inner: int = 1  # gradient steps a batch of answers (paper: 1)
    low: float = 0.2  # the ratio is clipped below 1 - low
    high: float = 0.2  # and above 1 + high
    kl: float = 0.04  # weight of k3 to the student before training (the paper's); 0 needs no reference
    norm: Norm = "std"  # of the advantages within a group
    average: Average = "answer"  # what counts alike
    sampling: Sampling = Sampling(temperature=1.0, max_new=256)
    needs: ClassVar[frozenset[Kind]] = frozenset()

    def __post_init__(self) -> None:
        if self.group < 2 or self.inner < 1:
            raise ValueError("a group needs at least two answers, and they serve at least one step")
        if self.sampling.temperature == 0:
            raise ValueError("at temperature 0 all answers of a group are the same: set sampling.temperature")

    def setup(self, student: nn.Module, run: Run) -> State:
        """The student, and with `kl` what it was."""
        tasks_of(run)
        if not self.kl:
            return State(student=student)
        return State(student=student, reference=before(student, run))

    def step(self, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        """`inner` updates over the answers to the batch's questions."""
        made, rewards = drawn(s.student, batch, run, self.sampling, self.group)
        answers = Answers(made, self.sampling.temperature)
        advantage = answers.each(group_advantage(rewards, self.norm))
        with torch.no_grad():
            reference = answers.logp(answers.logits(s.reference)) if self.kl else None
        share, count = answers.shares(self.average)

        def loss(logp: Tensor, old: Tensor) -> Tensor:
            values = clipped(logp, old, advantage, self.low, self.high)
            return values if reference is None else values + self.kl * k3(logp, reference)

        for _ in range(self.inner):
            values = answers.values(answers.logits(s.student), loss, weight=share)
            yield Update(values.sum(), count=count, logs=told(rewards, answers, count))


def recipe(scale: Scale = "small") -> Recipe:
    """Arithmetic chains (smoke, small), where the student first learns from other chains; GSM8K's questions (paper)."""
    if scale == "paper":
        sampling = Sampling(temperature=1.0, max_new=1024)
        return Recipe(
            id="grpo",
            student=HubLM(path="Qwen/Qwen2.5-1.5B-Instruct"),
            data=Questions(path="gsm8k.jsonl", length=1024),
            stages={
                "train": Train(
                    method=GRPO(group=64, sampling=sampling), steps=1000, batch=16, accumulate=16,
                    optim=Optim(lr=1e-6, schedule="constant"), precision="bfloat16",
                ),
                "audit": Audit(subjects=("start", "train"), checks=(Solved(
                    versus=("start",), sampling=Sampling(temperature=0.0, max_new=1024)),)),
            },
        )  # fmt: skip
    easy = Chain(ops=(1,), base=5, style="answer", train=36, valid=6, test=30)
    hard = Chain(base=5, signs="+-", style="values", train=3000, valid=200, test=400)
    tasks = pick(scale, smoke=easy, small=hard, paper=hard)
    few = replace(tasks, train=pick(scale, smoke=36, small=180, paper=0), skip=tasks.train if scale == "small" else 0)
    optim = Optim(lr=pick(scale, smoke=3e-3, small=3e-3, paper=0.0))
    warm = Train(
        method=Supervised(), data=few, steps=pick(scale, smoke=60, small=200, paper=0), optim=optim,
        batch=pick(scale, smoke=16, small=64, paper=0), label="Student before GRPO",
    )  # fmt: skip
    writing = Sampling(max_new=pick(scale, smoke=4, small=10, paper=0), batch=512)
    group, batch = pick(scale, smoke=4, small=8, paper=64), pick(scale, smoke=8, small=32, paper=16)
    train = Train(
        method=GRPO(group=group, sampling=writing), student=Continued(stage="warm"), label="GRPO", batch=batch,
        steps=pick(scale, smoke=10, small=240, paper=0), optim=replace(optim, lr=3e-4),
    )  # fmt: skip
    judged = Solved(versus=("warm",), sampling=replace(writing, temperature=0.0))
    return Recipe(
        id="grpo",
        student=pick(scale, smoke=TinyLM(width=24), small=TinyLM(width=64, heads=4), paper=TinyLM()),
        data=tasks,
        stages={"warm": warm, "train": train, "audit": Audit(subjects=("start", "warm", "train"), checks=(judged,))},
    )


def proof() -> Proof:
    """A few worked solutions, then 3,000 questions and a verifier, or the same solutions again."""
    ours = recipe("small")
    train, few = ours.stages["train"], ours.stages["warm"].data
    more = replace(train, method=Supervised(), data=few, batch=train.batch * train.method.group)
    return Proof(
        claim="A student that has learned what 180 worked solutions teach it solves more unseen chains after GRPO on further"
        " questions, of whose answers it only hears whether they are right, than after as many steps on the solutions.",
        arms={"ours": ours, "alone": ours.set("stages", {**ours.stages, "train": more})},
        metric="solved",
        seeds=(0, 1, 2, 3, 4),
        tune={"train.optim.lr": (1e-4, 3e-4, 1e-3, 3e-3)},
        tuning_seeds=3,
        minutes=10.0,
        note="Both arms go on from the same student (stage `warm`, 200 steps on the 180 solutions) for 240 steps: of 256 of"
        " its own answers to 32 questions, or of 256 worked solutions. GRPO sees 3,000 questions more than the other arm,"
        " and no solution to them; that is its point, but it is not the same data.",
    )
