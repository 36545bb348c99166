"""Let a teacher add to a pool of texts, shown some that people wrote and some that it wrote itself (Self-Instruct).

After Self-Instruct (Wang et al. 2023, arXiv 2212.10560): the prompt shows both kinds of text, and a new one stays only if
it is unlike all that are there. How alike two texts are is our own measure, the cosine of their sets of n-grams; the
numbers here are ours too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ..core.run import Run, RunError
from ..core.signal import Kind
from ..teachers.text import Ask, Decoding, Lost
from .alike import Alike
from .asking import Wording, check_columns, check_new, gone_through
from .parse import items_of
from .steps import Need, Work
from .table import Row

MORE = """Here are examples of what is wanted:

{% for text in texts %}
{{ loop.index }}. {{ text }}
{% endfor %}

Write {{ wanted }} new ones, as unlike these and each other as you can, in a numbered list without comments."""


@dataclass(frozen=True, kw_only=True)
class Instruct:
    """New rows of one column, whose parents are the rows that the teacher was shown; a step for `flow.Grow`.

    In every round each of `asks` prompts shows `people` rows that came from outside and `own` rows that this step made;
    where there are too few of one kind, more of the other. A barrier: it draws from the whole pool, and holds the text of
    every row. Lost: an answer that did not come or lists nothing, and a text that is as like to one of the pool, or of
    those made before it, as `alike`, with that row's name. An answer that was cut off loses its last text only. The rows
    that came in do not come out: `Grow` keeps them. From an empty pool nothing grows.
    """

    column: str = "text"
    asks: int = 20  # in a round
    wanted: int = 5  # texts in an answer
    people: int = 6  # shown, of those from outside
    own: int = 2  # shown, of those that this step made
    alike: float = 0.7  # 0: no n-gram in common, 1: the same n-grams
    mark: str = "machine"  # the column that says which rows this step made
    prompt: str = MORE  # over `texts` and `wanted`
    decoding: Decoding = Decoding(temperature=1.0, max_new=512)
    teacher: str = "teacher"
    needs: ClassVar[frozenset[Kind]] = frozenset({"text"})

    def __post_init__(self) -> None:
        check_new(self.column, self.mark)
        if min(self.asks, self.wanted) < 1 or min(self.people, self.own) < 0 or self.people + self.own < 1:
            raise ValueError("asks, wanted and one of people and own must be 1 or more")
        if not 0 < self.alike <= 1:
            raise ValueError("alike must be above 0 and at most 1")

    def __call__(self, rows: Iterable[Row], run: Run) -> Iterator[Row]:
        """What is new, ask by ask."""
        work, rows, wording = run.work, gone_through(rows), self._wording()
        check_columns([self.column], rows, "the pool")
        pool = sorted((row for row in rows if str(row.get(self.column, "")).strip()), key=lambda row: str(row["_id"]))
        if not pool:
            return
        known, names = Alike(str(row[self.column]) for row in pool), [str(row["_id"]) for row in pool]
        for shown, answer in work.ask(self.teacher, self._asks(pool, wording, work)):
            told = {"_from": sorted(str(row["_id"]) for row in shown)}
            if isinstance(answer, Lost):
                work.lose(told, answer.why)
                continue
            items = items_of(answer.text)
            if not answer.finished and items:
                work.lose({**told, self.column: items.pop()}, "the answer was cut off")
            if not items and answer.finished:
                work.lose({**told, "answer": answer.text}, "no text in the answer")
            for number, text in enumerate(items):
                row = work.child(*shown, **{self.column: text, self.mark: True})
                place, like = known.nearest(text)
                if number >= self.wanted:
                    work.lose(row, "more texts than were asked for")
                elif like >= self.alike:
                    work.lose(row, "too like a row that is there", alike=like, like=names[place])
                else:
                    known.add(text)
                    names.append(str(row["_id"]))
                    yield row

    def _asks(self, pool: Sequence[Row], wording: Wording, work: Work) -> Iterator[tuple[list[Row], Ask]]:
        kinds = [[row for row in pool if bool(row.get(self.mark)) == made] for made in (False, True)]
        for number in range(self.asks):
            rng = work.rng("shown", number)
            shown = [row for some, count in zip(kinds, self._counts(kinds), strict=True) for row in rng.sample(some, count)]
            rng.shuffle(shown)
            words = wording.messages({}, **self._facts([str(row[self.column]) for row in shown]))
            seed = work.seed("asked", number) if self.decoding.temperature else 0
            yield shown, Ask(words, self.decoding, seed, {"wanted": self.wanted, "shown": [dict(row) for row in shown]})

    def _counts(self, kinds: Sequence[Sequence[Row]]) -> tuple[int, int]:
        """How many of those from outside and of the machine's to show."""
        outside, made = map(len, kinds)
        all_ = self.people + self.own
        people = min(outside, max(self.people, all_ - made))
        return people, min(made, all_ - people)

    def _facts(self, texts: Sequence[str]) -> dict[str, Any]:
        return {"texts": texts, "wanted": self.wanted}

    def _wording(self) -> Wording:
        wording = Wording(self.prompt, given=("texts", "wanted"))
        if wording.needed:
            raise RunError(f"the prompt of a growing pool reads `texts` and `wanted`, and not {wording.needed[0]!r}")
        return wording

    def estimate(self, rows: Sequence[Row], run: Run) -> Mapping[str, Need]:
        """The asks of one round, with the longest rows; one that is still to be made is as long as an answer can be."""
        texts = sorted((str(row.get(self.column, "")) for row in rows), key=_bytes, reverse=True)
        people, made = texts[: self.people], max(["word" * self.decoding.max_new, *texts[:1]], key=_bytes)
        shown = [*people, *[made] * (self.people + self.own - len(people))]
        size = self._wording().size({}, **self._facts(shown))
        return {self.teacher: Need(self.asks, self.asks * size, self.asks * self.decoding.max_new)}

    def sketch(self, rows: Sequence[Row], run: Run) -> Sequence[Row]:
        """As many texts as are asked for."""
        text = "word" * max(1, self.decoding.max_new // self.wanted)
        return [{self.column: text, self.mark: True}] * (self.asks * self.wanted)


def _bytes(text: str) -> int:
    return len(text.encode())
