"""Learning beyond Teacher: Generalized On-Policy Distillation with Reward Extrapolation (Yang et al. 2026, 2602.12125).

    A_t = scale (log p(y_t) - log ref(y_t)) - (log q_old(y_t) - log ref(y_t)),        y drawn from the student q
    L = sum_t -min(r A_t, clip(r, 1 - low, 1 + high) A_t) / sum_t 1,                  r = q(y_t) / q_old(y_t)

On-policy distillation read as reinforcement learning: what the teacher p has learned, log p / ref, is the reward of a
token, and the student pays KL(q || ref) for leaving the reference. Its best is q = p^scale ref^(1 - scale), normalised. At
scale = 1 the reference cancels and this is on-policy distillation; below 1 the student stops short of the teacher, above 1
it goes beyond (ExOPD; 1.25 in the paper). `ref` is the student before training, or, if `reference` names it, another of the
recipe's teachers: what the teacher was before its own reinforcement learning ("reward correction", for teachers that are
larger than the student). No verifier, no groups, no normalisation of the advantages; nothing flows through them.

Sure, from the authors' code: the advantage, the clipping at 0.2, the mean over tokens, one answer to each of 1,024 prompts,
temperature 1, a constant rate of 1e-5, no further KL or entropy term.

Differs from the authors' code: one teacher; theirs picks one by the domain of each prompt. Their weights that correct for a
sampler that is not quite the model (cut at 5) are 1 here, where the model that is trained draws the answers itself. All
log-probabilities are those at the sampling temperature. The first gradient step takes its own for the old ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...audits.solved import Solved
from ...core.engine import to_device
from ...core.method import State, Update
from ...core.optim import Optim
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Recipe, Scale, pick
from ...core.run import Run, RunError
from ...core.signal import Batch, Kind, Logits
from ...core.stage import Audit, Train
from ...core.teacher import Teacher
from ...data.tasks import Gym
from ...models.before import before
from ...models.call import logits_of
from ...models.earlier import Continued
from ...models.generate import Sampling, answered
from ...models.hub import HubLM
from ...objectives.policy import clipped, dense_advantage
from ...teachers.local import LocalLM
from ..classics.grpo import GRPO
from ..classics.supervised import Supervised
from ..groups import Answers, on_chains, written

PAPER = Paper(
    id="gopd",
    title="Learning beyond Teacher: Generalized On-Policy Distillation with Reward Extrapolation",
    authors=("Wenkai Yang", "Weijie Liu", "Ruobing Xie", "Kai Yang", "Saiyong Yang", "Yankai Lin"),
    year=2026,
    arxiv="2602.12125",
    modality=("text",),
    data=("prompts", "documents", "tasks"),
    claim="On-policy distillation that goes further than its teacher went makes better students than distillation does.",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class GOPD:
    """Reward every drawn token with how much more the teacher likes it than the reference does, `scale` times."""

    scale: float = 1.25  # 1: on-policy distillation; above: beyond the teacher
    reference: str | None = None  # the teacher of the recipe that is the reference; None: the student before training
    inner: int = 1  # gradient steps a batch of answers
    low: float = 0.2  # the ratio is clipped below 1 - low
    high: float = 0.2  # and above 1 + high
    sampling: Sampling = Sampling(temperature=1.0, max_new=256)
    needs: ClassVar[frozenset[Kind]] = frozenset({"logits"})
    asks_about_own: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.scale <= 0 or self.inner < 1:
            raise ValueError("the teacher's reward needs a scale above 0, and answers serve at least one step")
        if self.sampling.temperature == 0:
            raise ValueError("likeliest answers are no sample, and their policy gradient is wrong: set sampling.temperature")

    def setup(self, student: nn.Module, run: Run) -> State:
        """The student, and what it was if that is the reference."""
        self._teacher(run)
        own = self.scale != 1.0 and self.reference is None
        return State(student=student, **({"reference": before(student, run)} if own else {}))

    def step(self, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        """`inner` updates over the tokens of the answers to the batch's prompts."""
        prompts, _, wrote = written(s.student, batch, run, self.sampling)
        made = to_device(answered(prompts, wrote), batch["labels"].device)
        answers = Answers(made, self.sampling.temperature)
        share, count = answers.shares("token")
        said = self._teacher(run)(made, self.needs).need("logits")
        with torch.no_grad():
            before = self._reference(s, made, run)
        for _ in range(self.inner):
            z = answers.logits(s.student)
            teacher = answers.taught(z, said)
            reference = None if before is None else answers.taught(z, before)

            def loss(logp: Tensor, old: Tensor, teacher: Tensor = teacher, reference: Tensor | None = reference) -> Tensor:
                return clipped(logp, old, dense_advantage(teacher, old, reference, self.scale), self.low, self.high)

            total = answers.values(z, loss, weight=share).sum()
            yield Update(
                total,
                count=count,
                logs={"reverse_kl": (share * (answers.old - teacher)).sum()},  # pyright: ignore[reportOptionalOperand]
            )

    def _reference(self, s: State, batch: Batch, run: Run) -> Logits | None:
        """Its raw logits, if they are needed."""
        if self.scale == 1.0:
            return None
        if self.reference is None:
            return logits_of(s.reference, batch)
        return run.teachers[self.reference](batch, self.needs).need("logits")

    def _teacher(self, run: Run) -> Teacher:
        """The teacher that is not the reference; RunError if there is not exactly one."""
        names = [name for name in run.teachers if name != self.reference]
        missing = self.reference is not None and self.reference not in run.teachers
        if missing or len(names) != 1:
            raise RunError(
                f"G-OPD needs one teacher beside the reference; the recipe has {', '.join(run.teachers) or 'none'} and"
                f" train.method.reference is {self.reference!r}"
            )
        return run.teachers[names[0]]


