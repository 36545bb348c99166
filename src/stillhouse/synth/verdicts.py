"""Somebody says yes or no to a few rows: what a critic learns from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..core.run import Run
from ..core.signal import Kind
from ..teachers.text import Ask, Decoding, Lost
from .asking import Unfit, Wording, check_new, gone_through
from .parse import plain
from .steps import Need
from .table import Row


@dataclass(frozen=True, kw_only=True)
class Verdicts:
    """All rows, `count` of them with a verdict: true or false, as the first word of an answer to `prompt` is yes or no.

    Which ones depends on their names alone. An answer with another first word is no verdict, and nothing is lost. A
    barrier: it goes through the rows twice and remembers a number and a name of each. A person's verdicts, out of a file,
    come with `synth.review.Reviewed`, which adds a column that the file has.
    """

    prompt: str  # a template over the row's columns
    count: int = 300
    into: str = "verdict"
    decoding: Decoding = Decoding(temperature=0.0, max_new=4)
    teacher: str = "person"
    needs: ClassVar[frozenset[Kind]] = frozenset({"text"})

    def __post_init__(self) -> None:
        check_new(self.into)
        if self.count < 1:
            raise ValueError("count must be 1 or more")

    def __call__(self, rows: Iterable[Row], run: Run) -> Iterator[Row]:
        """The rows in their order."""
        work, table, wording = run.work, gone_through(rows), Wording(self.prompt)
        wording.check(table)
        drawn = sorted((work.seed("drawn", row["_id"]), str(row["_id"])) for row in table)[: self.count]
        chosen = {name for _, name in drawn}

        def asks() -> Iterator[tuple[str, Ask]]:
            for row in table:
                if row["_id"] in chosen:
                    try:
                        words = wording.messages(row)
                    except Unfit:
                        continue  # it lacks what the prompt asks for: nobody can say anything about it
                    yield str(row["_id"]), Ask(words, self.decoding, work.seed(row["_id"]), dict(row))

        said: dict[str, bool] = {}
        for name, answer in work.ask(self.teacher, asks()):
            first = "" if isinstance(answer, Lost) else next(iter(plain(answer.text).split()), "")
            if first in ("yes", "no"):
                said[name] = first == "yes"
        for row in table:
            yield {**row, self.into: said[str(row["_id"])]} if str(row["_id"]) in said else row

    def estimate(self, rows: Sequence[Row], run: Run) -> Mapping[str, Need]:
        """One call for each of them, as long as the longest."""
        count = min(self.count, len(rows))
        size = max(map(Wording(self.prompt).size, rows), default=0)
        return {self.teacher: Need(count, count * size, count * self.decoding.max_new)}

    def sketch(self, rows: Sequence[Row], run: Run) -> Sequence[Row]:
        """All of them."""
        return [{**row, self.into: True} for row in rows]
