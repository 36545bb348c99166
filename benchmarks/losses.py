"""Time and memory of a distillation loss, forward and backward, beside the matrix products it cannot avoid.

    python benchmarks/losses.py                       # everything; writes results/losses.json
    python benchmarks/losses.py --only stillhouse --repeats 3
    python benchmarks/losses.py --liger /path/to/unpacked/liger_kernel-0.8.5   # a folder that holds liger_kernel/

Every measurement is a process of its own. It times the four bare products of a dense teacher (student logits, teacher
logits, dH, dW; 256 tokens at a time, buffers reused), and right after them the method; what is reported is the ratio
of the two CPU times, and its median over the repeats. CPU time, because others may use the machine: threads sleep
while they wait (`OMP_WAIT_POLICY=PASSIVE`), so it counts work and not waiting. The peak is VmHWM, reset before the
method, less what was resident then; it includes the head's gradient. The error is that of dH against float64.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
BETA = {"forward_kl": 0.0, "reverse_kl": 1.0, "jsd": 0.5}  # in the convention of the GKD paper
FLOOR_CHUNK = 256


@dataclass(frozen=True)
class Case:
    """One line of the table."""

    method: str
    divergence: str
    setting: str = ""  # "half masked", "frozen head", "bfloat16", "top 64", "with labels"
    tokens: int | None = None  # other than --tokens: memory only
    at_most: float | None = None  # times the floor

    @property
    def name(self) -> str:
        return f"{self.method}/{self.divergence}/{self.setting or (f'{self.tokens} tokens' if self.tokens else '')}"

    @property
    def ours(self) -> bool:
        return self.method == "stillhouse"


CASES = [
    *(Case("stillhouse", d, at_most=1.25) for d in BETA),
    Case("stillhouse", "forward_kl", "half masked", at_most=0.65),
    Case("stillhouse", "forward_kl", "frozen head", at_most=1.0),
    Case("stillhouse", "forward_kl", "top 64"),
    Case("stillhouse", "jsd", "with labels"),
    *(Case("stillhouse", d, "bfloat16") for d in ("forward_kl", "jsd")),
    *(Case("stillhouse", d, tokens=n) for n in (512, 16_384) for d in ("forward_kl", "jsd")),
    Case("F.kl_div on dense logits", "forward_kl"),
    *(Case("TRL GKD", d) for d in BETA),
    *(Case("TRL chunked", d) for d in BETA),
    *(Case("Liger", d) for d in ("forward_kl", "jsd")),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--hidden", type=int, default=576)
    parser.add_argument("--vocab", type=int, default=49_152)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default="", help="a regular expression: method/divergence/setting")
    parser.add_argument("--liger", default="", help="a folder that holds the package liger_kernel, if not installed")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "losses.json")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child is not None:
        print(json.dumps(measure(CASES[args.child], args)))
        return

    cases = [(i, case) for i, case in enumerate(CASES) if re.search(args.only, case.name)]
    found: dict[int, list[dict[str, Any]]] = {i: [] for i, _ in cases}
    skipped: dict[str, str] = {}
    for repeat in range(args.repeats):  # repeats outside, so that a busy minute does not fall on one method
        for i, case in cases:
            if case.method in skipped or (case.tokens and repeat):
                continue
            done = child(i)
            if isinstance(done, str):
                if case.ours:
                    raise SystemExit(f"{case}: {done}")
                skipped[case.method] = done
            else:
                found[i].append(done)
                print(
                    f"[{repeat + 1}/{args.repeats}] {case.method}, {case.divergence} {case.setting}: {done}",
                    file=sys.stderr,
                )
    shape = {k: getattr(args, k) for k in ("tokens", "hidden", "vocab", "threads")}
    rows = [summary(case, found[i]) for i, case in cases if found[i]]
    rows = kept(args.out, shape, rows) + rows
    print(table(rows))
    for method, why in skipped.items():
        print(f"\n{method} was skipped: {why}")
    record = {
        "what": (__doc__ or "").strip(),
        "command": " ".join(["python", "benchmarks/losses.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(),
        "shape": shape,
        "rows": rows,
        "skipped": skipped,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record, indent=1) + "\n")


def kept(path: Path, shape: dict[str, int], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Earlier rows of other cases at the same shape on the same processor: methods can be measured one at a time."""
    if not path.exists():
        return []
    old = json.loads(path.read_text())
    if old["shape"] != shape or old["machine"]["cpu"] != machine()["cpu"]:
        return []
    names = ("method", "divergence", "setting", "tokens")
    measured = [[row.get(name) for name in names] for row in new]
    return [row for row in old["rows"] if [row.get(name) for name in names] not in measured]


