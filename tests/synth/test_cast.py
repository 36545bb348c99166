"""Roles are drawn by content and held by different teachers, and every review counts once."""

from __future__ import annotations

import random
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from stillhouse.cli.door import spec
from stillhouse.core.recipe import to_plain
from stillhouse.core.run import RunError
from stillhouse.core.signal import Completion
from stillhouse.synth.cast import Cast, InRole, Reviews, critiques_in
from stillhouse.teachers.text import Ask, Decoding, Lost

from .talk import Seen, outcome, plan, stands

ROWS = [{"question": f"Größe {i} 🚲?", "truth": str(i), "n": i} for i in range(40)]
NAMES = ("a", "b", "c", "d", "e")


def silent(ask: Ask, rng: random.Random) -> str:
    raise AssertionError("nobody is to be asked")


def cast_rows(folder: Path, cast: Cast = Cast(), rows: Any = ROWS, names: Any = NAMES) -> list[dict[str, Any]]:
    return stands(cast, rows, folder, 0, **dict.fromkeys(names, silent)).rows


def test_nobody_has_two_roles(tmp_path: Path) -> None:
    rows = cast_rows(tmp_path, Cast(each=10))
    assert len(rows) == 400 and all("truth" not in row and "question" not in row for row in rows)
    for row in rows:
        assert sorted([row["generator"], *row["reviewers"], row["adjudicator"]]) == list(NAMES)
    for counts in (Counter(row["generator"] for row in rows), Counter(row["adjudicator"] for row in rows)):
        assert all(80 - 32 < counts[name] < 80 + 32 for name in NAMES)  # four standard deviations: sqrt(400 * 0.16) = 8
    pairs = Counter((row["generator"], row["adjudicator"]) for row in rows)
    assert len(pairs) == 20


def test_fewer_roles(tmp_path: Path) -> None:
    one = cast_rows(tmp_path / "one", Cast(reviewers=1, adjudicator=False, itself=True), names=("a",))
    assert all(row["reviewers"] == ["a"] == [row["generator"]] and "adjudicator" not in row for row in one)
    alone = cast_rows(tmp_path / "alone", Cast(reviewers=0, adjudicator=False), ROWS[:1], ("a",))
    assert [row["reviewers"] for row in alone] == [[]]
    two = cast_rows(tmp_path / "two", Cast(reviewers=1, adjudicator=False, generators=("b",)), names=("a", "b"))
    assert {(row["generator"], *row["reviewers"]) for row in two} == {("b", "a")}
    other = cast_rows(tmp_path / "other", Cast(reviewers=2, teachers=("a", "b", "c", "d")))
    assert not any("e" in (row["generator"], row["adjudicator"], *row["reviewers"]) for row in other)
    itself = cast_rows(tmp_path / "itself", Cast(reviewers=1, itself=True), names=("a", "b"))
    assert all(row["adjudicator"] != row["generator"] for row in itself)


@pytest.mark.parametrize(
    ("cast", "names", "words"),
    [
        (Cast(), "abcd", "take 5 teachers, and there are 4"),
        (Cast(teachers=("a", "x")), "abcde", "a role for 'x', but the recipe's teachers are a, b, c, d, e"),
        (Cast(generators=("x",)), "abcde", "a role for 'x'"),
        (Cast(keep={"qestion": "seed"}), "abcde", "the casting reads a column 'qestion', .* did you mean 'question'"),
    ],
)
def test_what_cannot_be_cast(tmp_path: Path, cast: Cast, names: str, words: str) -> None:
    with pytest.raises(RunError, match=words):
        outcome(plan(cast, ROWS, **dict.fromkeys(names, silent)), tmp_path / "run")


