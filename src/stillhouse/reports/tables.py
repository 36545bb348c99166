"""The models of a run, the metric that decides between them, and the table of arms."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ..core.report import Finding, Report
from .words import METRICS, Metric, decimals, label_of, metric_of

SLOTS = {"teacher": 0, "start": 1, "train": 2, "alone_tokens": 3, "alone_time": 4, "alone": 3}  # the others follow
COLOURS = 9


@dataclass(frozen=True)
class Subject:
    """A model that the report speaks about; `slot` is its colour everywhere."""

    name: str
    label: str
    slot: int
    method: str = ""

    @property
    def student(self) -> bool:
        """Whether it competes: a teacher does not."""
        return self.slot != 0


def subjects(report: Report) -> dict[str, Subject]:
    """Every model of the run by name: teachers, the student before training, then the stages in order."""
    language = report.language
    stages = {s.name: s for s in report.stages if s.kind == "Train" or s.steps is not None}
    measured = [f.subject for f in report.findings if f.subject not in report.made]
    teachers = dict.fromkeys([*(report.recipe.get("teachers") or {}), *(["teacher"] if "teacher" in measured else [])])
    order = [*teachers, *(["start"] if "start" in measured else []), *stages, *measured]
    found: dict[str, Subject] = {}
    for name in dict.fromkeys(order):
        others = sum(n not in SLOTS and n not in teachers for n in found)
        slot = 0 if name in teachers else SLOTS.get(name, 5 + others % (COLOURS - 5))
        stage = stages.get(name)
        found[name] = Subject(name, stage.label if stage else label_of(name, language), slot, stage.method if stage else "")
    return found


def primary(report: Report) -> str:
    """The metric that decides: loss for language, accuracy for classification, else the first that was compared."""
    names = [f.name for f in report.findings if f.versus] + [f.name for f in report.findings]
    wanted = "nll" if report.language or "accuracy" not in names else "accuracy"
    return wanted if wanted in names or not names else names[0]


def ours(report: Report) -> str:
    """The distilled student: stage `train`, else the first subject that was compared with another."""
    compared = [f.subject for f in report.findings if f.versus]
    return "train" if "train" in compared or not compared else compared[0]


def value_of(report: Report, subject: str, name: str, split: str | None = None) -> Finding | None:
    """The last finding of a number about a subject, on the deciding split unless another is asked for."""
    split = (splits(report) or [""])[0] if split is None else split
    same = [
        f for f in report.findings if f.subject == subject and f.name == name and not f.versus and f.split in ("", split)
    ]
    return same[-1] if same and math.isfinite(same[-1].value) else None


def splits(report: Report) -> list[str]:
    """The data that was measured on, the test split first."""
    return sorted(dict.fromkeys(f.split for f in report.findings if f.split), key=lambda s: s != "test")


@dataclass(frozen=True)
class Cell:
    """One number, its interval, and whether it is the best of the students."""

    text: str = "–"
    interval: str = ""
    best: bool = False


@dataclass(frozen=True)
class Table:
    """Subjects down, metrics across."""

    title: str
    columns: tuple[Metric, ...]
    rows: tuple[tuple[Subject, tuple[Cell, ...]], ...]


def arms(report: Report) -> list[Table]:
    """The table of arms first: what was measured on the first split, and what does not depend on one.

    A second table holds the metrics that only specialists ask for, and each further split has a table of its own.
    """
    who, language = subjects(report), report.language
    items = "tokens" if language else "examples"
    facts = [
        (s, n, v, u)
        for s in report.stages
        for n, v, u in (("train_seconds", s.seconds, ""), ("train_items", s.items, items))
    ]
    extra = [
        Finding(name=n, value=v, unit=u, subject=s.name) for s, n, v, u in facts if v and s.name in who and s.state == "done"
    ]
    whole = replace(report, findings=report.findings + tuple(extra))
    known = [primary(report), *METRICS]
    special = {"reverse_kl", "own_reverse_kl", "own_teacher_nll", *(["accuracy"] if language else [])}
    tables: list[Table] = []
    for index, split in enumerate(splits(report) or [""]):
        here = {f.name for f in whole.findings if not f.versus and (f.split == split or not (f.split or index))}
        order = sorted(here, key=lambda n: (known.index(n) if n in known else len(known), n))
        main = [n for n in order if n in known and n not in special]
        title = f"On the {split} split" if index else "The models side by side"
        tables.append(_table(whole, title, main, split, who))
        tables.append(_table(whole, "More measurements", [n for n in order if n not in main], split, who))
    return [table for table in tables if table.rows]


def _table(report: Report, title: str, names: list[str], split: str, who: dict[str, Subject]) -> Table:
    columns = [_column(report, name, split, who) for name in names]
    rows = [(s, tuple(cells[s.name] for _, cells in columns)) for s in who.values()]
    return Table(title, tuple(m for m, _ in columns), tuple(row for row in rows if any(cell.text != "–" for cell in row[1])))


def _column(report: Report, name: str, split: str, who: dict[str, Subject]) -> tuple[Metric, dict[str, Cell]]:
    found = {n: f for n in who if (f := value_of(report, n, name, split))}
    metric = metric_of(next(f for f in report.findings if f.name == name))
    digits = column_decimals(list(found.values())) if found else 0
    rivals = {n: f.value for n, f in found.items() if who[n].student}
    shown = {n: metric.show(f.value, digits) for n, f in found.items()}
    best = metric.show((max if metric.better == "higher" else min)(rivals.values(), default=0.0), digits)
    ranked = metric.better != "neither" and len({shown[n] for n in rivals}) > 1
    cells = {n: Cell() for n in who}
    for n, f in found.items():
        bounds = [] if f.low is None or f.high is None else [f.low, f.high]
        interval = " – ".join(metric.show(b, digits).removesuffix("\N{NO-BREAK SPACE}%") for b in bounds)
        cells[n] = Cell(shown[n], interval, ranked and n in rivals and shown[n] == best)
    return metric, cells


def column_decimals(findings: list[Finding]) -> int:
    """How many digits after the point findings of one metric are shown with, beside each other; a share has one."""
    scale = metric_of(findings[0]).scale
    halves = [scale * (f.high - f.low) / 2 for f in findings if f.low is not None and f.high is not None]
    return max(int(scale > 1), decimals([scale * f.value for f in findings], halves))