def recipe(scale: Scale = "small") -> Recipe:
    """Arithmetic chains, the teacher being the student after GRPO (smoke, small); questions in words, made by reasoning-gym,
    for Qwen3-1.7B with Qwen3-4B as its teacher (paper; the pair is ours)."""
    if scale == "paper":
        sampling = Sampling(temperature=1.0, max_new=4096)
        train = Train(
            method=GOPD(sampling=sampling), steps=200, batch=1024, accumulate=256, precision="bfloat16", checkpointing=True,
            optim=Optim(lr=1e-5, schedule="constant"), label="G-OPD",
        )  # fmt: skip
        judged = Solved(versus=("start",), sampling=replace(sampling, temperature=0.0))
        return Recipe(
            id="gopd",
            student=HubLM(path="Qwen/Qwen3-1.7B"),
            data=Gym(task="gsm_symbolic", train=7000, length=1024),
            teachers={"teacher": LocalLM(model=HubLM(path="Qwen/Qwen3-4B", dtype="bfloat16"))},
            stages={"train": train, "audit": Audit(subjects=("start", "train"), checks=(judged,))},
        )
    sampling = Sampling(max_new=pick(scale, smoke=4, small=8, paper=0), batch=512)
    group, steps = pick(scale, smoke=4, small=8, paper=0), pick(scale, smoke=10, small=120, paper=0)

    def teacher(warm: Train) -> Train:
        return replace(
            warm, method=GRPO(group=group, sampling=sampling), data=None, student=Continued(stage="warm"), steps=steps,
            batch=pick(scale, smoke=8, small=32, paper=0), optim=replace(warm.optim, lr=3e-4),
        )  # fmt: skip

    return on_chains("gopd", scale, GOPD(sampling=sampling), teacher, batch=64, steps=100, label="G-OPD")


def proof() -> Proof:
    """A student that goes beyond its teacher against plain on-policy distillation and the worked solutions again."""
    ours = recipe("small")
    few = replace(ours.stages["train"], method=Supervised(), data=ours.stages["warm"].data)
    return Proof(
        claim="Rewarded with 1.25 times what a teacher has learned by GRPO, the student that this teacher began as solves"
        " more unseen chains than with plain on-policy distillation, and than after as many steps on its worked"
        " chains.",
        arms={
            "ours": ours,
            "opd": ours.set("train.method.scale", 1.0),
            "alone": ours.set("stages", {**ours.stages, "train": few}),
            "twice": ours.set("train.method.scale", 2.0),
        },
        metric="solved",
        beats=("opd", "alone"),
        seeds=(0, 1, 2),
        tune={"train.optim.lr": (3e-4, 1e-3)},
        minutes=8.0,
        note="Chains modulo 10 of two operators, `+` and `-`. For each seed a student learns 400 worked chains (stage"
        " `warm`); the teacher is that student after 120 steps of GRPO on further questions, and every arm goes on"
        " from `warm` for 100 steps of 64 answers, or of 64 worked chains. The teacher's and the student's questions"
        " are the same 1,500. `twice`, scale 2, is not in the claim.",
    )
