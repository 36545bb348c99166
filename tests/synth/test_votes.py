"""Votes of groups, against counting by hand."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from stillhouse.core.run import RunError
from stillhouse.synth.votes import Vote, meaning

from .onestep import content, named, once, through


def rows(*groups: str) -> list[dict[str, Any]]:
    return [
        {"question": f"q{i}", "answer": a, "n": n} for i, group in enumerate(groups) for n, a in enumerate(group.split())
    ]


def test_the_majority_passes_and_says_its_share(tmp_path: Path) -> None:
    kept, gone = through(Vote(group="question"), rows("Paris paris. Rome", "1 2 3", "a"), tmp_path)
    assert [(row["question"], row["n"], row["vote_share"]) for row in kept] == [
        ("q0", 0, 2 / 3),
        ("q0", 1, 2 / 3),
        ("q2", 0, 1.0),
    ]
    assert len({row["vote"] for row in kept if row["question"] == "q0"}) == 1
    assert Counter(each["why"] for each in gone) == {"outvoted in its group": 1, "nothing has 50% of its group's votes": 3}


@pytest.mark.parametrize(
    ("by", "one", "other", "same"),
    [
        ("number", "Answer: 1,000", "so \\boxed{1e3}", True),
        ("number", "1/2", "0.5", True),
        ("number", "0", "-0.0", True),
        ("choice", "Answer: (c)", "C. because", True),
        ("words", "Answer: Über alles", "ÜBER, ALLES!", True),
        ("whole", "Answer: 5", "5", False),
        ("words", "東京", "東京都", False),
    ],
)
def test_what_counts_as_the_same(by: Any, one: str, other: str, same: bool) -> None:
    assert (meaning(one, by) == meaning(other, by)) is same
    assert meaning("", by) is None and (by != "number" or meaning("0", by) == Fraction(0))


def test_what_cannot_be_read_counts_against_everything(tmp_path: Path) -> None:
    step = Vote(group="question", by="number", least=0.5)
    kept, gone = through(step, rows("4 4 x y z", "4 4 x", "x y"), tmp_path)
    assert [(row["question"], row["vote_share"]) for row in kept] == [("q1", 2 / 3)] * 2
    assert Counter(each["why"] for each in gone) == {
        "nothing has 50% of its group's votes": 5,
        "it says nothing that can be counted": 1,
        "nobody in its group says anything that can be counted": 2,
    }


def test_ties_abstain_or_are_drawn_by_content(tmp_path: Path) -> None:
    data = [{"question": f"q{i}", "answer": a} for i in range(40) for a in ("yes", "no")]
    kept, gone = through(Vote(group="question"), data, tmp_path)
    assert not kept and {each["why"] for each in gone} == {"a tie in its group"}
    kept, gone = through(Vote(group="question", tie="first"), data, tmp_path)
    assert len(kept) == 40 and all(row["answer"] == row["vote"] for row in kept)
    assert 5 < sum(row["answer"] == "yes" for row in kept) < 35  # neither always the first by the alphabet nor by order


def test_few_voters_weights_and_keeping(tmp_path: Path) -> None:
    kept, gone = through(Vote(group="question", voters=3), rows("a a", "b b b"), tmp_path)
    assert {row["question"] for row in kept} == {"q1"} and {each["why"] for each in gone} == {
        "fewer than 3 rows in its group"
    }
    weighed = [{**row, "w": 3.0 if row["answer"] == "b" else 1.0} for row in rows("a a b")]
    kept, _ = through(Vote(group="question", weight="w"), weighed, tmp_path)
    assert [(row["answer"], row["vote_share"]) for row in kept] == [("b", 0.6)]
    kept, gone = through(Vote(group="question", keep=True, into="said"), rows("a a b", "x y"), tmp_path)
    assert not gone and [row.get("said") for row in kept] == ["a", "a", "a", None, None]


@pytest.mark.parametrize("weight", [-1.0, float("nan"), "much", None])
def test_a_weight_that_is_none_is_named(weight: Any, tmp_path: Path) -> None:
    table = named([{"question": "q", "answer": "a", "w": 1.0}, {"question": "q", "answer": "b", "w": weight}])
    with pytest.raises(RunError, match="weight is a number"):
        once(Vote(group="question", weight="w"), table, tmp_path)


def test_a_wrong_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="did you mean 'question'"):
        once(Vote(group="qestion"), named(rows("a")), tmp_path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    some.lists(some.tuples(some.integers(0, 3), some.sampled_from("abc ")), max_size=20), some.sampled_from([0.0, 0.4, 0.7])
)
def test_as_counted_by_hand(tmp_path: Path, given_: list[tuple[int, str]], least: float) -> None:
    table = named({"group": g, "answer": a, "n": n} for n, (g, a) in enumerate(given_))
    kept, _ = once(Vote(group="group", least=least), table, tmp_path)
    wanted = []
    for row in table:
        mine = [other["answer"] for other in table if other["group"] == row["group"]]
        counts = Counter(a for a in mine if a != " ").most_common()
        if counts and row["answer"] == counts[0][0] and (len(counts) == 1 or counts[0][1] > counts[1][1]):
            if counts[0][1] / len(mine) >= least:
                wanted.append({**row, "vote": row["answer"], "vote_share": counts[0][1] / len(mine)})
    assert content(kept) == content(wanted)
