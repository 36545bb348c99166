"""A critic that reads every row several times in other words, and goes by the mean: test-time augmentation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy

from ..core.run import Run, RunError
from .critic import Critic, Weights, for_precision, for_recall, verdict_of
from .table import Row


@dataclass(frozen=True, kw_only=True)
class Reread(Critic):
    """A critic of texts of several lines, each of which says the same in other words.

    It learns from every line as from a text of its own, and a row's score is the mean over its lines. The threshold is set
    by such means, on the held-out verdicts alone. All else is as with `Critic`.
    """

    def _learned(self, rows: Iterable[Row], run: Run) -> tuple[Weights, float]:
        weights, _ = super()._learned(list(self._lines(rows)), run)
        mean = Mean(weights.each, weights.bias)
        held = [(str(row[self.text]), said) for row, said in self._judged(rows) if self._held(row, run)]
        scores, good = mean.scores([text for text, _ in held]), numpy.array([said for _, said in held])
        found = for_recall(scores, good, self.recall) if self.recall else for_precision(scores, good, self.precision or 1.0)
        if found is None:
            raise RunError(f"at no threshold {self.precision:g} of what the critic keeps is good; lower precision")
        kept = scores >= found
        run.event(
            "critic_lines", step=run.work.name, threshold=found, held=len(held), kept=int(kept.sum()),
            recall=float(kept[good].mean()), precision=float(good[kept].mean()), base=float(good.mean()),
        )  # fmt: skip
        return mean, found

    def _judged(self, rows: Iterable[Row]) -> Iterator[tuple[Row, bool]]:
        for row in sorted(rows, key=lambda row: str(row["_id"])):
            said = verdict_of(row.get(self.verdict))
            if said is not None and str(row.get(self.text, "")).strip():
                yield row, said

    def _held(self, row: Row, run: Run) -> bool:
        """Whether the base class holds this row's family out."""
        return run.work.rng("held", self._family(row)).random() < self.held

    def _family(self, row: Row) -> str:
        return str(min(row.get("_from") or [row["_id"]]))

    def _lines(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Judged rows, line by line, as siblings of one family."""
        for row, said in self._judged(rows):
            for number, line in enumerate(lines_of(str(row[self.text]))):
                yield {
                    "_id": f"{row['_id']}/{number}", "_from": [self._family(row)], self.text: line, self.verdict: said
                }  # fmt: skip


class Mean(Weights):
    """The mean over a text's lines."""

    def scores(self, texts: Sequence[str]) -> numpy.ndarray:
        """How likely each is good, `[texts]`."""
        lines = [lines_of(text) for text in texts]
        each = super().scores([line for some in lines for line in some])
        ends = numpy.cumsum([len(some) for some in lines])
        return numpy.array([part.mean() for part in numpy.split(each, ends[:-1])]) if texts else each


def lines_of(text: str) -> list[str]:
    """Its lines that say something."""
    return [line for line in text.splitlines() if line.strip()]
