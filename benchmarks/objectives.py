"""Time and memory of two objectives on features, forward and backward, beside their definitions written out.

    python benchmarks/objectives.py                 # everything; writes results/objectives.json
    python benchmarks/objectives.py --only crd --repeats 1

NST compares every channel of the student with every channel of the teacher. Written out that is a [B, C_s, C_t, H W] tensor.
CRD compares every item with its own row of a memory and with K drawn ones. Written out, the rows are gathered as
[B, 1 + K, D], and the negatives of an item are drawn by numpy one item at a time, as a data set's `__getitem__` would.
RKD compares angles. Its row shows what it costs to take them again in the backward pass instead of keeping all B³.

Every measurement is a process of its own: one step to warm up on a small input, one that counts. Time is CPU time of
all threads, as others may use the machine. The peak is VmHWM, reset before the step, less what was resident then, so
inputs are not in it. Both sides compute the same number, which is checked. Look at the ratios.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SIZES = {
    "nst": {"items": 64, "student": 64, "teacher": 128, "side": 16},
    "nst late": {"items": 64, "student": 128, "teacher": 256, "side": 8},
    "crd": {"items": 64, "width": 128, "negatives": 4096, "memory": 10_000},
    "crd draw": {"items": 64, "width": 128, "negatives": 4096, "memory": 10_000},
    "rkd angle": {"items": 512, "width": 128},
}
SMALL = {"items": 4, "negatives": 64, "memory": 100}  # to warm up
TEMPERATURE = 0.07


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default="", help="a regular expression: the name of a case")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "objectives.json")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(*args.child, threads=args.threads)))
        return
    rows = [row(name, args.repeats) for name in SIZES if re.search(args.only, name)]
    record = {
        "what": (__doc__ or "").strip(),
        "command": " ".join(["python", "benchmarks/objectives.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "load": os.getloadavg(),
        },
        "threads": args.threads,
        "rows": rows,
    }
    print("| case | CPU s written out, ours | times faster | peak MiB written out, ours |\n|---|---|---|---|")
    for r in rows:
        cells = [", ".join(str(r[side][key]) for side in ("written out", "ours")) for key in ("cpu_s", "peak_mib")]
        print(f"| {r['case']} | {cells[0]} | {r['times_faster']} | {cells[1]} |")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record, indent=1) + "\n")


def row(name: str, repeats: int) -> dict[str, Any]:
    """Medians of both sides, taken in turns, and their ratio."""
    found: dict[str, list[dict[str, float]]] = {"written out": [], "ours": []}
    for _ in range(repeats):
        for side, runs in found.items():
            runs.append(child(name, side))
    values = [run["value"] for runs in found.values() for run in runs]
    if name != "crd draw" and max(values) - min(values) > 1e-4 * abs(max(values)):
        raise SystemExit(f"{name}: the two sides do not agree: {values}")
    result: dict[str, Any] = {"case": name, **SIZES[name], "runs": repeats}
    for side, runs in found.items():
        result[side] = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    pairs = zip(found["written out"], found["ours"], strict=True)
    ratios = [a["cpu_s"] / max(b["cpu_s"], 1e-4) for a, b in pairs]
    return result | {"times_faster": round(statistics.median(ratios), 2), "ratios": [round(r, 2) for r in ratios]}


def child(name: str, side: str) -> dict[str, float]:
    """One measurement in a fresh process."""
    env = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE.parent / "src"), env.get("PYTHONPATH")]))
    command = [sys.executable, __file__, *sys.argv[1:], "--child", name, side]
    return json.loads(subprocess.run(command, capture_output=True, text=True, env=env, check=True).stdout.splitlines()[-1])


def measure(name: str, side: str, threads: int) -> dict[str, float]:
    import torch

    torch.set_num_threads(threads)
    make = {"nst": nst, "nst late": nst, "crd": crd, "crd draw": draw, "rkd angle": angles}[name]
    size = SIZES[name]
    make(side == "ours", size | {k: v for k, v in SMALL.items() if k in size})()
    step = make(side == "ours", size)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    start, wall = cpu(), time.perf_counter()
    value = step()
    spent, wall = cpu() - start, time.perf_counter() - wall
    peak = (memory("VmHWM") - before) / 1024
    return {"cpu_s": round(spent, 4), "wall_s": round(wall, 4), "peak_mib": round(peak, 1), "value": value}


def cpu() -> float:
    use = resource.getrusage(resource.RUSAGE_SELF)
    return use.ru_utime + use.ru_stime


def memory(field: str) -> int:
    """KiB of VmRSS or VmHWM."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def nst(ours: bool, size: dict[str, int]) -> Callable[[], float]:
    """Neuron Selectivity Transfer: a step's loss, and its gradient in the student's map."""
    import torch
    from torch import Tensor
    from torch.nn import functional as F

    from stillhouse.objectives.maps import selectivity_gap

    torch.manual_seed(0)
    student, teacher = (torch.randn(size["items"], size[k], size["side"], size["side"]) for k in ("student", "teacher"))
    student.requires_grad_()

    def written_out(student: Tensor, teacher: Tensor) -> Tensor:
        a, b = (F.normalize(x.flatten(2), dim=2) for x in (student, teacher))

        def kernel(a: Tensor, b: Tensor) -> Tensor:
            return (a.unsqueeze(2) * b.unsqueeze(1)).sum(-1).square().mean((1, 2))

        return kernel(a, a) - 2 * kernel(a, b) + kernel(b, b)

    return stepping(lambda: (selectivity_gap if ours else written_out)(student, teacher))


