"""Images a second of whole distillation steps, batches and optimizer included, beside torchdistill on the same two networks.

resnet56 teaches resnet20 on made-up images of 32 x 32 pixels, 100 classes, batches of 64, SGD with momentum, Hinton's
objective. Arms: ours with the teacher at work, ours with the teacher's answers stored beforehand, and torchdistill's
`DistillationBox` with its own loader (no workers), as its example for image classification runs it. Then what each
objective costs over Hinton's, on the stored teacher where it can be used. Every arm is a process of its own.

    python benchmarks/kd_step.py                # the peer's arm needs: pip install --no-deps torchdistill torchvision
"""

from __future__ import annotations

import argparse
import importlib
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy
import torch

from stillhouse.cli import launch
from stillhouse.core.engine import Loop, micro_batches
from stillhouse.core.optim import Optim
from stillhouse.core.recipe import Recipe
from stillhouse.core.run import Run
from stillhouse.data.images import Npz
from stillhouse.methods.classics.hinton import Hinton
from stillhouse.methods.classics.supervised import Supervised
from stillhouse.models.vision import ResNet
from stillhouse.signals.label import Label
from stillhouse.signals.raw import Raw
from stillhouse.teachers.cached import Cached
from stillhouse.teachers.module import ModuleTeacher

TEACHER, STUDENT = ResNet(depth=56), ResNet(depth=20)
BATCH, CLASSES, WARM = 64, 100, 3
BOXES = ("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool")
SGD = Optim(name="sgd", lr=1e-3, weight_decay=5e-4, clip=None)
OTHERS = (
    "dkd",
    "dist",
    "nkd",
    "logit_std",
    "attention_transfer",
    "sp",
    "pkt",
    "rkd",
    "nst",
    "cc",
    "vid",
    "crd",
    "reviewkd",
)


def ours(method: Any, steps: int, *, stored: bool) -> Callable[[], Iterator[None]]:
    """A step of ours at each `next`."""
    folder = TemporaryDirectory()
    path = Path(folder.name)
    count = BATCH * 12
    draw = numpy.random.default_rng(0)
    images = draw.integers(0, 256, (count, 32, 32, 3), "uint8")
    numpy.savez(path / "made.npz", images=images, labels=numpy.arange(count) % CLASSES)
    recipe = Recipe(
        id="step", student=STUDENT, data=Npz(path=str(path / "made.npz")), teachers={"teacher": ModuleTeacher(spec=TEACHER)},
        stages={"label": Label(format=Raw(kind="logits"), batch=BATCH)} if stored else {},
    )  # fmt: skip
    run = launch.launch(recipe, folder=path / "run", device="cpu")
    if stored:
        run.teachers = {"teacher": Cached(stage="label").build(run)}
    run.source, run.horizon = run.sources()["train"], steps + WARM
    torch.manual_seed(0)
    loop = Loop(method, method.setup(STUDENT.build(run).train(), run), run, SGD)

    def each() -> Iterator[None]:
        for step in range(steps + WARM):
            run.step = step
            run.log(step, loop.step(micro_batches(run.source, step=step, size=BATCH, accumulate=1, seed=0)))
            yield
        folder.cleanup()

    return each


