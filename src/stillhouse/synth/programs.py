"""Programs as answers: tasks that are solved by code which passes tests, run in `synth.sandbox`, and what code earns.

    data: {use: synth.programs.ProgramTasks, path: mine.jsonl}

A row has a prompt and tests: Python statements with asserts, or inputs with the outputs that a program should print.

A model's code never sees a test. Statements run in a sandbox of their own and hand the other one nothing but
arguments; what comes back is plain data, or a handle that can be called and asked for attributes but is equal to nothing.
So no exit code, no printed word and no object that equals everything makes a test pass. Outputs are compared out here.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ..core.run import Run, RunError
from ..data.rewards import Answered
from ..data.tables import Row, read_rows, split_rows
from ..data.tasks import SPLITS, TRANSITION, Task, Worded
from .sandbox import Job, Program, Sandbox, spread

INSTRUCTION = "Write the program in one ```python block."


@dataclass(frozen=True, kw_only=True)
class Exam:
    """What a program has to pass."""

    statements: tuple[str, ...] = ()  # Python, each one test; a test passes if it raises nothing
    pairs: tuple[tuple[str, str], ...] = ()  # standard input, and what to print for it
    before: str = ""  # code that stands before the program, and before the statements
    entry: str = ""  # the function that statements call `candidate`, as in HumanEval
    sandbox: Sandbox = Sandbox()

    def __len__(self) -> int:
        return len(self.statements) + len(self.pairs)


@lru_cache(maxsize=4096)
def passed(tests: Exam, code: str) -> tuple[bool, ...]:
    """Which tests a program passes. One that was run before is not run again."""
    source = f"{tests.before}\n{code}" if tests.before else code
    said = [not why for why in complaints(tests, source)]
    for stdin, wanted in tests.pairs:
        made = tests.sandbox.run(Program(source, stdin))
        said.append(made.status == "ok" and _lines(made.stdout) == _lines(wanted))
    return tuple(said)


def complaints(tests: Exam, source: str) -> list[str]:
    """What each of the statements says against a program; empty: it passes."""
    if not tests.statements:
        return []
    given = {"statements": tests.statements, "before": tests.before, "entry": tests.entry}
    judge = Job(JUDGE, {"tests.json": json.dumps(given).encode()})
    serve = Job(SERVE, {"program.py": source.encode(errors="surrogatepass")})
    outcome = tests.sandbox.jobs(judge, serve)
    told: list[str] = []
    for line in outcome.stderr.splitlines()[: len(tests.statements)]:
        try:
            told.append(str(json.loads(line)))
        except ValueError:
            break
    return told + [f"it did not get there: {outcome.status}"] * (len(tests.statements) - len(told))


def code_in(text: str) -> str:
    """The last fenced block that says it is Python, else the last that names no language, else all of the text."""
    found: dict[str, str] = {}
    language, inside = "", None
    for line in [*text.splitlines(keepends=True), "```"]:
        fence = line.strip().startswith("```")
        if fence and inside is None:
            language, inside = line.strip()[3:].strip().lower(), ""
        elif fence:
            found[language or "any"], inside = inside or "", None
        elif inside is not None:
            inside += line
    return next((found[name] for name in ("python", "python3", "py", "any") if name in found), text)


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]


@dataclass(frozen=True, kw_only=True)
class Programs:
    """A reward: 1 if the program in the answer passes all tests of a `ProgramTasks` row, else 0, or the share it passes."""

    partial: bool = False  # the share
    weight: float = 1.0

    def __call__(self, answers: Sequence[Answered], run: Run) -> list[float]:
        """Between 0 and 1; an answer that did not end earns 0. Programs run at the same time."""
        if any(not isinstance(answer.task.entry, Exam) for answer in answers):
            raise RunError("the reward synth.programs.Programs needs tasks with tests: use synth.programs.ProgramTasks")
        return spread(lambda answer: worth(answer.task.entry, answer.text, partial=self.partial), answers)


def worth(tests: Exam, text: str | None, *, partial: bool = False) -> float:
    """What an answer is worth."""
    found = (False,) if text is None else passed(tests, code_in(text))
    return sum(found) / len(found) if partial else float(all(found))


@dataclass(frozen=True, kw_only=True)
class ProgramTasks(Worded):
    """A user's own prompts with tests: JSONL, JSON or Parquet. Right is what passes all tests of its row.

    Tests are one string or a list of strings of Python, or a list of `{"input": ..., "output": ...}`. A row may also have
    `before`, `entry_point` and `solution` (a program). The prompts of HumanEval are both prompt and `before`.
    """

    path: str
    question: str = "prompt"  # column
    tests: str = "tests"  # column
    before: str = "before"  # column, if there is one
    entry: str = "entry_point"  # column, if there is one; tests with a `check(candidate)` are called with it
    solution: str = "solution"  # column, if there is one
    check: bool = True  # run the solutions first and reject every row whose own solution fails
    sandbox: Sandbox = Sandbox()
    valid: float = 0.1  # share of the prompts held out to choose
    test: float = 0.1  # share of the prompts held out to judge
    limit: int | None = None  # use at most so many rows
    instruction: str = INSTRUCTION
    transition: str = TRANSITION
    length: int = 1024  # tokens of a prompt with its solution, at most

    def tasks(self, run: Run) -> dict[str, list[Task]]:
        """The rows with tests that can be run, split by their prompts."""
        self.sandbox.check(run)
        rows = read_rows(self.path, run)[: self.limit]
        for column in (self.question, self.tests):
            if not any(column in row for row in rows):
                known = ", ".join(map(repr, rows[0]))
                raise RunError(f"{self.path} has no column {column!r}; it has {known} (set data.question, data.tests)")
        made = spread(self._task, rows)
        tasks: dict[str, Task] = {}
        for row, task in zip(rows, made, strict=True):
            if isinstance(task, Task) and task.question not in tasks:
                tasks[task.question] = task
            else:
                run.reject(row, task if isinstance(task, str) else "the same question again")
        if not tasks:
            reasons = dict.fromkeys(task for task in made if isinstance(task, str))
            raise RunError(f"no row of {self.path} can be used: {'; '.join(list(reasons)[:3])}")
        split = split_rows([{"question": q} for q in tasks], valid=self.valid, test=self.test, run=run)
        return {name: [tasks[row["question"]] for row in split[name]] for name in SPLITS}

    def score(self, task: Task, text: str) -> float:
        """1 if the program in the answer passes all tests."""
        return worth(task.entry, text)

    def right(self, run: Run, split: str, examples: Sequence[int], answers: Sequence[Sequence[int]]) -> list[float]:
        """What `verify` says of every answer, judged together."""
        coder, tasks = self.coder(run), run.sources(self)[split].tasks
        return self.scores([tasks[i] for i in examples], [coder.text(answer) for answer in answers])

    def scores(self, tasks: Sequence[Task], texts: Sequence[str | None]) -> list[float]:
        """The same of many answers, whose programs run at the same time."""
        return spread(lambda each: worth(*each), [(task.entry, text) for task, text in zip(tasks, texts, strict=True)])

    def _task(self, row: Row) -> Task | str:
        question, solution = str(row.get(self.question) or ""), str(row.get(self.solution) or "")
        if not question:
            return f"column {self.question!r} is empty"
        tests = self.exam(row)
        if isinstance(tests, str):
            return tests
        if solution and self.check:
            right = passed(tests, code_in(solution))
            if not all(right):
                return f"its own solution passes {sum(right)} of {len(right)} tests"
        if solution and "```" in self.instruction and "```" not in solution:
            solution = f"```python\n{solution.strip()}\n```"
        return Task(self.ask(question), solution, solution, solution, tests)

    def exam(self, row: Row) -> Exam | str:
        """The tests of a row, or what is wrong with them."""
        entry, before = str(row.get(self.entry) or ""), str(row.get(self.before) or "")
        given: Any = row.get(self.tests)
        given = [given] if isinstance(given, str) else given
        if not given or not isinstance(given, list):
            return f"column {self.tests!r} holds no tests"
        known = {"before": before, "entry": entry, "sandbox": self.sandbox}
        if all(isinstance(each, dict) and {"input", "output"} <= each.keys() for each in given):
            return Exam(pairs=tuple((str(each["input"]), str(each["output"])) for each in given), **known)
        if not all(isinstance(each, str) for each in given):
            return f"column {self.tests!r} must hold Python, or pairs of input and output"
        if entry:
            given = [f"{each}\ncheck(candidate)" if re.search(r"^def check\(", each, re.M) else each for each in given]
        try:
            for each in (before, *given):
                compile(each, "tests", "exec", dont_inherit=True)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            return f"its tests, or what stands before them, are no Python: {error}"
        return Exam(statements=tuple(given), **known)


# -- what runs inside: each function below is sent as its source ---------------------------------------------------------


def pack(value: Any, other: Callable[[Any], Any]) -> Any:
    """Plain data as JSON knows it, so that `unpack` gives it back; anything else as `other` has it."""
    from collections.abc import ItemsView, Iterator, KeysView, ValuesView

    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if hasattr(type(value), "tolist"):  # numpy's
        return pack(value.tolist(), other)
    if isinstance(value, (list, range, Iterator, KeysView, ItemsView, ValuesView)):
        return [pack(each, other) for each in value]
    for kind in (tuple, set, frozenset):
        if isinstance(value, kind):
            return {kind.__name__: [pack(each, other) for each in value]}
    if isinstance(value, dict):
        return {"dict": [[pack(key, other), pack(each, other)] for key, each in value.items()]}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": value.hex()}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    return {"other": other(value)}


def unpack(value: Any, other: Callable[[Any], Any]) -> Any:
    """The inverse of `pack`."""
    if isinstance(value, list):
        return [unpack(each, other) for each in value]
    if not isinstance(value, dict):
        return value
    ((name, inner),) = value.items()
    if name == "dict":
        return {unpack(key, other): unpack(each, other) for key, each in inner}
    if name in ("tuple", "set", "frozenset"):
        return {"tuple": tuple, "set": set, "frozenset": frozenset}[name](unpack(each, other) for each in inner)
    return {"bytes": bytes.fromhex, "complex": lambda parts: complex(*parts), "other": other}[name](inner)


def serve() -> None:
    """Load the program, then do what is asked: look up a name, an attribute, or call."""
    import json
    import os
    import sys
    import types

    sys.set_int_max_str_digits(0)
    hear, talk = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the program prints is not what it answers
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    things: list[Any] = []

    def keep(thing: Any) -> int:
        things.append(thing)
        return len(things) - 1

    def do(what: str, thing: Any, *rest: Any) -> Any:
        if what == "name":
            return getattr(program, thing)
        return getattr(thing, rest[0]) if what == "attribute" else thing(*rest[0], **rest[1])

    program = sys.modules["program"] = types.ModuleType("program")
    failed: BaseException | None = None
    try:
        with open("program.py", "rb") as file:
            exec(compile(file.read(), "program.py", "exec"), program.__dict__)  # noqa: S102  we are in the sandbox
    except BaseException as error:
        failed = error
    for line in hear:
        try:
            if failed is not None:
                raise failed
            answer: dict[str, Any] = {"value": pack(do(*unpack(json.loads(line), things.__getitem__)), keep)}
        except BaseException as error:
            known = next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins")
            answer = {"error": [known, str(error)[:200]]}
        talk.write(json.dumps(answer) + "\n")
        talk.flush()


def judge() -> None:
    """Run the tests; the program, in another sandbox, is asked for every name that they do not know."""
    import builtins
    import json
    import os
    import sys

    sys.set_int_max_str_digits(0)
    hear, talk, report = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w"), os.fdopen(os.dup(2), "w")
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)

    def hand(thing: Any) -> int:
        if not isinstance(thing, Remote):
            raise TypeError(f"a {type(thing).__name__} cannot be handed to the program, plain data can")
        return thing._number

    def ask(*what: Any) -> Any:
        talk.write(json.dumps(pack(what, hand)) + "\n")
        talk.flush()
        line = hear.readline(1 << 24)
        if not line.endswith("\n"):
            raise EOFError("the program ended, or said too much")
        answer = json.loads(line)
        if "error" not in answer:
            return unpack(answer["value"], Remote)
        name, text = answer["error"]
        kind = getattr(builtins, str(name), None)
        # One that exits, or that ends a loop quietly, would make tests pass.
        if not (isinstance(kind, type) and issubclass(kind, Exception)) or issubclass(
            kind, (StopIteration, StopAsyncIteration)
        ):
            kind = RuntimeError
        try:
            error = kind(text)
        except TypeError:
            error = RuntimeError(text)
        raise error

    class Remote:
        """Something of the program's that is no plain data."""

        def __init__(self, number: int):
            self._number = int(number)

        def __call__(self, *arguments: Any, **named: Any) -> Any:
            return ask("call", self, arguments, named)

        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return ask("attribute", self, name)

        def _refuse(self, *_: Any) -> Any:
            raise TypeError("what the program gave is no plain data, and cannot be compared")

        __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __bool__ = __hash__ = _refuse  # type: ignore[assignment]

    class Names(dict[str, Any]):
        def __missing__(self, name: str) -> Any:
            if hasattr(builtins, name):
                raise KeyError(name)
            try:
                return ask("name", name)
            except AttributeError:
                raise KeyError(name) from None

    with open("tests.json", encoding="utf-8") as file:
        given = json.load(file)
    space, entry = Names(__name__="tests", __builtins__=builtins), given["entry"]
    for number, code in enumerate([given["before"], *given["statements"]]):
        why = ""
        try:
            if number == 1 and entry:  # the program's, not the beginning of it that `before` may hold
                space[entry] = space["candidate"] = lambda *given, **named: ask("name", entry)(*given, **named)
            exec(compile(code, "tests", "exec", dont_inherit=True), space)  # noqa: S102  we are in the sandbox
        except BaseException as error:
            why = f"{type(error).__name__}: {error}"[:300]
        if number:
            report.write(json.dumps(why) + "\n")
            report.flush()


def _sent(function: Callable[[], None]) -> str:
    parts = [inspect.getsource(each) for each in (pack, unpack, function)]
    return "\n".join(["from typing import Any", "from collections.abc import Callable", *parts, f"{function.__name__}()"])


JUDGE, SERVE = _sent(judge), _sent(serve)
