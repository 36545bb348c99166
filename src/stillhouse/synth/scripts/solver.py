"""A script that works out chains of arithmetic with faults of known size: a teacher whose every mistake is on record."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ...core.run import Run, RunError
from ...core.signal import Completion, Kind
from ...data.tasks import Chain, chain_steps
from ...teachers.scripted import Answers
from ...teachers.text import Ask, begins_with

TURN = "~"  # opens a step that takes the one before it back


@dataclass(frozen=True, kw_only=True)
class Solver:
    """Answers a question `3+4*2=` in the row that it is asked about with steps, `3+4=7;7*2=4#4`.

    It may get the result of a step wrong and go on from that (`wrong`); it may first stray for a step or two and then come
    back, `3+4=8;8*2=6;~3+4=7` (`detour`); and it may write a step once more, `3+4=7;~3+4=7` (`again`). An answer may lack
    its result (`garbled`). At temperature 0 the chance of a wrong step is `wrong_greedy`.

    It goes on from the whole steps that its answer is made to begin with. If the last of them is wrong it takes that one
    back, unless it may not begin with `~`. The truth of an answer: `right`, `garbled`, and how many steps were `wrong`,
    `detours` and `again`.
    """

    data: Chain = Chain()
    wrong: float = 0.0
    wrong_greedy: float | None = None  # None: as `wrong`
    detour: float = 0.0
    again: float = 0.0
    garbled: float = 0.0
    question: str = "question"  # the row's column
    gives: ClassVar[frozenset[Kind]] = frozenset({"continuation", "suppression"})

    def __post_init__(self) -> None:
        shares = (self.wrong, self.wrong_greedy or 0.0, self.detour, self.again, self.garbled)
        if not all(0 <= share <= 1 for share in shares):
            raise ValueError("wrong, wrong_greedy, detour, again and garbled are shares, between 0 and 1")

    def build(self, run: Run) -> Answers:
        """It knows arithmetic and needs no data."""
        return self.answer

    def answer(self, ask: Ask, rng: random.Random) -> Completion:
        """The steps behind those that were begun; RunError if the row holds no chain."""
        question = str(ask.about.get(self.question, ""))
        if not re.fullmatch(r"\d+([+*-]\d+)+=", question):
            raise RunError(f"this script works out chains such as 3+4*2=, and was asked about {question[:40]!r}")
        base, begun = self.data.base, [step for step in ask.begin.partition("#")[0].split(";") if step]
        wrong = self.wrong if ask.decoding.temperature or self.wrong_greedy is None else self.wrong_greedy
        path, told, steps = walk(question, begun, base), Counter[str](), list[str]()

        def take(right: int, mark: str, chance: float) -> None:
            """Write a step, with a result that is wrong by this chance."""
            result = right if rng.random() >= chance else (right + rng.randrange(1, base)) % base
            told["wrong"] += result != right
            steps.append(f"{mark}{path.left}={result}")
            path.go(result)

        mended = bool(begun) and path.strayed and not begins_with(TURN, ask.decoding.not_first)
        if mended:
            path.back(1)
            take(path.result(base), TURN, wrong)
        while path.open:
            strayed = rng.random() < self.detour
            if strayed:
                told["detours"] += 1
                far = 1 + (len(path.values) < len(path.parts) and rng.random() < 0.5)
                steps += path.astray(far, base, rng)
            take(path.result(base), TURN if strayed else "", wrong)
            if rng.random() < self.again:
                told["again"] += 1
                steps.append(TURN + steps[-1].removeprefix(TURN))
        garbled = rng.random() < self.garbled
        end = "" if garbled or "#" in ask.begin else f"#{path.values[-1]}"
        text = ";".join(steps) + end
        text = f";{text}" if steps and begun and not ask.begin.endswith(";") else text
        right = chain_steps(question, base)[-1].rpartition("=")[2]
        truth = {name: told[name] for name in ("wrong", "detours", "again")}
        truth |= {"garbled": garbled, "right": str(path.values[-1]) == right and not garbled}
        return Completion(text, read=ask.size, wrote=len(text), truth=truth)


@dataclass
class Path:
    """How far a chain has been worked out: the values in front of every place that was passed, and the last one."""

    parts: list[str]  # `+4`, `*2`
    values: list[int]
    strayed: bool = False  # the last step's result is wrong

    @property
    def open(self) -> bool:
        """There is a step to take."""
        return len(self.values) <= len(self.parts)

    @property
    def left(self) -> str:
        """What stands in front of the next step's `=`."""
        return f"{self.values[-1]}{self.parts[len(self.values) - 1]}"

    def result(self, base: int) -> int:
        """What the next step gives."""
        return int(chain_steps(f"{self.left}=", base)[0].rpartition("=")[2])

    def go(self, result: int) -> None:
        """Take the next step."""
        self.values.append(result)

    def back(self, places: int) -> None:
        """Take steps back."""
        del self.values[-places:]

    def astray(self, far: int, base: int, rng: random.Random) -> list[str]:
        """`far` steps that begin with a wrong one and are taken back."""
        written: list[str] = []
        for n in range(far):
            right = self.result(base)
            written.append(f"{self.left}={(right + rng.randrange(1, base)) % base if n == 0 else right}")
            self.go(int(written[-1].rpartition("=")[2]))
        self.back(far)
        return written


def walk(question: str, steps: Sequence[str], base: int) -> Path:
    """Where one stands behind these steps. One that takes back goes on from the last place that it fits; RunError for one
    that fits none."""
    first, *parts = re.findall(r"[+*-]?\d+", question)
    path = Path(parts, [int(first)])
    for step in steps:
        left, sign, result = step.removeprefix(TURN).rpartition("=")
        places = range(len(path.values) - 1, -1, -1) if step.startswith(TURN) else [len(path.values) - 1]
        fit = [at for at in places if at < len(parts) and left == f"{path.values[at]}{parts[at]}"]
        if not fit or not sign or not result.isdigit():
            raise RunError(f"the step {step!r} is none of {question}")
        del path.values[fit[0] + 1 :]
        path.strayed = int(result) != path.result(base)
        path.go(int(result))
    return path
