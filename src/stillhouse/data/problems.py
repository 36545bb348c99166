"""Short problems in words whose numbers can be larger than in training: does a student reckon, or write what reckons?

` 3 bags of 12,  5 more?` is 41. A worked solution is the result (`#41`), steps (`3*12=36;36+5=41#41`) or a program
(`return  3*12+ 5`), whose numbers stand in the question. Every number takes two places, so that what is asked is as long
whatever they are.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from ..core.run import Run, RunError, seed_of
from .tasks import Characters, Task, Tasks

Form = Literal["answer", "steps", "program"]
KINDS: Mapping[str, tuple[str, str]] = {  # the words, and what they ask for
    "more": ("{a} bags of {b}, {c} more?", "a*b+c"),
    "gone": ("{a} bags of {b}, {c} gone?", "a*b-c"),
    "each": ("{a} men, {b} women, {c} each?", "(a+b)*c"),
    "sold": ("{a} eggs, {b} broken, sold at {c}?", "(a-b)*c"),
    "both": ("{a} boxes of {b}, {c} cases of {d}?", "a*b+c*d"),
}
LETTERS = {letter for words, _ in KINDS.values() for letter in words} - {*"{}"}
ALPHABET = "\n" + "".join(sorted({*"0123456789+-*()=;#return", *LETTERS}))
_PARENTHESES = re.compile(r"\((\w+)([+-])(\w+)\)")
_TIMES = re.compile(r"(\w+)(\*)(\w+)")
_PLUS = re.compile(r"^(\w+)([+-])(\w+)")


@dataclass(frozen=True, kw_only=True)
class Problems(Tasks):
    """Problems of five kinds about numbers from 2 to 99. One token a character.

    In a training question at most one number has two digits. With `larger`, in those of the other splits all have, so that
    no result and no step was ever seen, but every digit in its place was. The same splits for every seed of the run; a
    larger `train` keeps the others and adds to it. No result is negative.
    """

    larger: bool = True  # the numbers of valid and test
    kinds: tuple[str, ...] = tuple(KINDS)
    style: Form = "answer"  # of the worked solution
    train: int = 600  # questions
    valid: int = 100
    test: int = 200
    length: int = 80  # tokens of a question with its solution, at most
    alphabet: ClassVar[str] = ALPHABET
    classes: ClassVar[int | None] = len(ALPHABET)

    def __post_init__(self) -> None:
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown or not self.kinds:
            raise ValueError(f"the kinds of problems are some of {', '.join(KINDS)}, not {', '.join(unknown) or 'none'}")

    def coder(self, run: Run) -> Characters:
        """Characters."""
        return Characters(self.alphabet)

    def tasks(self, run: Run) -> dict[str, list[Task]]:
        """Problems drawn from a generator of their own, none twice."""
        small = self._drawn({"test": self.test, "valid": self.valid, "train": self.train}, large=False)
        held = self._drawn({"test": self.test, "valid": self.valid}, large=True) if self.larger else small
        return {"train": small["train"], "valid": held["valid"], "test": held["test"]}

    def _drawn(self, sizes: Mapping[str, int], *, large: bool) -> dict[str, list[Task]]:
        draw = random.Random(seed_of("problems", self.kinds, large))
        seen: dict[str, Task] = {}
        tries = 0
        while len(seen) < sum(sizes.values()):
            words, asked = KINDS[self.kinds[len(seen) % len(self.kinds)]]
            names = re.findall(r"{(\w)}", words)
            long = set(names) if large else {draw.choice([*names, ""])}
            numbers = {name: draw.randrange(10, 100) if name in long else draw.randrange(2, 10) for name in names}
            expression = _with("([a-d])", asked, numbers)
            steps = worked(expression.replace(" ", ""))
            question, fits = _with("{(.)}", words, numbers), all("=-" not in step for step in steps)
            tries = 0 if fits and question not in seen else tries + 1
            if tries > 1000:
                raise RunError(f"there are hardly more than {len(seen)} such problems; ask for fewer, or for more kinds")
            if fits and question not in seen:
                seen[question] = self._task(question, expression, steps)
        made = iter(seen.values())
        return {name: [next(made) for _ in range(size)] for name, size in sizes.items()}

    def _task(self, question: str, expression: str, steps: list[str]) -> Task:
        answer = steps[-1].rpartition("=")[2]
        forms = {"answer": f"#{answer}", "steps": f"{';'.join(steps)}#{answer}", "program": f"return {expression}"}
        return Task(question, forms[self.style], answer, forms[self.style], expression)

    def hint(self, task: Task) -> str:
        """The question with its solution."""
        return f"{task.question}{task.shown};"

    def score(self, task: Task, text: str) -> float:
        """1 if exactly the result stands behind the only `#`, or alone. `synth.reckon.Reckoned` runs programs."""
        return float(text.count("#") < 2 and text.rpartition("#")[2] == task.answer)


def worked(expression: str) -> list[str]:
    """`(3+4)*5` to `["3+4=7", "7*5=35"]`: parentheses, then products, then sums, from left to right."""
    steps: list[str] = []
    while not expression.isdigit():
        found = next((f for f in (rule.search(expression) for rule in (_PARENTHESES, _TIMES, _PLUS)) if f), None)
        if found is None:  # a negative result between
            return [*steps, "=-"]
        a, sign, b = int(found[1]), found[2], int(found[3])
        result = {"+": a + b, "-": a - b, "*": a * b}[sign]
        steps.append(f"{a}{sign}{b}={result}")
        if result < 0:
            return steps
        expression = expression[: found.start()] + str(result) + expression[found.end() :]
    return steps


def kind_of(question: str) -> str | None:
    """Which kind of problem a question is; None: none of them."""
    for kind, (words, _) in KINDS.items():
        if re.fullmatch(re.sub(r"\\{\w\\}", r" ?\\d+", re.escape(words)), question):
            return kind
    return None


def asked_for(question: str) -> str | None:
    """` 3*12+ 5`, what a question asks for; None: it is none of these problems."""
    kind = kind_of(question)
    if kind is None:
        return None
    numbers = dict(zip("abcd", map(int, re.findall(r"\d+", question)), strict=False))
    return _with("([a-d])", KINDS[kind][1], numbers)


def _with(names: str, words: str, numbers: Mapping[str, int]) -> str:
    """The words with numbers, each in two places, in place of their names."""
    return re.sub(names, lambda found: f"{numbers[found[1]]:2}", words)
