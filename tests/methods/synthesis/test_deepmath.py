"""DeepMath: which tests a judge is shown, what becomes of its verdict, and what each stage finds of known faults."""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest

from chatserver import ChatServer
from language import Folders, write_jsonl
from stillhouse.cli.results import findings
from stillhouse.core.run import Run, RunError
from stillhouse.core.stage import execute
from stillhouse.data.tasks import Chain
from stillhouse.methods.synthesis.deepmath import NoParaphrase, proof, recipe
from stillhouse.synth.decontaminate import Decontaminate
from stillhouse.synth.dedup import Hashed, vectors_of
from stillhouse.synth.pools import GOOD, StoryPool
from stillhouse.synth.scripts.examiner import Examiner
from stillhouse.synth.synthesize import lost_rows, made_rows
from stillhouse.synth.table import Table
from stillhouse.teachers.scripted import Scripted
from stillhouse.teachers.text import Ask, Lost
from synth.talk import Seen, outcome, plan, stands

TESTS = [f"Question {i} about {word} and größe" for i, word in enumerate("birds trains cakes rivers chess wool tea".split())]
POOL = StoryPool(chain=Chain(ops=(2, 3), train=200, valid=20, test=80), copies=20, again=40, near=40, easy=20)
SURE = Scripted(script=Examiner(missed=0.0, alarmed=0.0))


def judge(ask: Ask, rng: random.Random) -> Any:
    words = ask.about["question"]
    if "away" in words:
        return Lost("away")
    same = [number for number, test in enumerate(ask.about["tests"], 1) if test.split()[3] in words]
    return "no idea" if "odd" in words else "99" if "far" in words else f"**{same[0]}**" if same else "0"


def step(tmp_path: Path, **settings: Any) -> NoParaphrase:
    return NoParaphrase(paths=(str(write_jsonl(tmp_path / "tests.jsonl", [{"question": t} for t in TESTS])),), **settings)


def test_the_judge_sees_the_nearest_tests_and_is_believed(tmp_path: Path) -> None:
    texts = ["all about birds", "trains there", "what is love", "odd birds", "far birds", "away birds", "größe", "cakes"]
    seen = Seen(judge)
    found = stands(step(tmp_path, k=3), [{"question": t, "n": i} for i, t in enumerate(texts)], tmp_path, judge=seen)
    assert sorted(row["n"] for row in found.rows) == [2, 6]
    whys = {row["row"]["n"]: row["_why"] for row in found.lost}
    same, unread = "it asks what a test asks", "the judge did not say what was asked for"
    assert whys == {0: same, 1: same, 7: same, 3: unread, 4: unread, 5: "away"}
    told = next(row["numbers"] for row in found.lost if row["row"]["n"] == 0)
    assert told["test"] == "tests.jsonl row 1" and told["says"] == TESTS[0] and 0 < told["alike"] < 1
    vectors, run = vectors_of(TESTS, Hashed(), Run(tmp_path / "r")), Run(tmp_path / "r")
    for ask in seen.asked:  # against all cosines, one by one
        cosines = [float(numpy.dot(vectors_of([ask.about["question"]], Hashed(), run)[0], v)) for v in vectors]
        best = sorted(range(len(TESTS)), key=lambda i: (-cosines[i], i))[:3]
        assert ask.about["tests"] == [TESTS[i] for i in best]
        assert all(f"{n}. {TESTS[i]}" in ask.messages[0][1] for n, i in enumerate(best, 1))


def test_rows_without_a_test_to_show_pass_unasked(tmp_path: Path) -> None:
    seen = Seen(judge)
    rows = [{"question": "completely unlike xyz"}, {"question": TESTS[0]}, {"question": " "}]
    found = outcome(plan(step(tmp_path, least=0.9), rows, judge=seen), tmp_path / "run")
    assert [row["question"] for row in found.rows] == [rows[0]["question"]]
    assert [ask.about["tests"] for ask in seen.asked] == [[TESTS[0]]]
    assert found.why() == ["it asks what a test asks", "no question"]


def test_what_is_wrong_is_said_before_anybody_is_asked(tmp_path: Path) -> None:
    seen = Seen(judge)
    with pytest.raises(RunError, match="'question', which no row has"):
        outcome(plan(step(tmp_path), [{"questions": "a"}], judge=seen), tmp_path / "a" / "run")
    with pytest.raises(RunError, match="which no row has"):
        outcome(plan(step(tmp_path, theirs="text"), [{"question": "a"}], judge=seen), tmp_path / "b" / "run")
    with pytest.raises(RunError, match="no data file"):
        outcome(plan(NoParaphrase(paths=("nowhere.jsonl",)), [{"question": "a"}], judge=seen), tmp_path / "c" / "run")
    for settings in ({"k": 0}, {"least": 2.0}):
        with pytest.raises(ValueError, match="k must be"):
            NoParaphrase(**settings)
    assert not seen.asked


