"""What a language run will need, before it starts: memory, minutes, bytes on disk, teacher tokens."""

from __future__ import annotations

import math
import shutil
import time
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch

from .audits.own_answers import OwnAnswers
from .cli.machine import free_memory, size
from .core.recipe import Recipe
from .core.run import Run, RunError, best_device
from .core.stage import Audit, Train
from .models.hub import load_tokenizer
from .signals.label import Label
from .signals.tokenizers import classes_of
from .teachers.http import HttpLM

EFFICIENCY = 0.42  # of a bare matrix product's speed that a whole training step reaches (measured on two CPU cores)
DECODING = 0.10  # the same for drawing text, a token at a time, 64 texts together
GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The estimate; `str()` prints it."""

    student: int  # parameters
    teacher: int
    rows: int  # training rows
    tokens: int  # training tokens, padding left out
    targets: int  # of which count
    steps: int  # of the stage `train`
    step_seconds: float  # of one of them
    training_seconds: float  # of all training stages but the teacher's
    other_seconds: float  # adapting the teacher, writing, cutting, auditing
    arms: int  # training stages, the teacher's left out
    memory: float  # peak bytes
    disk: float  # bytes
    teacher_tokens: int
    free_memory: float
    device: str

    @property
    def minutes(self) -> float:
        """The whole run."""
        return (self.training_seconds + self.other_seconds) / 60

    @staticmethod
    def knows(recipe: Recipe) -> bool:
        """Whether `of` can say something about this recipe: it must train a language model from a path, on rows
        that are there before the run."""
        from .models.hub import HubLM
        from .models.shrink import Shrink
        from .synth.synthesize import DataPlan

        trains = isinstance(recipe.stages.get("train"), Train) and not DataPlan.knows(recipe)
        return trains and "teacher" in recipe.teachers and isinstance(recipe.student, HubLM | Shrink)

    @staticmethod
    def of(recipe: Recipe) -> Plan:
        """Read the data and the models' configurations, time one matrix product; loads no weights."""
        train: Train = recipe.stages["train"]
        with TemporaryDirectory() as folder:
            run = Run(Path(folder) / "plan", seed=recipe.seed)
            run.recipe = recipe
            rows, tokens, targets, written = _data(recipe, run)
        big, small = _sizes(recipe)
        device = best_device()
        speed = matmul_speed(device, getattr(torch, train.precision)) * EFFICIENCY
        per_step = (train.batch or rows) * tokens / max(1, rows)
        labels = [stage for stage in recipe.stages.values() if isinstance(stage, Label)]
        stored = not hasattr(recipe.teachers["teacher"], "model")
        share = targets / max(1, tokens)
        alone = per_step * (6 * small.body + 6 * small.head * share) / speed
        asking = (2 * big.body + 2 * big.head * share) / speed  # seconds of one token
        both = alone + (per_step * 2 * small.head * share / speed if stored else per_step * asking)
        writing = written * (2 * big.body + 2 * big.head) / (speed / EFFICIENCY * DECODING)
        judged = 0.1 * tokens + 4 * 100
        own = [c for s in recipe.stages.values() for c in getattr(s, "checks", ()) if isinstance(c, OwnAnswers)]
        spoken = (
            sum(c.count * c.sampling.max_new for c in own) * 2 * (small.body + small.head) / (speed / EFFICIENCY * DECODING)
        )
        subjects = sum(len(s.subjects) for s in recipe.stages.values() if isinstance(s, Audit))
        audit = judged * subjects * 2 * (big.body + small.body + 2 * small.head) / speed + 20 * subjects
        audit += spoken * subjects
        adapted = [s.steps for n, s in recipe.stages.items() if n == "adapt"]
        adapting = sum(adapted) * per_step * 6 * (big.body + big.head * share) / speed
        healing = getattr(recipe.student, "heal", 0) * tokens / max(1, rows) * 2 * (big.body + small.body) / speed
        micro = per_step / train.accumulate
        labelling = sum(tokens * 1.1 * asking * label.draws for label in labels)  # the held-out tenth too
        kept = sum(1.1 * targets * label.format.size(max(1, big.classes), big.width) for label in labels)
        asked = int((1.1 * tokens if labels else 0 if stored else train.steps * per_step) + written)
        training: dict[str, float] = {}
        for name, stage in recipe.stages.items():
            if isinstance(stage, Train) and name != "adapt":
                each = _drawing(stage, big, small) / (speed / EFFICIENCY * DECODING)
                each += both if stage.method.needs else alone
                training[name] = training[stage.seconds_of] if stage.seconds_of else stage.steps * each
        activations = micro * small.layers * (20 * small.width + 8 * small.inner) * 2
        state = small.parameters * (2 + 4 + 8 + 4) if train.precision == "bfloat16" else small.parameters * 16
        return Plan(
            student=small.parameters, teacher=big.parameters, rows=rows, tokens=tokens, targets=targets,
            steps=train.steps, step_seconds=training["train"] / train.steps, training_seconds=sum(training.values()),
            other_seconds=writing + audit + adapting + healing + labelling, arms=len(training),
            memory=0.7 * GIB + 2 * big.parameters + state + activations + 0.35 * GIB,
            disk=(len(training) + len(adapted)) * 2 * small.parameters + 14 * small.parameters + kept,
            teacher_tokens=asked, free_memory=_free_memory(device), device=str(device),
        )  # fmt: skip

    def fitted(self, recipe: Recipe, minutes: float | None) -> Recipe:
        """The recipe with as many steps as fit into the budget, or with two passes over the data."""
        train = recipe.stages["train"]
        steps = math.ceil(2 * self.rows / (train.batch or self.rows))
        if minutes is not None:
            per_step = self.training_seconds / self.steps
            steps = int((60 * minutes - self.other_seconds) / per_step)
            if steps < 5:
                least = (self.other_seconds + 5 * per_step) / 60
                raise RunError(f"{minutes:g} minutes are too few here: give at least {math.ceil(least)}, or less data")
        stages = {
            name: replace(stage, steps=max(1, steps)) if name in ("train", "alone_tokens", "alone_time") else stage
            for name, stage in recipe.stages.items()
        }
        return recipe.set("stages", stages)

    def check(self) -> None:
        """RunError if the machine's memory cannot hold it."""
        if self.memory > self.free_memory:
            raise RunError(
                f"this needs about {size(self.memory)} of memory and {size(self.free_memory)} are free: "
                "take a smaller student, shorter rows (--length) or --set train.checkpointing=true"
            )

    def _share(self) -> str:
        return f", {self.student / self.teacher:.0%} of the teacher" if self.teacher else ""

    def _beside(self) -> str:
        others = self.arms - 1
        return f", and {others} arm{'s' if others > 1 else ''} to compare with" if others else ""

    def __str__(self) -> str:
        return "\n".join(
            (
                f"teacher   {self.teacher / 1e6:,.1f} M parameters" if self.teacher else "teacher   stored signals",
                f"student   {self.student / 1e6:,.1f} M parameters{self._share()}",
                f"data      {self.tokens:,} training tokens in {self.rows:,} rows, {self.targets:,} of them to predict",
                f"steps     {self.steps:,}, about {self.step_seconds:.1f} s each{self._beside()}",
                f"time      about {_minutes(self.minutes)} in all, on {self.device}",
                f"memory    about {size(self.memory)} at the peak, {size(self.free_memory)} free",
                f"disk      about {size(self.disk)}",
                f"teacher   reads about {self.teacher_tokens:,} tokens",
            )
        )


