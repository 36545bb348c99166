"""The bias of a top k, made visible: on a real teacher, and in students that were trained from it.

    python benchmarks/truncation.py

A cache keeps k classes of each of the teacher's distributions. Three ways to use about the same bytes:

    with the rest   our `topk`: a student matches the k classes and the mass of all others, which it may spread as it likes
    renormalised    the k classes get all the mass; what a loss without a rest does
    sampled         our `sampled`: as many draws as fit into the bytes of `topk`, at most 255 (then it needs fewer)

(a) SmolLM2-135M-Instruct on Python's docstrings, every target read back from its format: total variation between the
teacher's distribution and the target as a whole distribution (a rest is spread evenly over the other classes), and
KL(teacher ‖ target) where it is finite: a class without mass in the target makes it infinite. For `sampled` also the
total variation of the mean of 16 samples: what is left of it is chance, and goes away with more text; a bias does not.

(b) A transformer over bytes is trained on docstrings, and from its stored signals the same small student with every
target, the whole distribution, and from the text alone; same initial weights and batches per seed, forward KL, one
learning rate for all. Reported on held-out docstrings: loss, and KL(teacher ‖ student), in nats per byte.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from signals import STYLE, keep_memory, states, written_down

HERE = Path(__file__).resolve().parent
REAL, TOY = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512), (1, 2, 4, 8, 16)
WAYS = {"rest": "top k with the rest", "renormalised": "top k renormalised", "sampled": "sampled, equal bytes"}
COLOURS = {"rest": "#2563b0", "renormalised": "#c2571a", "sampled": "#2f8f5b", "full": "#222222", "alone": "#8a8a8a"}
MANY = 16  # samples whose mean shows that what is left is chance
LR, TEACHER_LR, ROWS = 2e-3, 1.5e-3, 16  # as in methods/settings.py
MOST_DRAWS = 255


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1024, help="of the real teacher")
    parser.add_argument("--teacher-steps", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=300, help="of every student")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "truncation.json")
    parser.add_argument("--redraw", action="store_true", help="only draw the figure anew, from --out")
    args = parser.parse_args()
    if not args.redraw:
        import torch

        torch.set_num_threads(1)
        keep_memory()
        began = time.process_time()
        text, real = real_teacher(args.tokens)
        world, toy = toy_world(args)
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
        words = [Path(w).name if w.startswith(os.sep) else w for w in sys.argv[1:]]
        report = {
            "what": (__doc__ or "").strip(),
            "command": shlex.join(["python", "benchmarks/truncation.py", *words]),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": {"cpu": cpu, "cores": os.cpu_count(), "system": platform.platform()},
            "versions": {"python": platform.python_version()} | {n: version(n) for n in ("torch", "numpy")},
            "cpu_seconds": round(time.process_time() - began),
            "real": {"teacher": text, "rows": real},
            "toy": world | {"rows": toy},
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    report = json.loads(args.out.read_text(encoding="utf-8"))
    figure(report, args.out.with_suffix(".svg"))
    print(table(report))


def kept(form: Any, items: Any, counts: list[int], keys: list[bytes], facts: Any) -> tuple[Any, float]:
    """The top k (or sample) that comes back from a format's bytes, and the bytes per item."""
    blobs = form.encode(items, counts, keys, facts)
    signal = form.decode([memoryview(blob) for blob in blobs], counts, facts, Path())
    return signal.topk, sum(map(len, blobs)) / sum(counts)


def renormalised(top: Any) -> Any:
    """All mass to the kept classes."""
    import torch

    return replace(top, values=top.values.log_softmax(-1), rest=torch.full_like(top.rest, -math.inf))


