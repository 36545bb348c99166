"""What judges say is read as it is meant or not at all, and a judge that prefers a place abstains."""

from __future__ import annotations

import random
import statistics
from pathlib import Path
from typing import Any

import pytest

from stillhouse.cli.door import spec
from stillhouse.core.recipe import to_plain
from stillhouse.core.run import RunError
from stillhouse.synth.budget import Budget
from stillhouse.synth.judge import Judge, Pairwise
from stillhouse.synth.parse import choice_in, number_in
from stillhouse.teachers.scripted import chance_of
from stillhouse.teachers.text import Ask, Decoding, Lost

from .talk import Seen, outcome, plan, stands

ROWS = [{"text": f"Größe {i} 🚲", "n": i} for i in range(12)]
DRAWN = Decoding(temperature=1.0, max_new=32)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("8", 8.0), ("Score: 7.5", 7.5), ("8/10", 8.0), ("**8** / 10", 8.0), ("I give it 8 out of 10.", 8.0), ("-1", -1.0),
        ("First 3, then 4.", 4.0), ("none", None), ("", None), ("GPT4 is good", None), ("v2.0.1", None), ("1,000", None),
        ("7.", 7.0), ("9 of 10", 9.0), ("10/10", 10.0),
    ],
)  # fmt: skip
def test_the_number_of_a_reply(text: str, number: float | None) -> None:
    assert number_in(text) == number


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("1", "1"), ("2.", "2"), ("Tie", "tie"), ("**2**", "2"), ("Answer 1 is better.", "1"), ("[[2]]", "2"), ("", None),
        ("1 is better than 2", None), ("Answer 1 is wordy, answer 2 is not. Verdict: 2", "2"), ("12", None), ("1.5", None),
        ("The better answer is 1, not 2.", "1"), ("neither", None), ("it's a tie", "tie"), ("[[1]] no, [[2]]", "2"),
    ],
)  # fmt: skip
def test_the_choice_of_a_reply(text: str, choice: str | None) -> None:
    assert choice_in(text) == choice


def mark(ask: Ask, rng: random.Random) -> Any:
    n = ask.about["n"]
    return Lost("away") if n == 0 else "no idea" if n == 1 else "99" if n == 2 else f"I say {n - 2}/10"


def test_one_number_for_every_row(tmp_path: Path) -> None:
    found = stands(Judge(), ROWS, tmp_path, judge=mark)
    assert {row["n"]: row["score"] for row in found.rows} == {n: float(n - 2) for n in range(3, 12)}
    assert found.why() == ["away"] + ["the judge did not say what was asked for"] * 2
    assert {row["row"]["n"]: row["row"].get("reviews") for row in found.lost} == {0: None, 1: ["no idea"], 2: ["99"]}
    assert all("score_std" not in row for row in found.rows)
    assert len(stands(Judge(), ROWS[5:6], tmp_path / "one", judge=mark).rows) == 1


def test_rows_below_the_least_are_lost_with_their_mark(tmp_path: Path) -> None:
    found = stands(Judge(least=5), ROWS[3:], tmp_path, judge=mark)
    assert sorted(found.column("score")) == [5.0, 6.0, 7.0, 8.0, 9.0]
    assert sorted(row["numbers"]["mean"] for row in found.lost) == [1.0, 2.0, 3.0, 4.0]
    assert set(found.why()) == {"score below 5"}


def draw(ask: Ask, rng: random.Random) -> str:
    return str(rng.randrange(0, 11)) if ask.about["n"] % 4 or rng.random() < 0.5 else "hm"


def test_several_reviewers_have_a_mean_and_a_spread(tmp_path: Path) -> None:
    seen = Seen(draw)
    step = Judge(reviewers=5, decoding=DRAWN, enough=1)
    found = outcome(plan(step, ROWS, judge=seen), tmp_path / "run")
    assert len(seen.asked) == 60 and len({(ask.messages, ask.seed) for ask in seen.asked}) == 60
    drawn: dict[int, list[float]] = {n: [] for n in range(12)}
    for ask in seen.asked:  # the same answers again: a script's chance depends on the ask alone
        said = draw(ask, chance_of(ask))
        drawn[ask.about["n"]] += [float(said)] if said != "hm" else []
    for row in found.rows:
        assert row["score"] == pytest.approx(statistics.mean(drawn[row["n"]]))
        assert row["score_std"] == pytest.approx(statistics.pstdev(drawn[row["n"]]))
    strict = stands(Judge(reviewers=5, decoding=DRAWN, most_std=2.5), ROWS, tmp_path / "strict", judge=draw)
    whole = {n: marks for n, marks in drawn.items() if len(marks) == 5}
    assert {row["n"] for row in strict.rows} == {n for n, marks in whole.items() if statistics.pstdev(marks) <= 2.5}
    assert any(why.endswith("of 5 reviews say what was asked for") for why in strict.why())


def criteria(ask: Ask, rng: random.Random) -> str:
    n = ask.about["n"]
    return f"- **Clear**: {n % 5}/10\nRight = {n % 3}" + ("" if n % 4 else "\n(right enough)") if n else "Clear: 3"


def test_a_rubric_has_a_number_for_every_criterion(tmp_path: Path) -> None:
    step = Judge(rubric={"clear": "easy to read", "right": "no error"})
    seen = Seen(criteria)
    found = outcome(plan(step, ROWS, judge=seen), tmp_path / "run")
    assert "- clear: easy to read\n- right: no error\n" in seen.asked[0].messages[-1][1]
    assert len(found.rows) == 11 and found.why() == ["the judge did not say what was asked for"]
    for row in found.rows:
        assert row["score_by"] == {"clear": row["n"] % 5, "right": row["n"] % 3}
        assert row["score"] == (row["n"] % 5 + row["n"] % 3) / 2
    stands(step, ROWS, tmp_path / "stands", judge=criteria)


