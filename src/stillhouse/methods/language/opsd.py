"""Self-Distilled Reasoner: On-Policy Self-Distillation for Large Language Models (Zhao et al. 2026, arXiv 2601.18734).

    L = 1/|y| sum_t D( p(. | x, s, y_<t) || q(. | x, y_<t) ),      y ~ q(. | x)

x is a question, s its reference solution and a sentence that asks to work it out anew; y is the student's own answer to
x. q is the student; p is the same model reading s as well, with the weights that it began with (`teacher="fixed"`), an
average of all since (`"ema"`) or its present ones (`"current"`). No gradient flows through p or the sampling, and no
answer is judged. Both logits are divided by the sampling temperature. D may be

    any divergence over the vocabulary      JSD(0.5) by default, as in the paper's first version
    Clipped(of=ForwardKL(), most=0.05)      sum_v min(p_v log(p_v / q_v), most): the authors' later default
    Kept(of=JSD(), top=50)                  over the teacher's 50 likeliest tokens, both renormalised there
    sampled=True                            - sg[log p(y_t) - log q(y_t)] log q(y_t): the drawn token alone, policy gradient

Sure, from the authors' code: the two contexts, the divergences, the fixed and the averaged teacher (0.999, after each
optimizer step), sampling at temperature 1.1 or 1.2 with top-p 0.95 and top-k 20, LoRA of rank 64, 1024 to 2048 tokens.

Differs from the authors' code: sums over answer tokens are divided by the whole batch's count, however it is split. There
is no top-k in the sampling here, and no `reason_first` (the teacher would first write an explanation of the solution into
its context). Without adapters the fixed teacher is a frozen copy; theirs needs adapters, and switches them off. The
averaged teacher begins as the student was, not after its first step. Their student's prompt had no chat template where
their teacher's had one; here both have it. The transition sentence is ours.

A clipped class pulls no more, so where the student has all but lost what the teacher wants most, the clip leaves it lost.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
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
from ...core.signal import Batch, HeadLogits, Kind, Logits, TopK
from ...core.stage import Audit, Train
from ...core.teacher import freeze
from ...data.tasks import Chain, Gym, Hinted, tasks_of
from ...data.tokens import prompts_of
from ...models.before import before
from ...models.call import logits_of
from ...models.earlier import Continued
from ...models.generate import Sampling, answered, generate
from ...models.hub import HubLM, Lora
from ...models.toys import TinyLM
from ...objectives.divergences import JSD, Divergence, FDivergence, token_logp
from ...objectives.policy import of_tokens, reinforce, tempered
from ..classics.grpo import GRPO
from ..classics.supervised import Supervised

PAPER = Paper(
    id="opsd",
    title="Self-Distilled Reasoner: On-Policy Self-Distillation for Large Language Models",
    authors=(
        "Siyan Zhao", "Zhihui Xie", "Mengchen Liu", "Jing Huang", "Guan Pang", "Feiyu Chen", "Aditya Grover",
    ),
    year=2026,
    arxiv="2601.18734",
    modality=("text",),
    data=("tasks",),
    claim="A model that reads the solution teaches itself without it, from far fewer generated tokens than GRPO needs.",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Clipped(FDivergence):
    """A divergence in which no class contributes more than `most`, so that a few tokens of style cannot dominate."""

    of: Divergence
    most: float = 0.05  # nats; the authors' scripts

    def term(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        return self.of.term(log_q, log_p).clamp(max=self.most)


@dataclass(frozen=True, kw_only=True)
class Kept(FDivergence):
    """A divergence over the teacher's `top` likeliest classes; both sides are renormalised over them."""

    of: Divergence
    top: int = 50  # the paper's

    def term(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        return self.of.term(log_q, log_p)

    def block(self, student: Tensor, teacher: Tensor, grad: bool) -> Tensor:
        index = teacher.topk(min(self.top, teacher.shape[-1]), -1).indices
        kept = student.gather(-1, index)
        values = self.of.block(kept, teacher.gather(-1, index), grad)
        if grad:
            student.zero_().scatter_(-1, index, kept)
        return values

    def __call__(self, student: Logits, teacher: Logits | TopK, **rest: Any) -> Tensor:
        """As of any divergence; the teacher's logits must be known."""
        if isinstance(student, HeadLogits):
            return super().__call__(student, teacher, **rest)
        dense: Any = teacher.dense() if isinstance(teacher, HeadLogits) else teacher
        index = dense.topk(min(self.top, dense.shape[-1]), -1).indices
        return self.of(student.gather(-1, index), dense.gather(-1, index), **rest)


@dataclass(frozen=True, kw_only=True)
class OPSD:
    """Match, on one's own answers, what one would have said next had one seen the solution."""

    divergence: Divergence | Clipped | Kept = JSD(beta=0.5)
    sampled: bool = False  # the policy gradient of the drawn tokens in place of the divergence: cheaper, weaker
    teacher: Literal["fixed", "ema", "current"] = "fixed"  # whose weights read the solution
    decay: float = 0.999  # of the averaged teacher, once an optimizer step
    hinted: bool = True  # False: the teacher sees the bare question too (a control: nothing to learn)
    sampling: Sampling = Sampling(temperature=1.1, top_p=0.95, max_new=1024)
    needs: ClassVar[frozenset[Kind]] = frozenset()

    def setup(self, student: nn.Module, run: Run) -> State:
        """The student, and the teacher unless it is the student itself."""
        tasks_of(run)
        if self.teacher == "current":
            return State(student=student)
        fixed = self.teacher == "fixed"
        return State(student=student, teacher=before(student, run) if fixed else freeze(copy.deepcopy(student)))

    def step(self, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        """One update over the tokens of the student's answers."""
        tasks, examples = tasks_of(run), batch["example"][:, 0].tolist()
        prompts = prompts_of(batch)
        seed = seed_of(run.seed, "rollout", run.step)
        answers = generate(s.student, prompts, self.sampling, seed=seed, keys=examples, ends=tasks.ends(run))
        told = [tasks.hinted(run, "train")[i] for i in examples] if self.hinted else prompts
        own, seen = (to_device(answered(p, answers), batch["labels"].device) for p in (prompts, told))
        z, labels = logits_of(s.student, own)[own["weight"] > 0], own["labels"][own["weight"] > 0]
        z_teacher = self._told(s, seen)[seen["weight"] > 0].detach()
        temperature = self.sampling.temperature or 1.0
        if self.sampled:
            z, z_teacher = tempered(z, temperature), tempered(z_teacher, temperature)
            of_teacher = token_logp(z_teacher, labels)
            values = of_tokens(z, labels, lambda logp: reinforce(logp, of_teacher - logp.detach()))
        else:
            values = self.divergence(z, z_teacher, temperature=temperature)
        yield Update(values.sum(), count=len(labels))

    @torch.no_grad()
    def _told(self, s: State, seen: Batch) -> Logits:
        """What the model says that reads the solution: what it was, its average, or the student as it is."""
        if self.teacher != "current":
            return logits_of(s.teacher, seen)
        training = s.student.training
        told = logits_of(s.student.eval(), seen)
        s.student.train(training)
        return told

    def advance(self, s: State, logs: Mapping[str, float], run: Run) -> None:
        """The averaged teacher follows the student."""
        if self.teacher == "ema":
            for mine, theirs in zip(s.teacher.parameters(), s.student.parameters(), strict=True):
                mine.lerp_(theirs.to(mine.dtype), 1 - self.decay)


def recipe(scale: Scale = "small") -> Recipe:
    """Arithmetic chains (smoke, small); a language model and questions in words, made by reasoning-gym (paper).

    On chains the stage `warm` teaches the student, on other chains, to answer tersely (`7;4;9#9`), with a hint and without.
    Hints, and the references of the chains that follow, are worked in full steps (`3+4=7;7*2=4;4-5=9#9`).
    """
    if scale == "paper":
        sampling = Sampling(temperature=1.1, top_p=0.95, max_new=1024, batch=32)
        train = Train(
            method=OPSD(sampling=sampling), steps=500, batch=32, accumulate=8, precision="bfloat16", checkpointing=True,
            optim=Optim(lr=2e-5, schedule="constant"), label="OPSD",
        )  # fmt: skip
        judged = Solved(versus=("start",), hinted=("start",), sampling=replace(sampling, temperature=0.0))
        return Recipe(
            id="opsd",
            student=HubLM(path="Qwen/Qwen3-1.7B", lora=Lora(rank=64, alpha=128.0)),
            data=Gym(task="gsm_symbolic", train=7000, length=1024),
            stages={"train": train, "audit": Audit(subjects=("start", "train"), checks=(judged,))},
        )
    easy, hard = Chain(ops=(1,), base=5, train=36, valid=6, test=30), Chain(train=3000, valid=300, test=500)
    tasks = pick(scale, smoke=easy, small=hard, paper=hard)
    sampling = Sampling(max_new=pick(scale, smoke=8, small=32, paper=0), batch=512)
    warm = Train(
        method=Supervised(), data=Hinted(base=terse(tasks, skip=tasks.train if scale == "small" else 0)),
        steps=pick(scale, smoke=100, small=260, paper=0), batch=pick(scale, smoke=16, small=64, paper=0),
        optim=Optim(lr=pick(scale, smoke=1e-2, small=3e-3, paper=0.0)), label="Student before OPSD",
    )  # fmt: skip
    method, steps = OPSD(sampling=sampling), pick(scale, smoke=20, small=150, paper=0)
    train = replace(warm, method=method, data=None, student=Continued(stage="warm"), steps=steps, label="OPSD")
    judged = Solved(versus=("warm",), hinted=("warm",), sampling=replace(sampling, temperature=0.0))
    return Recipe(
        id="opsd",
        student=pick(scale, smoke=TinyLM(width=32), small=TinyLM(width=64, heads=4), paper=TinyLM()),
        data=tasks,
        stages={"warm": warm, "train": train, "audit": Audit(subjects=("start", "warm", "train"), checks=(judged,))},
    )


def terse(tasks: Chain, *, skip: int = 0) -> Chain:
    """The same chains, or as many behind the first `skip`, answered tersely and hinted at as before."""
    return replace(tasks, style="values", shown=tasks.style, skip=skip)


def proof() -> Proof:
    """OPSD against GRPO at as many generated tokens and at three times as many, against the references, without hints."""
    ours = recipe("small")
    method, steps = ours.stages["train"].method, ours.stages["train"].steps
    grpo = ours.set("train.method", GRPO(sampling=method.sampling, kl=0.0)).set("train.batch", 64 // 8)
    alone = ours.set("train.method", Supervised())
    return Proof(
        claim="A student that reads the solutions teaches itself, from its own answers, to solve more unseen chains than"
        " GRPO with groups of 8 makes of as many generated tokens and of three times as many, than the same student"
        " trained on the solutions themselves for as many steps, and than without reading them.",
        arms={
            "ours": ours,
            "grpo": grpo,
            "grpo_thrice": grpo.set("train.steps", 3 * steps),
            "alone": alone,
            "no_hint": ours.set("train.method.hinted", False),
            "ema": ours.set("train.method", replace(method, teacher="ema", decay=0.99)),
            "own_style": alone.set("train.data", terse(ours.data)),
        },
        metric="solved",
        beats=("grpo", "grpo_thrice", "alone", "no_hint"),
        seeds=(0, 1, 2, 3, 4),
        tune={"train.optim.lr": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)},
        minutes=25.0,
        note="Every arm goes on from the same student (stage `warm`) for 150 steps (`grpo_thrice`: 450); those that write"
        " draw 64 answers of about 8 tokens a step: OPSD one to each of 64 chains, GRPO eight to each of eight. `alone`"
        " learns from 64 references a step, worked in full steps. Not in the claim: `ema` has the averaged teacher (0.99),"
        " and `own_style` learns from references rewritten tersely, as the student answers, which no other arm is shown."
        " A first proof with 300 steps was broken off: OPSD and the references alone solved everything on some seeds."
        " GRPO ran without its KL term (kl=0).",
    )
