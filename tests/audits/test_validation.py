"""The best step is chosen by what a held-out split says, and by nothing else."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from stillhouse.audits.validation import Validation
from stillhouse.core.optim import Optim
from stillhouse.core.recipe import Recipe
from stillhouse.core.run import Interrupted, Run, RunError
from stillhouse.core.stage import Subjects, Train, execute
from stillhouse.data.toys import Clusters, Sentences
from stillhouse.methods.classics.supervised import Supervised
from stillhouse.models.call import logits_of
from stillhouse.models.toys import MLP, TinyLM

FAST = Optim(name="sgd", lr=0.3, momentum=0.0, schedule="constant", warmup=0.0)
TRAIN = Train(method=Supervised(), steps=12, batch=16, optim=FAST, judge=Validation(quantity="accuracy"), judge_every=3)
RECIPE = Recipe(id="r", student=MLP(width=8), data=Clusters(), stages={"train": TRAIN})


def made(folder: Path, recipe: Recipe = RECIPE) -> Run:
    run = Run(folder, device=torch.device("cpu"))
    execute(recipe, run)
    return run


def loaded(run: Run) -> Any:
    return run.recipe.student.load(run.path("train"), run)


def test_the_best_judged_step_is_kept(tmp_path: Path) -> None:
    run = made(tmp_path / "run")
    scores = {m["step"] + 1: m["judge/score"] for m in run.read("metrics.jsonl") if "judge/score" in m}
    assert sorted(scores) == [3, 6, 9, 12]
    best = max(scores, key=lambda step: (scores[step], -step))
    mark: Any = run.done("train")
    assert (mark["best_step"], mark["best_score"]) == (best, scores[best])
    assert Validation(quantity="accuracy")(loaded(run), run) == pytest.approx(scores[best])
    alone = replace(TRAIN, steps=best, judge=None)
    plain = made(tmp_path / "plain", replace(RECIPE, stages={"train": alone}))
    for a, b in zip(loaded(run).parameters(), loaded(plain).parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_student_of_the_last_step_is_kept_beside_it(tmp_path: Path) -> None:
    run = made(tmp_path / "run", RECIPE.set("train.judge", Falling()))
    subjects = Subjects(run, ("train", "train/last"))
    for name, steps in (("train", 3), ("train/last", 12)):
        alone = replace(TRAIN, steps=steps, judge=None)  # the rate is constant: three steps of twelve are three steps
        plain = made(tmp_path / str(steps), replace(RECIPE, stages={"train": alone}))
        for a, b in zip(subjects.load(name).parameters(), loaded(plain).parameters(), strict=True):
            assert torch.equal(a, b)
    with pytest.raises(RunError, match="stage 'train' kept no student 'first'; one with a judge keeps its 'last'"):
        subjects.load("train/first")
    with pytest.raises(RunError, match="stage 'train' kept no student 'last'"):
        Subjects(plain, ()).load("train/last")


@dataclass(frozen=True)
class Falling:
    """Likes every later student less."""

    def __call__(self, student: nn.Module, run: Run) -> float:
        assert not student.training
        return -float(run.step)


def test_a_resumed_run_remembers_the_best(tmp_path: Path) -> None:
    recipe = RECIPE.set("train.judge", Falling())

    class Stop:
        def update(self, stage: str, done: int, total: int, logs: Any, seconds: float) -> None:
            if done == 7:
                import signal

                signal.raise_signal(signal.SIGINT)

    run = Run(tmp_path / "run", device=torch.device("cpu"))
    run.progress = Stop()
    with pytest.raises(Interrupted):
        execute(recipe, run)
    resumed, straight = made(tmp_path / "run", recipe), made(tmp_path / "straight", recipe)
    marks: Any = [r.done("train") for r in (resumed, straight)]
    assert marks[0]["content"] == marks[1]["content"] and marks[0]["best_step"] == marks[1]["best_step"] == 3
    assert resumed.read("metrics.jsonl") == straight.read("metrics.jsonl")


@dataclass(frozen=True)
class Nothing:
    def __call__(self, student: nn.Module, run: Run) -> float:
        return float("nan")


def test_a_judge_that_gives_no_number_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="the judge of stage 'train' gave nan after step 3"):
        made(tmp_path / "run", RECIPE.set("train.judge", Nothing()))


def test_loss_and_accuracy_by_hand(tmp_path: Path) -> None:
    run = made(tmp_path / "run")
    student = loaded(run)
    batch = run.sources()["valid"].batch(range(128), 0)
    logits: Any = logits_of(student, batch)
    expected = -torch.nn.functional.cross_entropy(logits, batch["labels"]).item()
    assert Validation(batch=50)(student, run) == pytest.approx(expected, rel=1e-5)
    right = (logits.argmax(-1) == batch["labels"]).float().mean().item()
    assert Validation(quantity="accuracy", batch=7)(student, run) == pytest.approx(right)


def test_language_models_are_judged_by_their_counted_tokens(tmp_path: Path) -> None:
    run = made(
        tmp_path / "run", Recipe(id="r", student=TinyLM(), data=Sentences(), stages={"train": replace(TRAIN, steps=2)})
    )
    student = loaded(run)
    batch = run.sources()["valid"].batch(range(len(run.sources()["valid"])), 0)
    logits, weight = student(**batch["inputs"]).dense(), batch["weight"]
    nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), reduction="none")
    expected = -(nll * weight.flatten()).sum().item() / weight.sum().item()
    assert Validation(batch=3)(student, run) == pytest.approx(expected, rel=1e-5)