@pytest.mark.parametrize(
    "settings",
    [
        {"reviewers": 0}, {"reviewers": 2}, {"lowest": 5, "highest": 5}, {"enough": 2}, {"least": 11}, {"most_std": 1.0},
        {"reviewers": 2, "decoding": DRAWN, "most_std": -1.0},
    ],
)  # fmt: skip
def test_settings_that_cannot_be(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Judge(**settings)


def test_a_judge_goes_through_yaml_and_names_a_wrong_column(tmp_path: Path) -> None:
    step = Judge(prompt="{{ answr }}", rubric={"a": "b"}, reviewers=2, decoding=DRAWN)
    assert spec(to_plain(step)) == step
    seen = Seen(mark)
    with pytest.raises(RunError, match="reads a column 'answr', which no row has; did you mean 'answer'"):
        outcome(plan(step, [{"answer": "x"}], judge=seen), tmp_path / "run")
    with pytest.raises(RunError, match="reads a column 'frist', which no row has; did you mean 'first'"):
        outcome(plan(Pairwise(first="frist", second="b"), [{"first": "x", "b": "y"}], judge=seen), tmp_path / "pair")
    assert not seen.asked


def test_a_spent_budget_loses_what_was_not_judged(tmp_path: Path) -> None:
    recipe = plan(Judge(reviewers=3, decoding=DRAWN), [{"text": "a", "n": 4}, {"text": "b", "n": 5}], judge=mark)
    found = outcome(recipe.set("make.budgets", {"judge": Budget(calls=4)}), tmp_path / "run")
    assert len(found.rows) == 1 and found.why() == ["the budget of 4 calls for the teacher 'judge' is spent"]
    assert found.lost[0]["row"]["reviews"] == ["I say 3/10"]


# -- two answers -----------------------------------------------------------------------------------------------------

PAIRS = [{"question": f"q{i}", "a": f"{'x' * i}", "b": f"{'y' * (6 - i)}", "n": i} for i in range(7)]


def longer(ask: Ask, rng: random.Random) -> str:
    """A fair judge of length."""
    one, two = len(ask.about["one"]), len(ask.about["two"])
    return "1" if one > two else "2" if two > one else "tie"


def first(ask: Ask, rng: random.Random) -> str:
    """One that likes what it reads first, unless the other is much longer."""
    return "2" if len(ask.about["two"]) > len(ask.about["one"]) + 3 else "1"


def test_a_fair_judge_is_believed(tmp_path: Path) -> None:
    seen = Seen(longer)
    outcome(plan(Pairwise(first="a", second="b"), PAIRS, judge=seen), tmp_path / "run")
    assert len(seen.asked) == 14
    forth, back = (ask.messages[-1][1] for ask in seen.asked[2:4])
    assert forth.startswith("q1\n\nAnswer 1:\nx\n\nAnswer 2:\nyyyyy\n") and "Answer 1:\nyyyyy\n\nAnswer 2:\nx\n" in back
    found = stands(Pairwise(first="a", second="b"), PAIRS, tmp_path / "stands", judge=longer)
    assert {row["n"]: row["better"] for row in found.rows} == {
        **{n: "b" for n in range(3)},
        3: "tie",
        4: "a",
        5: "a",
        6: "a",
    }
    none = stands(Pairwise(first="a", second="b", ties=False), PAIRS, tmp_path / "none", judge=longer)
    assert none.why() == ["a tie"] and len(none.rows) == 6


def test_a_judge_that_prefers_a_place_abstains(tmp_path: Path) -> None:
    found = stands(Pairwise(first="a", second="b"), PAIRS, tmp_path, judge=first)
    decided = {0: "b", 1: "b", 5: "a", 6: "a"}
    assert {row["n"]: row["better"] for row in found.rows} == decided
    assert found.why() == ["the judge says another thing in the other order"] * 3
    assert all(row["numbers"] == {"forth": "a", "back": "b"} for row in found.lost)
    kept = stands(Pairwise(first="a", second="b", undecided=True), PAIRS, tmp_path / "kept", judge=first)
    assert {row["n"]: row.get("better") for row in kept.rows} == {**dict.fromkeys(range(7)), **decided}


def unclear(ask: Ask, rng: random.Random) -> Any:
    return Lost("away") if ask.about["n"] == 1 else "1 or 2" if ask.about["n"] == 2 else longer(ask, rng)


def test_a_comparison_that_cannot_be_read_is_lost_with_the_answers(tmp_path: Path) -> None:
    found = stands(Pairwise(first="a", second="b"), PAIRS, tmp_path, judge=unclear)
    lost = {row["row"]["n"]: (row["_why"], row["row"].get("reviews")) for row in found.lost}
    assert lost == {1: ("away", None), 2: ("the judge did not say what was asked for", ["1 or 2", "1 or 2"])}
    some = stands(Pairwise(first="a", second="b"), [*PAIRS[3:], {"a": "x", "n": 9}], tmp_path / "some", judge=longer)
    assert some.why() == ["no b"]
    with pytest.raises(ValueError):
        Pairwise(first="a", second="a")


def test_the_same_text_twice_is_a_tie_that_nobody_is_asked_about(tmp_path: Path) -> None:
    seen = Seen(longer)
    rows = [*PAIRS[:2], {"a": "same", "b": "same", "n": 8}, *PAIRS[4:]]
    found = outcome(plan(Pairwise(first="a", second="b"), rows, judge=seen), tmp_path / "run")
    assert [row["better"] for row in found.rows] == ["b", "b", "tie", "a", "a", "a"] and len(seen.asked) == 10
    stands(Pairwise(first="a", second="b", ties=False), rows, tmp_path / "stands", judge=longer)
