"""Data are made once: whatever fails, is killed or comes in another order, the rows are the same, and none gets lost."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from chatserver import PASSING, ChatServer
from stillhouse.core.run import Interrupted, Run, RunError
from stillhouse.core.signal import Kind
from stillhouse.core.stage import execute
from stillhouse.synth.budget import Budget
from stillhouse.synth.steps import Row, Work, given
from stillhouse.synth.synthesize import DataPlan, account_of, lost_rows, made_rows
from stillhouse.teachers import server as transport

from .lab import Judge, Numbers, Sieve, go, made, said

Start = Callable[..., ChatServer]
LAB = Path(__file__).parent / "lab.py"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "FIRST_WAIT", 0.001)


def test_rows_know_where_they_come_from_and_what_was_lost(chat_server: Start, tmp_path: Path) -> None:
    server = chat_server(said)
    run = go(made(server.url), tmp_path / "run")
    rows, account = made_rows(run, "make"), account_of(run, "make")
    assert [step["step"] for step in account["steps"]] == ["given", "double", "sieve", "judge"]
    assert [(step["given"], step["made"]) for step in account["steps"]][:2] == [(12, 12), (12, 24)]
    lost = account["steps"][2]["lost"]["too small"]
    assert 0 < lost < 24 and len(rows) == 24 - lost
    rejects = list(lost_rows(run, "make"))
    assert len(rejects) == lost
    assert all(r["_why"] == "too small" and r["numbers"]["digit"] < 3 and r["_step"] == "sieve" for r in rejects)
    assert all(r["row"]["text"].endswith(str(r["numbers"]["digit"])) for r in rejects)
    sources = {row["_id"]: row["text"] for row in map(given, ({"text": f"row {i}"} for i in range(12)))}
    assert len({row["_id"] for row in rows}) == len(rows)
    assert all(len(row["_from"]) == 1 and sources[row["_from"][0]] in row["text"] for row in rows)
    paid = account["teachers"]["teacher"]
    assert paid["calls"] == 24 + len(rows) == len(server.asked) and paid["borrowed"] == 0
    assert paid["money"] == pytest.approx(paid["tokens"])


def test_the_order_of_the_rows_and_the_speed_of_answers_change_nothing(chat_server: Start, tmp_path: Path) -> None:
    one = go(made(chat_server(said).url), tmp_path / "a" / "run")
    other = go(made(chat_server(said, slow=0.01).url, reverse=True, concurrency=1), tmp_path / "b" / "run")
    key = lambda row: row["_id"]  # noqa: E731
    assert sorted(made_rows(one, "make"), key=key) == sorted(made_rows(other, "make"), key=key)


def test_another_seed_draws_anew_and_asks_what_is_not_drawn_only_once(chat_server: Start, tmp_path: Path) -> None:
    server = chat_server(said)
    one, other = go(made(server.url), tmp_path / "a", seed=0), go(made(server.url), tmp_path / "b", seed=1)
    assert {r["text"] for r in made_rows(one, "make")}.isdisjoint(r["text"] for r in made_rows(other, "make"))
    again = go(made(server.url), tmp_path / "c", seed=0)
    assert account_of(again, "make")["teachers"]["teacher"]["calls"] == 0
    assert list(made_rows(again, "make")) == list(made_rows(one, "make"))


def test_a_changed_filter_buys_no_answer_again(chat_server: Start, tmp_path: Path) -> None:
    server = chat_server(said)
    go(made(server.url, below=3), tmp_path / "a")
    asked = len(server.asked)
    run = go(made(server.url, below=2), tmp_path / "b")
    new = len(server.asked) - asked
    assert new == account_of(run, "make")["teachers"]["teacher"]["calls"] < 8
    assert all(body["messages"][0]["content"].startswith("judge") for body in server.asked[asked:])


def test_steps_that_are_done_are_not_done_again(chat_server: Start, tmp_path: Path) -> None:
    server = chat_server(said)
    server.fault_of = lambda number: (400, b'{"error": "no"}', {}) if number > 24 else None
    recipe = made(server.url, concurrency=1)
    with pytest.raises(RunError, match="no row is left after the steps of stage 'make': too small; the server refused it"):
        go(recipe, tmp_path / "run")
    state = sorted(p.name.split("_")[0] for p in (tmp_path / "run" / "state" / "make").glob("*.json"))
    assert state == ["double", "given", "judge", "sieve"]


def test_under_faults_at_a_third_of_all_calls_every_row_is_there(chat_server: Start, tmp_path: Path) -> None:
    calm = go(made(chat_server(said).url, count=40), tmp_path / "calm" / "run")
    server, chance = chat_server(said), random.Random(5)
    server.fault_of = lambda number: chance.choice(PASSING) if chance.random() < 0.33 else None
    rough = go(made(server.url, count=40, retries=12, concurrency=8), tmp_path / "rough" / "run")
    assert list(made_rows(rough, "make")) == list(made_rows(calm, "make"))
    assert max(Counter(server.answered).values()) <= 2  # two draws of every row; no answer was paid for twice


@pytest.mark.slow
def test_killed_at_random_it_ends_with_the_same_bytes_and_pays_for_nothing_twice(chat_server: Start, tmp_path: Path) -> None:
    server = chat_server(said, slow=0.005)
    calm = go(made(server.url, count=60), tmp_path / "calm" / "run")
    answered = Counter(server.answered)
    server.answered.clear()
    folder, chance, kills = tmp_path / "killed" / "run", random.Random(7), 0
    command = [sys.executable, "-m", "synth.lab", str(folder), server.url, "60"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(LAB.parent.parent), *sys.path])}
    while True:
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 60
        before = len(server.answered)
        wanted = before + chance.randrange(1, 25)
        while process.poll() is None and len(server.answered) < wanted and time.monotonic() < deadline:
            time.sleep(0.001)
        if process.poll() is None and kills < 8:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            continue
        assert process.wait(60) == 0, process.stderr.read()  # type: ignore[union-attr]
        break
    assert kills >= 5
    run = Run(folder)
    files = [r.path("make") / "rows.parquet" for r in (run, calm)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert list(lost_rows(run, "make")) == list(lost_rows(Run(tmp_path / "calm" / "run"), "make"))
    twice = sum((Counter(server.answered) - answered).values())
    assert twice <= kills * 8  # those in flight: four being answered, and as many on their way from there to the disk


def test_stopped_by_ctrl_c_it_goes_on(chat_server: Start, tmp_path: Path) -> None:
    server = chat_server(said, slow=0.01)

    class Stop:
        def update(self, stage: str, done: int, total: int, logs: Any, seconds: float) -> None:
            if done == 10:
                signal.raise_signal(signal.SIGINT)

    run = Run(tmp_path / "run")
    run.progress = Stop()
    with pytest.raises(Interrupted, match="go on with: stillhouse run"):
        execute(made(server.url, count=80), run)
    paid = len(server.answered)
    assert 0 < paid < 160
    go(made(server.url, count=80), tmp_path / "run")
    calm = go(made(server.url, count=80), tmp_path / "calm")
    assert list(made_rows(Run(tmp_path / "run"), "make")) == list(made_rows(calm, "make"))


def test_progress_counts_answers_as_they_come(chat_server: Start, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []

    class Seen:
        def update(self, stage: str, done: int, total: int, logs: Any, seconds: float) -> None:
            seen.append((stage, done, total))

    for folder in ("asked", "found"):  # the second finds all answers beside it
        run = Run(tmp_path / folder)
        run.progress = Seen()
        execute(made(chat_server(said).url), run)
        assert seen[-1][0] == "make, judge" and all(0 < done <= total for _, done, total in seen)
        assert [done for stage, done, _ in seen if stage == "make, double"][-1] == 24
    assert [done for stage, done, _ in seen if stage == "make, double"][:24] == list(range(1, 25))


def test_a_spent_budget_leaves_a_table_that_can_be_used(chat_server: Start, tmp_path: Path) -> None:
    server = chat_server(said)
    run = go(made(server.url, budget=Budget(calls=30)), tmp_path / "run")
    account = account_of(run, "make")
    assert len(server.asked) == 30 == account["teachers"]["teacher"]["calls"]
    why = "the budget of 30 calls for the teacher 'teacher' is spent"
    assert account["steps"][3]["lost"] == {why: account["steps"][3]["given"] - 6}
    assert len(made_rows(run, "make")) == 6
    assert sum(r["_why"] == why for r in lost_rows(run, "make")) == account["steps"][3]["lost"][why]


def test_a_budget_for_nobody_is_refused(chat_server: Start, tmp_path: Path) -> None:
    recipe = made(chat_server(said).url).set("make.budgets", {"techer": Budget(calls=1)})
    with pytest.raises(RunError, match="a budget for 'techer', but the recipe's teachers are teacher"):
        go(recipe, tmp_path / "run")


def test_what_will_be_asked_is_known_before(chat_server: Start, tmp_path: Path) -> None:
    server = chat_server(said)
    plan = DataPlan.of(made(server.url))
    assert not server.asked
    assert plan.needs["teacher"].calls == 48 and plan.money["teacher"] == 48 * 10 + 24 * 16 + 24 * 8 - 48 * 10 + 480
    assert str(plan).startswith("teacher: at most 48 calls, about 480 tokens to read and at most 576 to write")


@dataclass(frozen=True, kw_only=True)
class Twins(Sieve):
    def __call__(self, rows: Iterable[Row], run: Run) -> Iterator[Row]:
        for row in rows:
            yield row
            yield row


def test_a_step_that_yields_a_row_twice_is_refused(chat_server: Start, tmp_path: Path) -> None:
    recipe = made(chat_server(said).url)
    stage = replace(recipe.stages["make"], steps={"twins": Twins()})
    with pytest.raises(RunError, match="step 'twins' yielded 12 rows twice; make new rows with run.work.child"):
        go(recipe.set("stages", {"make": stage}), tmp_path / "run")


def test_ids_depend_on_parents_content_and_step(tmp_path: Path) -> None:
    work = Work(Run(tmp_path / "run"), "step", "print", calls=None)  # type: ignore[arg-type]
    a, b = given({"text": "a"}), given({"text": "b"})
    rows = [work.child(a, n=1), work.child(a, n=2), work.child(a, b, n=1), work.child(b, n=1)]
    assert len({row["_id"] for row in rows}) == 4
    assert work.child(b, a, n=1, _truth="seen by nobody")["_id"] == rows[2]["_id"]
    other = Work(Run(tmp_path / "run"), "step", "other settings", calls=None)  # type: ignore[arg-type]
    assert other.child(a, n=1)["_id"] != rows[0]["_id"]
    assert given({"text": "a", "n": 1}) == given({"n": 1, "text": "a"}) != a


@dataclass(frozen=True, kw_only=True)
class Alike(Sieve):
    """Three times the same new row of every row."""

    def __call__(self, rows: Iterable[Row], run: Run) -> Iterator[Row]:
        for _ in range(3):
            for row in rows:
                yield run.work.child(row, text="same")


def test_new_rows_that_are_alike_are_told_apart_whatever_their_order(chat_server: Start, tmp_path: Path) -> None:
    def ids(folder: str, reverse: bool) -> set[str]:
        recipe = made(chat_server(said).url, count=3, reverse=reverse)
        stage = replace(recipe.stages["make"], steps={"alike": Alike()})
        return {
            row["_id"] for row in made_rows(go(recipe.set("stages", {"make": stage}), tmp_path / folder / "run"), "make")
        }

    assert len(ids("a", False)) == 9 and ids("a", False) == ids("b", True)


@dataclass(frozen=True, kw_only=True)
class Twice(Numbers):
    def rows(self, run: Run) -> dict[str, list[dict[str, Any]]]:
        return {"train": [*super().rows(run)["train"], {"text": "row 3"}]}


def test_a_row_that_was_given_twice_is_there_once(chat_server: Start, tmp_path: Path) -> None:
    recipe = made(chat_server(said).url)
    run = go(replace(recipe, data=Twice(count=12)), tmp_path / "run")
    assert account_of(run, "make")["steps"][0] == {
        "step": "given", "given": 13, "made": 12, "lost": {"the same row is there already": 1},
    }  # fmt: skip
    assert next(lost_rows(run, "make"))["row"]["text"] == "row 3"


def test_a_step_done_beside_is_not_done_again(chat_server: Start, tmp_path: Path) -> None:
    server = chat_server(said)
    go(made(server.url), tmp_path / "a")
    (tmp_path / "a" / "requests.sqlite").unlink()  # nothing but the tables can tell
    asked = len(server.asked)
    one, same = Run(tmp_path / "a"), go(made(server.url), tmp_path / "b")
    assert len(server.asked) == asked and list(made_rows(same, "make")) == list(made_rows(one, "make"))
    assert list(lost_rows(same, "make")) == list(lost_rows(one, "make"))
    go(made(server.url), tmp_path / "c", seed=1)
    assert len(server.asked) > asked


def test_what_a_teacher_cannot_give_is_told_before_anything_is_asked(chat_server: Start, tmp_path: Path) -> None:
    server = chat_server(said)
    recipe = made(server.url)
    stage = replace(recipe.stages["make"], steps={**recipe.stages["make"].steps, "judge": Judge(teacher="judge")})
    with pytest.raises(RunError, match="step 'judge' asks the teacher 'judge', but the recipe's teachers are teacher"):
        go(recipe.set("stages", {"make": stage}), tmp_path / "a")
    stage = replace(recipe.stages["make"], steps={**recipe.stages["make"].steps, "judge": Inside()})
    with pytest.raises(RunError, match="step 'judge' needs logits of the teacher 'teacher', which gives text"):
        go(recipe.set("stages", {"make": stage}), tmp_path / "b")
    assert not server.asked


@dataclass(frozen=True, kw_only=True)
class Inside(Judge):
    needs: ClassVar[frozenset[Kind]] = frozenset({"text", "logits"})


def test_a_steps_name_covers_the_code_that_it_reaches(monkeypatch: pytest.MonkeyPatch) -> None:
    from stillhouse.core import code
    from stillhouse.synth import steps
    from stillhouse.synth.rules import Rules

    before, real = steps._code(Rules), code._hash
    for other, same in (("parse.py", False), ("gkd.py", True)):  # what it imports, and what it does not
        steps._code.cache_clear()
        monkeypatch.setattr(code, "_hash", lambda file, other=other: "0" if file.name == other else real(file))
        assert (steps._code(Rules) == before) is same
    steps._code.cache_clear()
