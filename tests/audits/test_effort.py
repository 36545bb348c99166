"""Tokens by difficulty, against counts by hand and numpy's straight line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from language import run_of
from stillhouse.audits import solved
from stillhouse.audits.effort import Effort, by_difficulty
from stillhouse.core.report import Figure
from stillhouse.core.stage import Subjects
from stillhouse.data.tasks import Chain
from stillhouse.models.generate import Sampling
from stillhouse.models.toys import TinyLM

torch.set_num_threads(1)
TASKS = Chain(ops=(1, 3), train=4, valid=3, test=8)


def test_the_slope_is_that_of_least_squares() -> None:
    rng = numpy.random.default_rng(0)
    level, tokens = rng.integers(1, 6, 50), rng.normal(20, 5, 50)
    found = {"solved": torch.tensor(rng.random(50) < 0.5).double(), "answer_tokens": torch.tensor(tokens)}
    made = by_difficulty(found, level.tolist(), 12)
    assert made["tokens_per_step"].mean().item() == pytest.approx(numpy.polyfit(level, tokens, 1)[0])
    for d in range(1, 6):
        assert made[f"answer_tokens_at_{d}"].mean().item() == pytest.approx(tokens[level == d].mean())
        assert len(made[f"solved_at_{d}"]) == (level == d).sum()
    assert set(by_difficulty(found, level.tolist(), 4)) == {"tokens_per_step"}
    assert by_difficulty(found, [3] * 50, 12) == {}


def judged(folder: Path, monkeypatch: pytest.MonkeyPatch, check: Effort, answer: Any, data: Any = TASKS) -> Any:
    """The findings if `answer(task)` is what every subject says."""
    run = run_of(folder, TinyLM(), data=data)

    def generate(module: Any, prompts: Any, sampling: Any, **more: Any) -> Any:
        tasks = run.sources(data)["test"].tasks
        return [data.coder(run).answer("", answer(tasks[i])) for i, _ in more["keys"]]

    monkeypatch.setattr(solved, "generate", generate)
    return run, list(check(run, Subjects(run, ("start",))))


def test_direct_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(task: Any) -> str:  # the long chains with a step too much, the short ones as they are worked
        return f"7;{task.solution}" if len(task.entry) == 3 else task.solution

    _, findings = judged(tmp_path, monkeypatch, Effort(ours="start", separator=";"), answer)
    values = {f.name: f.value for f in findings if not isinstance(f, Figure)}
    assert values["solved"] == 1.0 and values["solved_directly"] == 0.5
    assert values["solved_at_1"] == values["solved_at_3"] == 1.0
    assert values["answer_tokens_at_1"] == len("3+4=7#7") + 1
    assert values["answer_tokens_at_3"] == len("7;3+4=7;7*2=4;4-1=3#3") + 1
    assert values["tokens_per_step"] == pytest.approx((22 - 8) / 2)
    figures = {f.title: f.series for f in findings if isinstance(f, Figure)}
    assert figures["Tokens of an answer by difficulty"] == {"start": [(1.0, 8.0), (3.0, 22.0)]}
    assert {f.better for f in findings if not isinstance(f, Figure) and "tokens" in f.name} == {"neither"}


def test_a_short_wrong_answer_is_not_direct(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alike = Chain(ops=(2,), train=4, valid=3, test=8)
    run, findings = judged(tmp_path, monkeypatch, Effort(ours="start", separator=";"), lambda task: "#5", alike)
    values = {f.name: f.value for f in findings if not isinstance(f, Figure)}
    right = sum(task.answer == "5" for task in run.sources(alike)["test"].tasks) / 8
    assert values["solved"] == values["solved_directly"] == right
    assert not any("_at_" in name or "per_step" in name for name in values)
    assert not any(isinstance(f, Figure) for f in findings)


def test_real_answers(tmp_path: Path) -> None:
    run = run_of(tmp_path, TinyLM(), data=TASKS)
    sampled = Effort(ours="start", separator=";", samples=2, sampling=Sampling(temperature=1.0, max_new=6))
    names = {f.name for f in sampled(run, Subjects(run, ("start",))) if not isinstance(f, Figure)}
    assert "solved_directly" not in names and {"solved", "tokens_per_step", "solved_at_3"} <= names
