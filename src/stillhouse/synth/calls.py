"""Every call to a teacher, kept under what was asked: nothing is paid twice, by this run or by the runs beside it.

A run's calls are in its `requests.sqlite`. The name of a call is a hash over the teacher's identity, the messages, the
decoding and the number of the sample. What is not there is looked for among the runs in the same folder before the
teacher is asked, so that a changed threshold, prompt or student does not buy the same answer again. Each answer is
written as soon as it is there: a kill loses what was in flight, and nothing else.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from ..core.run import Interrupted, Run, RunError
from ..core.signal import Completion
from ..teachers.text import Ask, Lost, Writer, fingerprint
from .budget import Budget, Ledger, Spent

FILE = "requests.sqlite"
REMEDY = "take a local model (teachers.writer.LocalChat), or say what your server can (continues, logprobs)"
WINDOW = 8  # asks looked at together, as a multiple of those that a teacher takes at once
T = TypeVar("T")

_TABLES = """
create table if not exists teachers (
    fingerprint text primary key, role text not null, identity text not null
) without rowid;
create table if not exists calls (
    key text primary key, teacher text not null, asked text not null, answer text not null,
    read integer not null, wrote integer not null, money real not null, seconds real not null, borrowed integer not null
) without rowid;
"""


class Calls:
    """Asks teachers on behalf of one run; remembers, counts and stops at the budget."""

    def __init__(self, run: Run, budgets: Mapping[str, Budget], stop: threading.Event):
        self.run, self.stop = run, stop
        self.file = run.folder / FILE
        self.db = _opened(self.file)
        self.others = [db for path in sorted(run.folder.parent.glob(f"*/{FILE}")) if (db := self._neighbour(path))]
        self.ledgers = {role: Ledger(role, budget) for role, budget in budgets.items()}
        self.known: dict[str, tuple[Writer, str]] = {}

    def close(self) -> None:
        """Leave one plain file behind."""
        self.db.execute("pragma journal_mode = delete")
        for db in (self.db, *self.others):
            db.close()

    def teacher(self, role: str) -> tuple[Writer, str]:
        """The recipe's teacher of that name, and its fingerprint; RunError if it writes no text."""
        if role not in self.known:
            teacher: Any = self.run.teachers[role]
            if "text" not in teacher.gives or not hasattr(teacher, "write"):
                raise RunError(
                    f"the teacher {role!r} writes no text; give one that does: teachers.chat.HttpChat (a server), "
                    "teachers.writer.LocalChat (a model of yours) or teachers.scripted.Scripted"
                )
            name = fingerprint(teacher)
            identity = json.dumps(dict(teacher.identity()), sort_keys=True, ensure_ascii=False, default=str)
            self.db.execute("insert or replace into teachers values (?, ?, ?)", (name, role, identity))
            ledger = self.ledgers.setdefault(role, Ledger(role, Budget()))
            ledger.start(self._spent(name))
            self.known[role] = teacher, name
        return self.known[role]

    def ask(
        self, role: str, asks: Iterable[tuple[T, Ask]], tell: Callable[[int], None] = lambda answers: None
    ) -> Iterator[tuple[T, Completion | Lost]]:
        """Every ask with its answer, in the order of the asks, which are taken a window at a time.

        `tell` hears how many more have an answer, as soon as they have.
        """
        most = WINDOW * max(8, self.teacher(role)[0].at_once)
        window: list[tuple[T, Ask]] = []
        for pair in asks:
            window.append(pair)
            if len(window) >= most:
                yield from self._window(role, window, tell)
                window = []
        yield from self._window(role, window, tell)

    def _window(
        self, role: str, window: Sequence[tuple[T, Ask]], tell: Callable[[int], None]
    ) -> Iterator[tuple[T, Completion | Lost]]:
        teacher, name = self.known[role]
        lacking = frozenset(kind for _, ask in window for kind in ask.wants) - teacher.gives
        if lacking:
            given = ", ".join(sorted(teacher.gives))
            raise RunError(f"{', '.join(sorted(lacking))} is asked of the teacher {role!r}, which gives {given}; {REMEDY}")
        keys = [ask.key(name) for _, ask in window]
        answers: dict[str, Completion | Lost] = {}
        new: dict[str, Ask] = {}
        for (_, ask), key in zip(window, keys, strict=True):
            if key not in answers and key not in new:
                found = self._found(key, name)
                if found is None:
                    new[key] = ask
                else:
                    answers[key] = found
        waiting = list(new)
        tell(len(window) - len(new))
        while waiting:  # once all that was reserved is paid, what was reserved too much is there for others
            some, why = self._reserved(self.ledgers[role], teacher, [new[key] for key in waiting])
            if not some:
                answers |= dict.fromkeys(waiting, Lost(why))
                tell(len(waiting))
                break
            self._asked(role, {key: new[key] for key in waiting[:some]}, answers, tell)
            waiting = waiting[some:]
        for (tag, _), key in zip(window, keys, strict=True):
            yield tag, answers[key]

    def _reserved(self, ledger: Ledger, teacher: Writer, asks: Sequence[Ask]) -> tuple[int, str]:
        """How many of these asks, from the first on, the budget surely allows, and why no more."""
        for number, ask in enumerate(asks):
            why = ledger.reserve(self._most(teacher, ask))
            if why is not None:
                return number, why
        return len(asks), ""

    def _asked(
        self, role: str, new: Mapping[str, Ask], answers: dict[str, Completion | Lost], tell: Callable[[int], None]
    ) -> None:
        """Ask the teacher what nobody has asked it before; Interrupted when the user wants to stop."""
        teacher, name = self.known[role]
        order, ledger, began = list(new), self.ledgers[role], time.monotonic()
        try:
            for number, answer in teacher.write([new[key] for key in order], self.stop):
                key = order[number]
                most = self._most(teacher, new[key])
                if isinstance(answer, Lost):
                    ledger.refund(most)
                else:
                    seconds = time.monotonic() - began  # since all of them were asked: calls overlap
                    paid = Spent(1, answer.read + answer.wrote, teacher.price(answer.read, answer.wrote))
                    ledger.commit(most, paid)
                    self._keep(key, name, new[key], answer, paid.money, seconds)
                answers[key] = answer
                tell(1)
        finally:
            for key in new.keys() - answers.keys():
                ledger.refund(self._most(teacher, new[key]))
        if self.stop.is_set():
            raise Interrupted(f"stopped in stage {self.run.stage!r}; go on with: stillhouse run {self.run.folder}")
        missing = [key for key in order if key not in answers]
        if missing:
            raise RunError(f"the teacher {role!r} left {len(missing)} of {len(order)} asks without an answer")

    def _most(self, teacher: Writer, ask: Ask) -> Spent:
        """The most that this ask can cost, its words counted by their length."""
        read, wrote = ask.size, ask.decoding.max_new
        return Spent(1, read + wrote, teacher.price(read, wrote))

    # -- the file --------------------------------------------------------------------------------------------------

    def _found(self, key: str, teacher: str) -> Completion | None:
        row = self.db.execute("select answer from calls where key = ?", (key,)).fetchone()
        if row is not None:
            return Completion(**json.loads(row[0]))
        for db in self.others:
            row = db.execute("select asked, answer from calls where key = ?", (key,)).fetchone()
            if row is not None:
                answer = Completion(**json.loads(row[1]))
                self._insert((key, teacher, *row, answer.read, answer.wrote, 0.0, 0.0, 1))
                return answer
        return None

    def _keep(self, key: str, teacher: str, ask: Ask, answer: Completion, money: float, seconds: float) -> None:
        asked = {"messages": ask.messages, "decoding": asdict(ask.decoding), "seed": ask.seed}
        asked |= {"begin": ask.begin} if ask.begin else {}
        told = {k: v for k, v in asdict(answer).items() if v is not None}
        texts = [json.dumps(value, ensure_ascii=False, default=str) for value in (asked, told)]
        self._insert((key, teacher, *texts, answer.read, answer.wrote, money, seconds, 0))

    def _insert(self, row: tuple[Any, ...]) -> None:
        try:
            self.db.execute("insert or ignore into calls values (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        except sqlite3.Error as error:
            again = f"what was answered is kept, go on with: stillhouse run {self.run.folder}"
            raise RunError(f"cannot write to {self.file}: {error}; {again}") from error

    def _spent(self, teacher: str) -> Spent:
        query = "select count(*), total(read + wrote), total(money) from calls where teacher = ? and not borrowed"
        calls, tokens, money = self.db.execute(query, (teacher,)).fetchone()
        return Spent(calls, int(tokens), money)

    def _neighbour(self, path: Path) -> sqlite3.Connection | None:
        """Another run's calls, to read; None if they cannot be read now."""
        if path.resolve() == self.file.resolve():
            return None
        try:
            db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
            db.execute("select key, asked, answer from calls limit 1").fetchone()
            return db
        except sqlite3.Error:
            return None

    def totals(self) -> dict[str, dict[str, float]]:
        """By role: calls and tokens paid for, money, and how many answers were found instead of asked for."""
        found: dict[str, dict[str, float]] = {}
        for role, (_, name) in self.known.items():
            spent = self._spent(name)
            query = "select count(*) from calls where teacher = ? and borrowed"
            (borrowed,) = self.db.execute(query, (name,)).fetchone()
            found[role] = {"calls": spent.calls, "tokens": spent.tokens, "money": spent.money, "borrowed": borrowed}
        return found


def recorded(file: Path, role: str) -> tuple[dict[str, Any], dict[str, Completion], str]:
    """(identity, answers by key, fingerprint) of one teacher in a recording; RunError if there is none."""
    if not file.is_file():
        raise RunError(f"no recorded calls at {file}; give the folder of a run that made data")
    try:
        db = sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)
        teachers = {r: (name, told) for name, r, told in db.execute("select fingerprint, role, identity from teachers")}
        if role not in teachers:
            raise RunError(f"{file} holds no teacher {role!r}; it holds {', '.join(teachers) or 'none'}")
        name, told = teachers[role]
        rows = db.execute("select key, answer from calls where teacher = ?", (name,))
        return json.loads(told), {key: Completion(**json.loads(answer)) for key, answer in rows}, name
    except (sqlite3.Error, ValueError, TypeError) as error:
        raise RunError(f"cannot read the calls in {file}: {error}") from error


def _opened(file: Path) -> sqlite3.Connection:
    """The run's own file. With a write-ahead log every answer is safe from a kill without waiting for the disk."""
    try:
        db = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
        db.execute("pragma journal_mode = wal")
        db.execute("pragma synchronous = normal")
        db.executescript(_TABLES)
        return db
    except sqlite3.Error as error:
        raise RunError(f"cannot use {file}: {error}; delete it to ask the teachers again") from error
