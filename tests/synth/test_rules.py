"""Rules on texts and answers given away, each at texts on both sides of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stillhouse.core.run import RunError
from stillhouse.synth.rules import NoLeak, Rules, says

from .onestep import named, once, through, whys

THINK = "<think>a</think><answer>b</answer>"
CASES: list[tuple[dict[str, Any], list[str], list[str]]] = [
    ({}, ["a", "é"], [""]),
    ({"shortest": 3, "longest": 4}, ["abc", "äöüß"], ["ab", "abcde"]),
    ({"shortest": 2, "longest": 3, "unit": "words"}, ["a b", " a  b\nc "], ["a", "a b c d"]),
    ({"blacklist": ("as an AI",)}, ["An aid", "as an aim"], ["Well, As  an AI: no", "as-an-ai"]),
    ({"blacklist": ("東京",)}, ["京都"], ["私は東京にいる"]),
    ({"forbidden": (r"https?://", "(?m)^#")}, ["see http", "a # b"], ["see http://x.y", "a\n# b"]),
    ({"required": (r"\d", r"(?i)answer:")}, ["ANSWER: 5"], ["Answer: five", "5"]),
    (
        {"tags": ("think", "answer")},
        [THINK, f"x {THINK} y", "<think>\n1\n</think>\n<answer>2</answer>"],
        [
            "<answer>b</answer><think>a</think>",
            "<think>a</think>",
            "<think> </think><answer>b</answer>",
            "<think>a<answer>b</answer></think>",
            f"{THINK}</answer>",
            "<think>a</think><answer>b",
            "</think>a<think><answer>b</answer>",
        ],
    ),
    ({"scripts": ("LATIN",)}, ["naïve café 5!", "1 + 1", "ﬁne", "Ｆｕｌｌ"], ["да", "ok да", "漢字"]),
    ({"scripts": ("LATIN", "CJK"), "letters": 0.8}, ["abcd漢д", "漢字"], ["abдд"]),
    ({"repeats": 0.2, "run_of": 2}, ["a b c d a b", "x"], ["a b a b a b"]),
]


@pytest.mark.parametrize(("rules", "good", "bad"), CASES, ids=[",".join(case[0]) or "empty" for case in CASES])
def test_each_rule_on_both_sides(rules: dict[str, Any], good: list[str], bad: list[str], tmp_path: Path) -> None:
    kept, gone = through(Rules(**rules), [{"text": text} for text in [*good, *bad]], tmp_path)
    assert [row["text"] for row in kept] == good
    assert sorted(whys(gone, "text")) == sorted(bad)


def test_the_first_broken_rule_is_told_with_its_numbers(tmp_path: Path) -> None:
    step = Rules(shortest=5, repeats=0.1, run_of=1, blacklist=("no",))
    _, gone = through(step, [{"text": "no"}, {"text": "no, never"}, {"text": "so so so so"}, {"other": "x"}], tmp_path)
    told = {each["row"].get("text"): (each["why"], each["numbers"]) for each in gone}
    assert told["no"] == ("shorter than 5 characters", {"length": 2})
    assert told["no, never"] == ("it says 'no'", {})
    assert told["so so so so"] == ("more than 10% of it is repetition", {"share": 0.75})
    assert told[None] == ("shorter than 5 characters", {"length": 0})


@pytest.mark.parametrize(
    ("wrong", "says_"),
    [
        ({"forbidden": ("(",)}, "no regular expression"),
        ({"blacklist": ("!?",)}, "no letter or digit"),
        ({"shortest": 5, "longest": 4}, "longest"),
        ({"run_of": 0}, "run_of"),
        ({"scripts": ("latin",)}, "did you mean 'LATIN'"),
        ({"scripts": ("CHINESE",)}, "no letter's name"),
    ],
)
def test_settings_that_make_no_sense(wrong: dict[str, Any], says_: str) -> None:
    with pytest.raises(ValueError, match=says_):
        Rules(**wrong)


@pytest.mark.parametrize(
    ("text", "phrase", "there"),
    [
        ("the answer is 3.", "3", True),
        ("it is 3, or", "3", True),
        ("it is 3.5", "3", False),
        ("it is -3", "3", False),
        ("it is 1/3", "3", False),
        ("it is 3/4", "3", False),
        ("13", "3", False),
        ("x=3", "3", True),
        ("it is -3", "-3", True),
        ("the paris-based", "paris", True),
        ("comparison", "paris", False),
        ("new  york", "new york", True),
        ("首都東京です", "東京", True),
        ("anything", "", False),
        ("c++ it is", "c++", True),
        ("a (b) c", "(b)", True),
    ],
)
def test_a_phrase_stands_as_words_of_its_own(text: str, phrase: str, there: bool) -> None:
    assert says(text, phrase) is there


def test_answers_that_are_given_away_are_lost(tmp_path: Path) -> None:
    rows = [
        {"question": "What is 2+2?", "hint": "count", "answer": "Two and two.\n#### 4"},
        {"question": "What is 4?", "hint": "", "answer": "Answer: 4"},
        {"question": "The capital of France?", "hint": "It is  PARIS, of course", "answer": "\\boxed{Paris}"},
        {"question": "Is it blue?", "answer": "Blue"},
        {"question": "Which one?", "hint": "none", "answer": ""},
        {"question": "He said: é", "hint": "", "answer": "e\u0301"},
    ]
    kept, gone = through(NoLeak(within=("question", "hint")), rows, tmp_path)
    assert [row["question"] for row in kept] == ["What is 2+2?", "Which one?"]
    assert whys(gone, "question") == {
        "What is 4?": "the question gives the answer away",
        "The capital of France?": "the hint gives the answer away",
        "Is it blue?": "the question gives the answer away",
        "He said: é": "the question gives the answer away",
    }
    kept, _ = through(NoLeak(within=("question", "hint"), least=4), rows, tmp_path)
    assert [row["question"] for row in kept] == ["What is 2+2?", "What is 4?", "Which one?", "He said: é"]


def test_wrong_columns_are_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="did you mean 'texts'"):
        once(Rules(), named([{"texts": "a"}]), tmp_path)
    with pytest.raises(RunError, match="did you mean 'hints'"):
        once(NoLeak(within=("hint",)), named([{"answer": "a", "hints": ""}]), tmp_path)
    with pytest.raises(ValueError, match="not the answer's own"):
        NoLeak(within=("answer",))
