"""Made answers as data to train on, and tasks as rows to make data from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from language import run_of
from stillhouse.core.run import RunError
from stillhouse.core.stage import execute
from stillhouse.data.tasks import Chain
from stillhouse.models.toys import TinyLM
from stillhouse.synth.generate import Generate
from stillhouse.synth.made import Answered
from stillhouse.synth.scripts.solver import Solver
from stillhouse.synth.synthesize import Synthesize, made_rows
from stillhouse.teachers.scripted import Scripted

CHAIN = Chain(ops=(2, 3), train=30, valid=5, test=5)


def made(folder: Path, solver: Solver, **step: Any) -> Any:
    run = run_of(folder, TinyLM(), data=CHAIN)
    from dataclasses import replace

    steps = {"solve": Generate(prompt="{{ question }}", **step)}
    recipe = replace(run.recipe, teachers={"teacher": Scripted(script=solver)}, stages={"make": Synthesize(steps=steps)})
    execute(recipe, run)
    return run


def texts(source: Any) -> list[str]:
    alphabet = Chain.alphabet
    return ["".join(alphabet[t] for t in d.tokens) for row in source.rows for d in row]


def test_tasks_are_rows(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", TinyLM(), data=CHAIN)
    rows = CHAIN.rows(run)
    assert {name: len(found) for name, found in rows.items()} == {"train": 30, "valid": 5, "test": 5}
    for row, task in zip(rows["train"], CHAIN.tasks(run)["train"], strict=True):
        assert row == {"question": task.question, "truth": task.answer, "solution": task.solution}


def test_answers_take_the_place_of_the_worked_solutions(tmp_path: Path) -> None:
    run = made(tmp_path / "run", Solver(wrong=0.3), each=2)
    rows = list(made_rows(run, "make"))
    found = Answered(stage="make", packed=False).load(run)
    assert texts(found["train"]) == [f"{row['question']}{row['answer']}\n" for row in rows] and len(rows) == 60
    for (document,), row in zip(found["train"].rows, rows, strict=True):
        assert document.counts == [False] * len(row["question"]) + [True] * (len(row["answer"]) + 1)
    assert texts(found["test"]) == texts(CHAIN.load(run)["test"])
    both = Answered(stage="make", packed=False, given=True).load(run)["train"]
    assert texts(both) == [*texts(CHAIN.load(run)["train"]), *texts(found["train"])]


def test_packed_rows_hold_the_same_and_are_full(tmp_path: Path) -> None:
    run = made(tmp_path / "run", Solver())
    one, many = (Answered(stage="make", packed=packed).load(run)["train"] for packed in (False, True))
    assert sorted(texts(one)) == sorted(texts(many)) and len(many) < len(one) / 2
    assert all(sum(len(d.tokens) for d in row) <= CHAIN.length for row in many.rows)


def test_what_cannot_be_learned_is_told(tmp_path: Path) -> None:
    run = made(tmp_path / "run", Solver())
    short = len(next(iter(made_rows(run, "make")))["question"]) + 20
    some = Answered(stage="make", length=short, packed=False).load(run)["train"]
    assert 0 < len(some) < 30 and any(f"rows have {short}" in reject["why"] for reject in run.read("rejects.jsonl"))
    with pytest.raises(RunError, match="none of the 30 rows that stage 'make' made fits into 5 tokens; raise length"):
        Answered(stage="make", length=5).load(run)
    with pytest.raises(
        RunError, match="row 1 of stage 'make' has no column 'text'; it has answer, question, solution, truth"
    ):
        Answered(stage="make", answer="text").load(run)


def test_an_answer_that_was_begun_for_the_teacher(tmp_path: Path) -> None:
    run = made(tmp_path / "run", Solver(), begin="{{ solution.partition(';')[0] }};")
    for row in made_rows(run, "make"):
        first = row["solution"].partition(";")[0]
        assert f"{first};{row['answer']}" == row["solution"]


def test_a_prompt_can_be_asked_of_a_teacher_that_goes_on(tmp_path: Path) -> None:
    step = Generate(prompt="{{ question }}", begin="So")
    assert step.needs == {"text", "continuation"} and Generate(prompt="x").needs == {"text"}
