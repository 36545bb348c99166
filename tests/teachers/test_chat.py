"""A chat server as teacher: every fault that passes is survived, every other is one clear line or one lost row."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chatserver import BUSY, PASSING, ChatServer
from stillhouse.core.run import Run, RunError
from stillhouse.core.signal import Completion
from stillhouse.teachers import server as transport
from stillhouse.teachers.chat import HttpChat, Pace, Price
from stillhouse.teachers.text import Ask, Decoding, Lost

Start = Callable[..., ChatServer]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "FIRST_WAIT", 0.001)


def asks(n: int, **how: Any) -> list[Ask]:
    return [Ask((("user", f"number {i}"),), Decoding(**how), seed=i) for i in range(n)]


def writer(server: ChatServer, tmp_path: Path, **settings: Any) -> Any:
    return HttpChat(url=server.url, model="tiny", **settings).build(Run(tmp_path / "run"))


def answers(teacher: Any, asked: list[Ask]) -> list[Completion | Lost]:
    found = dict(teacher.write(asked, threading.Event()))
    return [found[i] for i in range(len(asked))]


def test_every_ask_gets_its_own_answer_and_many_are_asked_at_once(chat_server: Start, tmp_path: Path) -> None:
    server = chat_server(slow=0.02)
    found = answers(writer(server, tmp_path, concurrency=8), asks(40))
    assert [a.text for a in found] == [f"number {i}"[::-1] for i in range(40)]
    assert 4 <= server.most_at_once <= 8
    assert all(a.read == 2 and a.wrote == 2 and a.finished for a in found)


def test_what_is_sent(chat_server: Start, tmp_path: Path) -> None:
    server = chat_server()
    teacher = writer(server, tmp_path, system="Be brief.", extra={"top_k": 5})
    turns = (("user", "a"), ("assistant", "b"), ("user", "c"))
    ask = Ask(turns, Decoding(temperature=0.7, top_p=0.9, max_new=17), seed=2**40 + 3)
    answers(teacher, [ask, *asks(1, temperature=0.0)])
    body = next(b for b in server.asked if b["max_tokens"] == 17)
    assert body == {
        "model": "tiny", "temperature": 0.7, "top_p": 0.9, "max_tokens": 17, "seed": 3, "top_k": 5,
        "messages": [
            {"role": "system", "content": "Be brief."}, {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"},
        ],
    }  # fmt: skip
    assert "seed" not in next(b for b in server.asked if b["max_tokens"] != 17)


@pytest.mark.parametrize("fault", PASSING)
def test_what_passes_is_tried_again(chat_server: Start, tmp_path: Path, fault: Any) -> None:
    server = chat_server()
    server.faults = [fault, fault]
    (found,) = answers(writer(server, tmp_path, retries=2), asks(1))
    assert isinstance(found, Completion) and found.text == "0 rebmun" and len(server.asked) == 3


def test_a_hanging_request_is_given_up_and_asked_again(chat_server: Start, tmp_path: Path) -> None:
    server = chat_server()
    server.faults = [lambda handler: time.sleep(1.0)]
    (found,) = answers(writer(server, tmp_path, timeout=0.2), asks(1))
    assert isinstance(found, Completion)


def test_one_refused_ask_is_one_lost_row(chat_server: Start, tmp_path: Path) -> None:
    server = chat_server()
    teacher = writer(server, tmp_path, concurrency=1)
    answers(teacher, asks(1))
    server.faults = [(400, b'{"error": {"message": "maximum context length is 10"}}', {})]
    found = answers(teacher, asks(3))
    assert [type(a) for a in found] == [Lost, Completion, Completion]
    assert found[0] == Lost("the server refused it: 400 maximum context length is 10")


def test_if_every_ask_is_refused_the_settings_are_wrong(chat_server: Start, tmp_path: Path) -> None:
    server = chat_server()
    server.faults = [(400, b'{"error": {"message": "top_k is not supported"}}', {})] * 100
    with pytest.raises(RunError, match="refuses every ask: 400 top_k is not supported"):
        answers(writer(server, tmp_path), asks(30))
    assert len(server.asked) < 30


def test_one_ask_that_never_succeeds_is_lost_and_a_dead_server_ends_the_run(chat_server: Start, tmp_path: Path) -> None:
    server = chat_server()
    teacher = writer(server, tmp_path, concurrency=1, retries=1)
    answers(teacher, asks(1))
    server.faults = [BUSY, BUSY]
    found = answers(teacher, asks(2))
    assert isinstance(found[0], Lost) and "after 2 attempts: 429 slow down" in found[0].why
    other = chat_server()
    other.faults = [BUSY] * 100
    with pytest.raises(RunError, match="did not answer after 2 attempts: 429 slow down"):
        answers(writer(other, tmp_path, retries=1), asks(20))


def test_unknown_model_and_bad_key_are_one_line(chat_server: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = chat_server(key="sk-very-secret")
    with pytest.raises(RunError, match="wants an API key: give it in --key-env"):
        answers(writer(server, tmp_path), asks(2))
    monkeypatch.setenv("MY_KEY", "sk-wrong-key")
    with pytest.raises(RunError, match="refuses the API key in the environment variable MY_KEY") as caught:
        answers(writer(server, tmp_path, key_env="MY_KEY"), asks(2))
    assert "sk-wrong" not in str(caught.value)
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    assert len(answers(writer(server, tmp_path, key_env="MY_KEY"), asks(2))) == 2
    with pytest.raises(RunError, match="knows no model 'huge'.*it serves tiny"):
        answers(HttpChat(url=server.url, model="huge", key_env="MY_KEY").build(Run(tmp_path / "run")), asks(2))


@pytest.mark.parametrize(
    "settings",
    [
        {"url": "http://user:password@host/v1"}, {"url": "ftp://host"}, {"key_env": "sk-123"}, {"concurrency": 0},
        {"retries": -1}, {"per_minute": 0.0},
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError) as caught:
        HttpChat(**{"url": "http://host/v1", "model": "m", **settings})
    assert "password@" not in str(caught.value)


def test_when_stopped_nobody_waits_for_answers(chat_server: Start, tmp_path: Path) -> None:
    server, stop = chat_server(slow=5.0), threading.Event()
    threading.Timer(0.3, stop.set).start()
    began = time.monotonic()
    assert dict(writer(server, tmp_path).write(asks(4), stop)) == {}
    assert time.monotonic() - began < 2.0


class Clock:
    """Time that passes only when somebody waits."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


