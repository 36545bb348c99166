"""What a run ran on: machine, versions, commit. Facts only, and never the value of an environment variable."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import stillhouse

PACKAGES = (
    "torch",
    "numpy",
    "transformers",
    "tokenizers",
    "peft",
    "safetensors",
    "pyarrow",
    "scikit-learn",
    "pydantic",
)


def environment() -> dict[str, Any]:
    """Everything about here and now that may change a run's numbers or its speed."""
    import torch

    from ..core.run import best_device

    device = best_device()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command(),
        "stillhouse": stillhouse.__version__,
        "commit": commit(Path(__file__).parent),
        "python": platform.python_version(),
        "versions": {package: found for package in PACKAGES if (found := installed(package))},
        "system": platform.platform(),
        "cpu": cpu(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "memory": memory(),
        "device": name,
    }


def command() -> str:
    """What was typed."""
    program = Path(sys.argv[0]).name
    return shlex.join([*(("python", "-m", "stillhouse") if program == "__main__.py" else (program,)), *sys.argv[1:]])


def installed(package: str) -> str | None:
    """The version of a package, without importing it; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def commit(folder: Path) -> str | None:
    """The git commit that the code in `folder` is at, `-dirty` with changes; None outside a checkout."""
    if shutil.which("git") is None:
        return None
    ask = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        answer = subprocess.run(ask, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None


def cpu() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> int:
    """Bytes of main memory; what the container may use, where that is less."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0
    try:
        return min(total, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8")))
    except (OSError, ValueError):  # no cgroup, or `max`
        return total


def free_memory() -> int:
    """Bytes of main memory that are free for a new process, by the kernel's own estimate."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("MemAvailable")))
    except (OSError, StopIteration, ValueError):
        return memory()


def size(count: float) -> str:
    """Bytes for people: `1.5 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
