"""AutoDistil: Few-shot Task-agnostic Neural Architecture Search for Distilling Large Language Models (Xu et al. 2022).

    L = sum_m sum_X mean (R(X_m) - R(X_t))²,     X in {Q, K, V},     R(X) = X X^T / sqrt(channels of a relation head)

Q, K and V are the queries, keys and values of the last layer, of member m and of the teacher: the heads side by side, cut
anew into `relations` relation heads, so that neither widths nor numbers of heads have to agree. The mean is over relation
heads and pairs of real tokens. The student is an encoder that contains smaller ones (`models.elastic_text`): fewer layers
(the first ones), fewer heads, narrower hidden states, thinner feed-forward parts. At each step m runs over the largest
member, the smallest and `drawn` others, whose gradients add up. No label is looked at. Afterwards members within a budget of
parameters or FLOPs are ranked, without training them, by L on held-out text (`audits.members`); the first is taken out as
a network of its own and fine-tuned. Several families (the paper has three, so that sizes far apart do not disturb one
another) are several stages with a student each, named in `search.of`.

Sure, from microsoft/autodistil: all of the above, twelve relation heads, differences before the softmax, the three spaces
of 256 members each, lr 4e-5 and weight decay 0.01. `metric: kl` is MiniLMv2's form, KL(softmax R(X_t) ‖ softmax R(X_m)).

Differs from the paper / the authors' code: padding is left out of the mean, where the code adds the attention mask to both
sides. The other members are drawn without drawing one twice. Length, batch, the width of a head (32 at `paper`), that the
encoder is post-norm with a mean over its last layer, and weights from scratch are ours. Ranking by the score on a proxy
task, which trains every member, is not here; `audits.members.RankCheck` trains a few, to see what the ranking is worth.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...audits.classification import Classification
from ...audits.members import MemberRanking, MemberSearch
from ...audits.validation import Validation
from ...core.method import State, Update
from ...core.optim import Optim
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Recipe, Scale, pick
from ...core.run import Run, RunError, seed_of
from ...core.signal import Batch, Kind
from ...core.stage import Audit, Train
from ...data.labelled import Labelled
from ...data.marked import Marked
from ...data.unlabelled import Texts
from ...models.call import weight_of
from ...models.elastic_text import ElasticEncoder, OneMember, TextFamily
from ...models.encoder import TinyEncoder, real_tokens
from ...models.text import HubClassifier
from ...objectives.attention import Metric, relation_gap
from ...teachers.attention import NAMES, AttentionTeacher
from ..classics.supervised import Supervised

PAPER = Paper(
    id="autodistil",
    title="AutoDistil: Few-shot Task-agnostic Neural Architecture Search for Distilling Large Language Models",
    authors=("Dongkuan Xu", "Subhabrata Mukherjee", "Xiaodong Liu", "Debadeepta Dey", "Wenhui Wang", "Xiang Zhang",
             "Ahmed Hassan Awadallah", "Jianfeng Gao"),
    year=2022,
    arxiv="2201.12507",
    modality=("text",),
    data=("unlabelled", "labels"),
    claim="One task-agnostic distillation of an encoder that contains many gives small ones for any budget without training"
    " them again, with up to 2.7 times less compute than leading compression at a negligible loss on GLUE.",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class AutoDistil:
    """The tokens of a text relate in every member's last layer as they do in the teacher's."""

    relations: int = 12  # heads that queries, keys and values are cut into
    metric: Metric = "mse"  # kl: after the softmax
    drawn: int = 2  # members at each step beside the largest and the smallest
    needs: ClassVar[frozenset[Kind]] = frozenset({"features"})
    asks_about_own: ClassVar[bool] = True  # what a teacher computes inside cannot be stored

    def __post_init__(self) -> None:
        if self.relations < 1 or self.drawn < 0:
            raise ValueError("relations is 1 or more, drawn 0 or more")

    @property
    def equation(self) -> str:
        """The objective with its live settings."""
        gap = "mean (R(X_m) - R(X_t))²" if self.metric == "mse" else "KL(softmax R(X_t) ‖ softmax R(X_m))"
        return f"sum over members m and X in Q, K, V of {gap}, {self.relations} relation heads"

    def setup(self, student: nn.Module, run: Run) -> State:
        """The student alone; RunError if it is no family, has too few channels, or if nothing fits a search's budget."""
        if not isinstance(student, TextFamily):
            raise RunError("the student has no members: set it to {use: models.elastic_text.ElasticEncoder, depths: [2, 4]}")
        least = student.plan.head_width * min(m.heads for m in student.members)
        if least < self.relations:
            raise RunError(
                f"the smallest member's heads have {least} channels in all, which cannot be cut into {self.relations} "
                f"relation heads: lower {run.stage}.method.relations"
            )
        for stage in run.recipe.stages.values():
            if isinstance(stage, MemberSearch):
                stage.fitting(run)  # a budget that nothing fits is told before hours of training
        return State(student=student)

    def step(self, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        """One update over all texts: the sum over the members that learn at this step."""
        told, weight = self.told(batch, run), weight_of(batch)
        gaps = [weight * self.gap(s.student, member, batch, told) for member in self.members(len(s.student.members), run)]
        logs = {"largest": gaps[0].detach().sum(), "smallest": gaps[-1].detach().sum()}
        yield Update(torch.stack(gaps).sum(), count=weight.sum(), logs=logs)

    def members(self, count: int, run: Run) -> list[int]:
        """The numbers of those of `count` members that learn at this step, the same in every micro-batch."""
        between = range(1, count - 1)
        draw = Random(seed_of(run.seed, "members", run.step))
        return sorted({0, count - 1, *draw.sample(between, min(self.drawn, len(between)))})

    def told(self, batch: Batch, run: Run) -> list[Tensor]:
        """The teacher's queries, keys and values `[B, T, width]`."""
        features = run.teacher(batch, self.needs).need("features")
        return [features[name] for name in NAMES]

    def gap(self, student: TextFamily, member: int, batch: Batch, told: list[Tensor]) -> Tensor:
        """How far one member is from the teacher, `[B]`."""
        real, own = real_tokens(batch), student.attention(**batch["inputs"], member=member)
        gaps = [relation_gap(x, y, real, heads=self.relations, metric=self.metric) for x, y in zip(own, told, strict=True)]
        return torch.stack(gaps).sum(0)


DEEP, THICK = (9, 10, 11, 12), (2.5, 3.0, 3.5, 4.0)
SPACES: dict[str, dict[str, Any]] = {  # the paper's three families, 256 members each
    "base": {"depths": DEEP, "heads": (9, 10, 11, 12), "widths": (544, 576, 608, 640), "ratios": THICK},
    "small": {"depths": DEEP, "heads": (7, 8, 9, 10), "widths": (256, 288, 320, 352), "ratios": THICK},
    "tiny": {"depths": (4, 5, 6, 7), "heads": (7, 8, 9, 10), "widths": (128, 160, 192, 224), "ratios": (2.0, 2.5, 3.0, 3.5)},
}


def recipe(scale: Scale = "small") -> Recipe:
    """Made-up texts with a marked word, few of them labelled (smoke, small); BERT and your own texts (paper).

    `alone` is a network of the size found that learns from the labels alone, for as many steps in all.
    """
    bert, words = "google-bert/bert-base-uncased", dict[str, Any](vocabulary=4096, length=12)
    big: Any = pick(
        scale, smoke=TinyEncoder(width=16, depth=2, **words), small=TinyEncoder(width=64, depth=4, heads=4, **words),
        paper=HubClassifier(path=bert),
    )  # fmt: skip
    student = pick(
        scale, smoke=ElasticEncoder(depths=(1, 2), heads=(1, 2), widths=(12, 16), ratios=(2.0,), head_width=8, **words),
        small=ElasticEncoder(ratios=(2.0,), **words),
        paper=ElasticEncoder(**SPACES["small"], head_width=32, tokenizer=bert, length=128),
    )  # fmt: skip
    few: Any = pick(
        scale, smoke=Marked(words=20, classes=4, each=5, train=400, valid=100, test=300, shots=25), small=Marked(shots=15),
        paper=Labelled(path="train.jsonl"),
    )  # fmt: skip
    every: Any = Texts(path="general.txt") if scale == "paper" else replace(few, shots=None)
    steps, tuning = pick(scale, smoke=40, small=400, paper=100_000), pick(scale, smoke=60, small=200, paper=5000)
    batch, lr = pick(scale, smoke=16, small=32, paper=256), pick(scale, smoke=1e-2, small=3e-3, paper=2e-5)
    tune = Train(
        method=Supervised(), student=OneMember(), steps=tuning, batch=batch, optim=Optim(lr=lr), judge=Validation(),
        judge_every=tuning // 10, label="Distilled, fine-tuned",
    )  # fmt: skip
    teach = Train(
        method=Supervised(), student=big, data=every, steps=pick(scale, smoke=60, small=800, paper=0), batch=batch,
        optim=Optim(lr=lr), label="Teacher",
    )  # fmt: skip
    method = pick(
        scale, smoke=AutoDistil(relations=4, metric="kl"), small=AutoDistil(relations=8, metric="kl"), paper=AutoDistil()
    )
    family = Train(
        method=method, data=every, steps=steps, batch=batch, label="The family",
        optim=Optim(lr=pick(scale, smoke=1e-2, small=3e-3, paper=4e-5), weight_decay=0.01),
    )  # fmt: skip
    search = pick(
        scale, smoke=MemberSearch(flops=30_000, label="Found"), small=MemberSearch(flops=1_200_000, label="Found"),
        paper=MemberSearch(parameters=15_000_000, label="Found"),
    )  # fmt: skip
    alone = replace(tune, student=OneMember(fresh=True), steps=steps + tuning, label="")
    audit = Audit(subjects=("start", "alone", "tune"), checks=(Classification(), MemberRanking()))
    made = {"teach": teach, "train": family, "search": search, "alone": alone, "tune": tune, "audit": audit}
    if scale == "paper":
        del made["teach"]
    teacher = AttentionTeacher(model=big, stage=None if scale == "paper" else "teach")
    return Recipe(id="autodistil", student=student, data=few, stages=made, teachers={"teacher": teacher})


def proof() -> Proof:
    """The member that the search finds against labels alone, and beside one of its size that was distilled by itself."""
    ours = recipe("small")
    stages = dict(ours.stages)
    first = {name: stages[name] for name in ("teach", "train", "search")}
    audit = replace(stages["audit"], subjects=("start", "tune"))

    def arm(**rest: Any) -> Recipe:
        return replace(ours, stages={**first, **rest, "audit": audit})

    itself = replace(stages["train"], student=OneMember(fresh=True), label="Distilled by itself")
    return Proof(
        claim="The member within a budget of FLOPs that the search finds in a family distilled without labels classifies"
        " better, when it is fine-tuned on few labels, than a network of its size that learns from these labels alone for"
        " as many steps in all.",
        arms={
            "ours": arm(tune=stages["tune"]),
            "alone": arm(tune=stages["alone"]),
            "itself": arm(itself=itself, tune=replace(stages["tune"], student=OneMember(source="itself"))),
        },
        metric="accuracy",
        subject="tune",
        seeds=(0, 1, 2, 3, 4),
        minutes=12.0,
        tune={"tune.optim.lr": (1e-3, 3e-3, 1e-2)},
        note="Made-up texts of ten words (100 words of five kinds), one of them marked; its kind is the label. The teacher"
        " (four layers of 64) learns from 3,000 labelled texts, the family from the same texts without their labels in 400"
        " steps of 32. 75 labels, 15 of each kind, are left to fine-tune on in 200 steps; `alone` takes 600 on them."
        " `itself` has the size that was found, too, and is distilled without the others for 400 steps, which cost a fourth"
        " of the family's; it stands beside the claim. All keep the best of their students by the validation loss, looked at"
        " every 20 steps. Relations are compared after the softmax (`kl`): on seed 100 and the validation split 65 % against"
        " 19 % before it, and 21 % from labels alone, at a rate of 3e-3.",
    )
