"""Several writing teachers that are the same model, as one: what is asked goes to whichever is free."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..core.run import Run, RunError
from ..core.signal import Completion
from .chat import HttpChat, Judging
from .server import PATIENCE, Later, NoAnswer, Refused
from .text import Ask, Lost, Writer

PLACE = ("url host",)  # what of an identity says where a model is, and not what it is


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Servers (or other writers) of one model; answers are kept under the model's name, wherever they came from.

    A member that fails in passing (no connection, too busy, no usable answer) rests, twice as long every time until it
    answers again, and what it was asked goes to the others; so its own `retries` do not count. One that refuses the key or
    does not know the model ends the run: that is a setting to be mended. What tokens cost is counted at the dearest
    member's price.
    """

    members: Mapping[str, Any]  # name -> teacher: {a: {use: teachers.chat.HttpChat, ...}, b: ...}
    rest: float = 1.0  # seconds, after a first failure
    longest_rest: float = 60.0
    retries: int = 8  # of one ask, wherever

    def __post_init__(self) -> None:
        if not self.members:
            raise ValueError("give at least one member, such as {a: {use: teachers.chat.HttpChat, ...}}")
        if not 0 < self.rest <= self.longest_rest or self.retries < 0:
            raise ValueError("rest must be above 0 and at most longest_rest, and retries at least 0")

    @property
    def price(self) -> Dearest:
        """What `stillhouse plan` counts by."""
        return Dearest([price for spec in self.members.values() if (price := getattr(spec, "price", None)) is not None])

    def build(self, run: Run) -> PoolWriter:
        """All members; RunError if one writes no text or is another model. Asks nobody."""
        writers: dict[str, Any] = {}
        for name, spec in self.members.items():
            alone = replace(spec, retries=0) if isinstance(spec, HttpChat) else spec  # others are the second attempt
            writers[name] = alone.build(run)
            if "text" not in writers[name].gives or not hasattr(writers[name], "write"):
                raise RunError(f"the member {name!r} of the pool writes no text; leave it out")
        return PoolWriter(self, writers)


@dataclass(frozen=True)
class Dearest:
    """The highest of several prices."""

    prices: Sequence[Any]

    def of(self, read: int, wrote: int) -> float:
        """What so many tokens cost at most."""
        return max((price.of(read, wrote) for price in self.prices), default=0.0)


class _Member:
    """One writer, when it may be asked again, and how often it has failed since it last answered."""

    def __init__(self, name: str, writer: Any):
        self.name, self.writer = name, writer
        self.until, self.failures = 0.0, 0
        self.single = hasattr(writer, "answer")  # takes asks one by one, from several threads

    @property
    def ready(self) -> float:
        """When it may be asked: a server may have said so itself."""
        pace = getattr(self.writer, "pace", None)
        return max(self.until, 0.0 if pace is None else pace.free)


class PoolWriter(Judging):
    """Hands asks out to the members' lanes: as many for a server as it takes at a time, one for any other writer."""

    def __init__(self, spec: Pool, writers: Mapping[str, Writer]):
        self.spec, self.members = spec, [_Member(name, writer) for name, writer in writers.items()]
        self.at_once = sum(writer.at_once for writer in writers.values())
        self.gives = frozenset.intersection(*(writer.gives for writer in writers.values()))
        self._identity = _common(writers)

    def write(self, asks: Sequence[Ask], stop: threading.Event) -> Iterator[tuple[int, Completion | Lost]]:
        """As they come; nobody waits for a lane that waits for an answer once it is stopped."""
        work = _Handout(self.spec, self.members, asks)
        for member in self.members:
            for _ in range(min(member.writer.at_once, len(asks)) if member.single else 1):
                threading.Thread(target=work.lane, args=(member,), daemon=True).start()
        try:
            given = 0
            while given < len(asks):
                found = work.next(0.2)
                if found is not None:
                    given += 1
                    yield found[0], self.judged(found[1])
                if stop.is_set():
                    return
        finally:
            work.end()

    def told(self, answer: Any, found: Lost) -> BaseException:
        """No member can be used."""
        return RunError(f"no member of the pool answers: {found.why}")

    def price(self, read: int, wrote: int) -> float:
        """By the dearest member."""
        return max(member.writer.price(read, wrote) for member in self.members)

    def identity(self) -> Mapping[str, Any]:
        """The model's: what the members' identities say beside where they are."""
        return self._identity


