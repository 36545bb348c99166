"""Run a claim: arms tuned alike on the validation split, then paired over seeds on the test split, then the verdict.

The runs are folders below `runs/proofs/ID/`, named by arm, seed and a hash of the recipe: a proof that was stopped
goes on where it was, and a changed recipe starts anew.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..core.code import code_of
from ..core.files import read_lines, write_atomically
from ..core.paper import find
from ..core.proof import Effect, Proof, Verdict, interval, verdict
from ..core.recipe import Recipe, RecipeError, nearest, to_plain
from . import door, launch
from .progress import clock, progress
from .results import findings
from .show import COLOURS

TOLD = ("note", "warning")  # events that a reader of the proof has to know
LOOKS = 8  # how often a proof's judge looks at a student while it trains
TUNING_SEED = 10_007  # no proof uses it for its values

Settings = Mapping[str, Any]


class ProofError(RuntimeError):
    """The proof cannot be carried out as its file states it; the message says what to change."""


@dataclass(frozen=True)
class Trial:
    """One finished run of one arm."""

    value: float
    seconds: float
    folder: Path
    best: float | None = None  # the same of the student that the proof's judge liked best while it trained


def prove(name: str, *, runs: Path, out: Path, console: Console, device: str | None = None) -> dict[str, Any]:
    """Carry out the proof of one method, print it, and write `out/ID.json`; returns what was written."""
    module: Any = import_module("stillhouse.cli.demo" if name == "demo" else find(name).module)
    proof: Proof = module.proof()
    check(proof)
    code = code_of(Path(module.__file__))  # before the runs: they may take hours, and somebody may be at work
    from ..core.run import Interrupted
    from .machine import environment

    console.print(Text(f"{name}: {proof.claim}", "bold"))
    runner = Runner(proof, runs / "proofs" / name, console, device)
    try:
        chosen, trials = runner.tune()
        values = runner.values(chosen)
    except Interrupted as error:
        raise Interrupted(f"stopped; what is done is kept, go on with: stillhouse prove {name}") from error
    effects = {arm: _effect(values, proof.ours, arm) for arm in proof.beats}
    best = {arm: found for arm, by_seed in values.items() if (found := _best(by_seed))}
    best_effects = {arm: _effect(best, proof.ours, arm) for arm in proof.beats if {arm, proof.ours} <= best.keys()}
    outcome = verdict(list(effects.values()), proof.better)
    facts = environment()
    result = {
        "id": name, "claim": proof.claim, "verdict": outcome,
        "metric": proof.metric, "better": proof.better, "split": "test",
        "ours": proof.ours, "beats": list(proof.beats), "seeds": list(proof.seeds),
        "effects": {arm: _plain(effect) for arm, effect in effects.items()},
        "best_step_effects": {arm: _plain(effect) for arm, effect in best_effects.items()},
        "arms": {
            arm: {
                "values": _values(by_seed),
                "subject": proof.subjects.get(arm, proof.subject),
                "mean": sum(trial.value for trial in by_seed.values()) / len(by_seed),
                "best_step": _values(best.get(arm, {})),
                "settings": dict(chosen[arm]),
                "told": runner.told(by_seed.values()),
                "seconds": sum(trial.seconds for trial in by_seed.values()),
            }
            for arm, by_seed in values.items()
        },
        "tuning": {"seed": TUNING_SEED, "seeds": proof.tuning_seeds, "split": "valid", "trials": trials} if trials else None,
        "note": proof.note, "code": code,
        "date": facts["date"], "command": facts["command"], "seconds": runner.seconds, "environment": facts,
    }  # fmt: skip
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / f"{name}.json", json.dumps(_finite(result), indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise ProofError(f"cannot write to {out}: {error.strerror}; choose another folder with --out") from error
    for part in summary(proof, values, effects, best_effects, outcome, runner.seconds):
        console.print(part)
    return result


def check(proof: Proof) -> None:
    """Refuse a proof whose words do not fit together before anything is run."""
    from ..core.stage import Audit

    for arm in (proof.ours, *proof.beats, *proof.untuned):
        if arm not in proof.arms:
            raise ProofError(f"the proof has no arm {arm!r}{nearest(arm, proof.arms)}")
    if not proof.beats or proof.ours in proof.beats:
        raise ProofError("`beats` must name at least one arm besides `ours`")
    tuning = range(TUNING_SEED, TUNING_SEED + max(1, proof.tuning_seeds))
    if len(set(proof.seeds)) != len(proof.seeds) or not proof.seeds or set(tuning) & set(proof.seeds):
        raise ProofError(f"the proof needs different seeds, none of them {TUNING_SEED}; it has {list(proof.seeds)}")
    for arm, recipe in proof.arms.items():
        if not any(isinstance(stage, Audit) for stage in recipe.stages.values()):
            raise ProofError(f"arm {arm!r} has no audit, so there is nothing to compare")
        for path, values in ({} if arm in proof.untuned else proof.tune).items():
            try:
                recipe.set(path, values[0])
            except RecipeError as error:
                raise ProofError(f"every arm is tuned alike, but arm {arm!r} has {error}") from error


@dataclass
class Runner:
    """Makes and reads the runs of one proof."""

    proof: Proof
    folder: Path
    console: Console
    device: str | None
    seconds: float = 0.0
    counted: set[str] = field(default_factory=set[str])  # runs and borrowed stages that are in `seconds`
    folders: dict[str, Path] = field(default_factory=dict[str, Path])  # recipe -> its run

    def tune(self) -> tuple[dict[str, Settings], dict[str, list[dict[str, Any]]]]:
        """(the best settings of every arm, all that was tried); nothing is run if there is nothing to choose."""
        grid = list(_grid(self.proof.tune))
        chosen: dict[str, Settings] = {arm: {} if arm in self.proof.untuned else grid[0] for arm in self.proof.arms}
        trials: dict[str, list[dict[str, Any]]] = {}
        if len(grid) < 2:
            return chosen, trials
        sign = 1.0 if self.proof.better == "higher" else -1.0
        for arm, recipe in self.proof.arms.items():
            if arm in self.proof.untuned:
                continue
            tried = [(self.tuning_value(arm, recipe, settings), settings) for settings in grid]
            # A setting that diverged is the worst there is, whatever `nan` compares like.
            chosen[arm] = max(tried, key=lambda t: sign * t[0] if math.isfinite(t[0]) else -math.inf)[1]
            trials[arm] = [{"settings": dict(settings), "value": value} for value, settings in tried]
        return chosen, trials

    def tuning_value(self, arm: str, recipe: Recipe, settings: Settings) -> float:
        """The mean of one setting over the tuning seeds, on the validation split; nan if training broke down on one."""
        seeds = range(TUNING_SEED, TUNING_SEED + self.proof.tuning_seeds)
        return sum(self.tuning_trial(arm, recipe, settings, seed) for seed in seeds) / len(seeds)

    def tuning_trial(self, arm: str, recipe: Recipe, settings: Settings, seed: int = TUNING_SEED) -> float:
        """The number of one setting and seed on the validation split; nan if training broke down."""
        from ..core.engine import EngineError

        try:
            return self.trial(arm, recipe, settings, seed, "valid").value
        except EngineError as error:
            self.console.print(Text(f"  {arm}, tuning, {dict(settings)}: {error}"))
            return math.nan

    def values(self, chosen: Mapping[str, Settings]) -> dict[str, dict[int, Trial]]:
        """The judged number by arm and seed. All arms of one seed run one after the other: they share the weather."""
        found: dict[str, dict[int, Trial]] = {arm: {} for arm in self.proof.arms}
        for seed in self.proof.seeds:
            for arm, recipe in self.proof.arms.items():
                found[arm][seed] = self.trial(arm, recipe, chosen[arm], seed, "test")
        return found

    def trial(self, arm: str, recipe: Recipe, settings: Settings, seed: int, split: str) -> Trial:
        """Run one arm, or go on with it, or read it if it is done."""
        from ..core.stage import LAST

        for path, value in settings.items():
            recipe = recipe.set(path, value)
        recipe = judged_on(recipe.set("seed", seed), split, arm)
        subject = self.proof.subjects.get(arm, self.proof.subject)
        apart = None if split == "valid" or self.proof.judge is None else keep_both(recipe, subject, self.proof.judge)
        recipe = apart or recipe
        text = door.dump(recipe)
        folder = self.folder / f"{arm}_s{seed}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        folder = self.folders.setdefault(text, folder)  # arms that share a recipe share the run
        self.borrow(recipe, folder)
        run = launch.launch(
            recipe, folder=folder, device=self.device, progress=progress(launch.unit_of(recipe), announce=False)
        )
        self.lend(recipe, folder)
        seconds = self.spent(recipe, run)
        if apart is None:
            trial = Trial(self.read(folder, arm, subject, split), seconds, folder)
        else:
            last = self.read(folder, arm, f"{subject}/{LAST}", split)
            trial = Trial(last, seconds, folder, self.read(folder, arm, subject, split))
        told = ", ".join(f"{path}={value}" for path, value in settings.items())
        line = f"{arm}, {'tuning' if split == 'valid' else f'seed {seed}'}{f', {told}' if told else ''}"
        self.console.print(Text(f"  {line}: {self.proof.metric} {trial.value:.4g} ({clock(seconds)})"))
        return trial

    def spent(self, recipe: Recipe, run: Any) -> float:
        """Seconds of one run, stages that it borrowed included; in the proof's own sum those count once."""
        events = [e for e in run.read("events.jsonl") if e["event"] == "stage" and e["state"] == "done"]
        own = sum(e["seconds"] for e in events)
        borrowed = {
            key: run.done(name).get("seconds", 0.0)
            for name, key in _beginnings(recipe)
            if name not in {e["stage"] for e in events}
        }
        paid = {run.folder.name: own, **borrowed}
        self.seconds += sum(seconds for key, seconds in paid.items() if key not in self.counted)
        self.counted |= {run.folder.name, *(key for _, key in _beginnings(recipe))}
        return own + sum(borrowed.values())

    def told(self, trials: Iterable[Trial]) -> list[str]:
        """What the runs of an arm said about themselves: which data they fell back to, what was left out."""
        lines = (e["text"] for t in trials for e in read_lines(t.folder / "events.jsonl") if e["event"] in TOLD)
        return sorted(set(lines))

    def borrow(self, recipe: Recipe, folder: Path) -> None:
        """Take over the artifacts of the leading stages that an earlier run of this proof has in common with this one."""
        if folder.exists():
            return
        for name, key in _beginnings(recipe):
            shared = self.folder.parent / ".shared" / key
            if not shared.exists():
                return
            shutil.copytree(shared, folder / "artifacts" / name, copy_function=os.link)

    def lend(self, recipe: Recipe, folder: Path) -> None:
        """Keep the artifacts of the training stages for runs that begin alike."""
        for name, key in _beginnings(recipe):
            shared = self.folder.parent / ".shared" / key
            if not shared.exists():
                shutil.copytree(folder / "artifacts" / name, shared, copy_function=os.link)

    def read(self, folder: Path, arm: str, subject: str, split: str) -> float:
        """The judged number of a finished run's subject."""
        found = [f for f in findings(folder) if f.versus is None and f.split in (split, "")]
        for f in found:
            if (f.name, f.subject) == (self.proof.metric, subject):
                return f.value
        there = ", ".join(sorted({f"{f.name} of {f.subject}" for f in found})) or "nothing"
        raise ProofError(f"arm {arm!r} found no {self.proof.metric} of {subject} on the {split} split; it found {there}")


