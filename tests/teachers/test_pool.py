"""Several servers of one model are one teacher: who is free answers, who fails rests, and keys are told to nobody."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from chatserver import BROKEN, BUSY, PASSING, ChatServer, hang_up
from stillhouse.cli.door import dump, spec
from stillhouse.core.recipe import Recipe, to_plain
from stillhouse.core.run import Run, RunError
from stillhouse.core.signal import Completion
from stillhouse.core.stage import execute
from stillhouse.synth.synthesize import DataPlan, account_of, made_rows
from stillhouse.teachers import server as transport
from stillhouse.teachers.chat import HttpChat, Price
from stillhouse.teachers.pool import Pool
from stillhouse.teachers.server import NoAnswer
from stillhouse.teachers.text import Ask, Decoding, Lost, Writes, fingerprint
from synth.lab import made, said

Start = Callable[..., ChatServer]
FOREVER: Any = lambda fault: lambda number: fault  # noqa: E731


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "FIRST_WAIT", 0.001)


def asks(n: int) -> list[Ask]:
    return [Ask((("user", f"number {i}"),), Decoding(), seed=i) for i in range(n)]


def chat(server: ChatServer, **settings: Any) -> HttpChat:
    return HttpChat(url=server.url, model="tiny", **{"concurrency": 4, **settings})


def pool(*members: Any, **settings: Any) -> Pool:
    named = {f"m{i}": m if hasattr(m, "build") else chat(m) for i, m in enumerate(members)}
    return Pool(members=named, **{"rest": 0.02, "longest_rest": 0.1, **settings})


def answers(spec_: Any, asked: Sequence[Ask], tmp_path: Path) -> list[Completion | Lost]:
    found = dict(spec_.build(Run(tmp_path / "pool")).write(asked, threading.Event()))
    return [found[i] for i in range(len(asked))]


def right(found: Sequence[Completion | Lost]) -> bool:
    return [a.text for a in found if isinstance(a, Completion)] == [f"number {i}"[::-1] for i in range(len(found))]


def test_every_ask_is_answered_once_and_all_members_work(chat_server: Start, tmp_path: Path) -> None:
    one, other = chat_server(slow=0.01), chat_server(slow=0.01)
    spec_ = pool(one, other)
    assert spec_.build(Run(tmp_path / "run")).at_once == 8
    assert right(answers(spec_, asks(60), tmp_path))
    assert min(len(one.answered), len(other.answered)) > 10 and len(one.answered) + len(other.answered) == 60
    assert one.most_at_once <= 4 and other.most_at_once <= 4


def test_the_faster_member_does_more(chat_server: Start, tmp_path: Path) -> None:
    fast, slow = chat_server(slow=0.002), chat_server(slow=0.1)
    assert right(answers(pool(fast, slow), asks(60), tmp_path))
    assert len(fast.answered) > 2 * len(slow.answered)


@pytest.mark.parametrize("fault", PASSING)
def test_one_that_fails_rests_and_the_others_do_its_work(chat_server: Start, tmp_path: Path, fault: Any) -> None:
    good, bad = chat_server(slow=0.005), chat_server()
    bad.fault_of = FOREVER(fault)
    assert right(answers(pool(good, bad), asks(40), tmp_path))
    assert len(good.answered) == 40 and 1 <= len(bad.asked) <= 40  # one try, of as many lanes as it has, after each rest


def test_a_server_that_is_not_there_is_no_trouble(chat_server: Start, tmp_path: Path) -> None:
    good = chat_server()
    nobody = HttpChat(url="http://127.0.0.1:9/v1", model="tiny")
    assert right(answers(pool(good, nobody), asks(20), tmp_path))


def test_one_that_comes_back_is_asked_again(chat_server: Start, tmp_path: Path) -> None:
    one, other = chat_server(slow=0.02), chat_server()
    other.fault_of = lambda number: BROKEN if number <= 4 else None
    assert right(answers(pool(one, other), asks(60), tmp_path))
    assert len(other.answered) > 5


def test_a_member_that_asks_to_wait_is_left_alone_and_the_others_are_not(chat_server: Start, tmp_path: Path) -> None:
    busy, free = chat_server(), chat_server(slow=0.002)
    busy.fault_of = lambda number: (429, b"{}", {"Retry-After": "5"})
    began = time.monotonic()
    assert right(answers(pool(busy, free), asks(60), tmp_path))
    assert time.monotonic() - began < 4 and len(busy.asked) <= 4


def test_when_all_fail_the_run_ends_with_one_line(chat_server: Start, tmp_path: Path) -> None:
    one, other = chat_server(), chat_server()
    one.fault_of = other.fault_of = FOREVER(BUSY)
    with pytest.raises(RunError, match="no member of the pool answers: no answer: .* 429 slow down"):
        answers(pool(one, other, retries=2), asks(20), tmp_path)
    one.fault_of = other.fault_of = FOREVER((429, b"{}", {"Retry-After": "5000"}))
    with pytest.raises(RunError, match="asks to wait 5,000 s"):
        answers(pool(one, other), asks(20), tmp_path)


def test_an_ask_that_is_refused_is_lost_alone(chat_server: Start, tmp_path: Path) -> None:
    one, other = chat_server(), chat_server()
    teacher = pool(one, other).build(Run(tmp_path / "run"))
    assert right([answer for _, answer in sorted(teacher.write(asks(2), threading.Event()))])
    one.faults = [(400, b'{"error": {"message": "too long"}}', {})]
    other.faults = [(400, b'{"error": {"message": "too long"}}', {})]
    found = [answer for _, answer in teacher.write(asks(20), threading.Event())]
    lost = [answer for answer in found if isinstance(answer, Lost)]
    assert len(found) == 20 and set(lost) == {Lost("the server refused it: 400 too long")} and 1 <= len(lost) <= 2


def test_settings_that_are_wrong_end_the_run(chat_server: Start, tmp_path: Path) -> None:
    good, locked = chat_server(), chat_server(key="sk-secret-key")
    with pytest.raises(RunError, match="wants an API key"):
        answers(pool(good, locked), asks(20), tmp_path)
    huge = [replaced(chat(server), model="huge") for server in (good, good)]
    with pytest.raises(RunError, match="knows no model 'huge'.*it serves tiny"):
        answers(pool(*huge), asks(20), tmp_path)


def replaced(spec_: HttpChat, **settings: Any) -> HttpChat:
    from dataclasses import replace

    return replace(spec_, **settings)


def test_members_must_be_one_model(chat_server: Start, tmp_path: Path) -> None:
    server = chat_server()
    run = Run(tmp_path / "run")
    for other, what in (
        (chat(server, system="Be brief."), "system is None and 'Be brief.'"),
        (replaced(chat(server), model="huge"), "model is 'tiny' and 'huge'"),
        (chat(server, extra={"top_k": 5}), "top_k is None and 5"),
    ):
        with pytest.raises(RunError, match=f"'m0' and 'm1' of the pool are not the same model: {what}"):
            pool(server, other).build(run)
    with pytest.raises(ValueError):
        Pool(members={})
    with pytest.raises(ValueError):
        Pool(members={"a": chat(server)}, rest=0)


def test_answers_are_kept_under_the_model(chat_server: Start, tmp_path: Path) -> None:
    one, other = chat_server(), chat_server()
    run = Run(tmp_path / "run")
    elsewhere = HttpChat(url="http://localhost:8000/v1", model="tiny")
    names = {fingerprint(pool(*some).build(run)) for some in ((one, other), (other,), (elsewhere, one, other))}
    assert len(names) == 1
    assert pool(one).build(run).identity() == {"name": "tiny", "model": "tiny"}


def test_what_it_costs_is_the_dearest_members(chat_server: Start, tmp_path: Path) -> None:
    server = chat_server()
    spec_ = pool(
        chat(server, price=Price(read=1.0, wrote=9.0)), chat(server, price=Price(read=2.0, wrote=2.0)), chat(server)
    )
    built = spec_.build(Run(tmp_path / "run"))
    for tokens in ((10**6, 0), (0, 10**6), (10**6, 10**6)):
        assert spec_.price.of(*tokens) == built.price(*tokens) == max(tokens[0] + 9 * tokens[1], 2 * sum(tokens)) / 1e6


@dataclass(frozen=True, kw_only=True)
class Batches:
    """A writer of batches, as a local model is; the batch numbers in `bad` fail after one answer."""

    bad: tuple[int, ...] = ()

    def build(self, run: Run) -> Any:
        return BatchWriter(self)


class BatchWriter(Writes):
    at_once = 8

    def __init__(self, spec_: Batches):
        self.spec, self.batches, self.inside = spec_, 0, 0

    def write(self, asks: Sequence[Ask], stop: threading.Event) -> Iterator[tuple[int, Completion | Lost]]:
        self.inside += 1
        self.batches += 1
        assert self.inside == 1, "asked twice at a time"
        try:
            for number, ask in reversed(list(enumerate(asks))):
                time.sleep(0.001)
                yield number, Completion(ask.messages[-1][1][::-1])
                if self.batches in self.spec.bad:
                    raise NoAnswer("out of memory")
        finally:
            self.inside -= 1

    def identity(self) -> Mapping[str, Any]:
        return {"name": "tiny", "model": "tiny"}


def test_writers_of_batches_are_asked_in_batches(chat_server: Start, tmp_path: Path) -> None:
    built = pool(Batches(bad=(2,)), Batches(), chat_server()).build(Run(tmp_path / "run"))
    found = list(built.write(asks(100), threading.Event()))
    assert len(found) == 100 and right([answer for _, answer in sorted(found, key=lambda pair: pair[0])])
    assert all(1 < member.writer.batches < 40 for member in built.members[:2])


def test_when_stopped_nobody_waits_for_answers(chat_server: Start, tmp_path: Path) -> None:
    server, stop = chat_server(slow=5.0), threading.Event()
    threading.Timer(0.3, stop.set).start()
    began = time.monotonic()
    assert list(pool(server, server).build(Run(tmp_path / "run")).write(asks(9), stop)) == []
    assert time.monotonic() - began < 2.0


def test_under_faults_the_rows_are_those_of_one_calm_server(chat_server: Start, tmp_path: Path) -> None:
    def go(teacher: Any, folder: Path) -> Run:
        base = made("http://localhost:1/v1", count=40)
        recipe = Recipe(id="made", student=None, data=base.data, teachers={"teacher": teacher}, stages=base.stages)
        assert DataPlan.of(recipe).money["teacher"] == 0
        run = Run(folder)
        execute(recipe, run)
        return run

    calm = go(pool(chat_server(said)), tmp_path / "calm" / "run")
    servers, chance = [chat_server(said) for _ in range(3)], random.Random(5)
    for server in servers[:2]:
        server.fault_of = lambda number: chance.choice(PASSING) if chance.random() < 0.33 else None
    servers[2].fault_of = FOREVER(hang_up)
    rough = go(pool(*servers, retries=40), tmp_path / "rough" / "run")
    assert list(made_rows(rough, "make")) == list(made_rows(calm, "make"))
    assert account_of(rough, "make") == account_of(calm, "make")
    answered = Counter(words for server in servers for words in server.answered)
    assert max(answered.values()) <= 2  # two draws of every row


def test_a_pool_goes_through_yaml(chat_server: Start) -> None:
    spec_ = pool(chat_server(), chat(chat_server(), key_env=["KEY_A", "KEY_B"]))
    assert spec(to_plain(spec_)) == spec(to_plain(spec(to_plain(spec_))))
    assert "KEY_B" in dump(Recipe(id="x", student=None, data=None, teachers={"t": spec_}, stages={}))


# -- several keys ----------------------------------------------------------------------------------------------------

KEYS = {"KEY_A": "sk-aaaa-very-secret", "KEY_B": "sk-bbbb-very-secret", "KEY_C": "sk-bbbb-very-secret-and-longer"}


class Keyed:
    """What a server says to each key."""

    def __init__(self, server: ChatServer):
        self.seen: list[str] = []
        self.says: dict[str, Any] = {}
        server.fault_of = lambda number: self.fault

    def fault(self, handler: Any) -> None:
        key = (handler.headers.get("Authorization") or "").removeprefix("Bearer ")
        self.seen.append(key)
        fault = self.says.get(key)
        fault = fault(len(self.seen)) if callable(fault) else fault
        if fault is not None:
            return handler.send(*fault)
        message = {"message": {"content": f"I saw {' '.join(KEYS.values())} and {key}"}, "finish_reason": "stop"}
        handler.send(200, {"choices": [message]})


@pytest.fixture
def keyed(chat_server: Start, monkeypatch: pytest.MonkeyPatch) -> tuple[ChatServer, Keyed]:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    server = chat_server()
    return server, Keyed(server)


def test_keys_take_turns(keyed: Any, tmp_path: Path) -> None:
    server, told = keyed
    answers(chat(server, key_env=tuple(KEYS)), asks(30), tmp_path)
    assert Counter(told.seen) == dict.fromkeys(KEYS.values(), 10)


def test_a_refused_key_is_not_used_again(keyed: Any, tmp_path: Path) -> None:
    server, told = keyed
    told.says = {KEYS["KEY_B"]: (401, {"error": f"bad key {KEYS['KEY_B']}"})}
    found = answers(chat(server, key_env=("KEY_A", "KEY_B"), concurrency=1, retries=0), asks(20), tmp_path)
    assert all(isinstance(each, Completion) for each in found)
    assert Counter(told.seen) == {KEYS["KEY_A"]: 20, KEYS["KEY_B"]: 1}
    told.says[KEYS["KEY_A"]] = (403, {"error": f"bad key {KEYS['KEY_A']}"})
    with pytest.raises(
        RunError, match=r"refuses the API keys in the environment variables KEY_A, KEY_B \(40[13]\)"
    ) as caught:
        answers(chat(server, key_env=("KEY_A", "KEY_B")), asks(20), tmp_path)
    assert "secret" not in str(caught.value)


def test_a_limited_key_rests_while_the_others_work(keyed: Any, tmp_path: Path) -> None:
    server, told = keyed
    told.says = {KEYS["KEY_A"]: (429, b"{}", {"Retry-After": "30"})}
    began = time.monotonic()
    found = answers(chat(server, key_env=("KEY_A", "KEY_B"), concurrency=1, retries=0), asks(20), tmp_path)
    assert all(isinstance(each, Completion) for each in found) and time.monotonic() - began < 5
    assert Counter(told.seen) == {KEYS["KEY_A"]: 1, KEYS["KEY_B"]: 20}


def test_when_all_keys_are_limited_it_waits_for_the_first(keyed: Any, tmp_path: Path) -> None:
    server, told = keyed
    limited = lambda seconds: lambda number: (429, b"{}", {"Retry-After": seconds}) if number <= 2 else None  # noqa: E731
    told.says = {KEYS["KEY_A"]: limited("0.3"), KEYS["KEY_B"]: limited("30")}
    began = time.monotonic()
    found = answers(chat(server, key_env=("KEY_A", "KEY_B"), concurrency=1, retries=1), asks(4), tmp_path)
    assert all(isinstance(each, Completion) for each in found) and 0.25 < time.monotonic() - began < 5
    assert told.seen[2:] == [KEYS["KEY_A"]] * 4


def test_a_variable_that_is_not_set_is_passed_over(keyed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server, told = keyed
    monkeypatch.delenv("KEY_A")
    answers(chat(server, key_env=("KEY_A", "KEY_B")), asks(4), tmp_path)
    assert set(told.seen) == {KEYS["KEY_B"]}
    with pytest.raises(ValueError, match="never the key itself") as caught:
        chat(server, key_env=("KEY_B", KEYS["KEY_B"]))
    assert "secret" not in str(caught.value)
    with pytest.raises(ValueError):
        chat(server, key_env=("KEY_B", "KEY_B"))


def test_no_key_reaches_a_file_or_an_error(keyed: Any, tmp_path: Path) -> None:
    server, told = keyed
    spec_ = chat(server, key_env=tuple(KEYS))
    built = spec_.build(Run(tmp_path / "x"))
    assert "secret" not in repr(spec_) + repr(built) + json.dumps(built.identity()) + json.dumps(to_plain(spec_))
    (found,) = answers(spec_, asks(1), tmp_path)
    assert isinstance(found, Completion) and found.text == "I saw *** *** *** and ***"
    server.fault_of = lambda number: None
    server.answer = lambda words, body: f"{' '.join(KEYS.values())} 7"
    base = made(server.url, count=4)
    recipe = Recipe(id="made", student=None, data=base.data, teachers={"teacher": pool(spec_, spec_)}, stages=base.stages)
    execute(recipe, Run(tmp_path / "run"))
    server.faults = [(400, f"no {' '.join(KEYS.values())}".encode(), {})] * 100
    with pytest.raises(RunError) as caught:
        answers(spec_, asks(20), tmp_path)
    assert "secret" not in str(caught.value) and "***" in str(caught.value)
    server.faults = [(500, f"no {' '.join(KEYS.values())}".encode(), {})] * 100
    with pytest.raises(RunError) as caught:
        answers(pool(spec_, spec_, retries=1), asks(20), tmp_path)
    assert "secret" not in str(caught.value) and "***" in str(caught.value)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 5 and not any(b"secret" in path.read_bytes() for path in files)
