"""`distil` for classifiers: two modules of any kind, images or labelled texts. Builds a recipe and times its first steps."""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from .audits.classification import Classification
from .cli import door
from .cli.machine import free_memory, size
from .core.engine import Loop, micro_batches
from .core.optim import Optim
from .core.paper import find
from .core.recipe import Recipe
from .core.run import Run, RunError, best_device
from .core.stage import Audit, LazyTeachers, Train, peak_memory
from .data.images import Folder, Npz, Table
from .data.labelled import Labelled
from .data.tables import read_rows
from .methods.classics.hinton import Hinton
from .methods.classics.supervised import Supervised
from .models.hub import load_config
from .models.hubvision import HubVision
from .models.own import Given, OwnModule
from .models.text import HubClassifier
from .teachers.module import ModuleTeacher

TABLES = (".csv", ".jsonl", ".json", ".parquet")
TIMED = 3  # steps that the estimate takes
PASSES = 10  # over the data, unless steps are given


def classifies(teacher: Any, data: Any) -> bool:
    """Whether `distil` was given classifiers: a module, a function that makes one, a spec, or a folder of one."""
    if isinstance(teacher, nn.Module) or not isinstance(teacher, (str, Path)):
        return True
    given = str(teacher)
    if ".py:" in given or given.startswith("models.") or Path(str(data)).suffix == ".npz" or Path(str(data)).is_dir():
        return True
    folder = Path(given).expanduser()
    return (folder / "config.json").is_file() and "Classification" in _architecture(given)


def recipe_for(
    teacher: Any,
    student: Any,
    data: Any,
    *,
    method: str = "auto",
    steps: int | None = None,
    minutes: float | None = None,
    batch: int | None = None,
    column: str | None = None,
    adapt: int = 0,
    seed: int = 0,
    settings: Sequence[str] = (),
    **others: Any,
) -> Recipe:
    """The recipe that `distil` runs for classifiers.

    teacher, student: a module; FILE.py:FUNCTION; a spec by its name (`models.vision.ResNet`); a Hugging Face folder of an
        image or text classifier
    data: a folder with one subfolder a class, an `.npz`, a table of pictures' paths (or of texts) and labels
    method: a method's id; `auto` is Hinton's
    column: of a table, the column of the texts or of the pictures' paths
    adapt: first train the teacher on the labels for so many steps
    """
    unfit = [f"--{name}" for name, value in others.items() if value]
    if unfit:
        raise RunError(f"{unfit[0]} is for language models, and these are classifiers")
    big, small = _model(teacher, "teacher"), _model(student, "student")
    chosen = Hinton() if method == "auto" else method_of(method)
    rows = batch or 64
    common: dict[str, Any] = {"steps": steps or 1, "batch": rows, "optim": Optim(lr=1e-3, weight_decay=0.01)}
    stages: dict[str, Any] = {}
    if adapt:
        stages["teacher"] = Train(method=Supervised(), student=big, label="Teacher", **{**common, "steps": adapt})
    stages["train"] = Train(method=chosen, **common)
    stages["alone"] = Train(method=Supervised(), **common)
    audit = Audit(subjects=("start", "teacher", "alone", "train"), checks=(Classification(),))
    recipe = Recipe(
        id="distil", student=small, data=_data(data, big, column), seed=seed,
        teachers={"teacher": ModuleTeacher(spec=big, stage="teacher" if adapt else None)}, stages={**stages, "audit": audit},
    )  # fmt: skip
    recipe = door.override(recipe, settings)
    return recipe if steps is not None else Plan.of(recipe).fitted(recipe, minutes)


def method_of(name: str) -> Any:
    """The method of a paper with its defaults; RunError if it does not teach classifiers."""
    entry = find(name)
    made: Any = importlib.import_module(entry.module).recipe("paper").stages.get("train")
    if not {"image", "any"} & set(entry.paper.modality) or "labels" not in entry.paper.data or made is None:
        raise RunError(
            f"{name} is not for classifiers as it stands; see `stillhouse show {name}`, or `stillhouse list --data labels` "
            "for those that begin with labels"
        )
    return type(made.method)()


def _model(given: Any, role: str) -> Any:
    """A model spec for what the user gave."""
    if isinstance(given, nn.Module):
        return Given(given)
    if not isinstance(given, (str, Path)):
        return given
    name = str(given)
    if ".py:" in name:
        file, _, function = name.rpartition(":")
        return OwnModule(function=f"{Path(file).expanduser().resolve()}:{function}")
    if name.startswith("models."):
        return door.spec({"use": name})
    architecture = _architecture(name)
    if architecture.endswith("ForImageClassification"):
        return HubVision(path=name)
    if architecture.endswith("ForSequenceClassification"):
        return HubClassifier(path=name)
    raise RunError(f"the {role} {name} is {architecture}, no classifier of images or texts")


def _architecture(folder: str) -> str:
    return next(iter(getattr(load_config(folder), "architectures", None) or ["of no known kind"]))