def fitting(size: float, z: Any, most: int = MOST_DRAWS) -> int:
    """The number of systematic draws whose records are nearest to `size` bytes on the logits z."""
    from stillhouse.core.signal import Signal
    from stillhouse.signals.sampled import Sampled

    def off(draws: int) -> float:
        form, items = Sampled(draws=draws), Signal(logits=z)
        return kept(form, items, [len(z)], [bytes(16)], form.facts(items, None))[1] - size

    low, high = 1, most
    if off(high) <= 0:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if off(middle) <= 0 else (low, middle)
    return low if abs(off(low)) <= abs(off(high)) else high


# -- (a) ------------------------------------------------------------------------------------------------------------


def real_teacher(tokens: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One row per k and way."""
    from stillhouse.core.signal import Signal
    from stillhouse.signals.sampled import Sampled
    from stillhouse.signals.topk import KeptTopK

    head, text = states(tokens)
    z = written_down(head)
    items, rows = Signal(logits=z), []
    some = z[:: max(1, len(z) // 256)].contiguous()  # what takes many samples is measured on every fourth token
    done: set[int] = set()
    for k in REAL:
        form = KeptTopK(k=k)
        top, size = kept(form, items, [len(z)], [bytes(16)], form.facts(items, None))
        rows += [{"k": k, "way": way, "bytes": size} | against(z, each)
                 for way, each in (("rest", top), ("renormalised", renormalised(top)))]  # fmt: skip
        draws = fitting(size, some)
        if draws in done:  # 255 draws are all that a record holds
            continue
        done.add(draws)
        drawn = Sampled(draws=draws)
        one, size = kept(drawn, items, [len(z)], [bytes(16)], drawn.facts(items, None))
        told = {"k": k, "way": "sampled", "bytes": size, "draws": draws} | against(z, one)
        few, many = Signal(logits=some), [replace(drawn, seed=seed) for seed in range(MANY)]
        samples = [kept(each, few, [len(some)], [bytes(16)], each.facts(few, None))[0] for each in many]
        rows.append(told | {"tv_of_mean": against(some, *samples)["tv_of_mean"]})
        print(f"k = {k}", file=sys.stderr, flush=True)
    return text, rows


def against(z: Any, *tops: Any) -> dict[str, Any]:
    """Errors of a target against all logits, means over tokens; with several targets, of the first and of their mean."""
    import torch

    parts: dict[str, list[Any]] = {}
    for at in range(0, len(z), 256):
        some = slice(at, at + 256)
        log_p = z[some].double().log_softmax(-1)
        p, mean = log_p.exp(), torch.zeros_like(log_p)
        for number, top in enumerate(tops):
            here, values, rest = top.index[some], top.values[some].double(), top.rest[some].double()
            even = rest.exp() / max(1, p.shape[1] - here.shape[1])
            q = even[:, None].expand_as(p).scatter(-1, here, values.exp())
            mean += q / len(tops)
            if number == 0:
                parts.setdefault("tv", []).append(0.5 * (p - q).abs().sum(-1))
                parts.setdefault("kl", []).append((p * (log_p - q.log())).sum(-1))
                parts.setdefault("mass", []).append((p * (q > 0) if rest.isinf().all() else p.gather(-1, here)).sum(-1))
        if len(tops) > 1:
            parts.setdefault("tv_of_mean", []).append(0.5 * (p - mean).abs().sum(-1))
    found = {name: float(f"{float(torch.cat(every).mean()):.4g}") for name, every in parts.items()}
    if not math.isfinite(found["kl"]):
        found["kl"] = None  # type: ignore[assignment]  # infinite
    return found


# -- (b) ------------------------------------------------------------------------------------------------------------


def toy_world(args: argparse.Namespace) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One row per target: held-out loss and KL of the students' last weights."""
    import torch

    from stillhouse.core.run import Run
    from stillhouse.data.stdlib import StandardLibrary
    from stillhouse.methods.classics.gkd import GKD
    from stillhouse.methods.classics.supervised import Supervised
    from stillhouse.models.toys import TinyLM
    from stillhouse.objectives.divergences import ForwardKL
    from stillhouse.signals.reader import StoredTeacher
    from stillhouse.signals.sampled import Sampled
    from stillhouse.signals.store import Store
    from stillhouse.signals.topk import KeptTopK

    big, small = TinyLM(vocabulary=128, width=128, depth=4, heads=4), TinyLM(vocabulary=128, width=48, depth=2)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        run = Run(folder / "run", device=torch.device("cpu"))
        splits = StandardLibrary().load(run)
        teacher = trained(big, Supervised(), None, splits["train"], 0, args.teacher_steps, TEACHER_LR, folder)
        print("teacher trained", file=sys.stderr, flush=True)
        logits = {name: answers(teacher, splits[name]) for name in ("train", "test")}
        judged = list(zip(batches(splits["test"]), logits["test"], strict=True))
        sample = torch.cat([z[batch["weight"] > 0] for batch, z in judged[:2]])[:2048]
        whole, _ = judge(teacher, judged)

        def arm(way: str, k: int | None, form: Any = None) -> None:
            target, size = None, None
            if form is not None:
                at = folder / f"{form.name}-{k}"
                if not at.exists():
                    store(at, form, splits["train"], logits["train"])
                held = Store(at)
                target, size = StoredTeacher(held), held.bytes / held.items
                if way == "renormalised":
                    target = Renormalised(target)
            learn = Supervised() if way == "alone" else GKD(on_policy=0.0, divergence=ForwardKL())
            found = []
            for seed in range(args.seeds):
                student = trained(small, learn, target, splits["train"], seed, args.steps, LR, folder)
                found.append(judge(student, judged))
            nll, kl = zip(*found, strict=True)
            told = {"way": way, "k": k, "bytes": size, "nll": spread(nll), "kl": spread(kl)}
            rows.append(told | ({"draws": form.draws} if way == "sampled" else {}))
            print(told, file=sys.stderr, flush=True)

        from stillhouse.signals.raw import Raw

        arm("full", None, Raw(kind="logits"))
        arm("alone", None)
        done: set[int] = set()
        for k in TOY:
            arm("rest", k, KeptTopK(k=k))
            arm("renormalised", k, KeptTopK(k=k))
            draws = fitting(KeptTopK(k=k).size(128, 0), sample)
            if draws not in done:
                done.add(draws)
                arm("sampled", k, Sampled(draws=draws))
        z = sample.double().log_softmax(-1)
        world = {
            "teacher": repr(big), "teacher_steps": args.teacher_steps, "teacher_nll": round(whole, 4),
            "teacher_entropy": float(f"{float(-(z.exp() * z).sum(-1).mean()):.4g}"),
            "mass": {str(k): float(f"{float(z.exp().topk(k).values.sum(-1).mean()):.4g}") for k in TOY},
            "student": repr(small), "steps": args.steps, "rows_per_step": ROWS, "lr": LR, "seeds": args.seeds,
            "data": "StandardLibrary, 128 byte classes; trained on train, judged on test",
            "test_tokens": splits["test"].targets,
        }  # fmt: skip
    return world, rows


class Renormalised:
    """A stored teacher whose kept classes get all the mass."""

    def __init__(self, stored: Any):
        self.stored, self.gives = stored, stored.gives

    def __call__(self, batch: Any, want: Any) -> Any:
        """The top k without a rest."""
        from stillhouse.core.signal import Signal

        return Signal(topk=renormalised(self.stored(batch, want).need("topk")))


def trained(spec: Any, method: Any, teacher: Any, source: Any, seed: int, steps: int, lr: float, folder: Path) -> Any:
    """The module after training; what is random depends on the seed alone, so that arms are paired."""
    import torch

    from stillhouse.core.engine import Loop, fit
    from stillhouse.core.optim import Optim
    from stillhouse.core.run import Run, seed_of

    run = Run(folder / "run", seed=seed, device=torch.device("cpu"))
    run.horizon = steps
    if teacher is not None:
        run.teachers = {"teacher": teacher}
    torch.manual_seed(seed_of(seed, "initial weights"))
    module = spec.build(run).train()
    loop = Loop(method, method.setup(module, run), run, Optim(lr=lr))
    fit(loop, source, steps=steps, size=ROWS)
    loop.close()
    return module.eval()


def batches(source: Any, rows: int = 64) -> Iterator[Any]:
    for begin in range(0, len(source), rows):
        yield source.batch(range(begin, min(begin + rows, len(source))), 0)


def answers(module: Any, source: Any) -> list[Any]:
    """Dense logits of every batch."""
    import torch

    with torch.no_grad():
        return [module(**batch["inputs"]).dense() for batch in batches(source)]


def store(folder: Path, form: Any, source: Any, logits: list[Any]) -> None:
    """The signals of a split, as the stage `Label` leaves them."""
    from stillhouse.core.signal import Signal
    from stillhouse.signals.formats import plain
    from stillhouse.signals.items import take
    from stillhouse.signals.keys import places_of
    from stillhouse.signals.store import Writer

    facts = form.facts(Signal(logits=logits[0].flatten(0, 1)), None)
    header = {"version": 1, "name": "", "format": plain(form), "facts": facts, "teacher": {}, "tokenizer": None, "data": {}}
    with Writer(folder, header) as writer:
        for batch, z in zip(batches(source), logits, strict=True):
            places = places_of(batch)
            seen, new = set(writer.known), []
            for number, key in enumerate(places.keys):
                if key not in seen:
                    seen.add(key)
                    new.append(number)
            some = places.some(new)
            items = take(Signal(logits=z), some)
            writer.append(some.keys, some.counts, form.encode(items, some.counts, some.keys, facts) if new else [])
        writer.finish({})


def judge(module: Any, judged: list[Any]) -> tuple[float, float]:
    """Held-out loss and KL(teacher ‖ module), nats per byte."""
    import torch

    from stillhouse.objectives.divergences import ForwardKL, cross_entropy

    sums = torch.zeros(3, dtype=torch.float64)
    with torch.no_grad():
        for batch, z in judged:
            weight, mine = batch["weight"], module(**batch["inputs"])
            nll = cross_entropy(mine, batch["labels"], weight=weight).double().sum()
            sums += torch.stack([nll, ForwardKL()(mine, z, weight=weight).double().sum(), weight.double().sum()])
    return float(sums[0] / sums[2]), float(sums[1] / sums[2])


def spread(values: Any) -> dict[str, Any]:
    """Mean and range over seeds."""
    each = [round(value, 5) for value in values]
    return {"mean": round(statistics.mean(values), 5), "low": min(each), "high": max(each), "each": each}


# -- for people ----------------------------------------------------------------------------------------------------


def table(report: dict[str, Any]) -> str:
    """Both halves in columns."""
    lines = [f"{'k':>4}  {'way':14}{'B':>7}{'draws':>7}{'mass':>8}{'TV':>8}{'of mean':>9}{'KL':>9}"]
    for one in report["real"]["rows"]:
        kl = "inf" if one["kl"] is None else f"{one['kl']:.4f}"
        mean = f"{one['tv_of_mean']:.4f}" if "tv_of_mean" in one else ""
        lines.append(
            f"{one['k']:4}  {one['way']:14}{one['bytes']:7.0f}{one.get('draws', ''):>7}{one['mass']:8.4f}{one['tv']:8.4f}"
            f"{mean:>9}{kl:>9}"
        )
    toy = report["toy"]
    lines += ["", f"teacher's held-out loss {toy['teacher_nll']}, entropy {toy['teacher_entropy']}, mass {toy['mass']}"]
    lines.append(f"{'k':>4}  {'way':14}{'B':>7}{'draws':>7}{'loss':>9}{'range':>18}{'KL':>9}{'range':>18}")
    for one in toy["rows"]:
        size = "" if one["bytes"] is None else f"{one['bytes']:.0f}"
        numbers = ((m["mean"], f"{m['low']:.4f}-{m['high']:.4f}") for m in (one["nll"], one["kl"]))
        cells = "".join(f"{mean:9.4f}{ends:>18}" for mean, ends in numbers)
        lines.append(f"{one['k'] or '':>4}  {one['way']:14}{size:>7}{one.get('draws', ''):>7}{cells}")
    return "\n".join(lines)


def figure(report: dict[str, Any], file: Path) -> None:
    """Total variation on the real teacher; KL and loss of the toy students; against k."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    toy = report["toy"]
    with matplotlib.rc_context(STYLE):
        canvas = Figure(figsize=(12.5, 5.2), layout="constrained", facecolor="white")
        FigureCanvasSVG(canvas)
        real, kl, nll = canvas.subplots(1, 3)
        for way, name in WAYS.items():
            rows = [one for one in report["real"]["rows"] if one["way"] == way]
            x, style = [one["k"] for one in rows], {"color": COLOURS[way], "marker": "o", "markersize": 4}
            real.plot(x, [one["tv"] for one in rows], **style, label=name)
            if way == "sampled":
                words = f"{rows[-1]['draws']} draws, the most\nthat a record holds"
                real.annotate(
                    words, (x[-1], rows[-1]["tv"]), (8, 4), textcoords="offset points", fontsize=7.5, color=COLOURS[way]
                )
                style |= {"linestyle": (0, (2, 2)), "markerfacecolor": "white"}
                mean = [one["tv_of_mean"] for one in rows]
                real.plot(x, mean, **style, label=f"mean of {MANY} samples: chance averages out")
        real.set(xscale="log", yscale="log", ylabel="total variation to the teacher, mean over tokens",
                 title="SmolLM2-135M: one token's target")  # fmt: skip
        real.set_xticks(REAL, [str(k) for k in REAL], minor=False)
        levels = (0.02, 0.05, 0.1, 0.2, 0.5)
        real.set_yticks(levels, [f"{level:g}" for level in levels], minor=False)
        real.minorticks_off()
        for axes, metric, title, label in (
            (kl, "kl", "Students of a teacher over bytes: KL", "held-out KL(teacher ‖ student), nats per byte"),
            (nll, "nll", "The same students: loss", "held-out loss, nats per byte"),
        ):
            for way, name in WAYS.items():
                rows = [one for one in toy["rows"] if one["way"] == way]
                x, y = [one["k"] for one in rows], [one[metric]["mean"] for one in rows]
                axes.plot(x, y, color=COLOURS[way], marker="o", markersize=4, label=name)
                low, high = ([one[metric][end] for one in rows] for end in ("low", "high"))
                axes.fill_between(x, low, high, color=COLOURS[way], alpha=0.18, linewidth=0)
            for way, name in (("full", "the whole distribution"), ("alone", "no teacher, the text alone")):
                one = next(one for one in toy["rows"] if one["way"] == way)[metric]
                axes.axhline(one["mean"], color=COLOURS[way], linewidth=1.2, linestyle=(0, (4, 2)), label=name)
                axes.axhspan(one["low"], one["high"], color=COLOURS[way], alpha=0.15, linewidth=0)
            axes.set(xscale="log", title=title, ylabel=label)
            axes.set_xticks(TOY, [str(k) for k in TOY], minor=False)
            axes.minorticks_off()
        for axes in (real, kl, nll):
            axes.set_xlabel("k (sampled: as many bytes as this k takes)")
            axes.legend(fontsize=8)
        real.legend(fontsize=8, loc="lower left")
        canvas.suptitle(
            f"What is left of a teacher in a top k. Left: means over {report['real']['teacher']['tokens']:,} tokens. Middle "
            f"and right: {toy['seeds']} seeds, mean and range, {toy['steps']} steps, same data and learning rate for all",
            x=0.01, ha="left", fontsize=9.5, color="#444444",
        )  # fmt: skip
        canvas.savefig(file, metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    main()
