"""Balanced Actor Initialization: Stable RLHF Training of Distillation-Based Reasoning Models: merge first, then reinforce.

    theta_1 = a theta_ins + (1 - a) theta_dis,     theta_0 = b theta_1 + (1 - b) theta_pre

theta_pre is a pre-trained model, theta_ins the same after instruction tuning, theta_dis the same after learning a reasoning
model's solutions by heart. The two merges come to one weighted sum, a b theta_ins + (1 - a) b theta_dis + (1 - b) theta_pre,
whose weights add up to 1. theta_0 is where RL begins, and what its KL is measured to; the RL itself is unchanged (`grpo`).

Sure, from the abstract and summaries: the two merges and their order, that balanced ratios work best, that without them the
length of the answers collapses and the reward falls before it rises. Inferred: the ratios.

Differs from the paper / the authors' code: we know no code. RL is GRPO with a verifier, in place of RLHF with a learned
reward model. Sums are taken in float32, over all tensors, tied ones once; optimizer states are not merged.
`audits.collapse` measures both breakdowns; its thresholds are ours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ...audits.collapse import Collapse
from ...audits.solved import Solved
from ...core.optim import Optim
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Recipe, Scale, pick
from ...core.run import Run
from ...core.stage import Audit, Train
from ...data.joined import Joined
from ...data.tasks import Chain, Questions
from ...models.earlier import Continued
from ...models.generate import Sampling
from ...models.hub import HubLM, StageLM
from ...models.merge import keep, stored
from ...models.toys import TinyLM
from ...models.weights import Summed
from ..classics.grpo import GRPO
from ..classics.supervised import Supervised

PAPER = Paper(
    id="bai",
    title="Balanced Actor Initialization: Stable RLHF Training of Distillation-Based Reasoning Models",
    authors=(
        "Chen Zheng", "Yiyuan Ma", "Yuan Yang", "Deyi Liu", "Jing Liu", "Zuquan Song", "Yuxin Song", "Cheng Ren", "Hang Zhu",
        "Xin Liu", "Siyuan Qiao", "Xun Zhou", "Liang Xiang", "Yonghui Wu",
    ),
    year=2025,
    arxiv="2509.00309",
    modality=("text",),
    data=("tasks",),
    claim="Reinforcement learning that begins at a balanced merge of a distilled reasoning model with an instruction-tuned"
    " and a pre-trained one does not collapse.",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Balance:
    """`b (a instructed + (1 - a) distilled) + (1 - b) pretrained`: the artifact is a model, as a training stage leaves one.

    Each of the three is a stage of this run, a Hugging Face folder, or a hub id in the local cache.
    """

    instructed: str = "instructed"
    distilled: str = "distilled"  # also gives the configuration, the tokenizer and the types
    pretrained: str = "pretrained"
    a: float = 0.5  # share of the instructed model in the first merge; inferred
    b: float = 0.7  # share of the first merge in the second; inferred, from 0.5 to 0.9
    student: Any = None  # ModelSpec that loads the result; None: the recipe's
    label: str = ""  # what the report calls it; empty: from the stage's name

    def __post_init__(self) -> None:
        if not (0 <= self.a <= 1 and 0 <= self.b <= 1):
            raise ValueError(f"a and b are shares from 0 to 1, not {self.a} and {self.b}")

    def __call__(self, run: Run) -> None:
        """Check, sum and write, one tensor at a time."""
        weights = self.weights()
        models = stored({name: getattr(self, name) for name in weights}, run)
        keep(run, models, Summed(models, weights))

    def weights(self) -> dict[str, float]:
        """How much of each model; they add up to 1."""
        return {"distilled": (1 - self.a) * self.b, "instructed": self.a * self.b, "pretrained": 1 - self.b}


def recipe(scale: Scale = "small") -> Recipe:
    """Arithmetic chains, in steps or at once (smoke, small); three published models of one family (paper; ours)."""
    if scale == "paper":
        sampling = Sampling(temperature=1.0, max_new=2048)
        balance = Balance(
            instructed="Qwen/Qwen2.5-Math-7B-Instruct", distilled="deepseek-ai/DeepSeek-R1-Distill-Qwen-7B",
            pretrained="Qwen/Qwen2.5-Math-7B", label="Balanced merge",
        )  # fmt: skip
        return Recipe(
            id="bai",
            student=HubLM(path=balance.distilled),
            data=Questions(path="questions.jsonl", length=1024),
            stages={
                "balance": balance,
                "train": Train(
                    method=GRPO(group=16, sampling=sampling), student=StageLM(stage="balance"), steps=500, batch=32,
                    accumulate=32, optim=Optim(lr=1e-6, schedule="constant"), precision="bfloat16", label="BAI",
                ),
                "audit": Audit(subjects=("start", "balance", "train"), checks=(
                    Solved(versus=("start", "balance"), sampling=replace(sampling, temperature=0.0)), Collapse(),
                )),
            },
        )  # fmt: skip
    size, few = pick(scale, smoke=60, small=500, paper=0), pick(scale, smoke=60, small=800, paper=0)
    tasks = Chain(ops=(3,), base=4, signs="+-", style="steps", train=size, valid=100, test=300)
    if scale == "smoke":
        tasks = Chain(ops=(1,), base=5, signs="+-", style="steps", train=12, valid=6, test=12)
    solved = replace(tasks, train=few if scale == "small" else 12, skip=tasks.train if scale == "small" else 0)
    short = replace(solved, style="answer")
    lr = pick(scale, smoke=5e-3, small=3e-3, paper=0.0)
    learn = Train(
        method=Supervised(), steps=pick(scale, smoke=60, small=250, paper=0), optim=Optim(lr=lr), label="Pre-trained",
        data=Joined(parts={"answer": short, "steps": solved, "values": replace(solved, style="values")}),
        batch=pick(scale, smoke=16, small=48, paper=0),
    )  # fmt: skip
    on = replace(learn, student=Continued(stage="pretrained"), optim=Optim(lr=2e-3), data=solved)
    writing = Sampling(max_new=pick(scale, smoke=8, small=26, paper=0), batch=512)
    subjects = ("start", "pretrained", "instructed", "distilled", "balance", "train")
    return Recipe(
        id="bai",
        student=TinyLM(width=24) if scale == "smoke" else TinyLM(width=64, heads=4),
        data=tasks,
        stages={
            "pretrained": learn,
            "instructed": replace(on, data=short, steps=pick(scale, smoke=15, small=40, paper=0), label="Instructed"),
            "distilled": replace(on, steps=pick(scale, smoke=30, small=160, paper=0), label="Distilled"),
            "balance": Balance(label="Balanced merge"),
            "train": Train(
                method=GRPO(group=pick(scale, smoke=4, small=8, paper=0), sampling=writing), label="BAI",
                student=Continued(stage="balance"), batch=pick(scale, smoke=6, small=24, paper=0),
                steps=pick(scale, smoke=10, small=50, paper=0), optim=Optim(lr=5e-4),
            ),
            "audit": Audit(subjects=subjects, checks=(
                Solved(versus=("distilled", "instructed"), sampling=replace(writing, temperature=0.0)), Collapse(),
            )),
        },
    )  # fmt: skip


def proof() -> Proof:
    """RL from the balanced merge against RL from each of two models in it; then from the first merge alone."""
    ours = recipe("small")
    return Proof(
        claim="After equally many steps of GRPO a model that began as a balanced merge of a distilled, an instructed and a"
        " pre-trained model solves more unseen chains than one that began as the distilled or as the instructed model.",
        arms={
            "ours": ours,
            "distilled": ours.set("train.student", Continued(stage="distilled")),
            "instructed": ours.set("train.student", Continued(stage="instructed")),
            "first_merge": ours.set("balance.b", 1.0),
        },
        metric="solved",
        beats=("distilled", "instructed"),
        seeds=(0, 1, 2),
        tune={"balance.a": (0.2, 0.5)},
        untuned=("distilled", "instructed"),
        minutes=6.0,
        note="Tuned is the share a of the instructed model, on the validation split; the arms without a merge have nothing"
        " to tune. b is 0.7, and 1 for `first_merge`, which leaves the pre-trained model out. The audit of every run also"
        " measures whether answers grew short or the reward fell during RL (`length_drop`, `collapsed`, `reward_dip`).",
    )