def _data(given: Any, teacher: Any, column: str | None) -> Any:
    """A data spec for what the user gave."""
    if not isinstance(given, (str, Path)):
        return given
    path = Path(given).expanduser()
    if not path.exists():
        raise RunError(f"no file or folder {given}")
    if path.is_dir():
        return Folder(path=str(path.resolve()))
    if path.suffix == ".npz":
        return Npz(path=str(path.resolve()))
    if path.suffix not in TABLES:
        raise RunError(f"{given} is no data for classifiers: a folder of images, an .npz, or a table ({', '.join(TABLES)})")
    if isinstance(teacher, HubClassifier) or getattr(teacher, "encode", None) is not None:
        return Labelled(path=str(path.resolve()), text=column or "text")
    columns = read_rows(str(path))[0]
    found = "image" if "path" not in columns and "image" in columns else "path"
    return Table(path=str(path.resolve()), image=column or found)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run of classifiers will need: its first steps taken and timed; `str()` prints it."""

    student: int  # parameters
    teacher: int
    items: int  # to train on
    classes: int
    steps: int
    batch: int
    step_seconds: float  # of the stage `train`
    alone_seconds: float  # of the stage `alone`
    adapting: float  # seconds
    memory: int  # the most bytes so far
    free_memory: float
    device: str

    @staticmethod
    def of(recipe: Recipe) -> Plan:
        """Read the data, build both, take a few steps of each stage in a folder that is thrown away."""
        with TemporaryDirectory() as folder:
            run = Run(Path(folder) / "plan", seed=recipe.seed, device=best_device())
            untrained = {
                n: replace(t, stage=None) if isinstance(t, ModuleTeacher) else t for n, t in recipe.teachers.items()
            }
            run.recipe = recipe
            run.teachers = LazyTeachers(untrained, run)
            taken = {n: _timed(s, recipe, run) for n, s in recipe.stages.items() if isinstance(s, Train)}
            module, source = recipe.student.build(run), run.sources()["train"]
            big: Any = run.teacher
        train: Train = recipe.stages["train"]
        adapting = taken["teacher"] * recipe.stages["teacher"].steps if "teacher" in taken else 0.0
        return Plan(
            student=_count(module), teacher=_count(big.module) if hasattr(big, "module") else 0, items=len(source),
            classes=source.classes, steps=train.steps, batch=train.batch or len(source), step_seconds=taken["train"],
            alone_seconds=taken.get("alone", 0.0), adapting=adapting, memory=peak_memory(run.device),
            free_memory=free_memory(), device=str(run.device),
        )  # fmt: skip

    def fitted(self, recipe: Recipe, minutes: float | None) -> Recipe:
        """The recipe with as many steps as fit into the budget, or with ten passes over the data."""
        steps = max(1, PASSES * self.items // self.batch)
        if minutes is not None:
            steps = int((60 * minutes - self.adapting) / (self.step_seconds + self.alone_seconds))
            if steps < 5:
                raise RunError(f"{minutes:g} minutes are too few here: a step takes {self.step_seconds:.2f} s")
        for name in ("train", "alone"):
            recipe = recipe.set(f"{name}.steps", steps) if name in recipe.stages else recipe
        return recipe

    def check(self) -> None:
        """RunError if the data and both models do not fit; they did while the first steps were timed."""

    def __str__(self) -> str:
        seconds = self.adapting + self.steps * (self.step_seconds + self.alone_seconds)
        share = f", {self.student / self.teacher:.0%} of the teacher" if self.teacher else ""
        return "\n".join(
            (
                f"teacher   {self.teacher / 1e6:,.2f} M parameters",
                f"student   {self.student / 1e6:,.2f} M parameters{share}",
                f"data      {self.items:,} items of {self.classes:,} classes",
                f"steps     {self.steps:,} of {self.batch}, about {self.step_seconds:.2f} s each; as many without a teacher",
                f"time      about {seconds / 60:,.1f} minutes, on {self.device}",
                f"memory    {size(self.memory)} so far, {size(self.free_memory)} free",
            )
        )


def _timed(stage: Train, recipe: Recipe, run: Run) -> float:
    """Seconds of one step, after a first one that does not count."""
    run.source, run.horizon = run.sources(stage.data)["train"], max(TIMED + 1, stage.steps)
    torch.manual_seed(run.seed)
    student = (stage.student or recipe.student).build(run).to(run.device).train()
    loop = Loop(stage.method, stage.method.setup(student, run).to(run.device), run, stage.optim, stage.optims)
    began = 0.0
    for step in range(TIMED + 1):
        began = time.perf_counter() if step == 1 else began
        run.step = step
        size = stage.batch or len(run.source)
        loop.step(micro_batches(run.source, step=step, size=size, accumulate=stage.accumulate, seed=run.seed))
    loop.close()
    return (time.perf_counter() - began) / TIMED


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
