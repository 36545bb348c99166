"""The scripted rewriter keeps what a chain needs, and its faults are those that it owns to."""

from __future__ import annotations

import random
from typing import Any

import pytest

from stillhouse.core.run import RunError
from stillhouse.data.tasks import Chain, chain_steps
from stillhouse.synth.scripts.pruner import Pruner, formed, necessary
from stillhouse.synth.scripts.solver import Solver
from stillhouse.teachers.text import Ask, Decoding

QUESTION = "3+4*2-9*8="
TRACE = "3+4=8;8*2=6;~3+4=7;7*2=4;~7*2=4;4-9=5;5*8=0#0"


def said(script: Any, row: dict[str, str], seed: int = 0) -> Any:
    return script.answer(Ask((("user", str(row)),), Decoding(), seed, row), random.Random(seed))


def test_by_hand() -> None:
    steps = ["3+4=7", "7*2=4", "4-9=5", "5*8=0"]
    assert necessary(QUESTION, TRACE.partition("#")[0].split(";")) == steps
    assert [formed(steps, f) for f in ("last", "values", "steps", "checked")] == [
        "5*8=0", "7;4;5;0", "3+4=7;7*2=4;4-9=5;5*8=0", "3+4=7;7*2=4;4-9=5;5*8=0;~5*8=0",
    ]  # fmt: skip
    answer = said(Pruner(), {"question": QUESTION, "trace": TRACE})
    assert answer.text == "Difficulty: medium\n3+4=7;7*2=4;4-9=5;5*8=0#0"
    assert answer.truth == {"level": "medium", "misjudged": False, "wrong": False, "long": False}
    assert said(Pruner(), {"question": "3+4*2=", "trace": "3+4=7;7*2=4#4"}).text == "Difficulty: easy\n7;4#4"
    hard = said(Pruner(levels={"easy": 1, "hard": 3}, forms={"easy": "last", "hard": "checked"}), {
        "question": QUESTION, "trace": TRACE})  # fmt: skip
    assert hard.text.endswith("5*8=0;~5*8=0#0")


@pytest.mark.parametrize(
    ("question", "steps", "kept"),
    [
        ("5+0+0=", ["5+0=5", "~5+0=5", "5+0=5"], ["5+0=5", "5+0=5"]),  # which of the two was written again?
        ("5+0+0=", ["5+0=5", "5+0=5", "~5+0=5"], ["5+0=5", "5+0=5"]),
        ("3+4*2=", ["3+4=7"], None),
        ("3+4*2=", ["3+4=7", "8*2=6"], None),
        ("3+4=", ["3+4=7", "7+4=1"], None),
    ],
)
def test_what_is_necessary(question: str, steps: list[str], kept: list[str] | None) -> None:
    assert necessary(question, steps) == kept


@pytest.mark.parametrize("seed", range(60))
def test_a_trace_of_right_steps_comes_down_to_the_worked_solution(seed: int) -> None:
    rng = random.Random(seed)
    question = "".join(str(rng.randrange(10)) + s for s in [*rng.choices("+-*", k=rng.randrange(1, 7)), "="])
    trace = said(Solver(again=0.6), {"question": question}, seed)
    assert necessary(question, trace.text.partition("#")[0].split(";")) == chain_steps(question, 10)


def test_faults_are_as_often_as_was_set_and_as_they_are_told() -> None:
    script = Pruner(data=Chain(), misjudged=0.2, wrong=0.1, long=0.3)
    answers = [said(script, {"question": QUESTION, "trace": TRACE}, seed) for seed in range(1000)]
    for fault, share in (("misjudged", 0.2), ("wrong", 0.1), ("long", 0.3)):
        assert sum(a.truth[fault] for a in answers) / 1000 == pytest.approx(share, abs=0.04)
    for a in answers:
        level, _, text = a.text.removeprefix("Difficulty: ").partition("\n")
        assert (level != "medium") == a.truth["misjudged"] and (not text.endswith("#0")) == a.truth["wrong"]
        assert (text.partition("#")[0] == TRACE.partition("#")[0]) == a.truth["long"]


def test_what_it_refuses() -> None:
    for trace in ("", "3+4=7", "#7", "3+4=7#7"):
        with pytest.raises(RunError, match=r"rewrites worked chains|do not work out"):
            said(Pruner(), {"question": QUESTION, "trace": trace})
    with pytest.raises(ValueError, match="shares"):
        Pruner(wrong=2.0)
    with pytest.raises(ValueError, match="forms are given"):
        Pruner(levels={"one": 1})
