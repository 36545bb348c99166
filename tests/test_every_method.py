"""What every method must pass, by being in its folder: the common battery over its recipe at `smoke`."""

from __future__ import annotations

import importlib
import math
import shutil
import signal
import time
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from confinement import WHY_NOT
from stillhouse.cli import door, launch
from stillhouse.cli.results import findings
from stillhouse.core.optim import Optim
from stillhouse.core.paper import catalogue
from stillhouse.core.recipe import Recipe, RecipeError
from stillhouse.core.run import Interrupted, Run
from stillhouse.core.stage import Train, execute
from stillhouse.reports import html
from stillhouse.signals.hidden import Hidden
from stillhouse.signals.label import Label
from stillhouse.signals.raw import Raw
from stillhouse.teachers.cached import Cached

torch.set_num_threads(1)
METHODS = sorted(catalogue())
SECONDS = 20.0  # of one thread
RUNS_PROGRAMS = {"program_distill"}
SGD = Optim(name="sgd", lr=0.1, momentum=0.0)


@cache
def module(name: str) -> Any:
    return importlib.import_module(catalogue()[name].module)


def recipe(name: str) -> Recipe:
    if name in RUNS_PROGRAMS and WHY_NOT:
        pytest.skip(WHY_NOT)
    return module(name).recipe("smoke")


