"""What most rows of a group say: samples of one question, annotators of one text, outputs of programs.

vote: {use: synth.votes.Vote, group: question, value: answer, by: number, least: 0.5}
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from math import fsum
from typing import Literal

from ..core.run import Run, RunError
from ..data.tasks import choice, final_answer, last_number
from .dedup import number_in
from .parse import plain
from .rules import having, text_in
from .steps import Silent
from .table import Row

Reading = Literal["whole", "words", "number", "choice"]


@dataclass(frozen=True, kw_only=True)
class Vote(Silent):
    """Rows that say what most of their group say pass, with what that is and its share of the group; others are lost.

    Answers count as the same by what they say in the end: `words` letters and digits alone, `number` the last number,
    `choice` a letter, or the `whole` text. One of which nothing can be read is no vote for anything, but counts in the
    group. A winner has at least `least` of the votes, in a group of at least `voters` rows. On a tie nobody wins, or,
    with `first`, the value of the row whose `_id` comes first: a draw by content that no order of the rows changes.

    Goes through the rows twice, and remembers one entry for every value of every group, not the rows.
    """

    group: str  # the column whose rows vote together
    value: str = "answer"  # the column that they vote by
    by: Reading = "words"
    weight: str | None = None  # the column that says how much a vote counts; None: all the same
    least: float = 0.5
    voters: int = 1
    tie: Literal["abstain", "first"] = "abstain"
    into: str = "vote"  # the column for what won, as the first row of those that say so has it; its share: INTO_share
    keep: bool = False  # rows that did not win pass too, with what did if anything did

    def __post_init__(self) -> None:
        if not 0 <= self.least <= 1 or self.voters < 1:
            raise ValueError("least must be between 0 and 1, and voters 1 or more")

    def __call__(self, rows: Iterable[Row], run: Run) -> Iterator[Row]:
        """The rows that agree with their group."""
        table = having(rows, run, self.group, self.value, *([self.weight] if self.weight else []))
        count: dict[str, int] = {}
        votes: dict[str, dict[Hashable, list[float]]] = {}  # group -> value -> the weights of its votes
        first: dict[tuple[str, Hashable], tuple[str, str]] = {}  # the least _id that says so, and how it says it
        for row in table:
            group, said = text_in(row, self.group), meaning(text_in(row, self.value), self.by)
            count[group] = count.get(group, 0) + 1
            votes.setdefault(group, {}).setdefault(said, []).append(self._weight(row))
            told = (str(row["_id"]), text_in(row, self.value))
            first[group, said] = min(told, first.get((group, said), told))
        won = {group: self._winner(group, found, count[group], first) for group, found in votes.items()}
        for row in table:
            group = text_in(row, self.group)
            said, (winner, share, why) = meaning(text_in(row, self.value), self.by), won[group]
            found = {self.into: first[group, winner][1], f"{self.into}_share": share} if winner is not None else {}
            if self.keep or (winner is not None and said == winner):
                yield {**row, **found}
            else:
                why = why or ("it says nothing that can be counted" if said is None else "outvoted in its group")
                run.work.lose(row, why, share=share, voters=count[group], **found)

    def _winner(
        self,
        group: str,
        votes: dict[Hashable, list[float]],
        count: int,
        first: dict[tuple[str, Hashable], tuple[str, str]],
    ) -> tuple[Hashable, float, str]:
        """What won (None: nothing did), the largest share, and why nothing did."""
        totals = {value: fsum(weights) for value, weights in votes.items()}  # exact, so that order cannot matter
        total = fsum(weight for weights in votes.values() for weight in weights)
        best = max((sum_ for value, sum_ in totals.items() if value is not None), default=0.0)
        share = best / total if total else 0.0
        ahead = [value for value, sum_ in totals.items() if value is not None and sum_ == best]
        if count < self.voters:
            return None, share, f"fewer than {self.voters} rows in its group"
        if not best:
            return None, share, "nobody in its group says anything that can be counted"
        if share < self.least:
            return None, share, f"nothing has {self.least:.0%} of its group's votes"
        if len(ahead) > 1 and self.tie == "abstain":
            return None, share, "a tie in its group"
        return min(ahead, key=lambda value: first[group, value]), share, ""

    def _weight(self, row: Row) -> float:
        if self.weight is None:
            return 1.0
        weight = number_in(row, self.weight, -1.0)
        if not 0 <= weight < float("inf"):
            found = row.get(self.weight)
            raise RunError(f"a vote's weight is a number from 0 on, but row {row['_id']} has {self.weight}={found!r}")
        return weight


def meaning(text: str, by: Reading) -> Hashable:
    """What a text says in the end, so that texts that say the same are equal; None if nothing can be read."""
    if by == "whole":
        return text or None
    found = {"words": plain, "number": last_number, "choice": choice}[by](final_answer(text))
    return None if found == "" else found
