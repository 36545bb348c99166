"""The experiment on pairs of answers that `redi`, `dpo` and `simpo` share, so that their numbers compare."""

from __future__ import annotations

from dataclasses import replace

from ..audits.pairs import PairScores
from ..audits.solved import Solved
from ..core.method import Method
from ..core.optim import Optim
from ..core.recipe import Recipe, Scale, pick
from ..core.stage import Audit, Train
from ..data.pairs import Chosen, Pairs, StagePairs
from ..data.tasks import Chain
from ..data.traces import Traces
from ..data.written import Written
from ..models.earlier import Continued
from ..models.generate import Sampling
from ..models.hub import HubLM
from ..models.toys import TinyLM
from ..teachers.module import ModuleTeacher
from .classics.supervised import Supervised

NOTE = (
    "Arithmetic chains modulo 10 of three operators, characters as tokens. For each seed a teacher is trained that is right"
    " half of the time or less, and answers each of 4,000 questions four times at temperature 1; the student learns from"
    " its right answers until it learns no more (stage `sft`), and every arm goes on from there for 300 steps of 16 pairs,"
    " or of 16 packed rows of right answers, which are more answers than 16 pairs hold."
)


def learning_from_pairs(
    id: str, scale: Scale, method: Method, *, lr: float, batch: int, steps: int, first: Train | None = None
) -> Recipe:
    """Supervised on right answers (stage `sft`), then `method` on pairs from there (stage `train`).

    smoke and small: arithmetic chains; the stage `teacher` trains a teacher that is often wrong, `traces` lets it answer and
    checks what it says. paper: a user's own file of pairs and a model from the hub, the first stage on the chosen answers;
    `lr`, `batch`, `steps` and what is special about the `first` stage are of that scale.
    """
    if scale == "paper":
        optim = Optim(lr=5e-5, warmup=0.1, weight_decay=1e-4)
        sft = first or Train(method=Supervised(), steps=1000, batch=64, optim=optim)
        sft = replace(sft, data=Chosen(), accumulate=16, precision="bfloat16", checkpointing=True)
        train = replace(
            sft, method=method, data=None, student=Continued(stage="sft"), steps=steps, batch=batch,
            optim=replace(sft.optim, lr=lr),
        )  # fmt: skip
        check = PairScores(versus=("start", "sft"), precision="bfloat16")
        return Recipe(
            id=id,
            student=HubLM(path="Qwen/Qwen2.5-Math-1.5B"),
            data=Pairs(path="pairs.jsonl", length=4096),
            stages={"sft": sft, "train": train, "audit": Audit(subjects=("start", "sft", "train"), checks=(check,))},
        )
    easy, hard = Chain(ops=(1,), base=6, train=60, valid=12, test=24), Chain(train=4000, valid=300, test=1000)
    task = pick(scale, smoke=easy, small=hard, paper=hard)
    big = pick(scale, smoke=TinyLM(width=32), small=TinyLM(width=64, heads=4), paper=TinyLM())
    taught = Train(
        method=Supervised(), student=big, steps=pick(scale, smoke=120, small=400, paper=0),
        batch=pick(scale, smoke=16, small=32, paper=0), optim=Optim(lr=3e-3),
    )  # fmt: skip
    right, pairs = Written(stage="traces", base=task), StagePairs(stage="traces", base=task)
    optim = Optim(lr=1e-2, warmup=0.1)
    sft = Train(method=Supervised(), data=right, steps=pick(scale, smoke=80, small=1500, paper=0), batch=16, optim=optim)
    splits, writing = ("train", "valid", "test"), pick(scale, smoke=12, small=40, paper=0)
    subjects, draws = ("start", "teacher", "sft", "train"), pick(scale, smoke=200, small=2000, paper=0)
    checks = (
        Solved(versus=("sft",), sampling=Sampling(temperature=0.0, max_new=writing, batch=500), draws=draws),
        PairScores(data=pairs, versus=("sft",), batch=100, draws=draws),
    )
    return Recipe(
        id=id,
        student=pick(scale, smoke=TinyLM(width=24), small=TinyLM(width=16), paper=TinyLM()),
        data=task,
        teachers={"teacher": ModuleTeacher(spec=big, stage="teacher")},
        stages={
            "teacher": taught,
            "traces": Traces(data=task, splits=splits, each=4, sampling=Sampling(max_new=writing, batch=500)),
            "sft": sft,
            "train": replace(
                sft, method=method, data=pairs, student=Continued(stage="sft"),
                steps=pick(scale, smoke=12, small=300, paper=0), batch=pick(scale, smoke=8, small=16, paper=0),
                optim=replace(optim, lr=pick(scale, smoke=3e-4, small=1e-4, paper=0.0)),
            ),
            "audit": Audit(subjects=subjects, checks=checks),
        },
    )  # fmt: skip


def more_text(recipe: Recipe) -> Recipe:
    """The same recipe with the right answers alone in its second stage: supervised learning goes on."""
    return recipe.set("train.method", Supervised()).set("train.data", recipe.stages["sft"].data)
