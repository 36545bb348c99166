"""LiteCoT: what the prompt says, what becomes of every answer, and the checks against what the scripts own to."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from language import write_jsonl
from stillhouse.core.recipe import Recipe
from stillhouse.core.run import Run, RunError
from stillhouse.core.signal import Completion
from stillhouse.core.stage import execute
from stillhouse.data.tasks import chain_steps
from stillhouse.methods.reasoning.litecot import LEVELS, Level, Prune, proof, recipe
from stillhouse.methods.traced import END
from stillhouse.synth.finals import Final
from stillhouse.synth.synthesize import lost_rows, made_rows
from stillhouse.synth.table import Table
from stillhouse.teachers.text import Ask, Lost
from synth.talk import Seen, outcome, plan, stands

LONG = "Well, let me see. 3 and 4 is 7. Wait, is it? Yes, 3 and 4 is 7. Let me count again: 7. Answer: 7"
ROWS = [{"question": f"What is 3+4? ({n})", "trace": LONG, "truth": "7", "n": n} for n in range(10)]
HARD = "Analysis: a sum.\nPlan: add.\nDerivation: 7.\nCheck: yes.\nAnswer: 7"


def rewriter(ask: Ask, rng: random.Random) -> Any:
    said: Mapping[int, Any] = {
        0: Lost("away"), 1: Completion("Difficulty: easy\n3 + 4 =", finished=False), 2: "3 + 4 = 7\nAnswer: 7",
        3: "Difficulty: unheard of\nAnswer: 7", 4: "Difficulty: easy\nAnswer: 8", 5: f"Difficulty: easy\n{LONG}",
        6: "Difficulty: hard\nAnalysis: a sum.\nCheck: yes.\nAnswer: 7", 7: f"**Difficulty:** HARD\n\n{HARD}",
        8: "difficulty: Medium (it has one step)\nStep 1: add, since it says so.\nAnswer: 7",
    }  # fmt: skip
    return said.get(ask.about["n"], "Difficulty: easy\nñ 3 + 4 = 7\nAnswer: 7")


def test_what_becomes_of_every_answer(tmp_path: Path) -> None:
    found = stands(Prune(), ROWS, tmp_path, rewriter=rewriter)
    assert {row["n"]: row["level"] for row in found.rows} == {7: "hard", 8: "medium", 9: "easy"}
    texts = {row["n"]: row["answer"] for row in found.rows}
    assert texts[7] == HARD and texts[9] == "ñ 3 + 4 = 7\nAnswer: 7" and texts[8].startswith("Step 1")
    assert all(row["trace"] == LONG and len(row["_from"]) == 1 for row in found.rows)
    assert {row["row"]["n"]: row["_why"] for row in found.lost} == {
        0: "away", 1: "the answer was cut off", 2: "it names none of the levels", 3: "it names none of the levels",
        4: "its final answer is not the truth", 5: "it is not shorter than the trace was",
        6: "the section 'Plan' of the level 'hard' is not there, or not in its place",
    }  # fmt: skip
    assert {row["row"]["n"]: row["row"].get("rewritten") for row in found.lost}[4] == "Difficulty: easy\nAnswer: 8"


def rewriter_of(level: str) -> Any:
    return lambda ask, rng: f"Difficulty: {level}\nAnswer: 7"


def test_sections_stand_in_their_order(tmp_path: Path) -> None:
    step, row = Prune(), ROWS[0]
    assert step.wrong(row, "hard", HARD) == ""
    turned = HARD.replace("Plan: add.\nDerivation: 7.", "Derivation: 7.\nPlan: add.")
    assert "'Derivation'" in step.wrong(row, "hard", turned)
    assert step.wrong(row, "easy", turned) == ""  # that level wants none


@pytest.mark.parametrize(("share", "passes"), [(1.0, True), (0.5, False), (0.6, True)])
def test_how_much_shorter_it_must_be(share: float, passes: bool) -> None:
    row = {"trace": "x" * 20, "truth": "7"}
    text = "Answer: 7 !"  # 11 characters: less than 20 and than 12, not less than 10
    assert (Prune(shorter=share).wrong(row, "easy", text) == "") == passes


def test_the_prompt_tells_every_level_and_the_trace_and_not_the_truth(tmp_path: Path) -> None:
    seen = Seen(lambda ask, rng: "Difficulty: low\nAnswer: 7")
    levels = {"low": Level(template="Briefly."), "high": Level(template="At length.", sections=("Plan", "Proof"))}
    rows = [{"question": "What is 3+4?", "trace": "Answer: 7 " + "and so on " * 9, "truth": "0.7e1"}]
    outcome(plan(Prune(levels=levels), rows, rewriter=seen), tmp_path / "run")
    ((_, words),) = seen.asked[0].messages
    assert "low: Briefly." in words and "high: At length.\nUse these headings: Plan, Proof" in words
    assert rows[0]["question"] in words and rows[0]["trace"].strip() in words and "0.7e1" not in words
    assert words.count("Use these headings") == 1 and seen.asked[0].seed == 0  # temperature 0
    outcome(plan(Prune(), rows, rewriter=(usual := Seen(rewriter_of("easy")))), tmp_path / "usual")
    assert all(level.template in usual.asked[0].messages[0][1] for level in LEVELS.values())


def test_what_cannot_be_asked_about(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"a column 'trace', which no row has.*'traces'"):
        outcome(plan(Prune(), [{"question": "q", "traces": "t", "truth": "7"}], rewriter=rewriter), tmp_path / "a")
    rows = [*ROWS[9:], {"question": "q", "trace": "t"}, {"trace": LONG, "truth": "7"}]
    found = outcome(plan(Prune(), rows, rewriter=rewriter), tmp_path / "b" / "run")
    assert found.why() == ["no question", "no truth"] and len(found.rows) == 1


@pytest.mark.parametrize("wrong", [{"levels": {}}, {"shorter": 0.0}, {"into": "_x"},
                                   {"levels": {"a": Level(template=""), "A": Level(template="")}}])  # fmt: skip
def test_settings_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Prune(**wrong)


# -- scripts -----------------------------------------------------------------------------------------------------------


def made(folder: Path, of: Recipe, train: int = 400, **script: float) -> Run:
    """The stage that makes data, with few questions and this rewriter."""
    few = replace(of, data=replace(of.data, train=train), stages={"make": of.stages["make"]})
    for name, value in script.items():
        few = few.set(f"teachers.rewriter.script.{name}", value)
    run = Run(folder, seed=100)
    execute(few, run)
    return run


def test_checks_find_what_the_rewriter_owns_to(tmp_path: Path) -> None:
    """Every trace that was corrupted or left long is lost, and hardly any other."""
    run = made(tmp_path / "run", recipe("small"), misjudged=0.1, wrong=0.15, long=0.15)
    kept = [row["_truth"] for row in made_rows(run, "make")]
    lost = [row for row in lost_rows(run, "make") if row["_step"] == "prune"]
    truths = [row["row"]["rewritten_truth"] for row in lost]
    bad = [t["wrong"] or t["long"] for t in truths]
    assert not any(t["wrong"] or t["long"] for t in kept)  # recall 1
    assert sum(bad) > 60 and sum(bad) / len(bad) > 0.9  # precision: a trace without repetition cannot be shortened
    whys = Counter(row["_why"] for row in lost if row["row"]["rewritten_truth"]["wrong"])
    assert set(whys) == {"its final answer is not the truth"}


def test_each_level_has_its_form_and_every_kept_trace_is_shorter_and_right(tmp_path: Path) -> None:
    run = made(tmp_path / "run", recipe("small"), misjudged=0.0)
    rows = list(made_rows(run, "make"))
    seen = Counter(row["level"] for row in rows)
    assert min(seen[name] for name in ("easy", "medium", "hard")) > 90
    right = 0
    for row in rows:
        answer, steps = row["answer"], chain_steps(row["question"], 7)
        assert row["level"] == {2: "easy", 3: "medium", 4: "hard"}[len(steps)]
        assert len(answer) < len(row["trace"]) and answer.endswith(f"#{row['truth']}")
        worked = {
            "easy": ";".join(steps), "medium": ";".join(steps),
            "hard": ";".join([*steps, f"~{steps[-1]}"]),
        }  # fmt: skip
        right += answer == f"{worked[row['level']]}#{row['truth']}"
    assert right / len(rows) > 0.97  # the author gets a step in fifty wrong, and the end is seldom right all the same


def test_arms_differ_in_what_is_learned_alone(tmp_path: Path) -> None:
    arms = proof().arms
    ours, long = arms["ours"].stages, arms["long"].stages
    assert long["make"] == ours["make"] and long["train"].data.answer == "trace"
    lengths, full = dict[str, float](), dict[str, float]()
    for name, arm in arms.items():
        run = made(tmp_path / name, arm, train=300)
        rows = list(made_rows(run, "make"))
        assert {row["level"] for row in rows} == ({"any"} if name in ("short", "steps") else {"easy", "medium", "hard"})
        assert replace(arm.stages["train"], data=None) == replace(ours["train"], data=None)
        packed = arm.stages["train"].data.load(run)["train"]
        documents = [document for row in packed.rows for document in row]
        lengths[name] = sum(sum(document.counts) for document in documents) / len(documents)
        full[name] = sum(len(document.tokens) for document in documents) / (len(packed.rows) * packed.length)
        assert len(documents) == len(rows)
    assert lengths["short"] < 9 < lengths["steps"] < lengths["ours"] < lengths["long"]
    assert min(full.values()) > 0.93 and max(full.values()) - min(full.values()) < 0.06, full  # as many tokens in a step


# -- own rows ----------------------------------------------------------------------------------------------------------


def worded(words: str, body: Any) -> str:
    """A teacher behind a server: it solves at length, and rewrites."""
    if "Line of thought:" not in words:
        return "Hm. Let me think about it. Wait, I know. Once more, to be sure. Yes, that is right. Answer: 7"
    assert "hard: " in words and "Difficulty" in words
    return "Difficulty: medium\nStep 1: look.\nAnswer: 7"


def test_own_questions_with_a_server(still: Callable[..., Any], chat_server: Any, tmp_path: Path, folders: Any) -> None:
    server = chat_server(worded)
    questions = [{"question": f"Question {n}?", "answer": "8" if n == 3 else "7"} for n in range(30)]
    write_jsonl(tmp_path / "questions.jsonl", questions)
    changes = {
        "data.check": "number", "data.length": 200, "student.path": folders.student, "student.dtype": "float32",
        "teachers.author.url": server.url, "teachers.author.model": "tiny", "teachers.rewriter.url": server.url,
        "teachers.rewriter.model": "tiny", "make.steps.right.checks": "[number]",
        "make.steps.prune.final.check": "number", "make.steps.solve.decoding.max_new": 64,
        "make.steps.prune.decoding.max_new": 64, "train.steps": 2, "train.batch": 2, "train.accumulate": 1,
        "audit.checks.0.sampling.max_new": 4,
    }  # fmt: skip
    settings = [part for k, v in changes.items() for part in ("--set", f"{k}={v}")]
    done = still("run", "litecot", "--scale", "paper", *settings, "--runs", tmp_path / "runs", "--device", "cpu")
    assert done.exit_code == 0, done.stdout + done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    rows = list(Table(folder / "artifacts" / "make" / "data" / "rows.parquet"))
    assert 15 < len(rows) and {row["level"] for row in rows} == {"medium"}
    assert {row["answer"] for row in rows} == {"Step 1: look.\nAnswer: 7"}
    account = json.loads((folder / "artifacts" / "make" / "data" / "account.json").read_text())
    asked = len(server.asked)
    assert account["teachers"]["author"]["calls"] == asked <= 60
    again = still("run", "litecot", "--scale", "paper", *settings, "--runs", tmp_path / "runs", "--device", "cpu",
                  "--set", "make.steps.prune.shorter=0.9")  # fmt: skip
    assert again.exit_code == 0 and len(server.asked) == asked  # another limit buys nothing again


def test_a_user_may_word_levels_and_call_columns_otherwise(tmp_path: Path) -> None:
    """One level alone is what everybody else does: the same length for all."""
    levels = {"any": Level(template="In a line.")}
    step = Prune(levels=levels, final=Final(pattern=END), trace="solution", truth="gold", into="short")
    rows = [{"question": "3+4=", "solution": "3+4=7;~3+4=7#7", "gold": "7"}]
    seen = Seen(lambda ask, rng: "Difficulty: any\n3+4=7#7")
    found = outcome(plan(step, rows, rewriter=seen), tmp_path / "run")
    assert found.column("short") == ["3+4=7#7"] and "3+4=7;~3+4=7#7" in seen.asked[0].messages[0][1]
