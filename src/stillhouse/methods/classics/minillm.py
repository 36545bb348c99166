"""MiniLLM: Knowledge Distillation of Large Language Models (Gu et al. 2023): reverse KL by policy gradient.

    minimise KL(q || p) over answers y drawn from  p~ = mix p + (1 - mix) q                     (section 2.2, Eq. 8)
    grad = (grad L)_single + (grad L)_long + pretraining * grad L_PT                            (Eq. 9, Alg. 1)
    L_single = sum_t w_t KL(q(. | y_<t) || p(. | y_<t))                  exact over the vocabulary (Eq. 6)
    L_long   = - sum_t min(rho_t R_{t+1}, clip(rho_t, 1 - eps, 1 + eps) R_{t+1})                (Eq. 7, PPO clipping)
    R_{t+1}  = 1 / (T - t - 1) sum_{t' > t} log p(y_t') / q(y_t')        length-normalised return-to-go
    w_t      = q(y_t) / p~(y_t), one step's importance weight            rho_t = w_t q_now(y_t) / q_old(y_t)

p is the teacher, q the student, t runs over the answer's T tokens; each rollout serves `inner` gradient steps.
L_PT is cross-entropy on the data's own answers (the paper uses a pre-training corpus).

Differs from the authors' code: returns are not whitened and rewards not clipped at a range, as in the paper's
equations; both are stabilisers of their PPO loop. The paper first fine-tunes the student on the data and picks the
best checkpoint; here that is a stage of its own, if wanted. All three terms are sums over tokens, as in Eq. 9, and an
update divides them by the number of sampled tokens; the authors' code takes the mean of each term by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...core.method import State, Update
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Recipe, Scale, pick
from ...core.run import Run, seed_of
from ...core.signal import Batch, Kind
from ...data.tasks import ends_in
from ...models.call import logits_of, weight_of
from ...models.generate import Sampling, rollout
from ...objectives.divergences import ReverseKL, cross_entropy, token_logp
from ...objectives.reduce import weighted_sum
from ...teachers.local import same_classes
from ..settings import alone, language

PAPER = Paper(
    id="minillm",
    title="MiniLLM: Knowledge Distillation of Large Language Models",
    authors=("Yuxian Gu", "Li Dong", "Furu Wei", "Minlie Huang"),
    year=2023,
    arxiv="2306.08543",
    venue="ICLR 2024",
    modality=("text",),
    data=("documents", "prompts"),
    claim="Minimising reverse KL on the student's own answers gives a student whose answers the teacher finds likely.",
)


@dataclass(frozen=True, kw_only=True)
class MiniLLM:
    """Reverse KL on sampled answers, with teacher-mixed sampling, single-step decomposition and length normalisation."""

    mix: float = 0.2  # share of the teacher in the sampling distribution (paper: 0.2)
    clip: float = 0.2  # eps of the clipped ratio (paper: 0.2)
    inner: int = 4  # gradient steps a rollout (paper: 4)
    pretraining: float = 1.0  # weight of cross-entropy on the data (paper: 1)
    sampling: Sampling = Sampling(temperature=1.0, max_new=128)
    needs: ClassVar[frozenset[Kind]] = frozenset({"logits"})
    asks_about_own: ClassVar[bool] = True

    def setup(self, student: nn.Module, run: Run) -> State:
        """The student alone."""
        return State(student=student)

    def step(self, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        """`inner` updates over the answer tokens of one rollout."""
        seed = seed_of(run.seed, "rollout", run.step)
        mix = (run.teacher.module, self.mix) if self.mix else None  # type: ignore[attr-defined]
        answers = rollout(s.student, batch, self.sampling, seed=seed, ends=ends_in(run), mix=mix)
        labels, weight = answers["labels"], weight_of(answers)
        with torch.no_grad():
            z_teacher = run.teacher(answers, self.needs).need("logits")
            z, z_teacher = same_classes(logits_of(s.student, answers), z_teacher)
            old = token_logp(z, labels, weight=weight)
            of_teacher = token_logp(z_teacher, labels, weight=weight)
            blend = torch.logaddexp(old + log_share(1 - self.mix), of_teacher + log_share(self.mix))
            importance = (old - blend).exp() * weight
            returns = returns_to_go((of_teacher - old) * weight, weight)
            ahead = returns_to_go(weight, weight)  # 1 wherever an answer goes on, to count its tokens
        for _ in range(self.inner):
            z, _ = same_classes(logits_of(s.student, answers), z_teacher)
            single = ReverseKL()(z, z_teacher, weight=importance).sum()
            ratio = importance * (token_logp(z, labels, weight=weight) - old).exp()
            bounded = ratio.clamp(1 - self.clip, 1 + self.clip)
            long = -weighted_sum(torch.minimum(ratio * returns, bounded * returns), weight * (ahead > 0))
            loss = single + long
            if self.pretraining:
                nll = cross_entropy(logits_of(s.student, batch), batch["labels"], weight=weight_of(batch))
                loss = loss + self.pretraining * nll.sum()
            logs: dict[str, Tensor | float] = {"single": single, "long": long, "return": (returns * weight).sum()}
            yield Update(loss, count=weight.sum(), logs=logs)


def returns_to_go(rewards: Tensor, weight: Tensor) -> Tensor:
    """Mean reward of the answer's tokens after each one, `[B, T]`; 0 at the last. Both arguments are 0 off the answer."""
    after = rewards.flip(-1).cumsum(-1).flip(-1) - rewards
    count = weight.flip(-1).cumsum(-1).flip(-1) - weight
    return after / count.clamp(min=1)


def log_share(share: float) -> float:
    """log(share), with log 0 = -1e30: an impossible part of a mixture, without NaN."""
    return float(torch.tensor(share, dtype=torch.float64).log()) if share > 0 else -1e30


def recipe(scale: Scale = "small") -> Recipe:
    """The shared language experiment; each rollout serves several gradient steps, so there are fewer of them."""
    sampling = Sampling(max_new=pick(scale, smoke=10, small=48, paper=256))
    inner = pick(scale, smoke=2, small=2, paper=4)
    method = MiniLLM(sampling=sampling, inner=inner)
    return language("minillm", scale, method, steps={"smoke": 20, "small": 600}, lr=5e-6)


def proof() -> Proof:
    """Reverse KL on own answers against the text alone, at equal gradient steps."""
    ours = recipe("small")
    plain = alone(ours).set("train.steps", 1200)
    return Proof(
        claim="MiniLLM's student writes text that is nearer to the teacher in reverse KL than the same student trained on"
        " the text alone, at equal gradient steps.",
        arms={"ours": ours, "alone": plain},
        metric="own_reverse_kl",
        better="lower",
        beats=("alone",),
        tune={"train.optim.lr": (3e-3, 1e-2, 3e-2)},
        minutes=60.0,
        note="600 rollouts with two gradient steps each against 1,200 gradient steps on the text. Judged on 96 bytes that"
        " each student writes behind the first 8 of held-out docstrings: reverse KL there is what the paper minimises.",
    )
