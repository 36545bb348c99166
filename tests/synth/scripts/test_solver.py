"""The scripted teacher's answers are what its truth says, and it goes on from what was begun."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest

from stillhouse.core.run import Run, RunError
from stillhouse.synth.scripts.solver import Solver, walk
from stillhouse.teachers.scripted import Scripted
from stillhouse.teachers.text import Ask, Decoding

QUESTION = "3+4*2-9*8="


def said(script: Solver, question: str = QUESTION, seed: int = 0, begin: str = "", **how: Any) -> Any:
    ask = Ask((("user", question),), Decoding(**how), seed, {"question": question}, begin)
    return script.answer(ask, random.Random(seed))


def by_hand(question: str, base: int = 10) -> int:
    value, *rest = re.findall(r"\d+|[+*-]", question)
    result = int(value)
    for sign, number in zip(rest[::2], rest[1::2], strict=True):
        result = {"+": result + int(number), "-": result - int(number), "*": result * int(number)}[sign] % base
    return result


def test_without_faults_it_is_right_in_as_many_steps_as_there_are_operators() -> None:
    answer = said(Solver())
    assert answer.text == "3+4=7;7*2=4;4-9=5;5*8=0#0" and answer.truth["right"] and by_hand(QUESTION) == 0


@pytest.mark.parametrize("seed", range(40))
def test_the_truth_is_what_the_answer_shows(seed: int) -> None:
    answer = said(Solver(wrong=0.2, detour=0.3, again=0.3, garbled=0.2), seed=seed)
    body, mark, last = answer.text.partition("#")
    steps = body.split(";")
    true = answer.truth
    assert (not mark) == true["garbled"]
    assert true["right"] == (bool(mark) and int(last) == by_hand(QUESTION))
    assert sum(step.startswith("~") for step in steps) == true["detours"] + true["again"]
    assert sum(a.lstrip("~") == b[1:] for a, b in zip(steps, steps[1:], strict=False) if b[0] == "~") == true["again"]
    path = walk(QUESTION, steps, 10)
    assert not path.open and (not mark or path.values[-1] == int(last))


def test_the_shares_are_those_that_were_set() -> None:
    answers = [said(Solver(wrong=0.1, detour=0.25), seed=seed).truth for seed in range(1500)]
    assert sum(t["wrong"] for t in answers) / 6000 == pytest.approx(0.1, abs=0.012)
    assert sum(t["detours"] for t in answers) / 6000 == pytest.approx(0.25, abs=0.017)
    assert all(t["right"] for t in answers if not t["wrong"])


def test_at_temperature_0_the_other_share_counts() -> None:
    script = Solver(wrong=1.0, wrong_greedy=0.0)
    assert said(script, temperature=0.0).truth["wrong"] == 0 and said(script).truth["wrong"] == 4


@pytest.mark.parametrize(
    ("begin", "rest"),
    [
        ("3+4=7", ";7*2=4;4-9=5;5*8=0#0"),
        ("3+4=7;", "7*2=4;4-9=5;5*8=0#0"),
        ("3+4=8;8*2=6;~3+4=7;", "7*2=4;4-9=5;5*8=0#0"),
        ("3+4=7;7*2=4;4-9=5;5*8=0", "#0"),
        ("3+4=7;7*2=4;4-9=5;5*8=0#", ""),
        ("3+4=8;", "~3+4=7;7*2=4;4-9=5;5*8=0#0"),  # it sees the mistake
    ],
)
def test_it_goes_on_from_what_was_begun(begin: str, rest: str) -> None:
    assert said(Solver(), begin=begin).text == rest


def test_it_stays_where_it_may_not_turn() -> None:
    assert said(Solver(), begin="3+4=8;", not_first=("~",)).text == "8*2=6;6-9=7;7*8=6#6"


@pytest.mark.parametrize("begin", ["3+", "3+4", "9+9=8;", "3+4=7;7*3=1", "3+4=x"])
def test_what_it_cannot_go_on_from(begin: str) -> None:
    with pytest.raises(RunError, match="is none of"):
        said(Solver(), begin=begin)


@pytest.mark.parametrize("question", ["", "What is 3+4?", "3+4", "+3=", "3+=", "3=4="])
def test_what_is_no_chain(question: str) -> None:
    with pytest.raises(RunError, match="works out chains such as"):
        said(Solver(), question=question)


def test_shares_are_shares() -> None:
    with pytest.raises(ValueError, match="shares"):
        Solver(detour=1.5)


def test_as_a_teacher_it_says_what_it_heeds(tmp_path: Path) -> None:
    teacher = Scripted(script=Solver()).build(Run(tmp_path / "run"))
    assert teacher.gives == {"text", "continuation", "suppression"}