@dataclass(frozen=True)
class Finished:
    run: Run
    seconds: float

    @property
    def folder(self) -> Path:
        return self.run.folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The finished smoke run of a method; made once."""
    done: dict[str, Finished] = {}

    def of(name: str) -> Finished:
        if name not in done:
            began = time.process_time()
            run = launch.launch(recipe(name), folder=tmp_path_factory.mktemp("smoke") / name, device="cpu")
            done[name] = Finished(run, time.process_time() - began)
        return done[name]

    return of


def before(stage: str, source: Finished, folder: Path, changed: Recipe) -> tuple[Run, Recipe]:
    """A copy of a finished run as it was before `stage`, and the recipe up to that stage."""
    names = list(changed.stages)
    names = names[: names.index(stage) + 1]
    for name in names[:-1]:
        shutil.copytree(source.folder / "artifacts" / name, folder / "artifacts" / name)
    stages = {name: changed.stages[name] for name in names}
    return Run(folder, seed=changed.seed, device=torch.device("cpu")), replace(changed, stages=stages)


def trained_stage(made: Recipe) -> str:
    names = [name for name, stage in made.stages.items() if isinstance(stage, Train)]
    if not names:
        pytest.skip("nothing is trained")
    return "train" if "train" in names else names[-1]


@pytest.mark.parametrize("name", METHODS)
def test_smoke_is_quick_and_finite(name: str, finished: Any):
    done = finished(name)
    assert done.seconds < SECONDS
    for line in done.run.read("metrics.jsonl"):
        assert all(math.isfinite(v) for v in line.values() if isinstance(v, float)), line


@pytest.mark.parametrize("name", METHODS)
def test_what_the_proof_measures_improves(name: str, finished: Any):
    """Against the student before training."""
    proof = module(name).proof()
    found = {(f.name, f.subject): f.value for f in findings(finished(name).folder) if f.versus is None}
    gain = found[proof.metric, proof.subject] - found[proof.metric, "start"]
    assert gain > 0 if proof.better == "higher" else gain < 0


@pytest.mark.parametrize("name", METHODS)
def test_accumulation_changes_nothing(name: str, finished: Any, tmp_path: Path):
    made = recipe(name)
    stage = trained_stage(made)
    if getattr(made.stages[stage].method, "compares_items", False):
        pytest.skip("it compares the items of a micro-batch with one another")
    made = made.set(f"{stage}.optim", SGD).set(f"{stage}.steps", 3)
    made = made.set(f"{stage}.optims", dict.fromkeys(made.stages[stage].optims, SGD))

    def weights(accumulate: int, lr: float) -> dict[str, torch.Tensor]:
        changed = made.set(f"{stage}.accumulate", accumulate).set(f"{stage}.optim.lr", lr)
        run, part = before(stage, finished(name), tmp_path / f"{accumulate}_{lr}", changed)
        execute(part, run)
        spec = part.stages[stage].student or part.student
        return spec.load(run.path(stage), run).state_dict()

    def apart(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
        return max(float((a[k] - b[k]).abs().max()) for k in a)

    whole, split, start = weights(1, SGD.lr), weights(made.stages[stage].batch, SGD.lr), weights(1, 0.0)
    assert apart(whole, split) < 1e-4 * apart(whole, start)


def offline(name: str) -> Recipe | None:
    """The smoke recipe as far as stored signals can serve it, three steps of one item at a time; None if they cannot."""
    made = recipe(name)
    if not any(isinstance(stage, Train) for stage in made.stages.values()):
        return None
    stage = trained_stage(made)
    method = made.stages[stage].method
    if hasattr(method, "on_policy"):
        made = made.set(f"{stage}.method.on_policy", 0.0)
        method = made.stages[stage].method
    if not method.needs or getattr(method, "asks_about_own", False) or "features" in method.needs:
        return None  # one kind of signal is stored at a time, and what a method looks at inside its teacher changes with it
    return made.set(f"{stage}.steps", 3).set(f"{stage}.accumulate", made.stages[stage].batch)


@pytest.mark.parametrize("name", [name for name in METHODS if offline(name) is not None])
def test_a_stored_teacher_teaches_to_the_same_bits(name: str, finished: Any, tmp_path: Path):
    made = offline(name)
    assert made is not None
    stage = trained_stage(made)
    text = hasattr(made.data, "length")
    label = Label(format=Hidden(dtype="float32") if text else Raw(kind="logits"), batch=1, teacher=made.teachers["teacher"])
    position = list(made.stages).index(stage)
    stages = list(made.stages.items())
    with_label = dict([*stages[:position], ("label", label), *stages[position:]])
    stored = replace(made, stages=with_label, teachers={"teacher": Cached(stage="label")})
    weights: list[dict[str, torch.Tensor]] = []
    for number, changed in enumerate((made, stored)):
        first = "label" if number else stage
        run, part = before(first, finished(name), tmp_path / str(number), changed)
        execute(replace(part, stages={n: s for n, s in changed.stages.items() if n in (*part.stages, stage)}), run)
        weights.append((changed.stages[stage].student or changed.student).load(run.path(stage), run).state_dict())
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


class StopAt:
    """A progress bar that asks to stop, as Ctrl-C would."""

    def __init__(self, stage: str, step: int):
        self.stage, self.step = stage, step

    def update(self, stage: str, done: int, total: int, logs: object, seconds: float) -> None:
        if stage == self.stage and done == self.step:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("name", METHODS)
def test_resumed_equals_straight(name: str, finished: Any, tmp_path: Path):
    made = recipe(name)
    stage = trained_stage(made)
    run, part = before(stage, finished(name), tmp_path / "run", made)
    run.progress = StopAt(stage, part.stages[stage].steps // 2)
    with pytest.raises(Interrupted):
        execute(part, run)
    run, part = before(stage, finished(name), tmp_path / "again", made)
    shutil.copytree(tmp_path / "run" / "state", tmp_path / "again" / "state", dirs_exist_ok=True)
    shutil.copy(tmp_path / "run" / "metrics.jsonl", tmp_path / "again")
    execute(part, run)
    straight = finished(name).run
    assert run.done(stage)["content"] == straight.done(stage)["content"]  # type: ignore[index]
    assert run.read("metrics.jsonl") == [m for m in straight.read("metrics.jsonl") if m["stage"] == stage]


@pytest.mark.parametrize("scale", ["smoke", "small", "paper"])
@pytest.mark.parametrize("name", METHODS)
def test_recipes_survive_yaml(name: str, scale: Any):
    made = module(name).recipe(scale)
    assert door.build(door.read_yaml(door.dump(made))) == made


@pytest.mark.parametrize("name", METHODS)
def test_unknown_keys_are_refused(name: str):
    plain = recipe(name).plain()
    plain["stages"][trained_stage(recipe(name))]["method"]["tempratur"] = 1
    with pytest.raises(RecipeError, match="no 'tempratur' in .*method"):
        door.build(plain)


@pytest.mark.parametrize("name", METHODS)
def test_the_proof_can_be_run(name: str):
    """Its arms can be read back, are tuned alike, and begin with the plain baseline."""
    from stillhouse.cli.prove import check, judged_on

    proof = module(name).proof()
    check(proof)
    assert len(proof.seeds) >= 3
    for arm, made in proof.arms.items():
        assert door.build(door.read_yaml(door.dump(made))) == made
        assert judged_on(made, "valid", arm) != made


@pytest.mark.parametrize("name", METHODS)
def test_the_report_renders(name: str, finished: Any):
    page = html.write(finished(name).folder)
    assert catalogue()[name].paper.title in page.read_text() or name in page.read_text()