def test_limits_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    from stillhouse.teachers import chat

    clock: Any = Clock()
    monkeypatch.setattr(chat.time, "monotonic", clock.monotonic)
    pace = Pace(per_minute=30, tokens_per_minute=None)
    for _ in range(31):
        pace.wait(1000, clock)
    assert clock.now == pytest.approx(160.0)
    pace.hold(7.0)
    pace.wait(0, clock)
    assert clock.now == pytest.approx(167.0)
    clock.now, pace = 100.0, Pace(per_minute=None, tokens_per_minute=6000)
    for tokens in (100, 200, 100, 0):
        pace.wait(tokens, clock)
    assert clock.now == pytest.approx(104.0)


def test_a_server_that_asks_to_wait_is_left_alone_by_all(chat_server: Start, tmp_path: Path) -> None:
    server = chat_server()
    server.faults = [(429, b"{}", {"Retry-After": "0.6"})]
    times: list[float] = []
    server.answer = lambda words, body: times.append(time.monotonic()) or "x"  # type: ignore[func-returns-value]
    teacher = writer(server, tmp_path, concurrency=1)
    began = time.monotonic()
    answers(teacher, asks(3))
    assert min(times) - began > 0.5


def test_what_it_costs(chat_server: Start, tmp_path: Path) -> None:
    teacher = writer(chat_server(), tmp_path, price=Price(read=3.0, wrote=15.0))
    assert teacher.price(1_000_000, 200_000) == pytest.approx(6.0)
    assert teacher.identity()["model"] == "tiny"


def test_usage_that_is_missing_is_guessed(chat_server: Start, tmp_path: Path) -> None:
    server = chat_server()
    server.change = lambda said: {k: v for k, v in said.items() if k != "usage"}
    (found,) = answers(writer(server, tmp_path), asks(1))
    assert isinstance(found, Completion) and found.read > 0 and found.wrote == 2
