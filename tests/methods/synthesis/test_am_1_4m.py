"""AM-DeepSeek-R1-Distilled: which way rows go, what is bought again, what stays of equal ones, and a killed run."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from chatserver import ChatServer
from confinement import confined
from language import Folders, write_jsonl
from stillhouse.core.recipe import Recipe
from stillhouse.core.run import Run
from stillhouse.core.stage import execute
from stillhouse.data.tasks import last_number
from stillhouse.methods.synthesis.am_1_4m import Described, Parts, Policy, cascade, main_script, proof, recipe, united
from stillhouse.synth.dedup import Dedup
from stillhouse.synth.generate import Generate
from stillhouse.synth.rules import Rules
from stillhouse.synth.synthesize import account_of, lost_rows, made_rows
from stillhouse.synth.table import Table
from stillhouse.synth.verify import Verify
from stillhouse.teachers.text import Ask
from synth.onestep import through
from synth.talk import Seen, outcome, plan

WRITE = Generate(prompt="{{ question }}", into="response")


def tags(think: str, answer: str) -> str:
    return f"<think>{think}</think>\n<answer>{answer}</answer>"


def test_the_policy_puts_what_can_be_checked_first(tmp_path: Path) -> None:
    rows = [
        {"question": "a", "source": "web", "truth": "1"}, {"question": "b", "source": "book", "response": "r"},
        {"question": "c", "source": "web", "tests": ["assert 1"], "truth": "1"},
        {"question": "d ü", "truth": "", "tests": []},
    ]  # fmt: skip
    made = [{**row, "response": row.get("response", "")} for row in rows]
    kept, gone = through(Policy(quality={"book": 3.0}), made, tmp_path)
    assert not gone
    assert [(row["route"], row["priority"]) for row in kept] == [
        ("math", 100),
        ("scores", 3.5),
        ("code", 100),
        ("scores", 0),
    ]


def test_parts_and_what_a_row_says_of_itself(tmp_path: Path) -> None:
    texts = [
        tags("so", "7"),
        "<answer>7</answer>",
        "<think>a</think><answer>7",
        "</think>x<think> <answer>1</answer>",
        "",
        "ü",
    ]
    kept, _ = through(Parts(), [{"response": text, "n": i} for i, text in enumerate(texts)], tmp_path / "a")
    assert [(row["think"], row["answer"]) for row in kept] == [("so", "7")] + [("", "")] * 5
    rows = [{"question": "Größe?", "response": "abc", "tests": ["a", "b"]}, {"question": "東京 is", "response": "x"},
            {"question": "12", "response": "", "tests": "assert 1"}]  # fmt: skip
    kept, _ = through(Described(), rows, tmp_path / "b")
    told = [(row["length"], row["script"], row["tested"], row["reused"]) for row in kept]
    assert told == [(3, "LATIN", 2, True), (1, "CJK", 0, True), (0, "", 1, True)] or told[1][1] == "LATIN"
    assert main_script("Москва a") == "CYRILLIC" and main_script("") == "" and main_script("東京") == "CJK"


def test_what_is_right_is_kept_and_only_the_rest_is_bought(tmp_path: Path) -> None:
    """Rows 0 and 1 have a right response, 2 a wrong one, 3 a right one without tags, 4 none; 5's teacher is never right."""
    had = [tags("t", "0"), tags("t", "1"), tags("t", "0"), "it is 3", "", ""]
    rows = [{"question": f"q{i} ü", "n": i, "truth": f"the answer is {i}", "response": text} for i, text in enumerate(had)]
    tries = Counter[int]()

    def teach(ask: Ask, rng: random.Random) -> str:
        n = ask.about["n"]
        tries[n] += 1
        return tags("again", str(n if n < 4 or (n == 4 and tries[n] > 1) else -1))

    seen = Seen(teach)
    found = outcome(plan(cascade(WRITE, Verify(checks=("number",)), 3), rows, teacher=seen), tmp_path / "run")
    assert {row["n"]: row["response"] == had[row["n"]] for row in found.rows} == {
        0: True,
        1: True,
        2: False,
        3: False,
        4: False,
    }
    assert tries == {2: 1, 3: 1, 4: 2, 5: 3} and len(seen.asked) == 7
    assert found.why() == ["no right after 3 rounds"] and all(row["right"] == 1.0 for row in found.rows)