@dataclass(frozen=True, kw_only=True)
class LabelPlan:
    """What asking a language model about a file will need; `str()` prints it."""

    teacher: int  # parameters
    rows: int
    tokens: int  # that the teacher reads
    targets: int  # that are kept
    item_bytes: float  # of one of them
    beside: float  # bytes kept once
    seconds: float
    memory: float
    free_memory: float
    device: str

    @staticmethod
    def of(recipe: Recipe) -> LabelPlan:
        """Read the data and the model's configuration, time one matrix product; loads no weights."""
        stage: Label = recipe.stages["label"]
        with TemporaryDirectory() as folder:
            run = Run(Path(folder) / "plan", seed=recipe.seed)
            run.recipe = recipe
            sources = recipe.data.load(run)
        rows, tokens, targets = (
            sum(f(sources[split]) for split in stage.splits) for f in (len, lambda s: s.tokens, lambda s: s.targets)
        )
        spec: Any = recipe.teachers["teacher"]
        device = best_device()
        if isinstance(spec, HttpLM):
            classes = classes_of(load_tokenizer(spec.tokenizer))
            return LabelPlan(
                teacher=0, rows=rows, tokens=tokens, targets=targets, item_bytes=stage.format.size(classes, 0), beside=0,
                seconds=0.0, memory=0.5 * GIB, free_memory=_free_memory(device), device=spec.url,
            )  # fmt: skip
        big = _size(spec.model.path)
        speed = matmul_speed(device, getattr(torch, spec.model.dtype)) * EFFICIENCY
        heads = stage.format.name != "hidden"
        seconds = (tokens * 2 * big.body + targets * 2 * big.head * heads) / speed
        per_weight = 2 if spec.model.dtype == "bfloat16" else 4
        return LabelPlan(
            teacher=big.parameters, rows=rows, tokens=tokens, targets=targets,
            item_bytes=stage.format.size(big.classes, big.width), beside=0 if heads else per_weight * big.head,
            seconds=seconds, memory=0.7 * GIB + per_weight * big.parameters + 0.35 * GIB,
            free_memory=_free_memory(device), device=str(device),
        )  # fmt: skip

    def check(self, folder: Path) -> None:
        """RunError if the disk or the memory cannot hold it."""
        place = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
        needed, free = self.targets * self.item_bytes + self.beside, shutil.disk_usage(place).free
        if needed > free:
            raise RunError(
                f"the signals take about {size(needed)} and {size(free)} are free at {place}: keep less (topk:32)"
            )
        if self.memory > self.free_memory:
            raise RunError(f"this needs about {size(self.memory)} of memory and {size(self.free_memory)} are free")

    def __str__(self) -> str:
        disk = f"about {size(self.targets * self.item_bytes + self.beside)}, {self.item_bytes:,.0f} bytes a token"
        minutes = f"about {_minutes(self.seconds / 60)}, on {self.device}"
        return "\n".join(
            (
                f"teacher   {self.teacher / 1e6:,.1f} M parameters" if self.teacher else f"teacher   at {self.device}",
                f"data      {self.tokens:,} tokens in {self.rows:,} rows, {self.targets:,} of them to keep an answer for",
                f"time      {minutes if self.teacher else 'as the server takes'}",
                f"memory    about {size(self.memory)} at the peak, {size(self.free_memory)} free",
                f"disk      {disk}" + (f", {size(self.beside)} of it for the head" if self.beside else ""),
            )
        )