def peer(steps: int) -> Callable[[], Iterator[None]]:
    """A step of torchdistill's at each `next`."""
    library = torch.library.Library("torchvision", "DEF")  # its wheel is for CUDA; these operations are not used here
    for name in ("nms", "qnms", *(f"{a}{b}" for a in BOXES for b in ("", "_backward")), "deform_conv2d"):
        library.define(f"{'_' * name.endswith('_backward')}{name}(...) -> ...")
    box_of: Any = importlib.import_module("torchdistill.core.distillation").DistillationBox
    importlib.import_module("torchdistill.losses.mid_level")
    importlib.import_module("torchdistill.losses.high_level")
    draw = torch.Generator().manual_seed(0)
    count = BATCH * (steps + WARM)
    images, labels = torch.randn(count, 3, 32, 32, generator=draw), torch.arange(count) % CLASSES
    with TemporaryDirectory() as folder:
        run = Run(Path(folder), device=torch.device("cpu"))
        teacher, student = (plain(spec, run) for spec in (TEACHER, STUDENT))
    path = {
        "student_module_path": ".",
        "student_module_io": "output",
        "teacher_module_path": ".",
        "teacher_module_io": "output",
    }
    loss = {"key": "KDLoss", "kwargs": {**path, "temperature": 4.0, "alpha": 0.1}}
    config = {
        "num_epochs": 1,
        "train_data_loader": {
            "dataset_id": "made", "sampler": {"class_or_func": torch.utils.data.RandomSampler},
            "kwargs": {"batch_size": BATCH, "num_workers": 0},
        },
        "teacher": {"requires_grad": False, "forward_proc": "forward_batch_only"},
        "student": {"forward_proc": "forward_batch_only"},
        "optimizer": {"key": "SGD", "kwargs": {"lr": 1e-3, "momentum": 0.9, "weight_decay": 5e-4}},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"kd": {"criterion": loss, "weight": 1.0}}}},
    }  # fmt: skip
    data = torch.utils.data.TensorDataset(images, labels)
    box = box_of(teacher, student, {"made": data}, config, torch.device("cpu"), None, False, 1.0)
    box.pre_epoch_process(epoch=0)

    def each() -> Iterator[None]:
        for batch, targets, extra in box.train_data_loader:
            box.pre_forward_process()
            found = box.forward_process(batch, targets=targets, supp_dict=extra)
            box.post_forward_process(loss=found)
            found.item()  # its example logs it
            yield

    return each


def plain(spec: ResNet, run: Run) -> torch.nn.Module:
    """The network in torch's usual memory format, as torchdistill is used."""
    torch.manual_seed(0)
    sized = ResNet(**{**vars(spec), "channels": 3, "classes": CLASSES})
    return sized.build(run).to(memory_format=torch.contiguous_format)


def measure(arm: str, steps: int) -> dict[str, Any]:
    """Seconds a step of one arm."""
    torch.set_num_threads(torch.get_num_threads())
    if arm == "torchdistill":
        each = peer(steps)
    elif arm in ("live", "stored", "alone"):
        each = ours(Supervised() if arm == "alone" else Hinton(), steps, stored=arm == "stored")
    else:
        method = type(importlib.import_module(f"stillhouse.methods.classics.{arm}").recipe("paper").stages["train"].method)()
        each = ours(method, steps, stored="features" not in method.needs)
    clock: list[float] = []
    spent: list[float] = []
    for _ in each():
        clock.append(time.perf_counter())
        spent.append(time.process_time())
    taken = sorted(b - a for a, b in zip(clock[WARM - 1 :], clock[WARM:], strict=False))
    middle = taken[len(taken) // 2]
    cpu = (spent[-1] - spent[WARM - 1]) / (len(spent) - WARM)
    return {
        "arm": arm, "seconds": middle, "cpu_seconds": cpu, "images_per_second": BATCH / middle,
        "images_per_cpu_second": BATCH / cpu, "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--arms", nargs="+", default=["torchdistill", "live", "stored", "alone", *OTHERS])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "kd_step.json")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, args.steps)))
        return
    found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in args.arms}
    for _ in range(args.rounds):  # arms take turns, so that a busy minute meets all of them
        for arm in args.arms:
            command = [sys.executable, __file__, "--one", arm, "--steps", str(args.steps)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"{arm}: {done.stderr.strip().splitlines()[-1]}")
                continue
            found[arm].append(json.loads(done.stdout.splitlines()[-1]))
    rows: list[dict[str, Any]] = []
    for arm, rounds in found.items():
        if rounds:
            best = min(rounds, key=lambda r: r["cpu_seconds"])
            rows.append({**best, "rounds": [r["images_per_second"] for r in rounds]})
            print(f"{arm:20} {best['images_per_second']:7.0f} images/s  {best['images_per_cpu_second']:7.0f} a CPU second")
    facts = {"what": " ".join((__doc__ or "").split("\n\n")[1].split()), "threads": torch.get_num_threads(), "rows": rows}
    args.out.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