def test_settings_that_make_no_sense() -> None:
    bad: list[dict[str, Any]] = [dict(each=0), dict(reviewers=-1), dict(itself=True, reviewers=2)]
    for wrong in bad:
        with pytest.raises(ValueError):
            Cast(**wrong)
    with pytest.raises(ValueError, match="optional, and nothing reads it"):
        InRole(by="x", prompt="y", reads={"a": "b"}, optional=("c",))
    with pytest.raises(ValueError, match="no regular expression"):
        InRole(by="x", prompt="y", reads={"a": "("})
    with pytest.raises(ValueError, match="no criterion twice"):
        Reviews(rubric={"a": "x"}, besides={"a": "y"})
    with pytest.raises(ValueError, match="lowest"):
        Reviews(rubric={"a": "x"}, lowest=3, highest=3)


# -- asked by role -----------------------------------------------------------------------------------------------------

ROLES = [{"text": f"t{i}", "who": "ab"[i % 2], "n": i, "todo": i % 3 == 0} for i in range(12)]


def says(name: str) -> Any:
    def answer(ask: Ask, rng: random.Random) -> Any:
        n = ask.about["n"]
        assert ask.about["reads"] == ("answer", "note")
        if n == 4:
            return Lost("away")
        if n == 6:
            return Completion(f"Answer: {name}", finished=False)
        note = f"\nNote: {n}" if n % 2 else ""
        return Completion("nothing" if n == 8 else f"Answer: {name} {n}{note}", read=9, wrote=9, truth={"right": n > 5})

    answer.__qualname__ = f"says_{name}"
    return answer


ANSWER = InRole(
    by="who", prompt="{{ text }}", reads={"answer": r"Answer:([^\n]*)", "note": r"Note:(.*)"}, optional=("note",),
    decoding=Decoding(temperature=0.0, max_new=64),
)  # fmt: skip


def test_each_row_is_asked_of_the_teacher_that_it_names(tmp_path: Path) -> None:
    found = stands(ANSWER, ROLES, tmp_path, a=says("a"), b=says("b"))
    assert {row["n"]: row["answer"] for row in found.rows} == {
        n: f"{'ab'[n % 2]} {n}" for n in range(12) if n not in (4, 6, 8)
    }
    assert {row["n"]: row.get("note") for row in found.rows if row["n"] % 2} == {n: str(n) for n in range(1, 12, 2)}
    assert all("note" not in row for row in found.rows if not row["n"] % 2)
    assert all(row["_truth"] == {"right": row["n"] > 5} for row in found.rows)
    assert found.why() == ["away", "the answer says nothing that is its answer", "the answer was cut off"]


def test_rows_without_the_condition_pass_unasked(tmp_path: Path) -> None:
    step = InRole(by="who", prompt="{{ text }}", reads={"answer": "(.+)"}, when="todo")
    seen = Seen(lambda ask, rng: "yes")
    rows = outcome(plan(step, ROLES, a=seen, b=seen), tmp_path / "run").rows
    assert len(rows) == 12 and len(seen.asked) == 4
    assert all((row.get("answer") == "yes") == row["todo"] for row in rows)
    none = [{**row, "todo": False} for row in ROLES]
    step = InRole(by="who", prompt="{{ unheard_of }}", reads={"answer": "(.+)"}, when="todo")
    assert len(outcome(plan(step, none, a=seen, b=seen), tmp_path / "none").rows) == 12  # nobody has what it reads yet


def test_a_teacher_that_nobody_knows(tmp_path: Path) -> None:
    rows = [{"text": "x", "who": "z"}, {"text": "y", "who": "a"}, {"text": "w"}]
    step = InRole(by="who", prompt="{{ text }}", reads={"answer": "(.+)"})
    found = outcome(plan(step, rows, a=lambda ask, rng: "yes"), tmp_path / "run")
    assert found.column("text") == ["y"] and found.why() == ["no teacher 'None'", "no teacher 'z'"]


def test_all_teachers_of_a_step_are_checked_before_the_first_call(tmp_path: Path) -> None:
    step = InRole(by="who", prompt="{{ text }}", reads={"answer": "(.+)"}, teachers=("a", "x"))
    with pytest.raises(RunError, match="asks the teacher 'x', but the recipe's teachers are a"):
        outcome(plan(step, ROLES, a=silent), tmp_path / "run")
    sure = InRole(by="who", prompt="{{ text }}", reads={"answer": "(.+)"}, decoding=Decoding(logprobs=True))
    with pytest.raises(RunError, match="needs logprobs of the teacher 'a', which gives text"):
        outcome(plan(sure, ROLES, a=silent, b=silent), tmp_path / "sure")


