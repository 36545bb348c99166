"""The scripts that judge stories are wrong as often as they are said to be, and otherwise right."""

from __future__ import annotations

import random
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest

from stillhouse.core.run import Run, RunError
from stillhouse.synth.scripts.examiner import LEVELS, Examiner, Tagger
from stillhouse.synth.scripts.solver import Solver
from stillhouse.synth.stories import Story, tagged
from stillhouse.teachers.text import Ask, Decoding

STORY = Story("3+4*2=", "Ada", "kites", "Riga")
ONE, TWO = STORY.told(0, 10), STORY.told(4, 10)
OTHER = Story("3+4*3=", "Ada", "kites", "Riga").told(0, 10)


def said(script: Any, words: str = "", times: int = 400, **about: Any) -> list[str]:
    answer = script.build(Run(Path("never")))
    ask = Ask((("user", words),), Decoding(), about=about)
    return [answer(ask, random.Random(i)) for i in range(times)]


def test_it_knows_the_same_question_in_other_words() -> None:
    sure = Examiner(missed=0.0, alarmed=0.0)
    assert set(said(sure, question=ONE, tests=[OTHER, TWO])) == {"2"} and set(said(sure, question=ONE, tests=[OTHER])) == {
        "0"
    }
    unsure = Examiner(missed=0.2, alarmed=0.1)
    assert 0.7 < fmean(answer == "1" for answer in said(unsure, question=ONE, tests=[TWO])) < 0.9
    alarms = [answer != "0" for answer in said(unsure, question=ONE, tests=[OTHER, OTHER])]
    assert 0.04 < fmean(alarms) < 0.16


def test_labels_marks_and_rubrics() -> None:
    levels = said(Examiner(mistaken=0.25), names=list(LEVELS), question=ONE)
    assert 0.68 < fmean(level == "medium" for level in levels) < 0.82 and set(levels) == set(LEVELS)
    assert set(said(Examiner(mistaken=0.0), names=["math", "code"], question=ONE)) == {"math"}
    marks = [float(text) for text in said(Examiner(noise=1.0), "how difficult is it?", question=TWO)]
    assert fmean(marks) == pytest.approx(6.0, abs=0.2) and stdev(marks) == pytest.approx(1.0, abs=0.15)
    prompt = "Judge:\n- truth: is it?\n- form: is it?\nReply"
    for result, middle in (("4", 8.0), ("5", 3.0)):
        texts = said(Examiner(noise=0.5), prompt, question=ONE, response=tagged(f"3+4=7;7*2=4#{result}"))
        lines = [dict(line.split(": ") for line in text.splitlines()) for text in texts]
        assert all(set(line) == {"truth", "form"} for line in lines)
        assert fmean(float(line["truth"]) for line in lines) == pytest.approx(middle, abs=0.2)
    assert float(said(Examiner(noise=0.0), "good?", 1, question=ONE, response="")[0]) == 3.0
    with pytest.raises(RunError, match="judges stories"):
        said(Examiner(), "difficult?", question="what is love")
    with pytest.raises(ValueError, match="shares"):
        Examiner(missed=1.5)


def test_the_tagger_is_the_solver_in_tags() -> None:
    solver = Solver(question="short")
    plain, same = said(solver, short="3+4*2=", times=3), said(Tagger(solver=solver), short="3+4*2=", times=3)
    assert [answer.text for answer in same] == [tagged(answer.text) for answer in plain]  # type: ignore[attr-defined]
    assert [answer.truth for answer in same] == [answer.truth for answer in plain]  # type: ignore[attr-defined]
    bad = [answer.text for answer in said(Tagger(solver=solver, broken=0.3), short="3+4*2=")]  # type: ignore[attr-defined]
    assert 0.6 < fmean(text == tagged("3+4=7;7*2=4#4") for text in bad) < 0.8
