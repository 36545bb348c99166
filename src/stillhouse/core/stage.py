"""Pieces of a run. A stage is a frozen dataclass that reads and writes named artifacts; its artifact has its name."""

# pyright: reportUnknownMemberType=false
# (torch leaves arguments of some methods untyped)
from __future__ import annotations

import gc
import math
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import torch
from torch import nn

from .engine import Loop, Source, fit
from .method import Method
from .optim import Optim
from .report import Figure, Finding
from .run import Interrupted, Run, RunError
from .teacher import Teacher, check_gives

if TYPE_CHECKING:
    from .recipe import Recipe


LAST = "last"  # of a stage with a judge: the folder of the student of the last step


class Stage(Protocol):
    """One piece of a run."""

    def __call__(self, run: Run) -> None:
        """Do the work; the engine skips a stage whose artifact is done."""
        ...


class ModelSpec(Protocol):
    """Where a module comes from, and how it is kept: a frozen dataclass in a recipe."""

    def build(self, run: Run) -> nn.Module:
        """The module as training finds it."""
        ...

    def save(self, module: nn.Module, folder: Path, run: Run) -> None:
        """Write the trained module to an empty folder."""
        ...

    def load(self, folder: Path, run: Run) -> nn.Module:
        """The inverse of `save`."""
        ...


class Judge(Protocol):
    """How good a student is on the validation split: a frozen dataclass, larger is better."""

    def __call__(self, student: nn.Module, run: Run) -> float:
        """One number about the student, which is in evaluation mode and must be left as it is."""
        ...