def crd(ours: bool, size: dict[str, int]) -> Callable[[], float]:
    """One side of CRD for given negatives: a step's loss, and its gradient in the student's vectors."""
    import torch
    from torch import Tensor

    from stillhouse.objectives.contrastive import memory_nce
    from stillhouse.objectives.maps import unit

    torch.manual_seed(0)
    items, n = size["items"], size["memory"]
    query, table = unit(torch.randn(items, size["width"])).requires_grad_(), unit(torch.randn(n, size["width"]))
    index = torch.randint(n, (items, 1 + size["negatives"]))
    log_z = math.log(n) + 1.0

    def written_out(query: Tensor, table: Tensor, index: Tensor) -> Tensor:
        odds = torch.exp(table[index] @ query.unsqueeze(2) / TEMPERATURE).squeeze(2) / math.exp(log_z)
        noise = size["negatives"] / n
        own, others = odds[:, 0], odds[:, 1:]
        return -torch.log(own / (own + noise + 1e-7)) - torch.log(noise / (others + noise + 1e-7)).sum(1)

    if ours:
        return stepping(lambda: memory_nce(query, table, index, log_z, temperature=TEMPERATURE))
    return stepping(lambda: written_out(query, table, index))


def draw(ours: bool, size: dict[str, int]) -> Callable[[], float]:
    """The negatives of one batch, of other classes than the item's: 100 classes."""
    import numpy as np
    import torch

    from stillhouse.objectives.contrastive import draw_negatives

    n, count = size["memory"], size["negatives"]
    labels = torch.arange(n) % 100
    own = torch.arange(size["items"])
    if ours:
        generator = torch.Generator().manual_seed(0)
        return lambda: float(draw_negatives(own, count, labels, generator=generator).float().mean())
    classes = labels.numpy()
    others = [np.flatnonzero(classes != c) for c in range(100)]
    rng = np.random.RandomState(0)

    def one_by_one() -> float:
        drawn = [rng.choice(others[classes[i]], count, replace=False) for i in own.tolist()]
        return float(torch.from_numpy(np.stack(drawn)).float().mean())

    return one_by_one


def angles(ours: bool, size: dict[str, int]) -> Callable[[], float]:
    """RKD's angles: ours some vertices at a time, against all B³ at once."""
    import torch
    from torch import Tensor
    from torch.nn import functional as F

    from stillhouse.objectives.relations import angle_gap

    torch.manual_seed(0)
    student, teacher = (
        torch.randn(size["items"], size["width"], requires_grad=True),
        torch.randn(size["items"], size["width"]),
    )

    def all_at_once(student: Tensor, teacher: Tensor) -> Tensor:
        def cosines(x: Tensor) -> Tensor:
            e = F.normalize(x.unsqueeze(0) - x.unsqueeze(1), dim=2)
            return e @ e.mT

        return F.smooth_l1_loss(cosines(student), cosines(teacher), reduction="none").mean((1, 2))

    return stepping(lambda: (angle_gap if ours else all_at_once)(student, teacher))


def stepping(loss: Callable[[], Any]) -> Callable[[], float]:
    """A step: the mean over items, and its gradient."""

    def step() -> float:
        value = loss().mean()
        value.backward()
        return float(value)

    return step


if __name__ == "__main__":
    main()