class _Handout:
    """The asks of one call of `write`: who does which, what came back, and what is to be asked again."""

    def __init__(self, spec: Pool, members: Sequence[_Member], asks: Sequence[Ask]):
        self.spec, self.members, self.asks = spec, members, asks
        self.todo = deque(range(len(asks)))
        self.tries = [0] * len(asks)
        self.done: deque[tuple[int, Any]] = deque()
        self.gone = threading.Event()
        lock = threading.Lock()
        self.more, self.came = threading.Condition(lock), threading.Condition(lock)  # asks for lanes, answers for the caller

    def next(self, seconds: float) -> tuple[int, Any] | None:
        """(number, answer or error) as soon as there is one; None after so long without."""
        with self.came:
            if not self.done:
                self.came.wait(seconds)
            return self.done.popleft() if self.done else None

    def end(self) -> None:
        """Nobody takes another."""
        with self.more:
            self.gone.set()
            self.more.notify_all()

    def lane(self, member: _Member) -> None:
        """Take, ask and hand back, until the caller is gone."""
        while (numbers := self._take(member)) is not None:
            try:
                if member.single:
                    answer = member.writer.answer(self.asks[numbers[0]], self.gone)
                    self._back(member, numbers.pop(), answer)
                    continue
                some = list(numbers)
                for place, answer in member.writer.write([self.asks[number] for number in some], self.gone):
                    numbers.remove(some[place])
                    self._back(member, some[place], answer)
                if numbers and not self.gone.is_set():
                    raise RunError(f"the member {member.name!r} of the pool left {len(numbers)} asks without an answer")
            except (NoAnswer, Later) as error:
                self._failed(member, numbers, error)
            except Refused as error:  # of one ask
                self._back(member, numbers[0], member.writer.explained(error) if error.status == 404 else error)
            except BaseException as error:  # told to the caller, whatever it is
                for number in numbers:
                    self._back(member, number, error)

    def _take(self, member: _Member) -> list[int] | None:
        """The next asks for a member that may be asked, once there are any; None if the caller is gone."""
        with self.more:
            while not self.gone.is_set():
                wait = member.ready - time.monotonic()
                if self.todo and wait <= 0:
                    count = 1 if member.single else min(member.writer.at_once, len(self.todo))
                    return [self.todo.popleft() for _ in range(count)]
                self.more.wait(min(wait, 1.0) if self.todo and wait > 0 else 1.0)
            return None

    def _back(self, member: _Member, number: int, answer: Any) -> None:
        with self.came:
            if isinstance(answer, Completion):
                member.failures = 0
            self.done.append((number, answer))
            self.came.notify()

    def _failed(self, member: _Member, numbers: Sequence[int], error: RunError) -> None:
        """Let the member rest and others try, as often as the pool allows."""
        with self.more:
            now = time.monotonic()
            if member.until <= now:  # what was in flight beside it is no further failure
                member.until = now + min(self.spec.longest_rest, self.spec.rest * 2**member.failures)
                member.failures = min(member.failures + 1, 32)
            for number in numbers:
                self.tries[number] += 1
                patient = isinstance(error, NoAnswer) or any(other.ready <= now + PATIENCE for other in self.members)
                if self.tries[number] > self.spec.retries or not patient:
                    self.done.append((number, error))
                else:
                    self.todo.append(number)
            self.came.notify()
            self.more.notify_all()


def _common(writers: Mapping[str, Writer]) -> Mapping[str, Any]:
    """What all members are; RunError if two are not the same."""
    told = {name: {k: v for k, v in writer.identity().items() if k not in PLACE} for name, writer in writers.items()}
    (first, wanted), *others = told.items()
    for name, identity in others:
        for key in sorted(wanted.keys() | identity.keys()):
            if wanted.get(key) != identity.get(key):
                raise RunError(
                    f"the members {first!r} and {name!r} of the pool are not the same model: "
                    f"{key} is {wanted.get(key)!r} and {identity.get(key)!r}; make them teachers of their own"
                )
    return wanted