class DataSpec(Protocol):
    """Where examples come from: a frozen dataclass in a recipe."""

    def load(self, run: Run) -> Mapping[str, Source]:
        """The splits: `train`, `valid` (to choose), `test` (looked at once, at the end)."""
        ...


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train the recipe's student (or this stage's own) with one method; the artifact is the trained module."""

    method: Method
    steps: int  # optimizer steps
    batch: int  # items a step, over all micro-batches and ranks; 0: all there are
    optim: Optim = Optim()
    optims: Mapping[str, Optim] = field(default_factory=dict[str, Optim])  # groups that move differently
    accumulate: int = 1  # micro-batches a step
    precision: Literal["float32", "bfloat16"] = "float32"  # bfloat16: float32 masters behind bfloat16 parameters
    checkpointing: bool = False  # gradient checkpointing: less memory, about a third more time
    compile: bool = False  # torch.compile of the state's children; the method itself is never compiled
    student: Any = None  # ModelSpec; None: the recipe's
    data: Any = None  # DataSpec; None: the recipe's
    label: str = ""  # what the report calls this student; empty: from the stage's name
    seconds_of: str | None = None  # take as many steps as stage `speed_of` would take in the seconds of this stage
    speed_of: str | None = None
    judge: Judge | None = None  # the artifact is the student that it likes best of those at every `judge_every` steps, and
    judge_every: int = 100  # the one of the last step is kept beside it; an audit calls that one `STAGE/last`
    checkpoint_minutes: float = 5.0

    def __call__(self, run: Run) -> None:
        """Set up, resume if a checkpoint is there, fit, save."""
        spec = self.student or run.recipe.student
        source = run.sources(self.data)["train"]
        if len(source) == 0:
            raise RunError("the training split is empty; give more data or a smaller share to hold out")
        run.horizon, run.step, run.source = self._planned(run), 0, source
        if not getattr(self.method, "takes_mixed", False) and getattr(source, "mixes", False):
            raise RunError(
                f"the data mix images (augment.mixup, augment.cutmix), and {type(self.method).__name__} learns one label of "
                "each: set both to 0"
            )
        size = self.batch or len(source)
        for name, teacher in run.teachers.items() if self.method.needs else ():
            check_gives(name, teacher, self.method.needs, takes_topk=getattr(self.method, "takes_topk", False))
            if hasattr(teacher, "check"):  # stored signals know what they can serve
                teacher.check(self.method, source, -(-run.horizon * size // len(source)))  # type: ignore[attr-defined]
        torch.manual_seed(run.seed)
        student = spec.build(run).to(run.device).train()
        if self.checkpointing:
            _checkpoint_gradients(student)
        state = self.method.setup(student, run).to(run.device)
        self._tell(run, size)
        if self.compile:
            for group in state.groups().values():
                for child in group.values() if isinstance(group, nn.ModuleDict) else (group,):
                    child.compile()
        loop = Loop(self.method, state, run, self.optim, self.optims, bfloat16=self.precision == "bfloat16")
        start, seconds, best = 0, 0.0, Best()
        saved = run.restore()
        if saved is not None:
            start, value = saved
            try:
                loop.load_state_dict(value["loop"])
            except (RuntimeError, KeyError, ValueError) as error:
                reason = str(error).splitlines()[0]
                raise RunError(
                    f"the checkpoint of stage {run.stage!r} does not fit this recipe ({reason}); delete "
                    f"{run.folder / 'state' / run.stage} to start the stage again"
                ) from error
            seconds, best = value["seconds"], Best(**value.get("best", {}))
            run.event("resumed", step=start)
        run.forget_metrics(run.stage, start)
        facts: dict[str, Any] = {"kind": "model", "steps": run.horizon, "items": run.horizon * size}
        with stop_requests() as stop:
            seconds = self._fit(loop, source, run, start, seconds, stop, best)
            loop.close()
            trained = state.get_submodule("student").eval()
            last = best.put_into(trained)
            if last:
                facts |= {"best_step": best.step, "best_score": best.score}
            with run.artifact(run.stage, seconds=seconds, **facts, **self._cost(source, run)) as folder:
                spec.save(trained, folder, run)
                if last:
                    trained.load_state_dict(last)
                    (folder / LAST).mkdir()
                    spec.save(trained, folder / LAST, run)
            run.drop_checkpoints()
        if stop.is_set():  # asked during the last step or while saving
            raise Interrupted(f"stopped after stage {run.stage!r}; go on with: stillhouse run {run.folder}")

    def _tell(self, run: Run, size: int) -> None:
        """Write down the objective with its live weights, and what a batch in parts means for it."""
        told = getattr(self.method, "equation", None)
        if told:
            run.event("objective", text=told)
            if run.progress is not None and hasattr(run.progress, "say"):
                run.progress.say(f"{run.stage}: minimises {told}")
        if self.accumulate > 1 and getattr(self.method, "compares_items", False):
            note = f"the method compares the items of a batch, here the {size // self.accumulate} of each of its parts"
            run.event("note", text=note)

    def _cost(self, source: Any, run: Run) -> dict[str, int]:
        """Peak bytes so far, and tokens read if the data are counted in tokens."""
        tokens = getattr(source, "tokens", 0) * run.horizon * (self.batch or len(source)) / len(source)
        asked = round(tokens) if self.method.needs else 0
        return {"memory": peak_memory(run.device), "tokens": round(tokens), "teacher_tokens": asked}

    def _planned(self, run: Run) -> int:
        if self.seconds_of is None or self.speed_of is None:
            return self.steps
        budget, twin = run.done(self.seconds_of), run.done(self.speed_of)
        if budget is None or twin is None:
            raise RunError(f"stage {run.stage!r} needs {self.seconds_of!r} and {self.speed_of!r} to be done before it")
        return max(1, round(twin["steps"] * budget["seconds"] / twin["seconds"]))

    def _fit(
        self, loop: Loop, source: Source, run: Run, start: int, seconds: float, stop: threading.Event, best: Best
    ) -> float:
        """Take the steps from `start` on; the seconds of training so far, those before a resume included."""
        clock = _Clock(seconds)
        last_save = time.monotonic()

        def save(step: int) -> None:
            found = {"best": best.plain()} if best.weights else {}
            run.checkpoint(step, {"loop": loop.state_dict(), "seconds": clock.seconds, **found})

        def on_step(step: int, logs: dict[str, float]) -> None:
            nonlocal last_save
            clock.pause()
            if self.judge is not None and ((step + 1) % self.judge_every == 0 or step + 1 == run.horizon):
                logs = {**logs, "judge/score": best.see(step + 1, self.judge, loop.state.get_submodule("student"), run)}
            run.log(step, logs)
            if run.progress is not None:
                run.progress.update(run.stage, step + 1, run.horizon, logs, clock.seconds)
            due = time.monotonic() - last_save > 60 * self.checkpoint_minutes
            if (due or stop.is_set()) and step + 1 < run.horizon:
                save(step + 1)
                last_save = time.monotonic()
            if stop.is_set() and step + 1 < run.horizon:
                done = f"{step + 1} of {run.horizon}"
                raise Interrupted(f"stopped after step {done}; go on with: stillhouse run {run.folder}")
            clock.start()

        clock.start()
        try:
            size, parts = self.batch or len(source), self.accumulate
            fit(loop, source, steps=run.horizon, size=size, accumulate=parts, start=start, on_step=on_step)
        except Interrupted:
            raise
        except Exception:
            if run.step > start and loop.between:  # the state is that of before the failed step: nothing is lost
                clock.pause()
                save(run.step)
            raise
        clock.pause()
        return clock.seconds


@dataclass
class Best:
    """The student that a judge liked best so far; of equal ones the first."""

    score: float = -math.inf
    step: int = 0  # after how many optimizer steps
    weights: dict[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor])

    @torch.no_grad()
    def see(self, step: int, judge: Judge, student: nn.Module, run: Run) -> float:
        """What the judge says of the student, who is remembered if there was none better; an error if that is nan."""
        was = student.training
        try:
            score = float(judge(student.eval(), run))
        finally:
            student.train(was)
        if math.isnan(score):
            raise RunError(f"the judge of stage {run.stage!r} gave nan after step {step}")
        if score > self.score or not self.weights:
            self.score, self.step, self.weights = score, step, _copied(student)
        return score

    def put_into(self, student: nn.Module) -> dict[str, torch.Tensor]:
        """Make the student the best one; what it was before, or nothing if none was judged."""
        if not self.weights:
            return {}
        last = _copied(student)
        student.load_state_dict(self.weights)
        return last

    def plain(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"score": self.score, "step": self.step, "weights": self.weights}


def _copied(student: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().to("cpu", copy=True) for name, value in student.state_dict().items()}


class Check(Protocol):
    """One question about models: a frozen dataclass in `audits/`."""

    def __call__(self, run: Run, subjects: Subjects) -> Iterable[Finding | Figure]:
        """The findings, one per subject and quantity, and what it drew."""
        ...


@dataclass
class Subjects:
    """The models an audit looks at, one at a time: `start`, the trained stages, those of their last step where a judge chose
    another (`STAGE/last`), and teachers that no stage trained."""

    run: Run
    names: tuple[str, ...]

    def load(self, name: str) -> nn.Module:
        """The student as it was before training (`start`) or as stage `name` left it."""
        run = self.run
        if name == "start":
            torch.manual_seed(run.seed)
            module = run.recipe.student.build(run)
        elif name not in run.recipe.stages and hasattr(run.teachers.get(name), "module"):
            return run.teachers[name].module  # type: ignore[attr-defined]
        else:
            key, _, of = name.partition("/")
            stage = run.recipe.stages.get(key)
            if not hasattr(stage, "student"):  # training stages leave a model of that spec, and so do merges
                raise RunError(f"no training stage {key!r} to audit; there are {', '.join(run.recipe.stages)}")
            folder = run.path(key) / of
            if of and not (of == LAST and folder.is_dir()):
                raise RunError(f"stage {key!r} kept no student {of!r}; one with a judge keeps its {LAST!r}")
            module = (getattr(stage, "student", None) or run.recipe.student).load(folder, run)
        gc.collect()
        return module.to(run.device).eval()


@dataclass(frozen=True, kw_only=True)
class Audit:
    """Ask the checks about the subjects; the artifact is the list of findings."""

    subjects: tuple[str, ...]
    checks: tuple[Check, ...]
    kind: ClassVar[str] = "findings"

    def __call__(self, run: Run) -> None:
        """Run every check and keep what it found."""
        subjects = Subjects(run, self.subjects)
        findings = [finding for check in self.checks for finding in check(run, subjects)]
        run.save_json(run.stage, [f.plain() for f in findings], kind=self.kind)


class LazyTeachers(Mapping[str, Teacher]):
    """The recipe's teachers, each built when it is first asked for: a stage that needs none loads none."""

    def __init__(self, specs: Mapping[str, Any], run: Run):
        self.specs, self.run = specs, run
        self.built: dict[str, Teacher] = {}

    def __getitem__(self, name: str) -> Teacher:
        if name not in self.built:
            self.built[name] = self.specs[name].build(self.run)
        return self.built[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)