def child(index: int) -> dict[str, Any] | str:
    """One measurement in a fresh process, or why there is none."""
    env = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "HF_HUB_OFFLINE": "1"}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE.parent / "src"), env.get("PYTHONPATH")]))
    command = [sys.executable, __file__, *sys.argv[1:], "--child", str(index)]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"ended with code {done.returncode}"])[-1]
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(case: Case, args: argparse.Namespace) -> dict[str, Any]:
    import torch

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    tokens, hidden, vocab = case.tokens or args.tokens, args.hidden, args.vocab
    # Logits of standard deviation 3, teacher and student related: about what a half-trained student sees.
    h, w = torch.randn(tokens, hidden), torch.randn(vocab, hidden) * (3 / hidden**0.5)
    th, tw = h + 0.5 * torch.randn(tokens, hidden), w + 0.2 * w.roll(1, 0)
    if case.setting == "bfloat16":
        h, w, th, tw = (x.bfloat16() for x in (h, w, th, tw))
    loss = method(case, args.liger)
    small = (x[:n].clone() for x, n in ((h, 16), (w, 512), (th, 16), (tw, 512)))
    backward(loss(*(x.requires_grad_(i < 2) for i, x in enumerate(small))))  # imports, thread pools, kernels

    # At another number of tokens only memory is measured, but after products too: their library keeps 25 MiB.
    first = FLOOR_CHUNK if case.tokens else tokens
    floor = clocked(lambda: products(*(x.float() for x in (h[:first], w, th[:first], tw))))
    h.requires_grad_()
    w.requires_grad_(case.setting != "frozen head")
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    spent = clocked(lambda: backward(loss(h, w, th, tw)))
    peak = (memory("VmHWM") - before) / 1024
    result = {"peak_mib": round(peak), "cpu_s": round(spent[0], 3), "wall_s": round(spent[1], 3)}
    if not case.tokens:
        result |= {"floor_cpu_s": round(floor[0], 3), "ratio": round(spent[0] / floor[0], 3)}
        result |= {"wall_ratio": round(spent[1] / floor[1], 3)}
    if case.setting in ("", "bfloat16"):
        result["error"] = error(case, h, w, th, tw)
    return result


def backward(loss: Any) -> None:
    loss.backward()


def clocked(work: Callable[[], object]) -> tuple[float, float]:
    """CPU seconds (user and system, all threads) and wall seconds."""
    start, wall = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    work()
    end = resource.getrusage(resource.RUSAGE_SELF)
    return end.ru_utime + end.ru_stime - start.ru_utime - start.ru_stime, time.perf_counter() - wall


