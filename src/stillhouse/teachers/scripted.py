"""Teachers without a model: a script that answers, a spy that remembers what was asked, a replay of a recording.

They make data engines testable without a network: a script knows the truth about what it writes, so every filter and
every label that comes after it can be scored.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..core.recipe import to_plain
from ..core.run import Run, RunError, seed_of
from ..core.signal import Completion, Kind
from .text import Ask, Lost, Writer, Writes

Answers = Callable[[Ask, random.Random], str | Completion | Lost]  # depends on the ask and on what is drawn alone


class Script(Protocol):
    """How a scripted teacher answers: a frozen dataclass. One that heeds more than the words of an ask (`Ask.wants`) says
    so in `gives`."""

    def build(self, run: Run) -> Answers:
        """What answers; it may read the run's data first."""
        ...


def chance_of(ask: Ask) -> random.Random:
    """Chance that depends on the ask alone."""
    how = {k: v for k, v in to_plain(ask.decoding).items() if k not in ("not_first", "logprobs")}
    more = [[ask.begin, ask.decoding.not_first, ask.decoding.logprobs]] if ask.wants else []
    return random.Random(seed_of("script", ask.messages, how, ask.seed, *more))


@dataclass(frozen=True, kw_only=True)
class Scripted:
    """A teacher that follows a script."""

    script: Any  # Script

    def build(self, run: Run) -> ScriptedWriter:
        """The teacher."""
        return ScriptedWriter(self.script, self.script.build(run))


class ScriptedWriter(Writes):
    """Answers by a script; what is drawn depends on the ask alone."""

    at_once = 64

    def __init__(self, script: Script, answers: Answers):
        self.script, self.answers = script, answers
        self.gives = frozenset[Kind]({"text"}) | getattr(script, "gives", frozenset[Kind]())

    def write(self, asks: Sequence[Ask], stop: threading.Event) -> Iterator[tuple[int, Completion | Lost]]:
        """In order."""
        for number, ask in enumerate(asks):
            if stop.is_set():
                return
            said = self.answers(ask, chance_of(ask))
            if isinstance(said, str):
                said = Completion(said, read=ask.size, wrote=-(-len(said.encode()) // 4))
            yield number, said

    def identity(self) -> Mapping[str, Any]:
        """The script with its settings."""
        return {"name": type(self.script).__name__, "script": to_plain(self.script)}


class Spy(Writes):
    """Passes asks on to another teacher and remembers them."""

    def __init__(self, writer: Writer):
        self.writer, self.asked = writer, list[Ask]()
        self.at_once, self.price, self.identity = writer.at_once, writer.price, writer.identity
        self.gives = writer.gives

    def write(self, asks: Sequence[Ask], stop: threading.Event) -> Iterator[tuple[int, Completion | Lost]]:
        """As the other teacher."""
        self.asked.extend(asks)
        return self.writer.write(asks, stop)


@dataclass(frozen=True, kw_only=True)
class Replay:
    """Answers from the calls that an earlier run has kept, and from nothing else: no network, no model, no cost."""

    path: str  # the run's folder, or its requests.sqlite
    teacher: str = "teacher"  # as the recorded run called it

    def build(self, run: Run) -> ReplayWriter:
        """The recording; RunError if there is none or it holds no such teacher."""
        from ..synth.calls import FILE, recorded

        file = Path(self.path).expanduser()
        return ReplayWriter(*recorded(file / FILE if file.is_dir() else file, self.teacher))


class ReplayWriter(Writes):
    """Looks answers up."""

    at_once = 1024
    gives = frozenset[Kind]({"text", "continuation", "suppression", "logprobs"})

    def __init__(self, identity: Mapping[str, Any], answers: Mapping[str, Completion], fingerprint: str):
        self._identity, self.answers, self.fingerprint = identity, answers, fingerprint

    def write(self, asks: Sequence[Ask], stop: threading.Event) -> Iterator[tuple[int, Completion | Lost]]:
        """In order; RunError for what was never asked."""
        for number, ask in enumerate(asks):
            found = self.answers.get(ask.key(self.fingerprint))
            if found is None:
                words = " ".join(ask.messages[-1][1].split())[-80:]
                raise RunError(f"the recording holds no answer to {words!r}: it is of other data, prompts or decoding")
            yield number, found

    def identity(self) -> Mapping[str, Any]:
        """The recorded teacher's."""
        return self._identity