def whole(folder: Path, rows: list[dict[str, Any]], teach: Any, judge: Any, **settings: Any) -> Any:
    routes = {"math": Verify(checks=("number",)), "code": Verify(checks=("program",))}
    dedup = Dedup(column="question", by="plain", priority="priority")
    form = Rules(column="response", tags=("think", "answer"))
    return outcome(
        plan(united(WRITE, routes, dedup, form, {}, **settings), rows, teacher=teach, judge=judge), folder / "run"
    )


def label(ask: Ask, rng: random.Random) -> str:
    if "level" in str(ask.about.get("names")) or "easy" in str(ask.about.get("names")):
        return "hard"
    if "names" in ask.about:
        return "math"
    mark = 9 if "good" in ask.about["response"] else 2
    return "\n".join(f"{name}: {mark}" for name in ("correctness", "helpfulness", "coherence", "complexity", "verbosity"))


@confined
def test_every_row_goes_its_way(tmp_path: Path) -> None:
    tested = {"tests": ["assert candidate(2) == 4"], "entry_point": "f"}
    said = [tags("t", "good" if i < 3 else "bad") for i in range(5)]
    rows = [
        {"question": "double", **tested, "response": tags("t", "def f(x): return x + 1"), "source": "a"},
        {"question": "twice", **tested, "response": tags("t", "def f(x): return 2 * x"), "source": "a"},
        {"question": "One and two?", "truth": "3", "source": "a"}, {"question": "one and TWO", "source": "b"},
        *({"question": f"talk {w}", "response": text, "source": "c"} for text, w in zip(said, "vwxyz", strict=True)),
    ]  # fmt: skip

    def teach(ask: Ask, rng: random.Random) -> str:
        return tags("new", "def f(x): return x * 2" if ask.about["question"] == "double" else "3")

    found = whole(tmp_path, rows, teach, label, passing=0.6)
    kept = {row["question"]: row for row in found.rows}
    assert set(kept) == {"double", "twice", "One and two?", "talk v", "talk w", "talk x"}  # of equal ones the referenced
    assert not kept["double"]["reused"] and kept["twice"]["reused"] and kept["double"]["tested"] == 1
    assert kept["talk v"]["score"] == 9.0 and kept["One and two?"]["answer"] == "3"
    assert sorted(found.why()) == ["another row says the same", "not among the first", "not among the first"]


def test_easy_and_medium_rows_become_fewer(tmp_path: Path) -> None:
    rows = [{"question": f"q{i}", "n": i, "truth": "3", "source": "a", "response": tags("t", "3")} for i in range(30)]

    def judge(ask: Ask, rng: random.Random) -> str:
        return ("easy", "medium", "hard")[ask.about["n"] % 3] if "easy" in ask.about["names"] else "math"

    steps = united(WRITE, {"math": Verify()}, Dedup(column="question"), Rules(column="response"), {}, easy=0.2, medium=0.7)
    found = outcome(plan(steps, rows, teacher=label, judge=judge), tmp_path / "run")
    assert Counter(row["level"] for row in found.rows) == {"easy": 2, "medium": 7, "hard": 10}


def making(seed: int = 3) -> Recipe:
    made = recipe("smoke")
    return replace(made, seed=seed, stages={"make": made.stages["make"]})