def _drawing(stage: Train, big: _Size, small: _Size) -> float:
    """Floating-point operations of the answers that one step draws from student (and teacher, if it mixes them)."""
    method: Any = stage.method
    sampling = getattr(method, "sampling", None)
    if sampling is None:
        return 0.0
    readers = [small, big] if getattr(method, "mix", 0.0) else [small]
    tokens = stage.batch * sampling.max_new / 2 * getattr(method, "on_policy", 1.0)
    return tokens * sum(2 * (size.body + size.head) for size in readers)


def _minutes(minutes: float) -> str:
    return f"{max(1, round(minutes))} min" if minutes < 90 else f"{minutes / 60:.1f} h"


@dataclass(frozen=True)
class _Size:
    body: float  # multiplied per token
    head: float
    parameters: int
    layers: int
    width: int
    inner: int
    classes: int = 0


def _sizes(recipe: Recipe) -> tuple[_Size, _Size]:
    from .models.hub import HubLM, StageLM
    from .models.shrink import Shrink

    def path_of(spec: Any) -> str:
        if isinstance(spec, StageLM):
            return path_of(recipe.stages[spec.stage].student)
        return spec.path if isinstance(spec, HubLM) else path_of(spec.of)

    speaker = recipe.teachers["teacher"]
    model = getattr(speaker, "model", None) or getattr(getattr(speaker, "live", None), "model", None)
    teacher = _Size(0, 0, 0, 0, 0, 0) if model is None else _size(path_of(model))
    student = recipe.student
    cut = student if isinstance(student, Shrink) else None
    return teacher, _size(path_of(student), cut)


def _size(path: str, cut: Any = None) -> _Size:
    from .models.hub import load_config, transformers

    config = load_config(path)
    if cut is not None:
        if (cut.layers or 0) > config.num_hidden_layers:
            raise RunError(f"cannot keep {cut.layers} of {config.num_hidden_layers} layers")  # as the cut itself would say
        config.num_hidden_layers = len(cut.keep) or cut.layers or config.num_hidden_layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[: config.num_hidden_layers]
        if cut.width or cut.ffn:
            config.head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
            config.hidden_size = cut.width or config.hidden_size
            config.intermediate_size = cut.ffn or config.intermediate_size
    with torch.device("meta"):
        model = transformers().AutoModelForCausalLM.from_config(config)
    parameters = sum({id(p): p.numel() for p in model.parameters()}.values())
    head = model.get_output_embeddings().weight.numel()
    tables = {id(p): p.numel() for p in (model.get_input_embeddings().weight, model.get_output_embeddings().weight)}
    inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    body = parameters - sum(tables.values())
    classes = model.get_output_embeddings().weight.shape[0]
    return _Size(body, head, parameters, config.num_hidden_layers, config.hidden_size, inner, classes)


def _data(recipe: Recipe, run: Run) -> tuple[int, int, int, int]:
    """Rows, tokens and counted tokens of the training split, and tokens that the teacher has to write."""
    from .data.written import Written

    if isinstance(recipe.data, Written):
        write = recipe.stages[recipe.data.stage]
        prompts = recipe.data.base.prompts(run)["train"][: write.limit]
        answers = len(prompts) * write.each * write.sampling.max_new // 2  # about half of the room is used
        tokens = sum(map(len, prompts)) * write.each + answers
        return max(1, tokens // (recipe.data.length or recipe.data.base.length)), tokens, answers, answers
    source = recipe.data.load(run)["train"]
    return len(source), source.tokens, source.targets, 0


@lru_cache(maxsize=1)
def fast_precision() -> Literal["float32", "bfloat16"]:
    """The precision in which this machine multiplies matrices faster.

    bfloat16 on accelerators and on CPUs that have it in hardware; on others it is half as fast as float32.
    """
    device = best_device()
    if device.type != "cpu":
        return "bfloat16"
    return "bfloat16" if matmul_speed(device, torch.bfloat16) > 1.1 * matmul_speed(device, torch.float32) else "float32"


@lru_cache(maxsize=4)
def matmul_speed(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a product of this kind of model's size: the best of five tries."""
    a, b = (torch.randn(1024, 1024, dtype=dtype, device=device) for _ in range(2))
    best = 0.0
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(4):
            torch.mm(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = max(best, 8 * 1024**3 / (time.perf_counter() - began))
    return best


def _free_memory(device: torch.device) -> float:
    return float(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else free_memory()
