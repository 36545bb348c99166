"""Start a run, or go on with one: the folder, what it says about itself, the stages, the report."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.files import write_atomically
from ..core.paper import catalogue
from ..core.recipe import Recipe, RecipeError, Scale
from . import door
from .progress import Progress

if TYPE_CHECKING:
    from ..core.run import Run


def run(
    what: str | Path | Recipe,
    *,
    scale: Scale = "small",
    set: Mapping[str, Any] | None = None,  # noqa: A002 - the word of `--set`
    seed: int | None = None,
    runs: str | Path = "runs",
    device: str | None = None,
    progress: Progress | None = None,
) -> Run:
    """Run a recipe, the recipe of a method, a recipe file, or what is left of a run folder; returns the finished run.

    `stillhouse.run("taid", scale="smoke", set={"train.method.beta": 0.9})`
    """
    if not isinstance(what, Recipe) and is_run(what):
        if set or seed is not None:
            raise RecipeError(f"{what} is a run that has begun: its recipe is fixed; start a new run to change it")
        return launch(door.load(Path(what) / "recipe.yaml"), folder=Path(what), device=device, progress=progress)
    recipe = what if isinstance(what, Recipe) else find(str(what), scale)
    for path, value in (set or {}).items():
        recipe = recipe.set(path, value)
    if seed is not None:
        recipe = recipe.set("seed", seed)
    return launch(recipe, runs=runs, device=device, progress=progress)


def find(what: str, scale: Scale = "small", *, allow: Collection[str] = ()) -> Recipe:
    """The recipe of a method's id or of a YAML file."""
    if what.endswith((".yaml", ".yml")):
        if not Path(what).is_file():
            raise RecipeError(f"there is no recipe file {what}; `stillhouse show ID --yaml > {what}` writes one")
        return door.load(what, allow=allow)
    if "/" in what or (Path(what).is_dir() and what not in catalogue()):
        raise RecipeError(f"{what} is neither a method, a .yaml file nor a run folder (one has a recipe.yaml)")
    return door.of_method(what, scale)


def with_signals(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with stored signals in place of its only teacher; a stage that trains that teacher still runs."""
    from ..signals.store import SignalError, is_store
    from ..teachers.cached import Cached

    if not is_store(folder):
        raise SignalError(f"{folder} holds no signals; `stillhouse label` makes them")
    if len(recipe.teachers) != 1:
        raise RecipeError(f"recipe {recipe.id!r} has {len(recipe.teachers)} teachers; signals can stand in for one")
    (name,) = recipe.teachers
    return recipe.set("teachers", {name: Cached(path=str(folder.resolve()))})


def with_label(recipe: Recipe, signal: str) -> Recipe:
    """The recipe with its only teacher asked once: a stage `label` before the first that learns from it."""
    from ..core.stage import Train
    from ..signals import formats
    from ..signals.label import Label
    from ..signals.reader import check_stored
    from ..teachers.cached import Cached

    if len(recipe.teachers) != 1:
        raise RecipeError(f"recipe {recipe.id!r} has {len(recipe.teachers)} teachers; --signal keeps one teacher's answers")
    ((name, live),) = recipe.teachers.items()
    label = Label(format=formats.parse(signal), teacher=live)
    learner = next((s for s in recipe.stages.values() if isinstance(s, Train) and s.method.needs), None)
    if learner is not None:
        check_stored(learner.method, label.format.kinds)
    stages: dict[str, Any] = {}
    for key, stage in recipe.stages.items():
        if isinstance(stage, Train) and stage.method.needs and "label" not in stages:
            stages["label"] = label
        stages[key] = stage
    if "label" not in stages or "label" in recipe.stages:
        raise RecipeError(f"no stage of recipe {recipe.id!r} asks a teacher, or one is called `label` already")
    return recipe.set("teachers", {name: Cached(stage="label", live=live)}).set("stages", stages)


def is_run(what: str | Path) -> bool:
    """Whether `what` is the folder of a run."""
    return (Path(what) / "recipe.yaml").is_file()


def new_folder(runs: str | Path, name: str, seed: int) -> Path:
    """A new, empty `runs/DATE_NAME_sSEED`, with `-2`, `-3` and so on behind it where that one is taken."""
    from ..core.run import RunError

    stem = f"{date.today().isoformat()}_{name}_s{seed}"
    number = 1
    while True:
        folder = Path(runs) / (stem if number == 1 else f"{stem}-{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError as error:
            if not folder.is_dir():
                raise RunError(f"{runs} is a file, not a folder for runs; choose another with --runs") from error
            number += 1
        except OSError as error:
            raise RunError(f"cannot write to {runs}: {error.strerror}; choose another folder with --runs") from error


def launch(
    recipe: Recipe,
    *,
    runs: str | Path = "runs",
    folder: Path | None = None,
    device: str | None = None,
    progress: Progress | None = None,
) -> Run:
    """Run the stages of `recipe` that are not done yet in `folder`, or all of them in a new folder below `runs`."""
    from ..core.run import Interrupted, Run, best_device
    from ..core.stage import execute

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # two processes would write the same files
        raise RecipeError("started as one of several processes (torchrun): the command line runs in one; start it alone")
    door.dump(recipe)  # what cannot be written down, or has no device, must not leave a folder behind
    place = best_device() if device is None else _device(device)
    folder = folder or new_folder(runs, recipe.id, recipe.seed)
    run = Run(folder, seed=recipe.seed, device=place, progress=progress)
    if not is_run(folder):
        describe(folder, recipe)
    try:
        if progress is not None:
            progress.begin(f"{recipe.id}, seed {recipe.seed}, on {place}: {', '.join(recipe.stages)}", folder)
        execute(recipe, run)
    except KeyboardInterrupt as error:  # outside a training loop, which stops by itself between two steps
        raise Interrupted(f"stopped in stage {run.stage!r}; go on with: stillhouse run {folder}") from error
    finally:
        if progress is not None:
            progress.close()
    return run


def describe(folder: Path, recipe: Recipe) -> None:
    """Write what is run and where: `recipe.yaml` and `environment.json`."""
    from .machine import environment

    write_atomically(folder / "environment.json", json.dumps(environment(), indent=1) + "\n")
    write_atomically(folder / "recipe.yaml", door.dump(recipe))


def unit_of(recipe: Recipe) -> str:
    """What an update of this recipe counts: tokens where the data are cut into lengths, else items."""
    return "tokens" if hasattr(recipe.data, "length") else "items"


def _device(name: str) -> Any:
    import torch

    from ..core.run import RunError

    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise RunError(f"this machine has no device {name!r}; leave --device out, or see `stillhouse doctor`") from error
    return device
