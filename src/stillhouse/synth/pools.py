"""Pools of stories with faults of known size: what a curation has to find, and what it must leave alone.

Every row says in `fault` what is wrong with it, which no step looks at, and in `short` the same question for a student of
`data.tasks.Chain`. They depend on the run's seed.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..core.run import Run, RunError, seed_of
from ..data.tasks import Chain, chain_steps
from ..teachers.text import Ask, Decoding
from .scripts.solver import Solver
from .stories import Story, stories, tagged
from .table import Row

GOOD = ("", "near")  # what `fault` says of rows that a curation should keep


@dataclass(frozen=True, kw_only=True)
class StoryPool:
    """Questions with answers that are not all right, among them some of a benchmark (the split `test`), told again.

    The benchmark has two styles, and the pool those and four more. `copies` of it are in the pool word for word, `again`
    in another style; of `near` stories one number is another, and they are questions of their own. `easy` ones have one
    operator. Of the others a share has a `wrong` answer, `leaks` it, or wants a proof (`unasked`) and has no answer.
    """

    chain: Chain = Chain(ops=(2, 3))
    copies: int = 20
    again: int = 60
    near: int = 60
    easy: int = 60
    wrong: float = 0.15
    leaks: float = 0.05
    unasked: float = 0.05

    def __post_init__(self) -> None:
        counts = (self.copies, self.again, self.near)
        if min(*counts, self.easy) < 0 or max(counts) > self.chain.test:
            raise ValueError("copies, again and near are counts between 0 and how many tests there are")
        if not (min(self.wrong, self.leaks, self.unasked) >= 0 and self.wrong + self.leaks + self.unasked <= 1):
            raise ValueError("wrong, leaks and unasked are shares, together no more than 1")

    def rows(self, run: Run) -> dict[str, list[Row]]:
        """`train`, the pool: question, truth (what it says is right), short, fault; `test`, the benchmark."""
        draw, tasks, base = random.Random(seed_of(run.seed, "story pool")), self.chain.tasks(run), self.chain.base
        easy = Chain(ops=(1,), base=base, signs=self.chain.signs, train=self.easy, valid=0, test=0).tasks(run)["train"]
        known = {task.question for split in tasks.values() for task in split}
        new = [task for task in easy if task.question not in known]
        chains = [task.question for task in (*tasks["test"], *tasks["train"], *new)]
        told = {story.chain: story for story in stories(chains, draw)}
        tests = [(told[task.question], draw.randrange(2)) for task in tasks["test"]]
        pool: list[Row] = []
        for task in tasks["train"]:
            pool.append(self._row(told[task.question], draw.randrange(6), self._fault(draw), draw))
        for story in (story for chain, story in told.items() if chain not in known):
            pool.append(self._row(story, draw.randrange(6), "easy", draw))
        for story, style in draw.sample(tests, self.copies):
            pool.append(self._row(story, style, "copy", draw))
        for story, _ in draw.sample(tests, self.again):
            pool.append(self._row(story, draw.randrange(2, 6), "again", draw))
        for story, style in draw.sample(tests, self.near):
            other = nudged(story.chain, base, known, draw)
            pool.append(self._row(Story(other, story.name, story.thing, story.place), style, "near", draw))
        draw.shuffle(pool)
        test: list[Row] = [
            {"question": story.told(style, base), "truth": story.answer(answer_of(story.chain, base)), "short": story.chain}
            for story, style in tests
        ]
        return {"train": [{"number": i, **row} for i, row in enumerate(pool)], "test": test}

    def load(self, run: Run) -> Mapping[str, Any]:
        """No splits to train on."""
        return {}

    def _fault(self, draw: random.Random) -> str:
        chance = draw.random()
        for name, share in (("wrong", self.wrong), ("leak", self.leaks), ("unasked", self.unasked)):
            if chance < share:
                return name
            chance -= share
        return ""

    def _row(self, story: Story, style: int, fault: str, draw: random.Random) -> Row:
        base = self.chain.base
        right = int(answer_of(story.chain, base))
        stated = (right + draw.randrange(1, base)) % base if fault == "wrong" else right
        question, truth = story.told(style, base), story.answer(stated)
        if fault == "leak":
            question += f" (Somebody found {truth}.)"
        if fault == "unasked":
            question, truth = f"Prove that this has one answer only. {question}", "by induction"
        return {"question": question, "truth": truth, "short": story.chain, "fault": fault}


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What one source of a union is like."""

    style: int  # in which it tells its questions
    share: float  # of the questions
    referenced: float = 1.0  # share of the rows with a reference answer
    wrong_reference: float = 0.0  # share of those that are wrong
    answered: float = 1.0  # share of the rows with a response
    wrong: float = 0.1  # of every step of a response
    broken: float = 0.05  # share of the responses whose tags are not what they should be
    looping: float = 0.05  # share that say the same over and over


