"""The language-model experiment that the papers of `classics/` and `language/` share, so that their numbers compare."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..audits.language import HeldOutText
from ..audits.own_answers import OwnAnswers
from ..core.method import Method
from ..core.optim import Optim
from ..core.recipe import Recipe, Scale, pick
from ..core.stage import Audit, Train
from ..data.stdlib import StandardLibrary
from ..data.tokens import Text
from ..data.toys import Sentences
from ..models.generate import Sampling
from ..models.hub import HubLM
from ..models.toys import TinyLM
from ..teachers.local import LocalLM
from ..teachers.module import ModuleTeacher
from .classics.supervised import Supervised


def language(
    id: str,
    scale: Scale,
    method: Method,
    *,
    steps: Mapping[Scale, int] | None = None,
    lr: float = 1e-4,
    teacher: str = "Qwen/Qwen2.5-1.5B-Instruct",
    student: str = "Qwen/Qwen2.5-0.5B-Instruct",
) -> Recipe:
    """smoke: characters of made-up sentences; small: bytes of Python's docstrings; paper: models from the hub on
    `train.jsonl`. At smoke and small the teacher is trained first, by the recipe's stage `teacher`."""
    subjects, versus = ("start", "teacher", "train"), ("start",)
    planned = {"smoke": 30, "small": 1200, "paper": 10_000, **(steps or {})}
    if scale == "paper":
        return Recipe(
            id=id,
            student=HubLM(path=student),
            data=Text(path="train.jsonl", length=1024),
            teachers={"teacher": LocalLM(model=HubLM(path=teacher, dtype="bfloat16"))},
            stages={
                "train": Train(
                    method=method,
                    steps=planned["paper"],
                    batch=32,
                    accumulate=8,
                    optim=Optim(lr=lr),
                    precision="bfloat16",
                ),
                "audit": Audit(subjects=subjects, checks=(HeldOutText(versus=versus), OwnAnswers(versus=versus))),
            },
        )
    big = pick(scale, smoke=TinyLM(width=32), small=TinyLM(width=128, depth=4, heads=4), paper=TinyLM())
    batch = pick(scale, smoke=8, small=16, paper=0)
    optim = Optim(lr=pick(scale, smoke=1e-2, small=2e-3, paper=lr))
    draws = pick(scale, smoke=200, small=2000, paper=0)
    writing = Sampling(max_new=pick(scale, smoke=12, small=96, paper=0), batch=pick(scale, smoke=8, small=256, paper=0))
    prompts = pick(scale, smoke=8, small=200, paper=0)
    checks = (
        HeldOutText(versus=versus, batch=16, draws=draws),
        OwnAnswers(versus=versus, sampling=writing, count=prompts, draws=draws),
    )
    return Recipe(
        id=id,
        student=pick(scale, smoke=TinyLM(width=16, depth=1), small=TinyLM(width=48, depth=2), paper=TinyLM()),
        data=pick(scale, smoke=Sentences(), small=StandardLibrary(), paper=Sentences()),
        teachers={"teacher": ModuleTeacher(spec=big, stage="teacher")},
        stages={
            "teacher": Train(
                method=Supervised(), student=big, steps=pick(scale, smoke=40, small=2000, paper=0), batch=batch,
                optim=replace(optim, lr=pick(scale, smoke=1e-2, small=1.5e-3, paper=lr)),
            ),
            "train": Train(method=method, steps=planned[scale], batch=batch, optim=optim),
            "audit": Audit(subjects=subjects, checks=checks),
        },
    )  # fmt: skip


def alone(recipe: Recipe) -> Recipe:
    """The same recipe with the student learning from the text alone, at equal tokens."""
    return recipe.set("train.method", Supervised())


def judged_on(recipe: Recipe, split: str) -> Recipe:
    """The same recipe with its audit on another split."""
    checks: Any = tuple(replace(check, split=split) for check in recipe.stages["audit"].checks)
    return recipe.set("audit.checks", checks)
