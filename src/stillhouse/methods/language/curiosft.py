"""Learning While Staying Curious: Entropy-Preserving Supervised Fine-Tuning via Adaptive Self-Distillation for Large
Reasoning Models (CurioSFT, Wang et al. 2026, arXiv 2602.02244).

    L = mean_t [ -log q(y_t) + a/2 (log q(y_t) - log r(y_t))² ],      r = softmax(z_ref / tau_t)
    tau_t solves H(softmax(z_ref / tau)) = H_1 + lift sigmoid(2 (H_1 - 1.2)) within [1.1, 1.5],    H_1 = H(softmax(z_ref))

q is the student and y a given answer. ref is the student itself a few steps ago: after every `every` optimizer steps its
weights become keep * ref + (1 - keep) * student. Heated by tau_t it is a teacher that leaves room: hotter at tokens where
it hesitates (forks of the reasoning), nearly as it is where it is sure (facts; 1.1 below H_1 = 0.03). So supervised
learning does not make the student certain of the one answer it was shown, and leaves something for reinforcement learning.

Sure, from the authors' code: all of the above with a = 1, entropies over the 512 largest logits, 20 halvings of the
interval, every = 5 and keep = 0.01. The term compares the given tokens alone. The paper speaks of distilling towards the
heated distribution, which `whole=True` is: KL(r || q) over the vocabulary in place of the square (INFERRED).

Differs from the authors' code: means are over the tokens of the whole batch, however it is split; ref begins as the student.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...audits.solved import Solved
from ...core.method import State, Update
from ...core.optim import Optim
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Recipe, Scale, pick
from ...core.run import Run, RunError
from ...core.signal import Batch, HeadLogits, Kind, Logits
from ...core.stage import Audit, Train
from ...core.teacher import freeze
from ...data.mixed import Mixed
from ...data.tasks import Chain, Questions
from ...models.call import logits_of, weight_of
from ...models.earlier import Continued
from ...models.generate import Sampling
from ...models.hub import HubLM
from ...models.toys import TinyLM
from ...objectives.divergences import ForwardKL, cross_entropy, entropy
from ...objectives.policy import of_tokens
from ...objectives.temperatures import for_entropy, logp_at, top_logits
from ..classics.grpo import GRPO
from ..classics.supervised import Supervised

PAPER = Paper(
    id="curiosft",
    title="Learning While Staying Curious: Entropy-Preserving Supervised Fine-Tuning via Adaptive Self-Distillation for"
    " Large Reasoning Models",
    authors=(
        "Hao Wang", "Hao Gu", "Hongming Piao", "Kaixiong Gong", "Yuxiao Ye", "Xiangyu Yue", "Sirui Han", "Yike Guo",
        "Dapeng Wu",
    ),
    year=2026,
    arxiv="2602.02244",
    modality=("text",),
    data=("documents", "tasks"),
    claim="Supervised learning beside one's own heated past keeps the choices that reinforcement learning needs later.",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CurioSFT:
    """Learn the given answers without becoming surer of them than one's own past, heated where it hesitates."""

    alpha: float = 1.0  # weight of the self-distillation
    lift: float = 0.5  # nats that a hesitating token's entropy is raised by, at most
    middle: float = 1.2  # entropy (nats) at which it is raised by half of that
    sure: float = 0.03  # below this entropy the temperature is the lowest
    low: float = 1.1  # temperatures
    high: float = 1.5
    uniform: float | None = None  # one temperature for all tokens instead (a control)
    top: int = 512  # logits that entropies are read from
    every: int = 5  # optimizer steps between two updates of ref
    keep: float = 0.01  # of ref's old weights
    whole: bool = False  # KL over the vocabulary in place of the given tokens' squared difference
    needs: ClassVar[frozenset[Kind]] = frozenset()

    def __post_init__(self) -> None:
        if not 1.0 <= self.low <= self.high or self.every < 1 or not 0 <= self.keep <= 1:
            raise ValueError("temperatures are 1 <= low <= high, every is at least 1, and keep is between 0 and 1")

    def setup(self, student: nn.Module, run: Run) -> State:
        """The student and its past."""
        return State(student=student, past=freeze(copy.deepcopy(student)))

    def step(self, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        """One update over the counted tokens."""
        labels, weight = batch["labels"], weight_of(batch)
        z = logits_of(s.student, batch)
        with torch.no_grad():
            past = logits_of(s.past, batch)
            tau, hesitation = self.temperatures(past, weight)
            told = None if self.whole else logp_at(past, labels, tau, weight=weight)
        logs = {"temperature": (tau * weight).sum(), "past_entropy": (hesitation * weight).sum()}
        if told is None:
            nll = cross_entropy(z, labels, weight=weight)
            pull = ForwardKL()(z, heated(past, tau), weight=weight)
            yield Update((nll + self.alpha * pull).sum(), count=weight.sum(), logs={**logs, "nll": nll.sum()})
            return

        def loss(logp: Tensor) -> Tensor:
            return -logp + 0.5 * self.alpha * (logp - told).square()

        yield Update(of_tokens(z, labels, loss, weight=weight).sum(), count=weight.sum(), logs=logs)

    def temperatures(self, past: Logits, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The temperature and the entropy at temperature 1 of every item [*N], from the past's logits."""
        top = top_logits(past, self.top, weight=weight)
        hesitation = entropy(top)
        if self.uniform is not None:
            return torch.full_like(hesitation, self.uniform), hesitation
        target = hesitation + self.lift * (2 * (hesitation - self.middle)).sigmoid()
        tau = for_entropy(top, target, self.low, self.high)
        return tau.masked_fill(hesitation <= self.sure, self.low), hesitation

    def advance(self, s: State, logs: Mapping[str, float], run: Run) -> None:
        """Every few steps, the past follows."""
        if (run.step + 1) % self.every == 0:
            for then, now in zip(s.past.parameters(), s.student.parameters(), strict=True):
                then.lerp_(now.to(then.dtype), 1 - self.keep)


def heated(logits: Logits, tau: Tensor) -> Logits:
    """The logits over a temperature of each item [*N]."""
    if not isinstance(logits, HeadLogits):
        return logits / tau.unsqueeze(-1).to(logits.dtype)
    if logits.bias is not None or logits.softcap is not None:
        raise RunError("train.method.whole needs a head without bias and cap: set it to false")
    return replace(logits, hidden=logits.hidden / tau.unsqueeze(-1).to(logits.hidden.dtype))


def recipe(scale: Scale = "small") -> Recipe:
    """Arithmetic chains worked in two styles, then GRPO on further chains (smoke, small); a user's questions (paper)."""
    if scale == "paper":
        return Recipe(
            id="curiosft",
            student=HubLM(path="Qwen/Qwen2.5-Math-7B"),
            data=Questions(path="solutions.jsonl", check="math", length=8192),
            stages={
                "train": Train(
                    method=CurioSFT(), steps=540, batch=256, accumulate=256, precision="bfloat16", checkpointing=True,
                    optim=Optim(lr=1e-5, warmup=0.11),
                ),
                "audit": Audit(subjects=("start", "train"), checks=(Solved(
                    versus=("start",), samples=8, k=(1, 8), sampling=Sampling(max_new=8192)),)),
            },
        )  # fmt: skip
    easy = Chain(ops=(1,), base=5, style="answer", train=36, valid=6, test=20)
    hard = Chain(ops=(2,), signs="+-", style="values", train=1500, valid=300, test=800)
    tasks = pick(scale, smoke=easy, small=hard, paper=hard)
    few = replace(tasks, train=pick(scale, smoke=24, small=400, paper=0), skip=pick(scale, smoke=0, small=1500, paper=0))
    styles: Any = Mixed(parts={"steps": replace(few, style="steps"), "values": few})
    longest = pick(scale, smoke=10, small=16, paper=0)
    curious = Train(
        method=CurioSFT(), data=styles, steps=pick(scale, smoke=60, small=300, paper=0), label="Student after CurioSFT",
        batch=pick(scale, smoke=16, small=64, paper=0), optim=Optim(lr=3e-3),
    )  # fmt: skip
    rl = GRPO(group=pick(scale, smoke=4, small=8, paper=0), kl=0.0, sampling=Sampling(max_new=longest, batch=512))
    train = Train(
        method=rl, student=Continued(stage="curious"), steps=pick(scale, smoke=5, small=100, paper=0),
        batch=pick(scale, smoke=4, small=32, paper=0), optim=Optim(lr=1e-3), label="GRPO after CurioSFT",
    )  # fmt: skip
    samples = pick(scale, smoke=4, small=8, paper=0)
    sampled = Solved(
        ours="curious",
        samples=samples,
        k=(1, samples),
        sampling=rl.sampling,
        count=pick(scale, smoke=None, small=150, paper=0),
    )
    greedy = Solved(versus=("curious",), sampling=replace(rl.sampling, temperature=0.0))
    return Recipe(
        id="curiosft",
        student=pick(scale, smoke=TinyLM(width=24), small=TinyLM(width=64, heads=4), paper=TinyLM()),
        data=tasks,
        stages={
            "curious": curious,
            "train": train,
            "sampled": Audit(subjects=("curious",), checks=(sampled,)),
            "audit": Audit(subjects=("start", "curious", "train"), checks=(greedy,)),
        },
    )


def proof() -> Proof:
    """The same reinforcement learning from a student that learned curiously, or plainly."""
    ours = recipe("small")
    return Proof(
        claim="After 100 steps of GRPO a student solves more unseen chains if it learned its worked solutions with CurioSFT"
        " than if it learned them plainly, at equal steps and data.",
        arms={"ours": ours, "plain": ours.set("curious.method", Supervised())},
        metric="solved",
        beats=("plain",),
        seeds=(0, 1, 2, 3),
        tune={"train.optim.lr": (3e-4, 1e-3, 3e-3)},
        minutes=6.0,
        note="Judged after the GRPO stage, whose rate is tuned for both arms; the supervised stage has one rate."
        " CurioSFT takes a forward pass a step more than `plain` does.",
    )
