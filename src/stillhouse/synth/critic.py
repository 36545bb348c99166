"""A critic learned from verdicts: it reads rows that nobody has judged, and is as strict as it is asked to be.

As the critics of symbolic knowledge distillation and its kin are used: fitted on a few judged rows, with a threshold that
keeps a given share of the good ones (recall), or after which a given share of what is left is good (precision). Ours is
logistic regression on hashed n-grams, `min_w  1/2 |w|^2 + strength sum_i log(1 + exp(-y_i (w x_i + b)))`, y = 1 or -1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy
import torch

from ..core.run import Run, RunError
from ..core.signal import Kind
from ..models.text import hashed
from .asking import check_columns, check_new, gone_through
from .steps import Need, Work
from .table import Row

YES, NO = {"true", "yes", "y", "1", "1.0", "good", "keep"}, {"false", "no", "n", "0", "0.0", "bad", "drop"}
LEAST = 5  # verdicts of each kind to set a threshold by


@dataclass(frozen=True, kw_only=True)
class Critic:
    """The rows that a critic finds good enough, each with its `into`: how likely it is good, between 0 and 1.

    It learns from the rows that have a `verdict` (true or false, yes or no, 1 or 0). A share of them, chosen by the rows
    that they come from so that siblings stay together, is held out to set the threshold: the highest one that keeps
    `recall` of the good ones, or the lowest one after which `precision` of what is kept is good. Rows with a verdict come
    out, or are lost, as it says. Lost: a row whose verdict is no; a row below the threshold, with both numbers; a row
    without text. A barrier: it holds the judged rows' texts; the others stream.
    """

    text: str = "text"  # the column to read
    verdict: str = "verdict"
    into: str = "critic"
    recall: float | None = None  # this or precision
    precision: float | None = None
    held: float = 0.3  # share of the verdicts that the threshold is set by
    strength: float = 10.0  # of the verdicts against small weights
    buckets: int = 2**16
    needs: ClassVar[frozenset[Kind]] = frozenset()

    def __post_init__(self) -> None:
        check_new(self.into)
        aim = self.precision if self.recall is None else self.recall
        if (self.recall is None) == (self.precision is None) or aim is None or not 0 < aim <= 1:
            raise ValueError("give recall or precision, one of them, above 0 and at most 1")
        if not 0 < self.held < 1 or not self.strength > 0 or self.buckets < 2:
            raise ValueError("held must be between 0 and 1, strength above 0, and buckets 2 or more")

    def __call__(self, rows: Iterable[Row], run: Run) -> Iterator[Row]:
        """The rows in their order."""
        work, rows = run.work, gone_through(rows)
        check_columns([self.text, self.verdict], rows, "the critic")
        if not len(rows):
            return
        weights, threshold = self._learned(rows, run)
        for row in rows:
            said = verdict_of(row.get(self.verdict))
            if not str(row.get(self.text, "")).strip():
                work.lose(row, f"no {self.text}")
            elif said is False:
                work.lose(row, "its verdict is no")
            else:
                score = float(weights.scores([str(row[self.text])])[0])
                if said or score >= threshold:
                    yield {**row, self.into: score}
                else:
                    work.lose({**row, self.into: score}, "the critic finds it bad", score=score, threshold=threshold)

    def _learned(self, rows: Iterable[Row], run: Run) -> tuple[Weights, float]:
        work: Work = run.work
        judged: dict[bool, list[tuple[str, str, bool]]] = {False: [], True: []}  # held out? -> (name, text, good)
        for row in rows:
            said = verdict_of(row.get(self.verdict))
            if said is not None and str(row.get(self.text, "")).strip():
                family = min(row.get("_from") or [row["_id"]])
                held = work.rng("held", str(family)).random() < self.held
                judged[held].append((str(row["_id"]), str(row[self.text]), said))
        for held, some in judged.items():
            good = sum(said for *_, said in some)
            if min(good, len(some) - good) < LEAST:
                what = "to set the threshold by" if held else "to learn from"
                raise RunError(
                    f"a critic needs {LEAST} verdicts of each kind {what}, and has {good} good and {len(some) - good} bad "
                    f"ones in column {self.verdict!r}; judge more rows, or change held"
                )
        fit, test = sorted(judged[False]), sorted(judged[True])
        weights = fitted([text for _, text, _ in fit], [said for *_, said in fit], self.strength, self.buckets)
        scores, good = weights.scores([text for _, text, _ in test]), numpy.array([said for *_, said in test])
        found = for_recall(scores, good, self.recall) if self.recall else for_precision(scores, good, self.precision or 1.0)
        if found is None:
            best = max(float(good[scores >= score].mean()) for score in scores)
            raise RunError(
                f"at no threshold {self.precision:g} of what the critic keeps is good on {len(test)} held-out verdicts; "
                f"the best is {best:.2f}: lower precision or judge more rows"
            )
        kept = scores >= found
        run.event(
            "critic", step=work.name, threshold=found, verdicts=len(fit), held=len(test), kept=int(kept.sum()),
            recall=float(kept[good].mean()), precision=float(good[kept].mean()), base=float(good.mean()),
        )  # fmt: skip
        return weights, found

    def estimate(self, rows: Sequence[Row], run: Run) -> Mapping[str, Need]:
        """It asks nobody."""
        return {}

    def sketch(self, rows: Sequence[Row], run: Run) -> Sequence[Row]:
        """All of them."""
        return [{**row, self.into: 1.0} for row in rows]


def verdict_of(value: Any) -> bool | None:
    """Whether a cell says yes or no; None if it is empty; RunError if it says something else."""
    said = str(value).strip().casefold()
    if value is None or not said:
        return None
    if said not in YES | NO:
        raise RunError(f"a verdict is true or false, yes or no, 1 or 0, and not {value!r}")
    return said in YES


@dataclass(frozen=True)
class Weights:
    """Logistic regression over n-grams: a text is the set of those it has, at length 1."""

    each: numpy.ndarray  # [buckets]
    bias: float

    def scores(self, texts: Sequence[str]) -> numpy.ndarray:
        """How likely each is good, `[texts]`."""
        rows, columns, values = features(texts, len(self.each))
        logits = numpy.bincount(rows, weights=values * self.each[columns], minlength=len(texts)) + self.bias
        return 1 / (1 + numpy.exp(-numpy.clip(logits, -700, 700)))


def features(texts: Sequence[str], buckets: int) -> tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray]:
    """(text, bucket, value) of every n-gram that a text has."""
    places, columns, values = list[int](), list[int](), list[float]()
    for number, text in enumerate(texts):
        found = sorted({int(gram) - 1 for gram in hashed([text], buckets)[0].tolist() if gram})
        places += [number] * len(found)
        columns += found
        values += [1 / math.sqrt(len(found)) for _ in found]  # none, where a text has none
    return numpy.array(places, dtype=int), numpy.array(columns, dtype=int), numpy.array(values)


def fitted(texts: Sequence[str], good: Sequence[bool], strength: float, buckets: int) -> Weights:
    """The only minimum of the loss, for the same texts in the same order always the same."""
    rows, columns, values = features(texts, buckets)
    sign = numpy.where(numpy.asarray(good), 1.0, -1.0)
    w = torch.zeros(buckets + 1, dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([w], max_iter=500, tolerance_grad=1e-8, tolerance_change=1e-14, line_search_fn="strong_wolfe")

    def loss() -> float:
        found = w.detach().numpy()
        logits = numpy.bincount(rows, weights=values * found[columns], minlength=len(texts)) + found[-1]
        pull = -sign / (1 + numpy.exp(numpy.clip(sign * logits, -700, 700))) * strength
        slope = numpy.bincount(columns, weights=values * pull[rows], minlength=buckets) + found[:-1]
        w.grad = torch.from_numpy(numpy.append(slope, pull.sum()))
        return float(0.5 * (found[:-1] ** 2).sum() + strength * numpy.logaddexp(0, -sign * logits).sum())

    search.step(loss)
    found = w.detach().numpy()
    return Weights(found[:-1].copy(), float(found[-1]))


def for_recall(scores: numpy.ndarray, good: numpy.ndarray, aim: float) -> float:
    """The highest threshold that keeps this share of the good ones: scores at or above it."""
    ranked = numpy.sort(scores[good])[::-1]
    return float(ranked[max(0, math.ceil(aim * len(ranked) - 1e-9) - 1)])


def for_precision(scores: numpy.ndarray, good: numpy.ndarray, aim: float) -> float | None:
    """The lowest threshold after which this share of what is kept is good; None if there is none."""
    order = numpy.argsort(-scores, kind="stable")
    ranked, right = scores[order], numpy.cumsum(good[order])
    last = numpy.append(ranked[1:] != ranked[:-1], True)  # of those with the same score
    fine = last & (right >= aim * numpy.arange(1, len(ranked) + 1) - 1e-9)
    return float(ranked[fine.nonzero()[0][-1]]) if fine.any() else None
