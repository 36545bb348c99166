"""Programs that reckon a number: what their `solution()` returns, many of them in one sandbox, and tasks judged by it.

    run:  {use: synth.reckon.Reckon, column: program, truth: truth}      a step
    data: {use: synth.reckon.Reckoned, base: {use: data.tasks.Questions, path: mine.jsonl}}      tasks

A sandbox takes a tenth of a second to start. Here one runs a batch of programs, each in a process of its own that is ended
before the next begins. None of them sees what is right. Should one end its batch, the rest is run again without it.
"""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice
from typing import Any

from ..core.run import Run
from ..data.tasks import OnTop, Task, last_number
from .programs import code_in
from .rules import having, text_in
from .sandbox import Job, Sandbox, spread
from .steps import Silent
from .table import Row

BATCH = 64  # programs of a sandbox
CHUNK = 512  # rows that are looked at together


@dataclass(frozen=True, slots=True)
class Told:
    """What became of a program: a value, or why there is none."""

    value: str = ""
    why: str = ""  # empty: it returned a value


def as_program(text: str) -> str | None:
    """The program in an answer: one that defines `solution`, or the body of such a function (`return 3 * 4`); None: none."""
    code = textwrap.dedent(code_in(text).strip("\n")).rstrip()
    if re.search(r"^def solution\b", code, re.MULTILINE):
        return code
    if re.search(r"^\s*return\b", code, re.MULTILINE):
        return f"def solution():\n{textwrap.indent(code, '    ')}"
    return None


def reckoned(programs: Sequence[str], sandbox: Sandbox) -> list[Told]:
    """What each program's `solution()` returns; the same program is run once. `sandbox.seconds` is for each of them."""
    different = list(dict.fromkeys(programs))
    parts = [different[i : i + BATCH] for i in range(0, len(different), BATCH)]
    told = [each for part in spread(lambda part: _batch(part, sandbox), parts) for each in part]
    known = dict(zip(different, told, strict=True))
    return [known[program] for program in programs]


def _batch(programs: Sequence[str], sandbox: Sandbox) -> list[Told]:
    """One sandbox for all of them; if one ends it, it is run alone, and those behind it together again."""
    given = {"programs": [each.encode(errors="surrogatepass").hex() for each in programs], "seconds": sandbox.seconds}
    job = Job(RUN, {"programs.json": json.dumps(given).encode()})
    outcome = replace(sandbox, seconds=sandbox.seconds * (len(programs) + 1), processes=sandbox.processes + 1).jobs(job)
    told: list[Told] = []
    for line in outcome.stdout.splitlines()[: len(programs)]:
        try:
            told.append(Told(*map(str, json.loads(line))))
        except (ValueError, TypeError):
            break
    rest = programs[len(told) :]
    if not rest:
        return told
    if len(programs) == 1:
        return [Told(why=f"it ended its sandbox: {outcome.status}")]
    return [*told, *_batch(rest[:1], sandbox), *(_batch(rest[1:], sandbox) if rest[1:] else [])]


def near(said: str, truth: str, within: float) -> bool:
    """Whether the last numbers of two texts differ by less than `within`."""
    a, b = last_number(said), last_number(truth)
    return a is not None and b is not None and abs(a - b) < Fraction(str(within))


@dataclass(frozen=True, kw_only=True)
class Reckon(Silent):
    """Runs the program in a column, writes what it returned to `result`, and says in `into` whether that is the truth.

    Lost, unless `keep`: a row whose column holds no program, whose program fails, takes too long or returns no number, or
    returns another one than the truth, each with what was said. Lost whatever `keep` says: a row whose truth is no number.
    Without `truth` every number is good. With `tries`, a column of that name counts how often a row came by here.
    Programs run a chunk of rows at a time.
    """

    column: str = "program"
    truth: str | None = "truth"
    within: float = 0.01  # by which a result may differ
    into: str = "solved"  # 1 or 0
    result: str = "result"
    tries: str = ""
    keep: bool = False  # rows that are not solved pass too
    sandbox: Sandbox = Sandbox()

    def __post_init__(self) -> None:
        if self.within <= 0:
            raise ValueError("within must be above 0")

    def check(self, run: Run) -> None:
        """RunError if programs cannot be confined here."""
        self.sandbox.check(run)

    def __call__(self, rows: Iterable[Row], run: Run) -> Iterator[Row]:
        """The rows with what their programs gave."""
        self.check(run)
        waiting = iter(having(rows, run, self.column, *([self.truth] if self.truth else [])))
        while chunk := list(islice(waiting, CHUNK)):
            programs = [as_program(text_in(row, self.column)) for row in chunk]
            told = iter(reckoned([each for each in programs if each is not None], self.sandbox))
            for row, program in zip(chunk, programs, strict=True):
                yield from self._judged(row, Told(why="it holds no program") if program is None else next(told), run)

    def _judged(self, row: Row, told: Told, run: Run) -> Iterator[Row]:
        truth = text_in(row, self.truth) if self.truth else None
        if truth is not None and last_number(truth) is None:
            run.work.lose(row, "its truth is no number")
            return
        why = told.why or ("" if last_number(told.value) is not None else "what it returns is no number")
        if not why and truth is not None and not near(told.value, truth, self.within):
            why = "it returns another number"
        more: dict[str, Any] = {self.tries: int(row.get(self.tries) or 0) + 1} if self.tries else {}
        if why and not self.keep:
            run.work.lose({**row, **more}, why.partition(":")[0], told=why[:200], value=told.value[:80])
        else:
            yield {**row, **more, self.into: int(not why), self.result: told.value if not why else ""}