def test_the_smoke_plan_against_what_is_known(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", seed=3)
    execute(making(), run)
    rows, lost = list(made_rows(run, "make")), list(lost_rows(run, "make"))
    assert len({row["short"] for row in rows}) > 0.97 * len(rows)  # duplicates
    right = [last_number(row["answer"]) == last_number(row["fact"]) for row in rows]
    assert sum(right) / len(right) > 0.9
    for row in rows:
        assert row["response"].count("<think>") == row["response"].count("</answer>") == 1
        assert row["route"] == ("math" if row.get("truth") else "scores")
        if row["route"] == "math":
            assert last_number(row["answer"]) == last_number(row["truth"])
    twins = [row for row in lost if row["_step"] == "dedup"]
    assert len(twins) >= 10
    asked = [row for row in rows if not row.get("truth")]
    best = {row["row"]["short"] for row in twins if row["row"].get("truth")}  # never lost to one without a reference
    assert not best & {row["short"] for row in asked}
    account = account_of(run, "make")
    reused = sum(row["reused"] for row in rows)
    assert 0 < reused < len(rows) and account["teachers"]["writer"]["calls"] < 205


CHILD = """
import os, signal, sys
from pathlib import Path
from stillhouse.core.run import Run
from stillhouse.core.stage import execute
from stillhouse.teachers.scripted import ScriptedWriter
from test_am_1_4m import making

write, count = ScriptedWriter.write, [0]

def dying(self, asks, stop):
    for found in write(self, asks, stop):
        count[0] += 1
        if count[0] == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        yield found

ScriptedWriter.write = dying
execute(making(), Run(Path(sys.argv[1]), seed=3))
"""


def test_a_killed_run_comes_to_the_same_bytes(tmp_path: Path) -> None:
    folder, here = tmp_path / "killed" / "run", Path(__file__).parent
    path = ":".join([str(here), str(here.parent.parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder), "425"], capture_output=True, text=True, timeout=180,
        env={"PYTHONPATH": path, "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (folder / "artifacts" / "make").exists() and (folder / "requests.sqlite").exists()
    quiet, again = Run(tmp_path / "quiet" / "run", seed=3), Run(folder, seed=3)
    execute(making(), quiet)
    execute(making(), again)
    whole, resumed = ({path.name[4:] for path in (run.path("make") / "steps").iterdir()} for run in (quiet, again))
    assert resumed <= whole and {name for name in whole - resumed if "." not in name.partition("_")[0]} == set()
    assert (quiet.path("make") / "rows.parquet").read_bytes() == (again.path("make") / "rows.parquet").read_bytes()
    paid, before = account_of(again, "make")["teachers"]["judge"], account_of(quiet, "make")["teachers"]["judge"]
    assert paid["calls"] == before["calls"]


def test_the_proof_fits_together() -> None:
    from stillhouse.cli.prove import check

    check(proof())
    assert set(proof().beats) < set(proof().arms)


@confined
def test_a_users_own_files(tmp_path: Path, still: Any, chat_server: Any, folders: Folders) -> None:
    books = [{"problem": f"the cat has {i} and {i}", "key": str(2 * i)} for i in range(6)]
    web = [{"question": f"the cat has {i} and {i}", "response": tags("the cat", str(2 * i))} for i in range(4, 10)]
    write_jsonl(tmp_path / "books.jsonl", books), write_jsonl(tmp_path / "web.jsonl", web)
    write_jsonl(tmp_path / "bench.jsonl", [{"question": f"the dog {i}", "answer": str(i)} for i in range(20)])

    def answer(words: str, body: Any) -> str:
        if "Which of these fits" in words:
            return "hard" if "- easy" in words else "math"
        if "How good is" in words:
            return "\n".join(f"{name}: 7" for name in ("correctness", "helpfulness", "coherence", "complexity", "verbosity"))
        return tags("the cat", str(2 * int(words.split("has ")[1].split()[0])))

    server: ChatServer = chat_server(answer)
    sources = "{books: {use: synth.union.Source, path: books.jsonl, question: problem, truth: key},"
    sources += " web: {use: synth.union.Source, path: web.jsonl}}"
    settings = {
        "make.data.sources": sources, "make.steps.dedup.embed": "{use: synth.dedup.Hashed}", "data.path": "bench.jsonl",
        "make.steps.dedup.alike": 0.999, "student.path": folders.student, "data.length": 200, "train.data.length": 200,
        "train.steps": 1, "train.batch": 2, "train.accumulate": 1, "train.precision": "float32",
        "train.checkpointing": "false", "audit.checks.0.sampling.max_new": 4, "audit.checks.0.precision": "float32",
    }  # fmt: skip
    for role in ("writer", "judge"):
        settings |= {f"teachers.{role}.url": server.url, f"teachers.{role}.model": "tiny"}
    parts = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    done = still("run", "am_1_4m", "--scale", "paper", "--runs", "runs", *parts)
    assert done.exit_code == 0, done.output
    (folder,) = (tmp_path / "runs").iterdir()
    rows = list(Table(folder / "artifacts" / "make" / "data" / "rows.parquet"))
    assert Counter(row["source"] for row in rows) == {"books": 6, "web": 3}  # 70 % of four, rounded up
    assert all(not row["reused"] for row in rows if row["source"] == "books") and all(row["think"] for row in rows)
