"""Problems in words: their numbers, their three kinds of solutions, and what may be seen in training."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from stillhouse.core.run import Run, RunError
from stillhouse.data.problems import KINDS, Problems, asked_for, kind_of, worked
from stillhouse.data.tasks import Task


def numbers(task: Task) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", task.question)]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run")


def test_all_three_solutions_come_to_the_answer(run: Run) -> None:
    made: dict[Any, Any] = {style: Problems(style=style, train=200).tasks(run) for style in ("answer", "steps", "program")}
    for split in ("train", "valid", "test"):
        for answer, steps, program in zip(*(made[style][split] for style in made), strict=True):
            value = str(eval(program.solution.removeprefix("return").strip()))  # noqa: S307  our own
            assert answer.solution == f"#{value}" and answer.answer == steps.answer == program.answer == value
            body, _, last = steps.solution.partition("#")
            assert last == value and all(str(eval(s.split("=")[0])) == s.split("=")[1] for s in body.split(";"))  # noqa: S307
            assert int(value) >= 0 and asked_for(answer.question) == program.entry
            assert Problems().score(steps, steps.solution) == Problems().score(answer, value) == 1.0
            assert not Problems().score(answer, f"#{value}#{value}") and not Problems().score(answer, f"#1{value}")


def test_larger_numbers_are_held_out_and_every_place_has_been_seen(run: Run) -> None:
    tasks = Problems(train=600).tasks(run)
    assert all(sum(n > 9 for n in numbers(task)) <= 1 for task in tasks["train"])
    assert all(min(numbers(task)) > 9 for split in ("valid", "test") for task in tasks[split])
    for place in range(3):
        assert {numbers(task)[place] // 10 for task in tasks["train"]} == set(range(10))
    lengths = [{len(task.question) for task in tasks[split]} for split in ("train", "test")]
    assert lengths[0] == lengths[1] and len(lengths[0]) == 3  # of five kinds, whatever the numbers
    assert {kind_of(task.question) for task in tasks["test"]} == set(KINDS)


def test_splits_are_apart_and_the_same_however_many(run: Run) -> None:
    specs = (Problems(), Problems(train=900), Problems(larger=False))
    small, large, near = (spec.tasks(run) for spec in specs)
    assert large["train"][:600] == small["train"] == near["train"] and large["test"] == small["test"]
    parts = [{task.question for task in found} for found in (*large.values(), near["valid"], near["test"])]
    assert sum(map(len, parts)) == len(set().union(*parts))


def test_what_fits_and_what_does_not(run: Run) -> None:
    longest = max(
        len(task.question) + len(task.solution) + 1
        for found in Problems(style="steps").tasks(run).values()
        for task in found
    )
    assert longest <= Problems().length
    assert worked("(7-3)*2") == ["7-3=4", "4*2=8"] and worked("2*3+4*5") == ["2*3=6", "4*5=20", "6+20=26"]
    assert worked("9+1-3") == ["9+1=10", "10-3=7"] and worked("(3-7)*2")[-1] == "3-7=-4"
    assert kind_of("3 cats?") is None and asked_for("") is None
    with pytest.raises(ValueError, match="some of more.*not lots"):
        Problems(kinds=("lots",))
    with pytest.raises(RunError, match="hardly more than"):
        Problems(kinds=("more",), larger=False, train=20000).tasks(run)
