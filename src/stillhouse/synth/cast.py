"""Several teachers with roles: who writes a row, who reviews it and who decides is drawn for each row by its content.

cast:   {use: synth.cast.Cast, each: 4, reviewers: 3}
answer: {use: synth.cast.InRole, by: generator, prompt: "{{ question }}", reads: {answer: "(.*)"}}
review: {use: synth.cast.Reviews, prompt: ..., rubric: {correct: nothing in it is wrong}}
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from ..core.run import Run, RunError
from ..core.signal import Completion, Kind
from ..teachers.text import Ask, Decoding, Lost
from .asking import Unfit, Wording, check_columns, check_new, check_pattern, gone_through, longest, seeds_of, taken
from .flow import bare
from .judge import marks_in, unread
from .steps import Need, Silent, Work, roles_of
from .table import CHUNK, Row

REVIEW = """{{ text }}

You review the above. Mark each of these from {{ lowest }} to {{ highest }}:
{% for name, words in rubric.items() %}
- {{ name }}: {{ words }}
{% endfor %}
Reply with one line for each, its name, a colon and the number. Then write a line that begins with "Critique:" and says in
one sentence what should be changed, or "none"."""


@dataclass(frozen=True, kw_only=True)
class Cast(Silent):
    """`each` new rows for every row, with the teachers for them: `generator`, `reviewers` (a list) and `adjudicator`.

    They are different teachers, drawn by the row's content, so that chance and not the order of the rows decides. Of the
    given row's columns the new one has those in `keep`. Nothing is lost. Streams.
    """

    each: int = 1
    reviewers: int = 3
    adjudicator: bool = True  # False: nobody decides where the reviewers differ
    itself: bool = False  # True: the generator is the reviewer
    generators: tuple[str, ...] = ()  # who may write; none: everybody
    keep: Mapping[str, str] = field(
        default_factory=lambda: {"question": "seed"}
    )  # column -> what it is called in the new row
    teachers: tuple[str, ...] = ()  # none: all of the recipe's

    def __post_init__(self) -> None:
        if self.each < 1 or self.reviewers < 0:
            raise ValueError("each must be 1 or more, and reviewers 0 or more")
        if self.itself and self.reviewers > 1:
            raise ValueError("a generator that reviews itself is one reviewer: set reviewers to 1")

    def check(self, run: Run) -> None:
        """RunError if there are too few teachers for the roles, or others than the recipe has."""
        names = roles_of(self, run.recipe.teachers)
        unknown = [name for name in (*names, *self.generators) if name not in run.recipe.teachers]
        if unknown:
            raise RunError(f"a role for {unknown[0]!r}, but the recipe's teachers are {', '.join(run.recipe.teachers)}")
        wanted = 1 + (0 if self.itself else self.reviewers) + self.adjudicator
        if len(names) < wanted:
            raise RunError(
                f"a generator, {self.reviewers} reviewers and {int(self.adjudicator)} adjudicator take {wanted} teachers, "
                f"and there are {len(names)}; give more teachers, or fewer reviewers"
            )

    def __call__(self, rows: Iterable[Row], run: Run) -> Iterator[Row]:
        """The new rows."""
        self.check(run)
        work: Work = run.work
        rows = gone_through(rows)
        check_columns(self.keep, rows, "the casting")
        names = sorted(roles_of(self, run.recipe.teachers))
        for row in rows:
            for number in range(self.each):
                rng = work.rng(row["_id"], number)
                generator = rng.choice(sorted(self.generators) or names)
                others = [name for name in names if name != generator]
                told = self._told(generator, rng.sample(others, len(others)))
                yield work.child(row, **self._kept(row), number=number, **told)

    def _kept(self, row: Row) -> dict[str, Any]:
        return {new: row[old] for old, new in self.keep.items() if old in row}

    def _told(self, generator: str, others: Sequence[str]) -> dict[str, Any]:
        """The roles, the others in the order in which they were drawn."""
        chosen = [generator] * self.reviewers if self.itself else list(others[: self.reviewers])
        left = others[0 if self.itself else self.reviewers :]
        return {"generator": generator, "reviewers": chosen} | ({"adjudicator": left[0]} if self.adjudicator else {})

    def sketch(self, rows: Sequence[Row], run: Run) -> Sequence[Row]:
        """The roles in turns: about as many for each teacher as chance will give it."""
        names = sorted(roles_of(self, run.recipe.teachers))
        first = sorted(self.generators) or names
        told: list[Row] = []
        for turn in range(len(rows) * self.each):
            generator = first[turn % len(first)]
            others = [name for name in names if name != generator]
            turned = others[turn % max(1, len(others)) :] + others[: turn % max(1, len(others))]
            row = rows[turn // self.each]
            told.append({**self._kept(row), "number": 0, **self._told(generator, turned)})
        return told


@dataclass(frozen=True, kw_only=True)
class InRole:
    """The rows with what the teacher that a column names says of each: `reads` finds it in the answer, column by column.

    Lost: a row that lacks a column which the prompt reads; one whose answer did not come or was cut off, or in which
    something is not found that is not `optional`. A row that says nothing under `when` passes unasked. Holds a chunk.
    """

    by: str  # the column with the teacher's name
    prompt: str  # a template over the row's columns
    reads: Mapping[str, str]  # column -> a regular expression: the first group of its last match in the answer
    optional: tuple[str, ...] = ()  # columns that an answer need not have
    when: str = ""  # only rows that have something in this column are asked about; empty: all
    system: str = ""
    decoding: Decoding = Decoding()
    teachers: tuple[str, ...] = ()  # who may be named; none: all of the recipe's

    def __post_init__(self) -> None:
        check_new(*self.reads)
        for pattern in self.reads.values():
            check_pattern(pattern)
        unknown = set(self.optional) - set(self.reads)
        if unknown:
            raise ValueError(f"{sorted(unknown)[0]!r} is optional, and nothing reads it")

    @property
    def needs(self) -> frozenset[Kind]:
        """Text, and what it is to be held to."""
        return frozenset[Kind]({"text"}) | Ask((), self.decoding).wants

    def __call__(self, rows: Iterable[Row], run: Run) -> Iterator[Row]:
        """The rows in their order."""
        work, rows, wording = run.work, gone_through(rows), Wording(self.prompt, self.system)
        if not self.when or any(row.get(self.when) for row in rows):
            wording.check(rows)

        def asks_of(row: Row) -> list[tuple[str, Ask]]:
            if self.when and not row.get(self.when):
                return []
            (seed,) = seeds_of(work, row, 1, self.decoding)
            about = {**bare(row), "reads": tuple(self.reads)}
            return [(str(row.get(self.by)), Ask(wording.messages(row), self.decoding, seed, about))]

        for row, answers in asked(work, rows, asks_of, roles_of(self, run.recipe.teachers)):
            if not answers:
                yield row
                continue
            answer = answers[0]
            if isinstance(answer, Lost):
                work.lose(row, answer.why)
                continue
            found = {column: taken(answer.text, pattern) for column, pattern in self.reads.items()}
            lacking = [column for column, said in found.items() if not said and column not in self.optional]
            if lacking or not answer.finished:
                why = f"the answer says nothing that is its {lacking[0]}" if answer.finished else "the answer was cut off"
                work.lose({**row, "said": answer.text}, why)
                continue
            truth = {} if answer.truth is None else {"_truth": answer.truth}
            yield {**row, **{column: said for column, said in found.items() if said}, **truth}

    def estimate(self, rows: Sequence[Row], run: Run) -> Mapping[str, Need]:
        """A call for every row; where nobody knows yet which ones are asked about, for all."""
        wording = Wording(self.prompt, self.system)

        def size(row: Row) -> Sequence[tuple[str, int]]:
            asked_about = not self.when or row.get(self.when, True)
            return [(str(row.get(self.by)), wording.size(row))] if asked_about else []

        return needed(rows, size, self.decoding, roles_of(self, run.recipe.teachers))

    def sketch(self, rows: Sequence[Row], run: Run) -> Sequence[Row]:
        """All of them, with the longest answers."""
        return [{**row, **dict.fromkeys(self.reads, longest(self.decoding))} for row in rows]


@dataclass(frozen=True, kw_only=True)
class Reviews:
    """The rows with `into`, the mean of their reviewers' marks, its standard deviation `into_std`, and their `critiques`.

    A reviewer's mark is the mean over the rubric; what it is asked `besides` is a column of its own, and counts for
    nothing. Lost: a row that lacks a column which the prompt reads, and one of which a review did not come or cannot be
    read, with the `reviews`. Holds a chunk.
    """

    rubric: Mapping[str, str]  # criterion -> what it means
    besides: Mapping[str, str] = field(default_factory=dict[str, str])  # asked in the same way
    by: str = "reviewers"  # the column with the teachers' names
    prompt: str = REVIEW  # over the row's columns, and `rubric`, `lowest`, `highest`
    into: str = "score"
    lowest: float = 0.0
    highest: float = 10.0
    system: str = ""
    decoding: Decoding = Decoding(temperature=0.0, max_new=160)
    teachers: tuple[str, ...] = ()  # who may be named; none: all of the recipe's

    def __post_init__(self) -> None:
        check_new(self.into, *self.besides)
        if not self.rubric or set(self.rubric) & set(self.besides):
            raise ValueError("give a rubric, and no criterion twice")
        if not self.lowest < self.highest:
            raise ValueError("lowest must be below highest")

    @property
    def needs(self) -> frozenset[Kind]:
        """Text, and what it is to be held to."""
        return frozenset[Kind]({"text"}) | Ask((), self.decoding).wants

    def __call__(self, rows: Iterable[Row], run: Run) -> Iterator[Row]:
        """The rows in their order."""
        work, rows, wording = run.work, gone_through(rows), self._wording()
        wording.check(rows)
        names = [*self.rubric, *self.besides]

        def asks_of(row: Row) -> list[tuple[str, Ask]]:
            words, about = wording.messages(row, **self._given()), {**bare(row), "marks": names}
            seeds = [work.seed(row["_id"], n) if self.decoding.temperature else 0 for n in range(len(self._reviewers(row)))]
            asks = [Ask(words, self.decoding, seed, about) for seed in seeds]
            return list(zip(self._reviewers(row), asks, strict=True))

        for row, answers in asked(work, rows, asks_of, roles_of(self, run.recipe.teachers)):
            texts = [answer.text for answer in answers if isinstance(answer, Completion)]
            reviews = [marks for text in texts if (marks := marks_in(text, names, self.lowest, self.highest)) is not None]
            if len(reviews) < max(1, len(answers)):
                unread(work, row, answers, f"{len(reviews)} of {len(answers)} reviews say")
                continue
            each = [statistics.fmean(marks[name] for name in self.rubric) for marks in reviews]
            told: dict[str, Any] = {self.into: statistics.fmean(each), f"{self.into}_std": statistics.pstdev(each)}
            told |= {name: statistics.fmean(marks[name] for marks in reviews) for name in self.besides}
            yield {**row, **told, "critiques": critiques_in(texts)}

    def _reviewers(self, row: Row) -> Sequence[str]:
        found = row.get(self.by)
        return [str(name) for name in found] if isinstance(found, list | tuple) else []

    def _wording(self) -> Wording:
        return Wording(self.prompt, self.system, given=self._given())

    def _given(self) -> dict[str, Any]:
        asked_for = {**self.rubric, **self.besides}
        return {"rubric": asked_for, "lowest": f"{self.lowest:g}", "highest": f"{self.highest:g}"}

    def estimate(self, rows: Sequence[Row], run: Run) -> Mapping[str, Need]:
        """A call for every reviewer of every row."""
        wording, given = self._wording(), self._given()

        def size(row: Row) -> Sequence[tuple[str, int]]:
            words = wording.size(row, **given)
            return [(name, words) for name in self._reviewers(row)]

        return needed(rows, size, self.decoding, roles_of(self, run.recipe.teachers))

    def sketch(self, rows: Sequence[Row], run: Run) -> Sequence[Row]:
        """All of them, with the best mark and the longest critiques."""
        marks = {self.into: self.highest, f"{self.into}_std": 0.0, **dict.fromkeys(self.besides, self.highest)}
        text = longest(self.decoding)
        return [{**row, **marks, "critiques": "\n".join([text] * len(self._reviewers(row)))} for row in rows]


def critiques_in(texts: Iterable[str]) -> str:
    """What reviews want changed, a line each, without those that want nothing."""
    lines = [line for text in texts for line in re.findall(r"(?im)^\W*critique\W*?:(.*)$", text)[-1:]]
    return "\n".join(f"- {line.strip(' *')}" for line in lines if line.strip(" .*").casefold() not in ("", "none"))


def asked(
    work: Work, rows: Iterable[Row], asks_of: Callable[[Row], Sequence[tuple[str, Ask]]], known: Sequence[str]
) -> Iterator[tuple[Row, list[Completion | Lost]]]:
    """Every row with the answers to its asks, each of which goes to the teacher beside it, in order.

    A row that is Unfit, or names nobody in `known`, is lost. A chunk of rows is asked about together, teacher by teacher.
    """
    waiting = iter(rows)
    while chunk := list(islice(waiting, CHUNK)):
        found: dict[int, list[Any]] = {}
        parts: dict[str, list[tuple[tuple[int, int], Ask]]] = {}
        for number, row in enumerate(chunk):
            try:
                asks = asks_of(row)
                strangers = [role for role, _ in asks if role not in known]
                if strangers:
                    raise Unfit(f"no teacher {strangers[0]!r}")
            except Unfit as error:
                work.lose(row, str(error))
                continue
            found[number] = [None] * len(asks)
            for place, (role, ask) in enumerate(asks):
                parts.setdefault(role, []).append(((number, place), ask))
        for role in sorted(parts):
            for (number, place), answer in work.ask(role, parts[role]):
                found[number][place] = answer
        yield from ((chunk[number], answers) for number, answers in found.items())


def needed(
    rows: Iterable[Row], sizes: Callable[[Row], Sequence[tuple[str, int]]], decoding: Decoding, known: Sequence[str]
) -> dict[str, Need]:
    """By teacher, the most that asks of these sizes take."""
    total = {role: Need(0, 0, 0) for role in known}
    for row in rows:
        for role, size in sizes(row):
            if role in total:
                total[role] += Need(1, size, decoding.max_new)
    return total
