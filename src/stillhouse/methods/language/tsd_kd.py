"""TSD-KD: Explain in Your Own Words: Improving Reasoning via Token-Selective Dual Knowledge Distillation (Kim, Baek 2026).

    L = L_dir + L_ent + a L_ind,      y ~ q the student's own answer, every term a mean over an answer's tokens
    L_dir = mean_t  sigmoid(H(q_t) - H(p_t)) D(p_t, q_t)          teach where the student is less sure than the teacher
    L_ent = mean_{t in S} H(q_t)                                   S: the tokens at which the student is least sure
    L_ind = mean_{t < t*} sum_i [ log sum_{j >= i} exp u_j - u_i ] the teacher ranks what the student would have said

q is the student, p the teacher, H the entropy, D the generalised Jensen-Shannon divergence with weight 0.9 on the teacher;
the sigmoid is a constant. u_1 .. u_K are the student's logits of its own K likeliest next tokens, in the order in which the
teacher prefers them (Plackett-Luce): feedback that does not impose the teacher's distribution. It is given in the opener of
an answer only, up to t*, where the student's entropies so far come to a tenth of their sum.

Differs from the authors' code, where `reversed_ranking` restores it: its ranking loss sums over the items at or above i,
which rewards the order contrary to the teacher's. It also has one t* for a whole batch; here every answer has its own.
INFERRED: S is the tenth of the tokens with the highest entropy, as the text speaks of it; the code's quantile keeps nine
tenths (`least_sure=0.9`). The paper's steps on given answers (lambda < 1) are left out; its default has none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...core.engine import to_device
from ...core.method import State, Update
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Recipe, Scale
from ...core.run import Run
from ...core.signal import Batch, Kind, Logits
from ...core.stage import Train
from ...models.generate import Sampling, answered
from ...objectives.divergences import JSD, Divergence, entropy
from ...objectives.preference import plackett_luce
from ...objectives.ranking import likeliest, logits_at
from ...teachers.local import same_classes
from ..classics.gkd import GKD
from ..classics.supervised import Supervised
from ..groups import Answers, on_chains, written
from ..settings import language

PAPER = Paper(
    id="tsd_kd",
    title="Explain in Your Own Words: Improving Reasoning via Token-Selective Dual Knowledge Distillation",
    authors=("Minsang Kim", "Seung Jun Baek"),
    year=2026,
    arxiv="2603.13260",
    venue="ICLR",
    modality=("text",),
    data=("prompts", "documents", "tasks"),
    claim="Teaching only where the student is less sure, and ranking its own candidates, beats matching every token.",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TSDKD:
    """On the student's own answers: match where it is unsure, let the teacher rank its candidates, and make it surer."""

    divergence: Divergence = JSD(beta=0.9)
    direct: float = 1.0  # weights of the three terms
    sharpen: float = 1.0
    indirect: float = 0.1
    selective: bool = True  # weigh tokens by who is surer; False: all alike
    least_sure: float = 0.1  # share of the tokens whose entropy is lowered
    opener: float = 0.1  # share of an answer's entropy in which candidates are ranked
    candidates: int = 10
    reversed_ranking: bool = False  # the released code's ranking
    sampling: Sampling = Sampling(temperature=1.0, max_new=256)
    needs: ClassVar[frozenset[Kind]] = frozenset({"logits"})
    asks_about_own: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.least_sure <= 1 or not 0 < self.opener <= 1 or self.candidates < 2:
            raise ValueError("least_sure and opener are shares above 0 and up to 1, and ranking needs two candidates")

    def setup(self, student: nn.Module, run: Run) -> State:
        """The student alone."""
        return State(student=student)

    def step(self, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        """One update over the answers to the batch's prompts; every answer counts the same."""
        prompts, _, wrote = written(s.student, batch, run, self.sampling)
        answers = Answers(to_device(answered(prompts, wrote), batch["labels"].device))
        share, count = answers.shares("answer")
        z, z_teacher = same_classes(answers.logits(s.student), run.teacher(answers.batch, self.needs).need("logits"))
        counted = answers.weight
        with torch.no_grad():
            unsure, teachers = entropy(z.detach(), weight=counted), entropy(z_teacher, weight=counted)
        sure = (unsure - teachers).sigmoid() if self.selective else torch.ones_like(unsure)
        direct = self.divergence(z, z_teacher, weight=self.direct * share * sure).sum()
        sharpened = entropy(z, weight=self.sharpen * shares_of(least_sure(unsure, counted, self.least_sure))).sum()
        ranked = self._ranked(z, z_teacher, openers(unsure, counted, self.opener))
        logs: dict[str, Tensor | float] = {
            "direct": direct, "indirect": ranked,
            "entropy": (share * unsure).sum(), "teacher_entropy": (share * teachers).sum(),
        }  # fmt: skip
        yield Update(direct + sharpened + self.indirect * ranked, count=count, logs=logs)

    def _ranked(self, student: Logits, teacher: Logits, opener: Tensor) -> Tensor:
        """The ranking term, summed over answers; the opener [B, T] says where."""
        share, here = shares_of(opener)[opener], opener
        mine = student[here]
        ids = likeliest(mine.detach(), self.candidates)
        with torch.no_grad():
            order = logits_at(teacher[here], ids).argsort(dim=-1, descending=not self.reversed_ranking, stable=True)
        return (share * plackett_luce(logits_at(mine, ids.gather(-1, order)))).sum()


def least_sure(unsure: Tensor, counted: Tensor, share: float) -> Tensor:
    """The `share` of each row's counted tokens with the highest entropy [B, T], at least one; of equal ones, all."""
    inside = counted > 0
    lengths = inside.sum(-1, keepdim=True)
    kept = (share * lengths).ceil().long().clamp(min=1)
    ordered = unsure.masked_fill(~inside, -torch.inf).sort(-1, descending=True).values
    return inside & (unsure >= ordered.gather(-1, (kept - 1).clamp(max=unsure.shape[-1] - 1)))


def openers(unsure: Tensor, counted: Tensor, share: float) -> Tensor:
    """Each row's first counted tokens [B, T], before the entropy so far reaches `share` of the row's; at least one."""
    inside = counted > 0
    kept = unsure * inside
    before = kept.cumsum(-1) < share * kept.sum(-1, keepdim=True)
    return inside & (before | (inside.cumsum(-1) == 1))


def shares_of(chosen: Tensor) -> Tensor:
    """1 / n for the n chosen items of each row [B, T], 0 elsewhere."""
    return chosen.float() / chosen.sum(-1, keepdim=True).clamp(min=1)


def recipe(scale: Scale = "small") -> Recipe:
    """Arithmetic chains and a larger teacher (smoke, small); the shared language experiment's models (paper)."""
    if scale == "paper":
        made = language("tsd_kd", scale, TSDKD(sampling=Sampling(max_new=1024)), lr=5e-6)
        train = replace(made.stages["train"], batch=16, accumulate=16)
        return made.set("stages", {**made.stages, "train": train})
    sampling = Sampling(max_new=4 if scale == "smoke" else 8, batch=512)

    def teacher(warm: Train) -> Train:
        """The same network after many worked solutions."""
        return replace(warm, data=None, steps=60 if scale == "smoke" else 500)

    return on_chains("tsd_kd", scale, TSDKD(sampling=sampling), teacher, batch=64, steps=120, label="TSD-KD")


def proof() -> Proof:
    """Against plain on-policy distillation with the same divergence, without each term, and with the released ranking."""
    ours = recipe("small")
    method = ours.stages["train"].method
    plain = GKD(on_policy=1.0, divergence=method.divergence, sampling=method.sampling)
    return Proof(
        claim="From its own answers to 64 questions a step, the student learns to solve more unseen chains with TSD-KD than"
        " with on-policy distillation that matches every token alike: same divergence, teacher and steps.",
        arms={
            "ours": ours,
            "gkd": ours.set("train.method", plain),
            "alone": ours.set("stages", {**ours.stages, "train": replace(
                ours.stages["train"], method=Supervised(), data=ours.stages["warm"].data)}),
            "direct_only": ours.set("train.method", replace(method, sharpen=0.0, indirect=0.0)),
            "as_released": ours.set("train.method", replace(method, reversed_ranking=True, least_sure=0.9)),
        },
        metric="solved",
        beats=("gkd", "alone"),
        seeds=(0, 1, 2),
        tune={"train.optim.lr": (3e-4, 1e-3, 3e-3)},
        minutes=6.0,
    )  # fmt: skip
