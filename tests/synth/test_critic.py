"""A critic's weights are those of the textbook, its thresholds keep what they promise, and verdicts count more than it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from stillhouse.cli.door import spec
from stillhouse.core.recipe import to_plain
from stillhouse.core.run import RunError
from stillhouse.synth.critic import Critic, features, fitted, for_precision, for_recall, verdict_of

from .talk import known, outcome, plan

GOOD, BAD, BOTH = "clear brief true über kind".split(), "vague long false naja rude".split(), "the a of and it 🚲".split()


def rows_of(count: int, judged: int, noise: float = 0.1) -> list[dict[str, Any]]:
    rng, rows = random.Random(4), list[dict[str, Any]]()
    for i in range(count):
        good = rng.random() < 0.5
        words = [
            rng.choice(BOTH if rng.random() < 0.6 else GOOD if good != (rng.random() < noise) else BAD) for _ in range(8)
        ]
        row: dict[str, Any] = {"text": f"{' '.join(words)} {i}", "good": good}
        rows.append({**row, "verdict": good} if i < judged else row)
    return rows


def test_the_weights_are_those_of_scikit_learn() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    sparse = pytest.importorskip("scipy.sparse")
    rows = rows_of(120, 120)
    texts, good = [row["text"] for row in rows], [row["good"] for row in rows]
    for strength in (0.1, 10.0):
        ours = fitted(texts, good, strength, 512)
        where, columns, values = features(texts, 512)
        table = sparse.csr_matrix((values, (where, columns)), shape=(len(texts), 512))
        theirs = linear.LogisticRegression(C=strength, tol=1e-10, max_iter=10_000).fit(table, good)
        assert ours.each == pytest.approx(theirs.coef_[0], abs=2e-5) and ours.bias == pytest.approx(
            theirs.intercept_[0], abs=2e-5
        )
        assert ours.scores(texts) == pytest.approx(theirs.predict_proba(table)[:, 1], abs=1e-5)
        assert numpy.linalg.norm(table[5].toarray()) == pytest.approx(1.0)


numbers = some.lists(some.tuples(some.integers(0, 6), some.booleans()), min_size=1, max_size=30)


@settings(max_examples=200, deadline=None)
@given(numbers, some.sampled_from([0.1, 0.5, 0.8, 0.9, 1.0]))
def test_thresholds_are_the_best_of_all(pairs: list[tuple[int, bool]], aim: float) -> None:
    scores, good = numpy.array([s / 7 for s, _ in pairs]), numpy.array([g for _, g in pairs])
    every = sorted(set(scores.tolist()))
    if good.any():
        fine = [t for t in every if (scores[good] >= t).mean() >= aim - 1e-9]
        assert for_recall(scores, good, aim) == max(fine)
    fine = [t for t in every if good[scores >= t].mean() >= aim - 1e-9]
    assert for_precision(scores, good, aim) == (min(fine) if fine else None)


@pytest.mark.parametrize("aim", [{"recall": 0.9}, {"precision": 0.8}])
def test_rows_without_a_verdict_are_scored(aim: dict[str, float], tmp_path: Path) -> None:
    rows = rows_of(600, 300)
    step = Critic(buckets=2**12, **aim)
    found = outcome(plan(step, rows), tmp_path / "a" / "run")
    other = outcome(plan(step, rows[::-1]), tmp_path / "b" / "run")
    assert known(found.rows) == known(other.rows) and known(found.lost) == known(other.lost)
    judged = [row for row in found.rows if "verdict" in row]
    assert all(row["verdict"] for row in judged) and len(judged) == sum(row["good"] for row in rows[:300])
    new = [row for row in found.rows if "verdict" not in row]
    (event,) = [event for event in found.run.read("events.jsonl") if event["event"] == "critic"]
    name, least = next(iter(aim.items()))
    assert event[name] >= least - 1e-9 and event["verdicts"] + event["held"] == 300
    # what it promises on held-out verdicts it keeps, about, on rows that it has never seen
    right = sum(row["good"] for row in new)
    truth = {"precision": right / len(new), "recall": right / sum(row["good"] for row in rows[300:])}
    assert truth[name] > least - 0.1 and all(row["critic"] >= event["threshold"] for row in new)
    bad = [row for row in found.lost if row["_why"] == "the critic finds it bad"]
    assert bad and all(row["numbers"]["score"] < row["numbers"]["threshold"] == event["threshold"] for row in bad)
    assert len(found.rows) + len(found.lost) == 600


def test_a_verdict_can_be_written_in_several_ways() -> None:
    assert [verdict_of(x) for x in (True, 1, "Yes", "good", 1.0, "TRUE ")] == [True] * 6
    assert [verdict_of(x) for x in (False, 0, "no", "Bad", 0.0)] == [False] * 5
    assert [verdict_of(x) for x in (None, "", " ")] == [None] * 3
    with pytest.raises(RunError, match="and not 'perhaps'"):
        verdict_of("perhaps")


def test_siblings_are_held_out_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stillhouse.synth import critic
    from stillhouse.synth.grid import Grid

    fits: list[list[str]] = []
    whole = critic.fitted
    monkeypatch.setattr(critic, "fitted", lambda texts, *rest: fits.append(list(texts)) or whole(texts, *rest))
    steps = {"grid": Grid(axes={"part": [1, 2, 3]}, per_row=True), "critic": Critic(recall=0.9, buckets=256)}
    outcome(plan(steps, rows_of(60, 60)), tmp_path / "run")
    assert all(count == 3 for count in (fits[0].count(text) for text in fits[0])) and 60 < len(fits[0]) < 180


def test_what_cannot_be_is_one_line(tmp_path: Path) -> None:
    rows = rows_of(100, 60)
    with pytest.raises(RunError, match="needs 5 verdicts of each kind to learn from, and has 0 good"):
        outcome(plan(Critic(recall=0.9), [{**row, "verdict": False} for row in rows]), tmp_path / "a")
    with pytest.raises(RunError, match="the critic reads a column 'verdit', which no row has; did you mean 'verdict'"):
        outcome(plan(Critic(recall=0.9, verdict="verdit"), rows), tmp_path / "b")
    noise = [{"text": f"same words {i % 3}", "n": i, "verdict": bool(i * 7 // 3 % 2)} for i in range(100)]
    with pytest.raises(RunError, match="at no threshold 0.99 of what the critic keeps is good .* lower precision"):
        outcome(plan(Critic(precision=0.99), noise), tmp_path / "c")
    for wrong in ({}, {"recall": 0.5, "precision": 0.5}, {"recall": 0.0}, {"precision": 1.2}, {"recall": 0.9, "held": 1.0}):
        with pytest.raises(ValueError):
            Critic(**wrong)
    assert spec(to_plain(Critic(recall=0.9))) == Critic(recall=0.9)


def test_a_row_without_text_is_lost_and_no_row_is_no_trouble(tmp_path: Path) -> None:
    from stillhouse.synth.flow import Branch

    rows = [*rows_of(100, 80), {"text": " ", "good": True}]
    found = outcome(plan(Critic(recall=1.0, buckets=256), rows), tmp_path / "a" / "run")
    assert "no text" in found.why()
    nobody = Branch(on="nothing", ways={"at all": {"critic": Critic(recall=0.9)}})
    assert len(outcome(plan({"branch": nobody}, rows), tmp_path / "b" / "run").rows) == 101


def test_a_text_without_n_grams_has_no_features() -> None:
    rows, columns, values = features(["", "a word", "\N{BICYCLE}"], 64)
    assert set(rows.tolist()) <= {1, 2} and 1 in rows and len(rows) == len(columns) == len(values)
    assert features([""], 64)[2].shape == (0,)
