"""What a run found: numbers with their intervals. Data only; `reports/` draws them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One number about one subject.

    `low` and `high` bound the 95 % interval of what `over` names (documents, seeds), `n` of which were looked at.
    """

    name: str  # metric, in the glossary of `reports/`
    value: float
    subject: str  # "teacher", "start" or a stage
    better: Literal["higher", "lower", "neither"] = "neither"
    unit: str = ""
    low: float | None = None
    high: float | None = None
    n: int | None = None
    over: str = ""
    versus: str | None = None  # the value is `subject` minus this other subject, paired
    split: str = ""  # the data it was measured on
    note: str = ""

    def plain(self) -> dict[str, Any]:
        """The finding as JSON, which knows no infinity: a bound that cannot be told is null."""
        bounds = {"low": self.low, "high": self.high}
        return asdict(self) | {k: v if v is not None and math.isfinite(v) else None for k, v in bounds.items()}

    @property
    def decided(self) -> Literal["better", "worse", "undecided"]:
        """For a difference: does its interval leave zero out, and on which side?"""
        if self.low is None or self.high is None or self.better == "neither" or self.low <= 0 <= self.high:
            return "undecided"
        return "better" if (self.low > 0) == (self.better == "higher") else "worse"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """Curves to draw. A check may yield one among its findings, and figures of the same title become one.

    `series` maps a subject to its (x, y) points, in that subject's colour. Any other name is a reference, drawn as a
    dashed line: {"perfect calibration": [(0, 0), (1, 1)]}.
    """

    title: str
    x: str
    y: str
    series: dict[str, list[tuple[float, float]]]

    def plain(self) -> dict[str, Any]:
        """The figure as JSON."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one stage took, over all its resumptions."""

    stage: str
    seconds: float
    tokens: int = 0
    memory: int = 0  # peak bytes
    teacher_tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class StageState:
    """How far one stage of the recipe came."""

    name: str
    label: str  # what people call it
    kind: str  # "Train", "Audit", ...
    state: Literal["done", "stopped", "not started"]
    method: str = ""  # class name of what a training stage learns with
    steps: int | None = None  # optimizer steps taken
    seconds: float | None = None  # of training alone
    items: int | None = None  # what it learned from: tokens that count in language, else examples


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything a page needs, read from the run folder and from nowhere else."""

    recipe: dict[str, Any]
    recipe_yaml: str  # the same, as it was written
    language: bool  # its models predict tokens, not classes: "text" and "tokens" instead of "data" and "examples"
    stages: tuple[StageState, ...]
    findings: tuple[Finding, ...]
    figures: tuple[Figure, ...]  # what the checks drew
    curves: tuple[Figure, ...]  # what the training stages logged
    costs: tuple[Cost, ...]
    samples: tuple[dict[str, Any], ...]  # {"prompt": ..., "teacher": ..., STAGE: ...}
    rejects: dict[str, int]  # reason -> rows lost
    pictures: tuple[str, ...]  # PNG files of the run, by their path in its folder
    made: dict[str, dict[str, Any]]  # stage that made data -> what its steps lost and what its teachers were paid
    environment: dict[str, Any]
    papers: tuple[dict[str, Any], ...]  # {"id", "title", "authors", "year", "link", "bibtex"}
    warnings: tuple[str, ...] = ()

    def plain(self) -> dict[str, Any]:
        """The report as JSON. Its schema: `pydantic.TypeAdapter(Report).json_schema()`."""
        return asdict(self)
