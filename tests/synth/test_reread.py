"""A critic that reads several lines: with one line it is the plain one, and its score is the mean over lines."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy
import pytest

from stillhouse.core.run import RunError
from stillhouse.synth.critic import Critic, Weights, fitted
from stillhouse.synth.names import NAMES, Readings, named, unnamed
from stillhouse.synth.reread import Mean, Reread, lines_of

from .onestep import through
from .talk import outcome, plan


def rows_of(count: int, judged: int, lines: int) -> list[dict[str, Any]]:
    rng, rows = random.Random(1), list[dict[str, Any]]()
    for i in range(count):
        good = rng.random() < 0.5
        words = [rng.choice(("clear", "brief") if good != (rng.random() < 0.2) else ("vague", "long")) for _ in range(3)]
        text = "\n".join(f"{rng.choice(NAMES)} {' '.join(words)} {i}" for _ in range(lines))
        rows.append({"text": text, "good": good, **({"verdict": good} if i < judged else {})})
    return rows


def test_with_one_line_it_is_the_plain_critic(tmp_path: Path) -> None:
    rows = rows_of(200, 100, 1)
    ours = outcome(plan(Reread(recall=0.7), rows), tmp_path / "a" / "run")
    theirs = outcome(plan(Critic(recall=0.7), rows), tmp_path / "b" / "run")
    said = [{row["text"]: round(row["critic"], 6) for row in found.rows} for found in (ours, theirs)]
    assert said[0].keys() == said[1].keys() and said[0] == pytest.approx(said[1], abs=2e-3)


def test_several_lines_are_averaged_and_the_threshold_keeps_the_recall_on_held_out_means(tmp_path: Path) -> None:
    rows = rows_of(400, 200, 3)
    found = outcome(plan(Reread(recall=0.8), rows), tmp_path / "run")
    (told,) = [e for e in found.run.read("events.jsonl") if e["event"] == "critic_lines"]
    assert told["recall"] >= 0.8 and told["precision"] > told["base"]
    rest = [row for row in found.rows if "verdict" not in row or row["verdict"] is None]
    assert min(row["critic"] for row in rest) >= told["threshold"]
    lost = [row["numbers"] for row in found.lost if row["_why"] == "the critic finds it bad"]
    assert lost and all(n["score"] < n["threshold"] == told["threshold"] for n in lost)
    kept = [row["good"] for row in rest]
    assert sum(kept) / len(kept) > 0.7  # half of the rows are good


def test_the_mean_over_lines_by_hand() -> None:
    plain = fitted(["good one", "bad one", "good two", "bad two"], [True, False, True, False], 10.0, 512)
    mean = Mean(plain.each, plain.bias)
    texts = ["good one\n\nbad two\nnew", "good"]
    by_hand = [numpy.mean([Weights.scores(plain, [line])[0] for line in lines_of(t)]) for t in texts]
    assert mean.scores(texts) == pytest.approx(by_hand)
    assert len(mean.scores([])) == 0


def test_too_few_verdicts_are_told(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="needs 5 verdicts of each kind"):
        outcome(plan(Reread(recall=0.5), rows_of(30, 4, 2)), tmp_path / "run")


def test_readings_differ_in_the_name_alone(tmp_path: Path) -> None:
    rows = [
        {
            "statement": "PersonX lost PersonX's key. PersonX then feels sad",
            "head": "PersonX lost the key",
            "tail": "sad über",
        }
    ]
    (row,), _ = through(Readings(lines=4, pairs=("head", "tail")), rows, tmp_path)
    lines = row["text"].split("\n")
    names = [line.split()[0] for line in lines]
    assert len(set(names)) == 4 and set(names) <= set(NAMES)
    assert {unnamed(line, name) for line, name in zip(lines, names, strict=True)} == {rows[0]["statement"] + " lost_über"}
    assert named("PersonXY PersonX", "Bo") == "PersonXY Bo"