def test_by_meaning_and_by_words(tmp_path: Path) -> None:
    """Paraphrases and near misses, against n-grams of 13 words."""
    rows = POOL.rows(Run(tmp_path / "r", seed=0))["train"]

    def lost(step: Any, name: str) -> Counter[str]:
        found = outcome(plan(step, rows, judge=SURE), tmp_path / name / "run")
        return Counter(row["row"]["fault"] for row in found.lost)

    meant, worded = (
        lost(NoParaphrase(data=POOL), "a"),
        lost(Decontaminate(columns=("question",), data=POOL, alike=None), "b"),
    )
    assert set(meant) == {"copy", "again"} and meant["copy"] == 20 and meant["again"] >= 36  # the rest was not retrieved
    assert worded["copy"] == 20 and worded["again"] == 0 and worded["near"] >= 10  # other words; the same but a number


def test_every_stage_finds_what_it_is_after(tmp_path: Path) -> None:
    made = recipe("smoke")
    run = Run(tmp_path / "run", seed=1)
    execute(replace(made, stages={name: made.stages[name] for name in ("make",)}), run)
    folder = run.path("make") / "steps"
    given = list(Table(next(iter(sorted(folder.glob("*given*.parquet"))))))
    rows = list(made_rows(run, "make"))
    assert len({row["number"] for row in rows}) == len(rows) > 60
    assert all(
        {"question", "truth", "topic", "difficulty", "solution_1", "solution_2", "solution_3"} <= set(row) for row in rows
    )
    lost = {(row["row"]["number"], row["_step"]) for row in lost_rows(run, "make")}
    steps = {number: step for number, step in lost}
    for row in given:
        if row["fault"] in ("unasked", "leak"):
            assert steps[row["number"]] == {"unasked": "asked", "leak": "leaks"}[row["fault"]]
    kept = Counter(row["fault"] for row in rows)
    assert sum(kept[name] for name in GOOD) / len(rows) > 0.95
    for row in rows:  # all three agree with the answer that came with the question
        ends = {re.split("[=#]", row[f"solution_{i}"])[-1] for i in (1, 2, 3)}
        assert ends == {row["truth"].split()[0]} and row["difficulty"] >= 5.0
    agree = [row for row in lost_rows(run, "make") if row["_step"] == "agree"]
    wrong = {row["row"]["number"] for row in lost_rows(run, "make") if row["_step"] == "verify"}
    assert {row["row"]["number"] for row in agree} <= wrong


def test_the_proof_fits_together() -> None:
    from stillhouse.cli.prove import check

    check(proof())
    assert set(proof().arms["trusting"].stages["make"].steps) == set(recipe().stages["make"].steps) - {"verify", "agree"}


def test_a_users_own_pool_and_benchmark(tmp_path: Path, still: Any, chat_server: Any, folders: Folders) -> None:
    bench = [{"question": f"How many is {i} and {i} trees?", "answer": str(2 * i)} for i in range(20)]
    pool = [{"question": f"Evaluate x times {i} at x=3.", "truth": f"${3 * i}$"} for i in range(2, 9)]
    pool += [{"question": "Find the sum of 7 and 7, in trees.", "truth": "14"}, {"question": "Prove it.", "truth": "1"}]
    pool += [
        {"question": "Evaluate x times 99 at x=3.", "truth": "5"},
        {"question": "It is 42. What is 6*7?", "truth": "42"},
    ]
    write_jsonl(tmp_path / "bench.jsonl", bench), write_jsonl(tmp_path / "pool.jsonl", pool)

    def answer(words: str, body: Any) -> str:
        if "ask the same as the question" in words:
            return "1" if "in trees" in words else "0"
        if "How difficult" in words:
            return "7" if "times 2 " not in words else "3"
        if "Which of these fits" in words:
            return "Algebra"
        return f"We multiply: \\boxed{{{3 * int(re.findall(r'times ([0-9]+)', words)[0])}}}"

    server: ChatServer = chat_server(answer)
    settings = {
        "make.data.path": "pool.jsonl", "make.steps.tests.paths": "[bench.jsonl]", "data.path": "bench.jsonl",
        "make.steps.tests.embed": "{use: synth.dedup.Hashed}", "student.path": folders.student, "data.length": 200,
        "train.data.length": 200, "train.steps": 1, "train.batch": 2, "train.accumulate": 1, "train.precision": "float32",
        "train.checkpointing": "false", "audit.checks.0.sampling.max_new": 4, "audit.checks.0.precision": "float32",
    }  # fmt: skip
    for role in ("writer", "judge"):
        settings |= {f"teachers.{role}.url": server.url, f"teachers.{role}.model": "tiny"}
    parts = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    done = still("run", "deepmath", "--scale", "paper", "--runs", "runs", *parts)
    assert done.exit_code == 0, done.output
    (folder,) = (tmp_path / "runs").iterdir()
    rows = list(Table(folder / "artifacts" / "make" / "data" / "rows.parquet"))
    assert sorted(row["question"] for row in rows) == sorted(row["question"] for row in pool[1:7])
    assert all(row["difficulty"] == 7.0 and row["topic"] == "Algebra" and "boxed" in row["solution_3"] for row in rows)
    assert {"solved"} <= {f.name for f in findings(folder)}
