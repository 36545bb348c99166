"""A rewritten row is the same row, and one whose rewriting changed what had to stay is lost."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from stillhouse.cli.door import spec
from stillhouse.core.recipe import to_plain
from stillhouse.core.run import RunError
from stillhouse.core.signal import Completion
from stillhouse.synth.demos import Demos
from stillhouse.synth.rewrite import Rewrite, holds
from stillhouse.synth.steps import given
from stillhouse.teachers.text import Ask, Lost

from .talk import Seen, known, outcome, plan, stands

ROWS = [{"question": f"q{i}", "trace": f"Well, {i} und ñ plus 2, so \\boxed{{{i + 2}}}.", "answer": i + 2} for i in range(8)]


def shorter(ask: Ask, rng: random.Random) -> Any:
    n = ask.about["answer"] - 2
    said = {
        0: Lost("away"), 1: Completion("so \\boxed{", finished=False, wrote=4), 2: "", 3: "so \\boxed{6}.",
        4: "6 or \\boxed{7}",
    }  # fmt: skip
    return said.get(n, f"<new>\\boxed{{{n + 2}}} in short</new>" if n == 7 else f"\\boxed{{{n + 2}}} in short")


def test_rows_are_rewritten_in_place(tmp_path: Path) -> None:
    step = Rewrite(column="trace", prompt="Shorter: {{ trace }}", keep=("answer",), same=(r"\\boxed\{[^}]*\}",), was="long")
    found = stands(step, ROWS, tmp_path, teacher=shorter)
    sources = {given(row)["_id"]: row for row in ROWS}
    for row in found.rows:
        before = sources[row["_id"]]
        assert row["long"] == before["trace"] and row["trace"] == shorter(Ask((), step.decoding, 0, before), random.Random())
        assert row["answer"] == before["answer"] and row["_from"] == []
    assert sorted(row["answer"] for row in found.rows) == [7, 8, 9]
    lost = {row["row"]["answer"] - 2: (row["_why"], row["row"].get("rewritten")) for row in found.lost}
    assert lost == {
        0: ("away", None), 1: ("the answer was cut off", "so \\boxed{"), 2: ("an empty answer", ""),
        3: ("the rewriting lost what answer says", "so \\boxed{6}."),
        4: ("the rewriting changed what '\\\\\\\\boxed\\\\{[^}]*\\\\}' finds", "6 or \\boxed{7}"),
    }  # fmt: skip


def test_only_what_was_asked_for_is_taken(tmp_path: Path) -> None:
    step = Rewrite(column="trace", prompt="{{ trace }}", take="<new>(.*)</new>")
    found = stands(step, ROWS[6:], tmp_path, teacher=shorter)
    assert found.column("trace") == ["\\boxed{9} in short"]
    assert found.why() == ["the answer is not in the form that was asked for"]


@pytest.mark.parametrize(
    ("text", "part", "inside"),
    [
        ("it is 12.", "12", True), ("it is 112", "12", False), ("3.12", "12", False), ("12.5", "12", False),
        ("12,5", "12", False),
        ("x = -12", "12", False), ("-12", "12", False), ("x = -12", "-12", True), ("3-12", "12", True), ("(12)", "12", True),
        ("New\n  York city", "New York", True), ("yorkers", "york", False), ("", "x", False), ("x", " ", True),
        ("a++b", "++", True), ("so 12, then", "12", True), ("Größe", "Größ", False), ("C++ it is", "C++", True),
    ],
)  # fmt: skip
def test_what_a_text_holds(text: str, part: str, inside: bool) -> None:
    assert holds(text, part) is inside


def test_a_row_without_what_must_stay_is_not_asked_about(tmp_path: Path) -> None:
    rows = [*ROWS[5:], {"question": "q", "trace": "t"}, {"question": "q", "answer": 9}]
    step = Rewrite(column="trace", prompt="{{ question }}", keep=("answer",))
    seen = Seen(shorter)
    found = outcome(plan(step, rows, teacher=seen), tmp_path / "run")
    assert len(seen.asked) == 3 and found.why() == ["no answer", "no trace"]
    for wrong in (Rewrite(column="trase", prompt="x"), Rewrite(column="trace", prompt="x", keep=("anser",))):
        with pytest.raises(RunError, match="which no row has; did you mean"):
            outcome(plan(wrong, rows, teacher=seen), tmp_path / wrong.column / "run")
    assert len(seen.asked) == 3


def test_demonstrations_show_what_rewriting_is(tmp_path: Path) -> None:
    path = tmp_path / "pool.jsonl"
    path.write_text(json.dumps({"trace": "long words", "short": "words"}) + "\n")
    step = Rewrite(column="trace", prompt="Cut: {{ trace }}", demos=Demos(path=str(path), answer="short"))
    seen = Seen(shorter)
    outcome(plan(step, ROWS[5:6], teacher=seen), tmp_path / "run")
    assert seen.asked[0].messages[:2] == (("user", "Cut: long words"), ("assistant", "words"))
    assert spec(to_plain(step)) == step
    stands(step, ROWS[5:], tmp_path / "stands", teacher=shorter)


@pytest.mark.parametrize("settings", [{"keep": ("t",)}, {"same": ("(",)}, {"take": "["}, {"demos": Demos(path="x")}])
def test_settings_that_cannot_be(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Rewrite(column="t", prompt="{{ t }}", **settings)


def test_lost_rows_stand_in_the_order_of_the_rows(tmp_path: Path) -> None:
    """Those that were not asked about among them: nothing depends on how many are asked about together."""
    rows = [{"question": f"q{i}", "trace": "t", **({"answer": 2} if i % 2 else {})} for i in range(40)]
    step = Rewrite(column="trace", prompt="{{ question }}", keep=("answer",), same=("z",))
    found = outcome(plan(step, [*rows, ROWS[6]], teacher=lambda ask, rng: "z 2 8" if ask.about["question"] != "q6" else "8"),
                    tmp_path / "run")  # fmt: skip
    assert [row["row"]["question"] for row in found.lost] == [f"q{i}" for i in range(40)] and len(found.rows) == 1
    assert known(found.rows)[0]["trace"] == "8"