def _beginnings(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """(stage, key) of the recipe's stages before its audit: equal keys mean that all up to here is equal, the seed too."""
    from ..core.stage import Audit

    shared = {f: to_plain(getattr(recipe, f)) for f in ("student", "data", "teachers", "seed")}
    done: list[Any] = [shared]
    for name, stage in recipe.stages.items():
        if isinstance(stage, Audit):
            return
        done.append([name, to_plain(stage)])
        yield name, hashlib.sha256(json.dumps(done).encode()).hexdigest()[:16]


def judged_on(recipe: Recipe, split: str, arm: str = "ours") -> Recipe:
    """The recipe with every check of its audits looking at `split`, so that tuning never sees the test split."""
    from ..core.stage import Audit

    stages = dict(recipe.stages)
    changed = False
    for name, stage in stages.items():
        if isinstance(stage, Audit):
            checks = tuple(replace(c, split=split) if hasattr(c, "split") else c for c in stage.checks)  # type: ignore[type-var]
            changed |= any(hasattr(c, "split") for c in checks)
            stages[name] = replace(stage, checks=checks)
    if not changed:
        raise ProofError(f"no check of arm {arm!r} has a field `split`, so it cannot be tuned without the test split")
    return replace(recipe, stages=stages)


def keep_both(recipe: Recipe, subject: str, judge: Any) -> Recipe | None:
    """The recipe whose stage keeps the student that the judge likes best beside that of the last step, and whose audits
    look at both; None where no plain training makes the subject, or that has a judge of its own."""
    from ..core.stage import LAST, Audit, Train

    stage = recipe.stages.get(subject)
    if not isinstance(stage, Train) or stage.judge is not None:
        return None
    stages: dict[str, Any] = {**recipe.stages, subject: replace(stage, judge=judge, judge_every=-(-stage.steps // LOOKS))}
    for name, audit in stages.items():
        if isinstance(audit, Audit) and subject in audit.subjects:
            twice = (both for s in audit.subjects for both in ((f"{s}/{LAST}", s) if s == subject else (s,)))
            stages[name] = replace(audit, subjects=tuple(twice))
    return replace(recipe, stages=stages)


def summary(
    proof: Proof,
    values: Mapping[str, Mapping[int, Trial]],
    effects: Mapping[str, Effect],
    best: Mapping[str, Effect],
    outcome: Verdict,
    seconds: float,
) -> Iterator[Table | Text]:
    """The proof for a terminal: a row for every arm, the same for the students of the best steps, and the verdict."""
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("arm", f"{proof.metric} ({proof.better} is better)", "ours minus this", "95 % interval"):
        grid.add_column(column, no_wrap=True)
    for arm, by_seed in values.items():
        numbers = "  ".join(f"{trial.value:.4g}" for trial in by_seed.values())
        effect = effects.get(arm)
        bounds = "" if effect is None else f"[{effect.low:+.4g}, {effect.high:+.4g}] over {effect.n} seeds"
        grid.add_row(Text(arm), Text(numbers), Text(f"{effect.mean:+.4g}" if effect else ""), Text(bounds))
    yield grid
    for arm, effect in best.items():
        told = f"{effect.mean:+.4g} [{effect.low:+.4g}, {effect.high:+.4g}]"
        yield Text(f"the step that the validation split likes best, ours minus {arm}: {told}")
    yield Text.assemble("verdict: ", (outcome, f"bold {COLOURS[outcome]}"), f" ({clock(seconds)} of computing)")


def _grid(tune: Mapping[str, tuple[Any, ...]]) -> Iterator[Settings]:
    for values in itertools.product(*tune.values()):
        yield dict(zip(tune, values, strict=True))


def _effect(values: Mapping[str, Mapping[int, Trial]], ours: str, arm: str) -> Effect:
    return interval([trial.value - values[arm][seed].value for seed, trial in values[ours].items()])


def _best(by_seed: Mapping[int, Trial]) -> dict[int, Trial]:
    """The trials as their best steps judge them; nothing if one has none."""
    found = {seed: replace(trial, value=trial.best) for seed, trial in by_seed.items() if trial.best is not None}
    return found if len(found) == len(by_seed) else {}


def _values(by_seed: Mapping[int, Trial]) -> dict[str, float]:
    return {str(seed): trial.value for seed, trial in by_seed.items()}


def _plain(effect: Effect) -> dict[str, Any]:
    return {"mean": effect.mean, "low": effect.low, "high": effect.high, "n": effect.n}


def _finite(value: Any) -> Any:
    """JSON knows no infinity: a bound that one seed cannot give is null."""
    if isinstance(value, Mapping):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