ORIGINS = {
    "textbook": Origin(style=0, share=0.25, wrong=0.05),
    "web": Origin(style=2, share=0.3, wrong_reference=0.2, wrong=0.25, broken=0.15, looping=0.15),
    "forum": Origin(style=3, share=0.2, referenced=0.0, wrong=0.25, broken=0.1, looping=0.1),
    "quiz": Origin(style=5, share=0.25, answered=0.0),
}


@dataclass(frozen=True, kw_only=True)
class StoryUnion:
    """The training questions of `chain`, each in one of several sources, and a share of them told again in another.

    A row: question, truth (the reference, if there is one), response (`<think>...</think> <answer>...</answer>`, if there
    is one), source, short, and `fact`: the answer that is right, whatever the reference says.
    """

    chain: Chain = Chain(ops=(1, 2, 3))
    origins: Mapping[str, Origin] = field(default_factory=lambda: dict(ORIGINS))
    doubled: float = 0.25  # share of the questions that are in two sources

    def __post_init__(self) -> None:
        if len(self.origins) < 2 or not 0 <= self.doubled <= 1:
            raise ValueError("a union has two sources or more, and doubled is a share")

    def rows(self, run: Run) -> dict[str, list[Row]]:
        """All of them as `train`."""
        draw = random.Random(seed_of(run.seed, "story union"))
        chains = [task.question for task in self.chain.tasks(run)["train"]]
        names, shares = list(self.origins), [origin.share for origin in self.origins.values()]
        found: list[Row] = []
        for story in stories(chains, draw):
            first = draw.choices(names, shares)[0]
            found.append(self._row(story, first, draw))
            if draw.random() < self.doubled:
                found.append(self._row(story, draw.choice([name for name in names if name != first]), draw))
        return {"train": found}

    def load(self, run: Run) -> Mapping[str, Any]:
        """No splits to train on."""
        return {}

    def _row(self, story: Story, source: str, draw: random.Random) -> Row:
        origin, base = self.origins[source], self.chain.base
        right = int(answer_of(story.chain, base))
        row: Row = {"question": story.told(origin.style, base), "source": source, "short": story.chain, "fact": str(right)}
        if draw.random() < origin.referenced:
            wrong = draw.random() < origin.wrong_reference
            row["truth"] = story.answer((right + draw.randrange(1, base)) % base if wrong else right)
        if draw.random() < origin.answered:
            ask = Ask((), Decoding(), about={"question": story.chain})
            said = Solver(data=self.chain, wrong=origin.wrong).answer(ask, draw).text
            row["response"] = spoiled(said, origin.broken, origin.looping, draw)
        return row


def spoiled(solution: str, broken: float, looping: float, draw: random.Random) -> str:
    """A solution with tags, which may be broken, or with its steps over and over."""
    if draw.random() < looping:
        steps, _, result = solution.partition("#")
        solution = f"{';'.join([steps] * 5)}#{result}"
    text = tagged(solution)
    if draw.random() < broken:
        text = text.replace(draw.choice(("</think>", "<answer>", "</answer>")), "")
    return text


def answer_of(chain: str, base: int) -> str:
    """What comes out."""
    return chain_steps(chain, base)[-1].rpartition("=")[2]


def nudged(chain: str, base: int, taken: set[str], draw: random.Random) -> str:
    """A chain with another last number that nobody has; it is taken then. RunError if all are."""
    front, last = re.fullmatch(r"(.*?)(\d+)=", chain).groups()  # type: ignore[union-attr]
    others = [found for n in range(base) if str(n) != last and (found := f"{front}{n}=") not in taken]
    if not others:
        raise RunError(f"every chain that differs from {chain} in its last number is taken; ask for fewer near ones")
    taken.add(other := draw.choice(others))
    return other
