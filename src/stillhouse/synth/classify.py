"""Let a teacher say which class a text belongs to, and how sure it is of it."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ..core.run import Run, RunError
from ..core.signal import Completion, Kind
from ..data.labelled import names_of
from ..teachers.text import Ask, Decoding, Lost
from .asking import Unfit, answered, check_columns, check_drawn, check_new, gone_through, most_of, seeds_of
from .parse import nearest_label, plain
from .prompts import fill
from .steps import Need
from .table import Row

PROMPT = """Here are classes of texts{% if classes[0].examples %}, with examples of each{% endif %}.

{% for each in classes %}
Class: {{ each.name }}{% if each.description %} - {{ each.description }}{% endif %}

{% for text in each.examples %}
- {{ text }}
{% endfor %}

{% endfor %}
Which of these classes does the following text belong to?
{% if stated %}
Answer with the name of one class and how sure you are of it in per cent, like this: {{ classes[0].name }}: 85%
{% else %}
Answer with the name of one class alone.
{% endif %}

Text: {{ text }}
Class:"""
_STATED = re.compile(r"^(?P<name>.*?)[\s:,;(\[=-]*(?P<number>(?<![\w.])\d+(?:\.\d+)?)\s*(?P<cent>%|per\s?cent)?[\s.)\]]*$")


@dataclass(frozen=True, kw_only=True)
class Classify:
    """The rows, each with the teacher's `label` and its `confidence` in it, between 0 and 1.

    The confidence is what the answer says of itself (`stated`: "travel: 85%"), the mean probability of the answer's tokens
    (`tokens`; needs a teacher that gives log-probabilities and `decoding.logprobs`), or the share of several answers that
    name the class (`votes`). Examples in the prompt are rows that `data` have to learn from, the same for every text.

    Lost: a row whose answer did not come or is unlike the names of all classes, and with `stated` one that says no number
    between 0 and 100 %. Of votes the answers that can be used count, and of equal ones the first by name. Streams.
    """

    column: str = "text"
    data: Any = None  # where classes and examples come from; None: the recipe's data
    examples: int = 4  # of a class in the prompt, at most
    descriptions: Mapping[str, str] = field(default_factory=dict[str, str])  # class -> one line about it
    confidence: Literal["stated", "tokens", "votes"] = "stated"
    each: int = 1  # answers about a row, for votes
    alike: float = 0.5  # how alike an answer and the name that it is taken for must be (cosine of their letter triples)
    prompt: str = PROMPT  # over classes (name, description, examples), text and stated
    decoding: Decoding = Decoding(temperature=0.0, max_new=24)
    teacher: str = "teacher"

    def __post_init__(self) -> None:
        check_new(self.column)
        check_drawn(self.each, self.decoding, "each")
        if (self.each > 1) != (self.confidence == "votes"):
            raise ValueError("confidence by votes needs `each` above 1, and nothing else does")
        if (self.confidence == "tokens") != self.decoding.logprobs:
            raise ValueError("confidence by tokens needs decoding.logprobs: true, and nothing else does")

    @property
    def needs(self) -> frozenset[Kind]:
        """Text, and how likely its tokens were if the confidence comes from them."""
        more: frozenset[Kind] = frozenset({"logprobs"}) if self.confidence == "tokens" else frozenset()
        return frozenset[Kind]({"text"}) | more

    def __call__(self, rows: Iterable[Row], run: Run) -> Iterator[Row]:
        """The rows in their order, labelled."""
        work, rows = run.work, gone_through(rows)
        check_columns([self.column], rows, "the labelling")
        classes = self._classes(run)
        names = [each["name"] for each in classes]

        def asks_of(row: Row) -> list[Ask]:
            words, about = self._words(row, classes), {"text": row.get(self.column), "names": names}
            asks = seeds_of(work, row, self.each, self.decoding)
            return [Ask((("user", words),), self.decoding, seed, {**about, "stated": self._stated}) for seed in asks]

        for row, answers in answered(work, self.teacher, rows, asks_of):
            found = [self._read(answer, names) for answer in answers]
            good = [pair for pair in found if not isinstance(pair, str)]
            if not good:
                told = next((a.text for a in answers if isinstance(a, Completion)), "")
                work.lose({**row, "answer": told}, next(why for why in found if isinstance(why, str)))
                continue
            label, confidence = self._decided(good)
            truth = next((a.truth["label"] for a in answers if isinstance(a, Completion) and a.truth), None)
            yield {**row, "label": label, "confidence": confidence, **({} if truth is None else {"_truth": truth})}

    @property
    def _stated(self) -> bool:
        return self.confidence == "stated"

    def _read(self, answer: Completion | Lost, names: Sequence[str]) -> tuple[str, float] | str:
        """(class, confidence), or why there is none."""
        if isinstance(answer, Lost):
            return answer.why
        said = next((line for line in answer.text.splitlines() if plain(line)), "")
        sure = 1.0
        if self._stated:
            found = _STATED.match(said.replace("*", "").strip())
            if found is None:
                return "the answer does not say how sure it is"
            said, sure = found["name"], float(found["number"])
            sure = sure / 100 if found["cent"] or sure > 1 else sure
            if sure > 1:
                return "the answer is surer than 100 %"
        elif self.confidence == "tokens":
            if not answer.logprobs:
                return "the answer came without the probabilities of its tokens"
            sure = sum(map(math.exp, answer.logprobs)) / len(answer.logprobs)
        label, alike = nearest_label(said, names)
        return (label, sure) if plain(said) and alike >= self.alike else "the answer is no class's name"

    def _decided(self, found: Sequence[tuple[str, float]]) -> tuple[str, float]:
        votes = Counter(label for label, _ in found)
        label = min(votes, key=lambda name: (-votes[name], name))
        return (label, votes[label] / len(found)) if self.confidence == "votes" else found[0]

    def _classes(self, run: Run) -> list[dict[str, Any]]:
        """What the prompt says of each class."""
        data = self.data or run.recipe.data
        names, shown = names_of(data, run), dict[str, list[str]]()
        for row in sorted(data.rows(run)["train"], key=lambda row: str(sorted(row.items()))) if self.examples else ():
            shown.setdefault(row["label"], []).append(row["text"])
        unknown = set(self.descriptions) - set(names)
        if unknown:
            raise RunError(f"a description of the class {sorted(unknown)[0]!r}, but the classes are {', '.join(names)}")
        return [
            {"name": n, "description": self.descriptions.get(n, ""), "examples": shown.get(n, [])[: self.examples]}
            for n in names
        ]

    def _words(self, row: Row, classes: Sequence[Mapping[str, Any]]) -> str:
        text = row.get(self.column)
        if not isinstance(text, str) or not text.strip():
            raise Unfit(f"no {self.column}")
        return fill(self.prompt, classes=classes, text=text, stated=self._stated)

    def estimate(self, rows: Sequence[Row], run: Run) -> Mapping[str, Need]:
        """`each` calls for every row."""
        classes = self._classes(run)
        around = Ask((("user", self._words({self.column: "x"}, classes)),), self.decoding).size

        def size(row: Row) -> int:
            return around + len(str(row.get(self.column, "")).encode()) // 4 + 1

        return {self.teacher: most_of(rows, size, self.each, self.decoding)}

    def sketch(self, rows: Sequence[Row], run: Run) -> Sequence[Row]:
        """All of them."""
        return rows
