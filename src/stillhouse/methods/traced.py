"""What methods have in common that make traces to learn from: the experiment on chains, and the one on own questions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..audits.effort import Effort
from ..core.optim import Optim
from ..core.recipe import Recipe, Scale, pick
from ..core.stage import Audit, Train
from ..data.tasks import Chain, Questions
from ..models.generate import Sampling
from ..models.hub import HubLM
from ..models.toys import TinyLM
from ..synth.made import Answered
from ..synth.segment import Thoughts
from ..synth.synthesize import Synthesize
from .classics.supervised import Supervised

CHAINS = Thoughts(separator=";", turns=("~",))  # how traces about chains fall into steps
END = r"#(\d+)$"  # how they end


def on_traced_chains(
    id: str, scale: Scale, chains: Chain, teachers: Mapping[str, Any], steps: Mapping[str, Any], *,
    answer: str, temperature: float = 0.0, label: str = "",
) -> Recipe:  # fmt: skip
    """At smoke and small: steps make traces about chains, and a small transformer learns their column `answer`.

    Traces share rows, so that it learns from as many tokens in a step however long they are; then it is judged by what it
    solves and how much it writes.
    """
    length = pick(scale, smoke=64, small=192, paper=0)
    train = Train(
        method=Supervised(), data=Answered(stage="make", answer=answer, length=length),
        steps=pick(scale, smoke=300, small=1500, paper=0), batch=pick(scale, smoke=8, small=6, paper=0),
        optim=Optim(lr=1e-2), label=label,
    )  # fmt: skip
    writing = Sampling(temperature=temperature, max_new=pick(scale, smoke=24, small=96, paper=0), batch=512)
    return Recipe(
        id=id,
        student=TinyLM(width=32),
        data=chains,
        teachers=teachers,
        stages={
            "make": Synthesize(steps=steps),
            "train": train,
            "audit": Audit(subjects=("start", "train"), checks=(Effort(sampling=writing, separator=";"),)),
        },
    )


def on_traced_questions(
    id: str, model: str, teachers: Mapping[str, Any], steps: Mapping[str, Any], *, answer: str, optim: Optim, length: int,
    updates: int, batch: int,
) -> Recipe:  # fmt: skip
    """At paper: steps make traces about a user's questions, and a language model learns their column `answer`, packed."""
    writing = Sampling(temperature=0.6, top_p=0.95, max_new=length // 2, batch=64)
    train = Train(
        method=Supervised(), data=Answered(stage="make", answer=answer), steps=updates, batch=batch, accumulate=batch,
        optim=optim, precision="bfloat16", checkpointing=True,
    )  # fmt: skip
    return Recipe(
        id=id,
        student=HubLM(path=model),
        data=Questions(path="questions.jsonl", check="math", length=length),
        teachers=teachers,
        stages={
            "make": Synthesize(steps=steps),
            "train": train,
            "audit": Audit(subjects=("start", "train"), checks=(Effort(sampling=writing, versus=("start",)),)),
        },
    )