@dataclass(frozen=True, kw_only=True)
class Reckoned(OnTop):
    """Tasks of `base`, which have a number as their answer: an answer that holds a program is worth what it returns.

    Right is what differs from the truth by less than `within`. An answer without a program is judged as `base` does.
    """

    within: float = 0.01
    sandbox: Sandbox = Sandbox()

    def tasks(self, run: Run) -> dict[str, list[Task]]:
        """The tasks' own; RunError if programs cannot be confined here."""
        self.sandbox.check(run)
        return self.base.tasks(run)

    def score(self, task: Task, text: str) -> float:
        """1 if it is right."""
        return self.scores([task], [text])[0]

    def scores(self, tasks: Sequence[Task], texts: Sequence[str | None]) -> list[float]:
        """The same of many answers; programs run in batches."""
        programs = [None if text is None else as_program(text) for text in texts]
        told = iter(reckoned([each for each in programs if each is not None], self.sandbox))
        plain = self.base.scores(tasks, [t if p is None else None for t, p in zip(texts, programs, strict=True)])
        return [
            worth if program is None else float(not (said := next(told)).why and near(said.value, task.answer, self.within))
            for task, program, worth in zip(tasks, programs, plain, strict=True)
        ]


# -- what runs inside: the function below is sent as its source ---------------------------------------------------------


def reckon() -> None:
    """Run every program in a process of its own, one after the other, and say what its `solution()` gave."""
    import ctypes
    import json
    import os
    import select
    import signal
    import time

    with open("programs.json", encoding="utf-8") as file:
        given = json.load(file)
    talk = os.fdopen(os.dup(1), "w")
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # not dumpable: no program reads or writes what is open here

    def value_of(source: bytes) -> list[str]:
        try:
            space: dict[str, Any] = {"__name__": "program"}
            exec(compile(source.decode(errors="surrogatepass"), "program.py", "exec"), space)  # noqa: S102  in the sandbox
            value = space["solution"]()
            number = hasattr(value, "as_integer_ratio") and not isinstance(value, bool)
            if number or isinstance(value, str):
                return [str(value)[:200], ""]
            return ["", "it returns no number"]
        except BaseException as error:
            return ["", f"it fails: {type(error).__name__}: {error}"[:200]]

    for program in given["programs"]:
        here, there = os.pipe()
        child = os.fork()
        if child == 0:
            os.setsid()
            os.close(here)
            os.close(talk.fileno())
            os.write(there, json.dumps(value_of(bytes.fromhex(program))).encode())
            os._exit(0)
        os.close(there)
        said, end = b"", time.monotonic() + given["seconds"]
        told = ["", "it takes too long"]
        while select.select([here], [], [], max(end - time.monotonic(), 0))[0]:
            part = os.read(here, 4096)
            said += part
            if not part or len(said) > 4096:
                try:
                    told = [str(each) for each in json.loads(said)][:2]
                except ValueError:
                    told = ["", "it ended without a result"]
                break
        os.close(here)
        for kill in (os.killpg, os.kill):
            try:
                kill(child, signal.SIGKILL)
            except ProcessLookupError:
                pass
        os.waitpid(child, 0)
        talk.write(json.dumps(told) + "\n")
        talk.flush()


RUN = "\n".join(["from typing import Any", inspect.getsource(reckon), "reckon()"])
