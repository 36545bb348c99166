"""Let a teacher judge rows: by a rubric, as several reviewers, or two answers against each other in both orders."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..core.run import Run
from ..core.signal import Completion, Kind
from ..teachers.text import Ask, Decoding, Lost
from .asking import Unfit, Wording, answered, check_columns, check_drawn, check_new, gone_through, most_of, seeds_of
from .parse import choice_in, number_in
from .steps import Need, Work
from .table import Row

SCORE = """{{ text }}

How good is the above, from {{ lowest }} (useless) to {{ highest }} (could not be better)?
{% if rubric %}
Judge each of these by itself:
{% for name, words in rubric.items() %}
- {{ name }}: {{ words }}
{% endfor %}
Reply with one line for each, its name, a colon and the number, and nothing else.
{% else %}
Reply with the number alone.
{% endif %}"""
BETTER = """{% if question is defined %}
{{ question }}

{% endif %}
Answer 1:
{{ one }}

Answer 2:
{{ two }}

Which answer is better? Reply with 1, 2 or tie, and nothing else."""


@dataclass(frozen=True, kw_only=True)
class Judge:
    """The rows with a number in `into`, and, of several reviewers, its mean there and its standard deviation in `into_std`.

    With a rubric a reviewer's number is the mean over its criteria, and `into_by` says the mean of each.
    Lost: a row that lacks a column which the prompt reads; one of which fewer than `enough` reviews can be read (a review
    can be read if it says a number between `lowest` and `highest` for all that was asked), with the `reviews`; one below
    `least`; and one on which the reviewers differ by more than `most_std`. Streams.
    """

    prompt: str = SCORE  # over the row's columns, and `rubric`, `lowest`, `highest`
    into: str = "score"
    rubric: Mapping[str, str] = field(default_factory=dict[str, str])  # criterion -> what it means; empty: one number
    lowest: float = 0.0
    highest: float = 10.0
    reviewers: int = 1  # samples of the same question
    enough: int | None = None  # reviews that must be readable; None: all
    least: float | None = None  # rows with less are lost; None: none is
    most_std: float | None = None  # rows on which reviewers differ more are lost; None: none is
    system: str = ""
    decoding: Decoding = Decoding(temperature=0.0, max_new=128)
    teacher: str = "judge"
    needs: ClassVar[frozenset[Kind]] = frozenset({"text"})

    def __post_init__(self) -> None:
        check_new(self.into)
        check_drawn(self.reviewers, self.decoding, "reviewers")
        if not self.lowest < self.highest:
            raise ValueError("lowest must be below highest")
        if self.enough is not None and not 1 <= self.enough <= self.reviewers:
            raise ValueError("enough must be between 1 and reviewers")
        if self.least is not None and not self.lowest <= self.least <= self.highest:
            raise ValueError("least must be between lowest and highest")
        if self.most_std is not None and (self.most_std < 0 or self.reviewers < 2):
            raise ValueError("most_std must be 0 or more, and needs two reviewers or more")

    def __call__(self, rows: Iterable[Row], run: Run) -> Iterator[Row]:
        """The rows that are good enough, in their order."""
        work, rows, wording = run.work, gone_through(rows), self._wording()
        wording.check(rows)

        def asks_of(row: Row) -> list[Ask]:
            words, seeds = wording.messages(row, **self._given()), seeds_of(work, row, self.reviewers, self.decoding)
            return [Ask(words, self.decoding, seed, dict(row)) for seed in seeds]

        for row, answers in answered(work, self.teacher, rows, asks_of):
            reviews = [numbers for answer in answers if (numbers := self._read(answer)) is not None]
            if len(reviews) < (self.enough or self.reviewers):
                unread(work, row, answers, f"{len(reviews)} of {self.reviewers} reviews say" if len(answers) > 1 else "")
                continue
            each = [statistics.fmean(numbers.values()) for numbers in reviews]
            mean, std = statistics.fmean(each), statistics.pstdev(each)
            told: dict[str, Any] = {self.into: mean}
            if self.reviewers > 1:
                told[f"{self.into}_std"] = std
            if self.rubric:
                told[f"{self.into}_by"] = {name: statistics.fmean(one[name] for one in reviews) for name in self.rubric}
            if self.least is not None and mean < self.least:
                work.lose({**row, **told}, f"{self.into} below {self.least:g}", mean=mean, std=std)
            elif self.most_std is not None and std > self.most_std:
                work.lose({**row, **told}, f"the reviewers differ by more than {self.most_std:g}", mean=mean, std=std)
            else:
                yield {**row, **told}

    def _read(self, answer: Completion | Lost) -> dict[str, float] | None:
        """What one review says of each criterion; None if it cannot be read."""
        return None if isinstance(answer, Lost) else marks_in(answer.text, self.rubric, self.lowest, self.highest)

    def _wording(self) -> Wording:
        return Wording(self.prompt, self.system, given=self._given())

    def _given(self) -> dict[str, Any]:
        return {"rubric": dict(self.rubric), "lowest": f"{self.lowest:g}", "highest": f"{self.highest:g}"}

    def estimate(self, rows: Sequence[Row], run: Run) -> Mapping[str, Need]:
        """A call for every reviewer of every row."""
        wording, given = self._wording(), self._given()
        return {self.teacher: most_of(rows, lambda row: wording.size(row, **given), self.reviewers, self.decoding)}

    def sketch(self, rows: Sequence[Row], run: Run) -> Sequence[Row]:
        """All of them, with the best mark."""
        return [{**row, self.into: self.highest} for row in rows]


@dataclass(frozen=True, kw_only=True)
class Pairwise:
    """The rows, with the name of the better of two columns in `into`, or `tie`.

    The teacher is asked twice, once with `first` before `second` and once the other way round: a judge that prefers the
    place and not the answer says two different things then, and abstains. The same text twice is a tie, unasked. Lost: a
    row that lacks a column; one of which an answer cannot be read or did not come, with the `reviews`; one on which it
    abstains, unless `undecided`; a tie, unless `ties`. Streams.
    """

    first: str  # a column
    second: str  # another
    prompt: str = BETTER  # over the row's columns, and `one` and `two`, the texts to compare
    into: str = "better"
    undecided: bool = False  # True: rows on which the judge abstains pass, with nothing in `into`
    ties: bool = True  # False: rows with a tie are lost
    system: str = ""
    decoding: Decoding = Decoding(temperature=0.0, max_new=16)
    teacher: str = "judge"
    needs: ClassVar[frozenset[Kind]] = frozenset({"text"})

    def __post_init__(self) -> None:
        check_new(self.into)
        if self.first == self.second:
            raise ValueError("first and second must be two columns")

    def __call__(self, rows: Iterable[Row], run: Run) -> Iterator[Row]:
        """The rows in their order."""
        work, rows, wording = run.work, gone_through(rows), self._wording()
        wording.check(rows)
        check_columns((self.first, self.second), rows, "the comparison")

        def asks_of(row: Row) -> list[Ask]:
            for name in (self.first, self.second):
                if name not in row:
                    raise Unfit(f"no {name}")
            both = (row[self.first], row[self.second])
            if both[0] == both[1]:
                return []
            words = [wording.messages(row, one=one, two=two) for one, two in (both, both[::-1])]
            seeds = list(seeds_of(work, row, 2, self.decoding))
            told = [{**row, "one": one, "two": two} for one, two in (both, both[::-1])]
            return [Ask(*each) for each in zip(words, [self.decoding] * 2, seeds, told, strict=True)]

        places = {"1": (self.first, self.second), "2": (self.second, self.first), "tie": ("tie", "tie")}
        for row, answers in answered(work, self.teacher, rows, asks_of):
            said = [None if isinstance(answer, Lost) else choice_in(answer.text) for answer in answers]
            if None in said:
                unread(work, row, answers)
                continue
            forth, back = (places[str(said[0])][0], places[str(said[1])][1]) if said else ("tie", "tie")
            if forth != back and not self.undecided:
                work.lose(row, "the judge says another thing in the other order", forth=forth, back=back)
            elif forth == back == "tie" and not self.ties:
                work.lose(row, "a tie")
            else:
                yield {**row, self.into: forth} if forth == back else {k: v for k, v in row.items() if k != self.into}

    def _wording(self) -> Wording:
        return Wording(self.prompt, self.system, given=("one", "two"))

    def estimate(self, rows: Sequence[Row], run: Run) -> Mapping[str, Need]:
        """Two calls for every row."""
        wording, guess = self._wording(), "word" * 256

        def size(row: Row) -> int:
            both = (row.get(self.first, guess), row.get(self.second, guess))
            return wording.size(row, one=both[0], two=both[1])

        return {self.teacher: most_of(rows, size, 2, self.decoding)}

    def sketch(self, rows: Sequence[Row], run: Run) -> Sequence[Row]:
        """All of them, decided."""
        return [{**row, self.into: self.first} for row in rows]


def marks_in(text: str, names: Iterable[str], lowest: float, highest: float) -> dict[str, float] | None:
    """The number beside each criterion's name, or the number alone, as `""`, if there is none; None unless all are there."""
    names = list(names)
    found: dict[str, float | None] = {} if names else {"": number_in(text)}
    for name in names:
        lines = re.findall(rf"(?im)^\W*{re.escape(name)}\W*?[:=](.*)$", text)
        found[name] = number_in(lines[-1]) if lines else None
    numbers = {name: n for name, n in found.items() if n is not None and lowest <= n <= highest}
    return numbers if len(numbers) == len(found) else None


def unread(work: Work, row: Row, answers: Sequence[Completion | Lost], what: str = "") -> None:
    """Lose a row whose answers cannot be read: what there is of them stays with it."""
    lost = [answer.why for answer in answers if isinstance(answer, Lost)]
    texts = [answer.text for answer in answers if not isinstance(answer, Lost)]
    why = lost[0] if lost else f"{what or 'the judge did not say'} what was asked for"
    work.lose({**row, "reviews": texts} if texts else row, why)