def execute(recipe: Recipe, run: Run) -> None:
    """Run the stages that are not done yet, in order."""
    _check_order(recipe)
    run.recipe = recipe
    run.teachers = LazyTeachers(recipe.teachers, run)
    for name, stage in recipe.stages.items():
        if run.done(name):
            continue
        run.stage, run.step = name, 0
        run.event("stage", state="started")
        began = time.monotonic()
        stage(run)
        run.event("stage", state="done", seconds=time.monotonic() - began)


def _check_order(recipe: Recipe) -> None:
    """An audit that stands before what it judges would only be noticed after hours of training."""
    before: set[str] = set()
    for name, stage in recipe.stages.items():
        late = [s for s in getattr(stage, "subjects", ()) if s in recipe.stages and s not in before]
        if late:
            raise RunError(
                f"stage {name!r} judges {late[0]!r}, which comes after it: move {name!r} to the end of the stages"
            )
        before.add(name)


@contextmanager
def stop_requests():
    """An event that the first Ctrl-C (or SIGTERM) sets; a second one interrupts at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: Any) -> None:
        stop.set()
        signal.signal(signal.SIGINT, before[signal.SIGINT])

    for number in before:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def peak_memory(device: torch.device) -> int:
    """The most bytes that the process (or, on a GPU, its tensors) ever held."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class _Clock:
    """Seconds spent in training steps alone: not in checkpoints, not in progress bars."""

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.began: float | None = None

    def start(self) -> None:
        self.began = time.monotonic()

    def pause(self) -> None:
        if self.began is not None:
            self.seconds += time.monotonic() - self.began
            self.began = None


def _checkpoint_gradients(student: nn.Module) -> None:
    switch = next((m for m in student.modules() if hasattr(m, "gradient_checkpointing_enable")), None)
    if switch is None:
        raise RunError("checkpointing=true, but this student has no gradient checkpointing; set it to false")
    switch.gradient_checkpointing_enable()  # type: ignore[operator]
