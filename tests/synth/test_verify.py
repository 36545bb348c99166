"""Verdicts on answers: each checker at its own texts, several together, and what cannot be judged at all."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from confinement import confined
from stillhouse.core.run import RunError
from stillhouse.data.tasks import Questions, Task, final_answer
from stillhouse.synth.sandbox import Sandbox
from stillhouse.synth.verify import Verify

from .onestep import named, once, through, whys

SANDBOX = Sandbox(seconds=5.0, memory=256 << 20)
RIGHT = [
    ("exact", "Answer: The  END.", "the end"),
    ("exact", "Answer: ΣΊΣΥΦΟΣ", "σίσυφος"),
    ("words", "Answer: «Saint-Denis»!", "saint denis"),
    ("words", "東京。", "東京"),
    ("number", "So it is 12 apples, answer: 1,234.50 euros", "#### 1234.5"),
    ("number", "\\boxed{-3/4}", "-0.75"),
    ("number", "first 3, then 4", "4"),
    ("choice", "Answer: (b) because it is", "B"),
    ("math", "Answer: $\\frac{1}{2}$", "0.5"),
    ("math", "\\boxed{x^2 + 2x + 1}", "(x+1)^2"),
]
WRONG = [
    ("exact", "Answer: Lyon", "Paris"),
    ("words", "Answer: not Paris", "Paris"),
    ("number", "Answer: 4, I think, or 5", "4"),
    ("number", "none", "4"),
    ("choice", "Answer: C", "B"),
    ("math", "\\boxed{x^2 + 1}", "(x+1)^2"),
    ("words", "", "Paris"),
    ("number", "   ", "4"),
]


@pytest.mark.parametrize(("check", "answer", "truth"), RIGHT)
def test_right_answers_pass_with_the_verdict(check: Any, answer: str, truth: str, tmp_path: Path) -> None:
    pytest.importorskip("math_verify") if check == "math" else None
    kept, gone = through(Verify(checks=(check,)), [{"answer": answer, "truth": truth}], tmp_path)
    assert not gone and kept[0]["right"] == 1.0 and kept[0]["right_by"] == check


@pytest.mark.parametrize(("check", "answer", "truth"), WRONG)
def test_wrong_answers_are_lost_or_marked(check: Any, answer: str, truth: str, tmp_path: Path) -> None:
    pytest.importorskip("math_verify") if check == "math" else None
    rows = [{"answer": answer, "truth": truth}]
    kept, gone = through(Verify(checks=(check,)), rows, tmp_path)
    assert not kept and gone[0]["why"] == f"wrong by {check}" and gone[0]["numbers"] == {check: 0.0}
    kept, gone = through(Verify(checks=(check,), keep=True, into="good"), rows, tmp_path)
    assert not gone and kept[0]["good"] == 0.0 and "good_by" not in kept[0]


def test_the_verdict_is_that_of_the_tasks(tmp_path: Path) -> None:
    rows = [{"answer": a, "truth": t} for check, a, t in [*RIGHT, *WRONG] if check == "number" and a.strip()]
    kept, _ = through(Verify(keep=True), rows, tmp_path)
    judge = Questions(path="", check="number")
    assert [r["right"] for r in kept] == [judge.score(Task("", "", final_answer(r["truth"]), ""), r["answer"]) for r in kept]


def test_one_of_several_checkers_is_enough(tmp_path: Path) -> None:
    rows = [
        {"answer": "Answer: 0.50", "truth": "0.5"},  # not the same text
        {"answer": "Answer: blue", "truth": "Blue."},  # no number
        {"answer": "Answer: red", "truth": "blue"},
    ]
    kept, gone = through(Verify(checks=("number", "exact")), rows, tmp_path)
    assert [row["right_by"] for row in kept] == ["number", "exact"]
    assert gone[0]["why"] == "wrong by number and exact" and gone[0]["numbers"] == {"number": 0.0, "exact": 0.0}
    kept, _ = through(Verify(checks=("exact", "number")), [{"answer": "5", "truth": "5"}], tmp_path)
    assert kept[0]["right_by"] == "exact"


def test_a_truth_that_nothing_can_read_is_no_verdict(tmp_path: Path) -> None:
    rows = [{"answer": "7", "truth": "seven"}, {"answer": "7"}, {"answer": "7", "truth": "7"}]
    kept, gone = through(Verify(keep=True), rows, tmp_path)
    assert len(kept) == 1
    assert sorted(each["why"] for each in gone) == [
        "column 'truth' is empty",
        "its truth is nothing that the check 'number' can read",
    ]
    kept, gone = through(Verify(checks=("number", "words")), rows, tmp_path)  # words can read it: it is wrong
    assert whys(gone, "truth")["seven"] == "wrong by number and words"


def test_a_wrong_column_is_named_with_the_nearest_before_anything_is_judged(tmp_path: Path) -> None:
    rows = named([{"anwser": "7", "truth": "7"}])
    with pytest.raises(RunError, match="'answer'.*did you mean 'anwser'"):
        once(Verify(), rows, tmp_path)
    assert once(Verify(answer="anwser"), rows, tmp_path)[0][0]["right"] == 1.0


@pytest.mark.parametrize("wrong", [{"checks": ()}, {"checks": ("math", "math")}, {"least": 0.0}])
def test_settings_that_make_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="check|least"):
        Verify(**wrong)


def test_what_math_needs_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(RunError, match=r"pip install 'stillhouse\[eval\]'"):
        once(Verify(checks=("math",)), [], tmp_path)


@confined
def test_programs_are_run_against_the_tests_of_their_rows(tmp_path: Path) -> None:
    add = "```python\ndef add(a, b):\n    return a + b\n```"
    tests = ["assert add(2, 3) == 5", "assert add(0, 0) == 0"]
    rows = [
        {"n": 0, "answer": add, "tests": tests},
        {"n": 1, "answer": add.replace("+", "-"), "tests": tests},
        {"n": 2, "answer": "print(int(input()) * 2)", "tests": [{"input": "4", "output": "8"}]},
        {"n": 3, "answer": add, "tests": ["assert add(1,"]},
        {"n": 4, "answer": add},
        {"n": 5, "answer": "def add(a, b):\n    while True: pass", "tests": tests[:1]},
        {"n": 6, "answer": "8", "truth": "8", "tests": []},
    ]
    step = Verify(checks=("program",), sandbox=SANDBOX)
    kept, gone = through(step, rows, tmp_path)
    found = whys(gone, "n")
    assert [row["n"] for row in kept] == [0, 2] and found[1] == found[5] == "wrong by program"
    assert "no Python" in found[3] and found[4] == found[6] == "column 'tests' holds no tests"
    kept, _ = through(Verify(checks=("program",), partial=True, keep=True, sandbox=SANDBOX), rows[:2], tmp_path)
    assert [row["right"] for row in kept] == [1.0, 0.5] and kept[1]["right_by"] == "program"
    kept, gone = through(Verify(checks=("number", "program"), sandbox=SANDBOX), rows, tmp_path)
    assert [row["n"] for row in kept] == [0, 2, 6] and kept[2]["right_by"] == "number"
