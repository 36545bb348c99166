"""What a teacher that writes is asked, and what it answers: the contract of scripted, local and served writers.

Such a teacher gives `text`. Beside the call that every teacher has it has `write`, which takes many asks and yields each
answer as soon as it is there, in any order.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..core.signal import Batch, Completion, Kind, Signal


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How an answer is drawn."""

    temperature: float = 1.0  # 0: always the likeliest token
    top_p: float = 1.0
    max_new: int = 256  # tokens
    not_first: tuple[str, ...] = ()  # words that an answer may not begin with, whatever their case ("suppression")
    logprobs: bool = False  # with how likely every token of the answer was ("logprobs")

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.max_new < 1:
            raise ValueError("temperature must be 0 or more, top_p between 0 and 1, max_new at least 1")


@dataclass(frozen=True, slots=True)
class Ask:
    """One question to one teacher: everything that its answer may depend on."""

    messages: tuple[tuple[str, str], ...]  # (role, words)
    decoding: Decoding
    seed: int = 0  # tells samples of the same words apart; 0 where nothing is drawn
    about: Mapping[str, Any] = field(default_factory=dict[str, Any])  # what the words say, for scripts; never sent
    begin: str = ""  # what the answer begins with, and does not repeat ("continuation")

    def key(self, teacher: str) -> str:
        """The name of this question to the teacher with this fingerprint, for a cache: 128 bits as hex."""
        d = self.decoding
        asked: list[Any] = [teacher, self.messages, d.temperature, d.top_p, d.max_new, self.seed]
        asked += [[self.begin, d.not_first, d.logprobs]] if self.wants else []
        return hashlib.blake2b(json.dumps(asked, ensure_ascii=False).encode(), digest_size=16).hexdigest()

    @property
    def wants(self) -> frozenset[Kind]:
        """What its teacher must be able to do beside writing."""
        d = self.decoding
        every: Mapping[Kind, Any] = {"continuation": self.begin, "suppression": d.not_first, "logprobs": d.logprobs}
        return frozenset(kind for kind, asked in every.items() if asked)

    @property
    def size(self) -> int:
        """About how many tokens its words are, where nobody has counted: one for four bytes of UTF-8."""
        words = [words for _, words in self.messages]
        return 4 + sum(-(-len(each.encode()) // 4) + 4 for each in (*words, *([self.begin] if self.begin else [])))


@dataclass(frozen=True, slots=True)
class Lost:
    """An ask without an answer that can be used, and why."""

    why: str


def begins_with(text: str, words: Sequence[str]) -> bool:
    """Whether a text begins with one of these words, in whatever case and behind whatever space."""
    said = text.lstrip().casefold()
    return any(re.match(rf"{re.escape(word.strip().casefold())}(?:(?<!\w)|(?!\w))", said) for word in words)


class Writer(Protocol):
    """A teacher that writes text. `at_once` asks at a time keep it busy."""

    gives: frozenset[Kind]
    at_once: int

    def __call__(self, batch: Batch, want: frozenset[Kind]) -> Signal:
        """The answers to `batch["asks"]` as `text`, one for each."""
        ...

    def write(self, asks: Sequence[Ask], stop: threading.Event) -> Iterator[tuple[int, Completion | Lost]]:
        """(number of the ask, its answer), as they come; ends early once `stop` is set."""
        ...

    def price(self, read: int, wrote: int) -> float:
        """What so many tokens cost, in the currency of its prices."""
        ...

    def identity(self) -> Mapping[str, Any]:
        """What makes its answers what they are: part of the name that they are kept under."""
        ...


def fingerprint(teacher: Writer) -> str:
    """The teacher's identity in 128 bits."""
    told = json.dumps(teacher.identity(), sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(told.encode(), digest_size=16).hexdigest()


class Writes:
    """What all writers have in common. One that can do more than write says so in `gives`."""

    gives: frozenset[Kind] = frozenset({"text"})
    at_once = 1

    def write(self, asks: Sequence[Ask], stop: threading.Event) -> Iterator[tuple[int, Completion | Lost]]:
        raise NotImplementedError

    def price(self, read: int, wrote: int) -> float:
        """Nothing."""
        return 0.0

    def __call__(self, batch: Batch, want: frozenset[Kind]) -> Signal:
        """The answers to `batch["asks"]`; an ask that was lost has none."""
        asks: Sequence[Ask] = batch["asks"]
        answers: list[Sequence[Completion]] = [()] * len(asks)
        for number, answer in self.write(asks, threading.Event()):
            answers[number] = () if isinstance(answer, Lost) else (answer,)
        return Signal(text=answers)
