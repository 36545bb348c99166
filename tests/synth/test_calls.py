"""No call is paid twice: not within a run, not after a kill, not by the run beside it, and never beyond the budget."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chatserver import ChatServer
from stillhouse.core.run import Interrupted, Run, RunError
from stillhouse.core.signal import Completion
from stillhouse.synth.budget import Budget, Ledger, Spent
from stillhouse.synth.calls import FILE, Calls
from stillhouse.teachers.chat import HttpChat, Price
from stillhouse.teachers.scripted import Replay, Spy
from stillhouse.teachers.text import Ask, Decoding, Lost, Writes

Start = Callable[..., ChatServer]


class Echo(Writes):
    """Answers at once, remembering what it was asked."""

    def __init__(self, name: str = "echo", die_at: int | None = None):
        self.name, self.asked, self.die_at, self.money = name, list[Ask](), die_at, 0.0

    def write(self, asks: Any, stop: threading.Event) -> Any:
        for number in reversed(range(len(asks))):  # in another order than asked
            self.asked.append(asks[number])
            if len(self.asked) == self.die_at:
                raise RunError("the server went away")
            yield number, Completion(asks[number].messages[0][1].upper(), read=3, wrote=2)

    def price(self, read: int, wrote: int) -> float:
        return (read + wrote) / 100

    def identity(self) -> dict[str, Any]:
        return {"name": self.name}


def ask(words: str, seed: int = 0, **how: Any) -> Ask:
    return Ask((("user", words),), Decoding(**{"max_new": 8, **how}), seed)


def calls(folder: Path, teacher: Any, **budget: Any) -> Calls:
    run = Run(folder)
    run.teachers = {"teacher": teacher}
    run.stage = "make"
    return Calls(run, {"teacher": Budget(**budget)}, threading.Event())


def answered(made: Calls, asks: list[Ask]) -> list[Completion | Lost]:
    pairs = list(made.ask("teacher", enumerate(asks)))
    assert [number for number, _ in pairs] == list(range(len(asks)))
    return [answer for _, answer in pairs]


def test_answers_come_in_the_order_of_the_asks_and_each_is_asked_once(tmp_path: Path) -> None:
    echo = Echo()
    made = calls(tmp_path / "run", echo)
    asks = [ask(f"w{i % 7}") for i in range(300)]
    assert [a.text for a in answered(made, asks) if isinstance(a, Completion)] == [f"W{i % 7}" for i in range(300)]
    assert len(echo.asked) == 7
    answered(made, asks)
    assert len(echo.asked) == 7
    assert made.totals() == {"teacher": {"calls": 7, "tokens": 35, "money": pytest.approx(0.35), "borrowed": 0}}


def test_a_key_depends_on_everything_that_the_answer_may_depend_on() -> None:
    base = ask("a")
    others = [
        ask("b"), ask("a", seed=1), ask("a", temperature=0.5), ask("a", top_p=0.5), ask("a", max_new=9),
        Ask((("system", "a"),), base.decoding), Ask((("user", "a"), ("user", "")), base.decoding),
    ]  # fmt: skip
    keys = {each.key("t") for each in [base, *others]} | {base.key("u")}
    assert len(keys) == 2 + len(others)
    assert Ask(base.messages, base.decoding, 0, {"what": "a note"}).key("t") == base.key("t")


def test_what_was_answered_before_a_failure_is_kept(tmp_path: Path) -> None:
    asks = [ask(f"w{i}") for i in range(10)]
    first = Echo(die_at=6)
    made = calls(tmp_path / "run", first)
    with pytest.raises(RunError, match="went away"):
        answered(made, asks)
    second = Echo()
    found = answered(calls(tmp_path / "run", second), asks)
    assert len(second.asked) == 5
    assert [a.text for a in found if isinstance(a, Completion)] == [f"W{i}" for i in range(10)]


def test_a_run_beside_it_has_paid_already(tmp_path: Path) -> None:
    asks = [ask(f"w{i}") for i in range(5)]
    answered(calls(tmp_path / "one", Echo()), asks)
    spy = Spy(Echo())
    other = calls(tmp_path / "two", spy)
    answered(other, [*asks, ask("new")])
    assert [a.messages[0][1] for a in spy.asked] == ["new"]
    assert other.totals()["teacher"] == {"calls": 1, "tokens": 5, "money": pytest.approx(0.05), "borrowed": 5}
    stranger = Echo("another model")
    answered(calls(tmp_path / "three", stranger), asks)
    assert len(stranger.asked) == 5


def test_a_neighbour_that_is_no_database_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / FILE).write_text("nonsense")
    assert len(answered(calls(tmp_path / "run", Echo()), [ask("a")])) == 1


@pytest.mark.parametrize(("budget", "paid"), [({"calls": 4}, 4), ({"tokens": 100}, None), ({"money": 0.4}, None)])
def test_a_budget_is_never_overdrawn(tmp_path: Path, budget: dict[str, Any], paid: int | None) -> None:
    echo = Echo()
    made = calls(tmp_path / "run", echo, **budget)
    found = answered(made, [ask(f"w{i}") for i in range(200)])
    kept = [a for a in found if isinstance(a, Completion)]
    lost = [a for a in found if isinstance(a, Lost)]
    assert len(kept) == len(echo.asked) and len(kept) + len(lost) == 200 and lost
    assert all("budget of" in a.why and "is spent" in a.why for a in lost)
    totals = made.totals()["teacher"]
    for name, limit in budget.items():
        assert 0 < totals[name] <= limit
    assert paid is None or len(kept) == paid
    # what is kept costs nothing: with the same budget the next run gets as far, and asks nobody
    again = Echo()
    found = answered(calls(tmp_path / "run", again, **budget), [ask(f"w{i}") for i in range(200)])
    assert [type(a) for a in found][: len(kept)] == [Completion] * len(kept)
    if paid is not None:
        assert not again.asked


def test_what_is_reserved_and_not_used_is_given_back() -> None:
    ledger = Ledger("teacher", Budget(tokens=100))
    for _ in range(20):  # twenty calls of five tokens fit, though each might have taken forty
        assert ledger.reserve(Spent(1, 40, 0.0)) is None
        ledger.commit(Spent(1, 40, 0.0), Spent(1, 3, 0.0))
    assert ledger.spent.tokens == 60
    assert ledger.reserve(Spent(1, 41, 0.0)) == "the budget of 100 tokens for the teacher 'teacher' is spent"
    assert ledger.reserve(Spent(1, 40, 0.0)) is None
    ledger.refund(Spent(1, 40, 0.0))
    assert ledger.reserved.tokens == 0


@pytest.mark.parametrize("wrong", [{"calls": -1}, {"money": float("nan")}])
def test_a_budget_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be 0 or more"):
        Budget(**wrong)


def test_stopping_keeps_what_was_answered(tmp_path: Path) -> None:
    made = calls(tmp_path / "run", Echo())
    answered(made, [ask("a")])
    made.stop.set()
    with pytest.raises(Interrupted, match="go on with: stillhouse run"):
        answered(made, [ask("b")])
    again = Echo()
    answered(calls(tmp_path / "run", again), [ask("a"), ask("b")])
    assert not again.asked  # the answer that was in flight is kept too


def test_a_teacher_that_writes_nothing_is_named(tmp_path: Path) -> None:
    class Logits:
        gives = frozenset({"logits"})

    with pytest.raises(RunError, match="the teacher 'teacher' writes no text"):
        answered(calls(tmp_path / "run", Logits()), [ask("a")])


def test_a_replay_answers_what_was_asked_and_nothing_else(tmp_path: Path) -> None:
    made = calls(tmp_path / "run", Echo())
    answered(made, [ask("a"), ask("b")])
    made.close()
    assert not (tmp_path / "run" / f"{FILE}-wal").exists()
    replay = Replay(path=str(tmp_path / "run")).build(Run(tmp_path / "elsewhere" / "run"))
    again = calls(tmp_path / "elsewhere" / "again", replay)
    assert [a.text for a in answered(again, [ask("b"), ask("a")]) if isinstance(a, Completion)] == ["B", "A"]
    with pytest.raises(RunError, match="holds no answer to 'c'"):
        answered(again, [ask("c")])
    with pytest.raises(RunError, match="holds no teacher 'judge'; it holds teacher"):
        Replay(path=str(tmp_path / "run"), teacher="judge").build(Run(tmp_path / "x"))
    with pytest.raises(RunError, match="no recorded calls"):
        Replay(path=str(tmp_path / "nowhere")).build(Run(tmp_path / "x"))


def test_the_key_never_reaches_the_file(chat_server: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = chat_server(lambda words, body: "your key is sk-very-secret-key", key="sk-very-secret-key")
    monkeypatch.setenv("CHAT_KEY", "sk-very-secret-key")
    spec = HttpChat(url=server.url, model="tiny", key_env="CHAT_KEY", price=Price(read=1.0, wrote=2.0))
    made = calls(tmp_path / "run", spec.build(Run(tmp_path / "run")))
    (found,) = answered(made, [ask("a")])
    assert isinstance(found, Completion) and found.text == "your key is ***"
    made.close()
    for path in (tmp_path / "run").rglob("*"):
        assert not path.is_file() or b"very-secret" not in path.read_bytes()


def test_a_file_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    (run.folder / FILE).write_bytes(b"not a database at all, but long enough to look at" * 50)
    with pytest.raises(RunError, match="delete it to ask the teachers again"):
        Calls(run, {}, threading.Event())


def test_the_record_says_what_was_asked(tmp_path: Path) -> None:
    made = calls(tmp_path / "run", Echo())
    answered(made, [ask("Grüße\u2028!", seed=3)])
    made.close()
    db = sqlite3.connect(tmp_path / "run" / FILE)
    ((asked, answer, read, wrote, money),) = db.execute("select asked, answer, read, wrote, money from calls")
    assert json.loads(asked)["messages"] == [["user", "Grüße\u2028!"]] and json.loads(asked)["seed"] == 3
    assert json.loads(answer)["text"] == "GRÜSSE\u2028!" and (read, wrote, money) == (3, 2, 0.05)
