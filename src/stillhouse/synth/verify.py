"""Is an answer right? Checkers that compare it with the truth, or run it against tests; one that says yes is enough.

    verify: {use: synth.verify.Verify, checks: [number, math], answer: answer, truth: truth, keep: true}

The checkers are those that tasks are judged by (`data/tasks.py`, `synth/programs.py`), so that data that were made and a
student that learns from them are held to the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar, Literal

from ..core.run import Run
from ..data.tasks import Questions, Task, final_answer
from .parse import plain
from .programs import Exam, ProgramTasks, worth
from .rules import having, text_in
from .sandbox import Sandbox, spread
from .steps import Silent
from .table import Row

Check = Literal["exact", "words", "number", "choice", "math", "program"]
CHUNK = 64  # rows whose programs run at the same time


@dataclass(frozen=True, kw_only=True)
class Verify(Silent):
    """A column says how right each answer is: 1 right, 0 wrong; rows that are wrong are lost, unless they are to be kept.

    What an answer says in the end is compared: in its last `\\boxed{}`, behind its last `Answer:` or `####`, or all of it.
    `exact` compares texts (case, blanks and a final stop do not matter), `words` letters and digits alone, `number` the
    last number of each, `choice` a letter, `math` expressions (needs math-verify), and `program` runs the code in the
    answer against the row's tests, as `synth.programs.ProgramTasks` reads them. Of several checkers the best verdict
    counts; they are asked in this order, and no further one once an answer is right.

    Lost whatever `keep` says: a row without a truth or with tests that cannot be run, and one whose truth itself no
    checker can read, for whose answer 0 would be no verdict. An empty answer is wrong.
    """

    checks: tuple[Check, ...] = ("number",)
    answer: str = "answer"  # the column that is judged
    truth: str = "truth"  # the column with what is right; a whole worked solution will do
    tests: str = "tests"  # the columns for `program`
    before: str = "before"
    entry: str = "entry_point"
    sandbox: Sandbox = Sandbox()
    partial: bool = False  # a program is worth the share of the tests that it passes
    least: float = 1.0  # a row worth less is wrong
    into: str = "right"  # the column with the verdict; INTO_by says which checker gave it
    keep: bool = False  # wrong rows pass too
    row_by_row: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.checks or len(set(self.checks)) < len(self.checks):
            raise ValueError("give at least one check, and none twice")
        if not 0 < self.least <= 1:
            raise ValueError("least must be above 0 and at most 1")

    def check(self, run: Run) -> None:
        """RunError if something is missing that a checker needs."""
        if "math" in self.checks:
            _same("math", "1", "1")
        if "program" in self.checks:
            self.sandbox.check(run)

    def __call__(self, rows: Iterable[Row], run: Run) -> Iterator[Row]:
        """The rows with their verdicts, a chunk after the other."""
        self.check(run)
        compared = [self.truth] if set(self.checks) - {"program"} else []
        waiting = iter(having(rows, run, self.answer, *compared, *([self.tests] if "program" in self.checks else [])))
        while chunk := list(islice(waiting, CHUNK)):
            yield from self._judged(chunk, run)

    def _judged(self, rows: Sequence[Row], run: Run) -> Iterator[Row]:
        said = [text_in(row, self.answer) for row in rows]
        truths = [final_answer(text_in(row, self.truth)) for row in rows]
        exams = [self._exam(row) if "program" in self.checks else "" for row in rows]
        found: list[dict[str, float]] = [{} for _ in rows]
        for check in self.checks:
            open_ = [i for i in range(len(rows)) if max(found[i].values(), default=0.0) < self.least]
            if check == "program":
                asked = [i for i in open_ if isinstance(exams[i], Exam)]
                values = spread(lambda i: worth(exams[i], said[i], partial=self.partial), asked)
            else:
                asked = [i for i in open_ if truths[i]]  # in this thread: math-verify keeps its time with signals
                values = [_same(check, truths[i], said[i]) for i in asked]
            for i, value in zip(asked, values, strict=True):
                found[i][check] = value
        for row, truth, exam, verdicts in zip(rows, truths, exams, found, strict=True):
            best = max(verdicts.values(), default=0.0)
            if best < self.least and (why := self._unjudged(truth, exam)):
                run.work.lose(row, why)
            elif best < self.least and not self.keep:
                run.work.lose(row, f"wrong by {' and '.join(verdicts)}", **verdicts)
            else:
                by = {f"{self.into}_by": max(verdicts, key=lambda check: verdicts[check])} if best else {}
                yield {**row, self.into: best, **by}

    def _unjudged(self, truth: str, exam: Exam | str) -> str:
        """Why no checker could have said yes; empty if one could."""
        whys: list[str] = []
        for check in self.checks:
            if check == "program":
                whys.append(exam if isinstance(exam, str) else "")
            elif not truth:
                whys.append(f"column {self.truth!r} is empty")
            else:
                whys.append("" if _same(check, truth, truth) else f"its truth is nothing that the check {check!r} can read")
        return "" if "" in whys else "; ".join(dict.fromkeys(whys))

    def _exam(self, row: Row) -> Exam | str:
        reader = ProgramTasks(path="", tests=self.tests, before=self.before, entry=self.entry, sandbox=self.sandbox)
        return reader.exam(dict(row))


def _same(check: Check, truth: str, said: str) -> float:
    """1 if an answer says in the end what is true."""
    if not said.strip():
        return 0.0
    if check == "words":
        return float(bool(plain(truth)) and plain(final_answer(said)) == plain(truth))
    assert check != "program"
    return Questions(path="", check=check).score(Task("", "", truth, ""), said)
