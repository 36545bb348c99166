"""Let a teacher say which of some names fits every row: its topic, its kind, how hard it is.

topic: {use: synth.tag.Tag, names: {algebra: , geometry > circles: , geometry > triangles: }, into: topic}
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ..core.run import Run
from ..core.signal import Kind
from ..teachers.text import Ask, Decoding, Lost
from .asking import Unfit, Wording, answered, check_new, gone_through, most_of
from .parse import nearest_label, plain
from .steps import Need
from .table import Row

PROMPT = """{{ question }}

Which of these fits the above best?
{% for name, words in names.items() %}
- {{ name }}{% if words %}: {{ words }}{% endif %}

{% endfor %}
Answer with the name alone."""


@dataclass(frozen=True, kw_only=True)
class Tag:
    """The rows, with one of `names` in `into`. Unlike `synth.classify.Classify` it needs no labelled rows.

    Lost: a row that lacks a column which the prompt reads, or whose answer did not come or is unlike all names, unless
    `otherwise` says what these are called. Streams.
    """

    names: Mapping[str, str]  # name -> what it means, if that is not clear
    into: str = "tag"
    otherwise: str | None = None  # for rows whose answer is no name; None: they are lost
    alike: float = 0.5  # how alike an answer and the name that it is taken for must be (cosine of their letter triples)
    prompt: str = PROMPT  # over the row's columns, and `names`
    decoding: Decoding = Decoding(temperature=0.0, max_new=24)
    teacher: str = "judge"
    needs: ClassVar[frozenset[Kind]] = frozenset({"text"})

    def __post_init__(self) -> None:
        check_new(self.into)
        if len({plain(name) for name in self.names} - {""}) < max(2, len(self.names)):
            raise ValueError("give two names or more, which differ in their letters and digits")

    def __call__(self, rows: Iterable[Row], run: Run) -> Iterator[Row]:
        """The rows in their order."""
        work, rows, wording = run.work, gone_through(rows), self._wording()
        wording.check(rows)

        def asks_of(row: Row) -> list[Ask]:
            if not any(str(row.get(name) or "").strip() for name in wording.names):
                raise Unfit("nothing to ask about")
            words = wording.messages(row, names=self.names)
            return [Ask(words, self.decoding, about={**row, "names": list(self.names)})]

        for row, (answer,) in answered(work, self.teacher, rows, asks_of):
            if isinstance(answer, Lost):
                work.lose(row, answer.why)
                continue
            name, alike = nearest_label(answer.text, list(self.names)) if plain(answer.text) else ("", 0.0)
            if alike >= self.alike or self.otherwise is not None:
                yield {**row, self.into: name if alike >= self.alike else self.otherwise}
            else:
                work.lose({**row, "answer": answer.text}, f"the answer is no name of a {self.into}")

    def _wording(self) -> Wording:
        return Wording(self.prompt, given=("names",))

    def estimate(self, rows: Sequence[Row], run: Run) -> Mapping[str, Need]:
        """One call for every row."""
        wording = self._wording()
        return {self.teacher: most_of(rows, lambda row: wording.size(row, names=self.names), 1, self.decoding)}

    def sketch(self, rows: Sequence[Row], run: Run) -> Sequence[Row]:
        """All of them, with the first name."""
        named: dict[str, Any] = {self.into: next(iter(self.names))}
        return [{**row, **named} for row in rows]
