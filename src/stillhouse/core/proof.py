"""A paper's claim as arms, metric, seeds and a verdict."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from .recipe import Recipe

Verdict = Literal["holds", "does not hold", "undecided"]


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What must beat what, on which number.

    Every arm is a whole recipe that ends in an audit. `ours` is compared, paired by seed, with each arm in `beats`.
    `tune` is a grid of settings tried for every arm on the validation split with one extra seed before the others run;
    the arms in `untuned` have nothing to tune (a rule that is not trained) and stay as they are.
    """

    claim: str
    arms: Mapping[str, Recipe]
    metric: str  # name of a finding of the audit, on the test split
    subject: str = "train"  # the stage whose model is judged
    subjects: Mapping[str, str] = field(default_factory=dict[str, str])  # arm -> its own; arms may then share one recipe
    better: Literal["higher", "lower"] = "higher"
    ours: str = "ours"
    beats: tuple[str, ...] = ("alone",)
    seeds: tuple[int, ...] = (0, 1, 2)
    minutes: float = 10.0  # about how long it takes on two cores
    tune: Mapping[str, tuple[Any, ...]] = field(default_factory=dict[str, tuple[Any, ...]])
    untuned: tuple[str, ...] = ()
    tuning_seeds: int = 1  # over which a setting's value is averaged; one can choose a rate that breaks down on others
    judge: Any = (
        None  # stage.Judge: also report the students that it likes best while they train; the verdict is on the last
    )
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Effect:
    """A mean of paired differences (ours minus theirs) with its 95 % t-interval over seeds."""

    mean: float
    low: float
    high: float
    n: int


# Two-sided 95 % points of Student's t for 1..30 degrees of freedom; beyond, the normal's.
_T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


def interval(values: Sequence[float]) -> Effect:
    """Mean and 95 % t-interval; infinite with fewer than two values, since one seed bounds nothing."""
    n = len(values)
    mean = statistics.fmean(values)
    if n < 2:
        return Effect(mean=mean, low=-math.inf, high=math.inf, n=n)
    half = (_T95[n - 2] if n <= 31 else 1.96) * statistics.stdev(values) / math.sqrt(n)
    return Effect(mean=mean, low=mean - half, high=mean + half, n=n)


def verdict(effects: Sequence[Effect], better: Literal["higher", "lower"]) -> Verdict:
    """Holds if every interval is on the better side of zero, does not hold if any mean's whole interval is not."""
    sign = 1.0 if better == "higher" else -1.0
    bounds = [sorted((sign * e.low, sign * e.high)) for e in effects]
    if all(low > 0 for low, _ in bounds):
        return "holds"
    if any(high < 0 for _, high in bounds):
        return "does not hold"
    return "undecided"