# -- reviews -----------------------------------------------------------------------------------------------------------

REVIEWED = [{"text": f"ü{i}", "reviewers": ["a", "b", "c"][: 1 + i % 3], "n": i} for i in range(15)]
RUBRIC = {"clear": "it is", "true": "it is"}


def marks(name: str, n: int) -> dict[str, float]:
    rng = random.Random(f"{name} {n}")
    return {"clear": rng.randrange(11), "true": rng.randrange(11), "hard": rng.randrange(11)}


def reviewer(name: str) -> Any:
    def review(ask: Ask, rng: random.Random) -> Any:
        n = ask.about["n"]
        if n == 7 and name == "b":
            return "clear: 3"
        if n == 8 and name == "c":
            return Lost("away")
        words = "none" if name == "a" else f"{name} wants more"
        return "\n".join([*(f"- **{k}**: {v}/10" for k, v in marks(name, n).items()), f"Critique: {words}"])

    review.__qualname__ = f"reviewer_{name}"
    return review


def test_mean_and_spread_of_the_reviews(tmp_path: Path) -> None:
    step = Reviews(rubric=RUBRIC, besides={"hard": "is it"})
    found = stands(step, REVIEWED, tmp_path, **{name: reviewer(name) for name in "abc"})
    assert {row["n"] for row in found.rows} == set(range(15)) - {7, 8}
    for row in found.rows:
        each = [(m["clear"] + m["true"]) / 2 for name in row["reviewers"] for m in [marks(name, row["n"])]]
        assert row["score"] == pytest.approx(statistics.fmean(each))
        assert row["score_std"] == pytest.approx(statistics.pstdev(each))
        assert row["hard"] == pytest.approx(statistics.fmean(marks(name, row["n"])["hard"] for name in row["reviewers"]))
        assert row["critiques"] == "\n".join(f"- {name} wants more" for name in row["reviewers"] if name != "a")
    assert found.why() == ["1 of 2 reviews say what was asked for", "away"]
    assert len(next(row for row in found.lost if row["row"]["n"] == 8)["row"]["reviews"]) == 2


def test_each_reviewer_is_asked_once(tmp_path: Path) -> None:
    step = Reviews(rubric=RUBRIC, besides={"hard": "is it"})
    found = outcome(plan(step, REVIEWED, **{name: reviewer(name) for name in "abc"}), tmp_path / "run")
    assert {name: found.paid[name]["calls"] for name in "abc"} == {"a": 15, "b": 10, "c": 4}  # one of c's was lost
    seen = Seen(lambda ask, rng: "clear: 1\ntrue: 2\nhard: 3")
    outcome(plan(step, REVIEWED[:1], a=seen), tmp_path / "words")
    ((_, words),) = seen.asked[0].messages
    assert all(line in words for line in ("clear: it is", "true: it is", "hard: is it", "from 0 to 10", "ü0"))


def test_rows_that_nobody_reviews_are_lost(tmp_path: Path) -> None:
    rows = [{"text": "x", "reviewers": []}, {"text": "y", "reviewers": ["a"], "n": 1}]
    found = outcome(plan(Reviews(rubric=RUBRIC), rows, a=lambda ask, rng: "clear: 1\ntrue: 2"), tmp_path / "run")
    assert found.column("score") == [1.5] and found.why() == ["0 of 0 reviews say what was asked for"]


def test_critiques() -> None:
    texts = ["Critique: none", "**Critique:** too long.\nCritique: too short", "critique - x", "CRITIQUE: None.", ""]
    assert critiques_in(texts) == "- too short"


def test_the_steps_survive_yaml() -> None:
    for step in (Cast(each=2), ANSWER, Reviews(rubric=RUBRIC)):
        assert spec(to_plain(step)) == step
