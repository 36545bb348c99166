"""Pi-Distill: Privileged Information Distillation for Language Models (Penaloza et al. 2026, arXiv 2602.04942).

    J_T = E_{y~T}[R] - beta KL(T || sg[q])                        the teacher: the same weights, shown what helps
    J_S = E_{y~T}[ q(y) / sg[T(y)] R ] - beta KL(sg[T] || q)      the student learns from the teacher's answers
    J = share J_T + (1 - share) J_S
    on its own answers:   J = E_{y~q}[R] - beta KL(q || sg[T])    (`answers="own"`; the paper's OPSD)

x is a question, I what only training may see (the solution, the calls that somebody else made), q(y) = p(y | x) and
T(y) = p(y | x, I) are two readings of one model, sg stops the gradient, R is the verifier's reward. Answers that q would
hardly ever come upon are easy for T; the KL keeps T from answers that q could not give, and q close to T. With share = 1
only the teacher is trained, and the student improves because they share weights.

R enters as GRPO's advantage within the group of answers to a question, ratios are clipped per token, and the KLs are read
from the drawn tokens: k3 where they are drawn from the first argument and that one is trained, log T - log q for the
student on the teacher's answers. INFERRED: the clipping per token, and k3. Sure, from a detailed account of the paper: the
objectives, share 0.5 as the safest of 0, 0.5 and 1, beta of 0.1 to 0.5.

Differs from the paper: an answer is one turn. Theirs go on for several with an environment in between.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ...audits.solved import Solved
from ...core.engine import to_device
from ...core.method import State, Update
from ...core.optim import Optim
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Recipe, Scale, pick
from ...core.run import Run, seed_of
from ...core.signal import Batch, Kind
from ...core.stage import Audit, Train
from ...data.calls import Calls
from ...data.tasks import Gym, Hinted, tasks_of
from ...data.tokens import prompts_of
from ...models.call import logits_of
from ...models.earlier import Continued
from ...models.generate import Sampling, answered, generate
from ...models.hub import HubLM
from ...models.toys import TinyLM
from ...objectives.divergences import token_logp
from ...objectives.policy import clipped, group_advantage, k3, of_tokens, tempered
from ..classics.grpo import GRPO
from ..classics.supervised import Supervised

PAPER = Paper(
    id="pi_distill",
    title="Privileged Information Distillation for Language Models",
    authors=(
        "Emiliano Penaloza", "Dheeraj Vattikonda", "Nicolas Gontier", "Alexandre Lacoste", "Laurent Charlin",
        "Massimo Caccia",
    ),
    year=2026,
    arxiv="2602.04942",
    modality=("text",),
    data=("tasks",),
    claim="One model, trained with the actions shown and without, learns what reinforcement learning alone does not.",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PiDistill:
    """Reinforce answers given with help, and teach the same weights to give them without."""

    share: float = 0.5  # of the teacher's objective (a); 0: the student's alone, 1: the teacher's alone
    beta: float = 0.1  # weight of the KLs
    answers: Literal["helped", "own"] = "helped"  # who draws them; "own": the student, and share does not count
    group: int = 8  # answers to a question
    low: float = 0.2  # the ratio is clipped below 1 - low
    high: float = 0.2  # and above 1 + high
    sampling: Sampling = Sampling(temperature=1.0, max_new=256)
    needs: ClassVar[frozenset[Kind]] = frozenset()

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1 or self.beta < 0 or self.group < 2:
            raise ValueError("share is between 0 and 1, beta at least 0, and a group needs at least two answers")
        if self.sampling.temperature == 0:
            raise ValueError("at temperature 0 all answers of a group are the same: set sampling.temperature")

    def setup(self, student: nn.Module, run: Run) -> State:
        """The student, which is the teacher too."""
        tasks_of(run)
        return State(student=student)

    def step(self, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        """One update over the answers to the batch's questions; every answer counts the same."""
        tasks, examples = tasks_of(run), batch["example"][:, 0].tolist()
        keys = [(example, number) for example in examples for number in range(self.group)]
        bare = [prompt for prompt in prompts_of(batch) for _ in range(self.group)]
        helped = [tasks.hinted(run, "train")[example] for example, _ in keys]
        asked = helped if self.answers == "helped" else bare
        seed = seed_of(run.seed, "rollout", run.step)
        wrote = generate(s.student, asked, self.sampling, seed=seed, keys=keys, ends=tasks.ends(run))
        rewards = torch.tensor(tasks.verify_all(run, "train", [example for example, _ in keys], wrote))
        rewards = rewards.view(-1, self.group)
        without, with_help = (to_device(answered(p, wrote), batch["labels"].device) for p in (bare, helped))
        weight = without["weight"]
        rows = weight.nonzero()[:, 0]  # the answer of every token, the same in both readings
        advantage = group_advantage(rewards).flatten().to(weight)[rows]
        each = 1 / weight.sum(-1)[rows]
        total, logs = self._losses(s.student, without, with_help, advantage, each)
        count = len(wrote)
        right = {"reward": rewards.mean() * count, "solved": (rewards >= 1).float().mean() * count}
        yield Update(total, count=count, logs={**logs, **right})

    def _losses(
        self, student: nn.Module, without: Batch, with_help: Batch, advantage: Tensor, each: Tensor
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        """The loss of all tokens [n] of the answers, each of weight `each`, and the log-ratio of both readings."""
        blind, shown = (self._reading(student, read) for read in (without, with_help))
        (blind_logits, labels), (shown_logits, _) = blind, shown
        with torch.no_grad():
            q, t = (token_logp(z.detach(), labels) for z in (blind_logits, shown_logits))

        def teacher(logp: Tensor) -> Tensor:
            return clipped(logp, t, advantage, self.low, self.high) + self.beta * k3(logp, q)

        def follower(logp: Tensor) -> Tensor:
            return clipped(logp, t, advantage, self.low, self.high) + self.beta * (t - logp)

        def alone(logp: Tensor) -> Tensor:
            return clipped(logp, q, advantage, self.low, self.high) + self.beta * k3(logp, t)

        if self.answers == "own":
            total = of_tokens(blind_logits, labels, alone, weight=each).sum()
        else:
            parts = (self.share, shown_logits, teacher), (1 - self.share, blind_logits, follower)
            total = sum(
                (share * of_tokens(z, labels, loss, weight=each).sum() for share, z, loss in parts if share), q.new_zeros(())
            )
        return total, {"helped_minus_bare": (each * (t - q)).sum()}

    def _reading(self, student: nn.Module, batch: Batch) -> tuple[Any, Tensor]:
        """Logits of the answers' tokens [n, V] at the sampling's temperature, and the tokens."""
        counted = batch["weight"] > 0
        return tempered(logits_of(student, batch), self.sampling.temperature)[counted], batch["labels"][counted]


def recipe(scale: Scale = "small") -> Recipe:
    """Tool calls in an unexplained code, the student having learned to use a hint (smoke, small); questions (paper)."""
    if scale == "paper":
        sampling = Sampling(max_new=2048)
        return Recipe(
            id="pi_distill",
            student=HubLM(path="Qwen/Qwen3-4B"),
            data=Gym(task="gsm_symbolic", train=7000, length=1024),
            stages={
                "train": Train(
                    method=PiDistill(beta=0.25, sampling=sampling), steps=200, batch=32, accumulate=32,
                    precision="bfloat16", checkpointing=True, optim=Optim(lr=1e-6),
                ),
                "audit": Audit(subjects=("start", "train"), checks=(
                    Solved(versus=("start",), hinted=("start",), sampling=replace(sampling, temperature=0.0)),)),
            },
        )  # fmt: skip
    easy = Calls(calls=2, letters=6, train=10, valid=3, test=5)
    tasks = pick(scale, smoke=easy, small=Calls(letters=12, train=400, valid=60, test=200), paper=easy)
    few = replace(tasks, train=pick(scale, smoke=10, small=200, paper=0), skip=pick(scale, smoke=0, small=400, paper=0))
    warm = Train(
        method=Supervised(), data=Hinted(base=few, plain=scale == "smoke"), steps=pick(scale, smoke=120, small=300, paper=0),
        batch=pick(scale, smoke=8, small=64, paper=0), optim=Optim(lr=pick(scale, smoke=1e-2, small=3e-3, paper=0.0)),
        label="Student before",
    )  # fmt: skip
    sampling = Sampling(max_new=pick(scale, smoke=5, small=7, paper=0), batch=512)
    train = Train(
        method=PiDistill(group=pick(scale, smoke=4, small=8, paper=0), sampling=sampling), label="Pi-Distill",
        student=Continued(stage="warm"), steps=pick(scale, smoke=8, small=150, paper=0),
        batch=pick(scale, smoke=4, small=16, paper=0), optim=Optim(lr=3e-3),
    )  # fmt: skip
    judged = Solved(versus=("warm",), hinted=("warm", "train"), sampling=replace(sampling, temperature=0.0))
    return Recipe(
        id="pi_distill",
        student=pick(scale, smoke=TinyLM(width=24), small=TinyLM(width=64, heads=4), paper=TinyLM()),
        data=tasks,
        stages={"warm": warm, "train": train, "audit": Audit(subjects=("start", "warm", "train"), checks=(judged,))},
    )


def proof() -> Proof:
    """With the calls shown in training, against reinforcement without them, and the other ways of using them."""
    ours = recipe("small")
    train = ours.stages["train"]
    method = train.method
    learned = replace(train, method=Supervised(), data=None, batch=train.batch * method.group)
    return Proof(
        claim="Asked for three tool calls in a code that it has never been told, a student that can copy calls from a hint"
        " makes the right calls without a hint more often after Pi-Distill than after GRPO, from as many answers.",
        arms={
            "ours": ours,
            "grpo": ours.set("train.method", GRPO(group=method.group, kl=0.0, sampling=method.sampling)),
            "opsd": ours.set("train.method", replace(method, answers="own")),
            "teacher_alone": ours.set("train.method", replace(method, share=1.0)),
            "supervised": ours.set("stages", {**ours.stages, "train": learned}),
        },
        metric="solved",
        beats=("grpo",),
        seeds=(0, 1, 2),
        tune={"train.optim.lr": (1e-3, 3e-3)},
        minutes=8.0,
        note="All arms go on from a student that has learned to copy shown calls, for 150 steps of 128 answers. `supervised`"
        " reads the calls as worked solutions, which the others only see as hints; here nothing but the calls is to be"
        " learned, so it is a ceiling and not a rival: in the paper's setting the calls come without the reasoning.",
    )