def memory(field: str) -> int:
    """KiB of VmRSS or VmHWM."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def products(h: Any, w: Any, th: Any, tw: Any) -> None:
    """The floor: four products, nothing else."""
    import torch

    s, t = (torch.empty(FLOOR_CHUNK, len(w)) for _ in range(2))
    dh, dw = torch.zeros_like(h), torch.zeros_like(w)
    for start in range(0, len(h), FLOOR_CHUNK):
        part = slice(start, start + FLOOR_CHUNK)
        n = len(h[part])
        torch.mm(h[part], w.T, out=s[:n])
        torch.mm(th[part], tw.T, out=t[:n])
        torch.mm(s[:n], w, out=dh[part])
        dw.addmm_(s[:n].T, h[part])


def method(case: Case, liger: str) -> Callable[..., Any]:
    """(h, w, th, tw) -> the mean over tokens (over half of them if masked), as each library would be called."""
    import torch
    from torch import Tensor
    from torch.nn import functional as F

    beta = BETA[case.divergence]

    def mask(h: Tensor) -> Tensor:
        return torch.arange(len(h)) % 2 if case.setting == "half masked" else torch.ones(len(h), dtype=torch.long)

    if case.ours:
        from stillhouse.core.signal import HeadLogits, TopK
        from stillhouse.objectives.divergences import JSD, mixed

        def ours(h: Tensor, w: Tensor, th: Tensor, tw: Tensor) -> Tensor:
            student, teacher = HeadLogits(h, w), HeadLogits(th, tw)
            divergence = JSD(beta)  # at 0 and 1 it is the two KLs
            if case.setting == "with labels":
                return mixed(divergence, student, teacher, torch.zeros(len(h), dtype=torch.long), 0.5).total.mean()
            if case.setting == "top 64":
                values = torch.full((len(h), 64), 0.8 / 64).log()
                index = torch.arange(64).expand(len(h), 64)
                return divergence(student, TopK(values, index, torch.full((len(h),), 0.2).log())).mean()
            weight = mask(h).float() if case.setting == "half masked" else None
            return divergence(student, teacher, weight=weight).sum() / mask(h).sum()

        return ours
    if case.method == "TRL GKD":
        from trl.experimental.gkd import GKDTrainer

        def gkd(h: Tensor, w: Tensor, th: Tensor, tw: Tensor) -> Tensor:
            with torch.no_grad():
                teacher = F.linear(th, tw)
            return GKDTrainer.generalized_jsd_loss(F.linear(h, w)[None], teacher[None], beta=beta) / len(h)

        return gkd
    if case.method == "TRL chunked":
        from trl.trainer.distillation_trainer import _chunked_divergence_loss

        def chunked(h: Tensor, w: Tensor, th: Tensor, tw: Tensor) -> Tensor:
            return _chunked_divergence_loss(h[None], th[None], w, tw, mask(h)[None], beta)[0]

        return chunked
    if case.method == "Liger":
        if liger:
            sys.path.insert(0, liger)
        from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

        fused = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=beta, compiled=False)

        def jsd(h: Tensor, w: Tensor, th: Tensor, tw: Tensor) -> Tensor:
            return fused(h, w, th, tw, torch.zeros(len(h), dtype=torch.long))

        return jsd

    def plain(h: Tensor, w: Tensor, th: Tensor, tw: Tensor) -> Tensor:
        with torch.no_grad():
            teacher = F.linear(th, tw).softmax(-1)
        return F.kl_div(F.linear(h, w).log_softmax(-1), teacher, reduction="batchmean")

    return plain


def error(case: Case, h: Any, w: Any, th: Any, tw: Any) -> float:
    """Relative error of dH over the first rows against float64. Rows do not influence each other."""
    import torch

    rows, beta = 16, BETA[case.divergence]
    with torch.no_grad():
        z, t = (a[:rows].double() @ b.double().T for a, b in ((h, w), (th, tw)))
    z.requires_grad_()
    log_q, log_p = z.log_softmax(-1), t.log_softmax(-1)
    log_m = torch.logaddexp(log_q + torch.tensor(1 - beta).log(), log_p + torch.tensor(beta).log())
    kl = {
        "forward_kl": log_p.exp() * (log_p - log_q),
        "reverse_kl": log_q.exp() * (log_q - log_p),
        "jsd": 0.5 * (log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)),
    }[case.divergence]
    kl.sum().backward()
    assert z.grad is not None
    exact = z.grad @ w.detach().double()
    found = h.grad[:rows].double() * len(h)
    scale = (found * exact).sum() / exact.square().sum()  # Liger and TRL GKD reduce in ways of their own
    return float(f"{((found / scale - exact).norm() / exact.norm()).item():.2g}")


def summary(case: Case, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """One row: medians, and all ratios."""
    row: dict[str, Any] = {k: v for k, v in asdict(case).items() if v not in ("", None)}
    row |= {"date": datetime.now(UTC).isoformat(timespec="seconds"), "runs": len(runs)}
    for name in runs[0]:
        row[name] = statistics.median(run[name] for run in runs)
    if "ratio" in row:
        row["ratios"] = [run["ratio"] for run in runs]
        if case.at_most is not None:
            row["holds"] = row["ratio"] <= case.at_most
    return row


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| method | divergence | setting | x floor (CPU) | target | peak MiB | error of dH |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        setting = row.get("setting", "") or (f"{row['tokens']:,} tokens" if "tokens" in row else "")
        ratio = f"{row['ratio']:.2f} ({min(row['ratios']):.2f} to {max(row['ratios']):.2f})" if "ratio" in row else ""
        cells = [
            row["method"],
            row["divergence"],
            setting,
            ratio,
            row.get("at_most", ""),
            row["peak_mib"],
            row.get("error", ""),
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    info = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.split(":", 1)[1].strip() for line in info if line.startswith("model name")), platform.processor())
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "load": [round(x, 2) for x in os.getloadavg()],
    }


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("torch", "trl", "liger-kernel"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "0.8.5 (unpacked)" if package == "liger-kernel" and "--liger" in sys.argv else "not installed"
    return found


if __name__ == "__main__":
    main()
