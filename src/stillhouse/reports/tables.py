"""What the numbers say: the verdict in plain words, the key figures, and the table of arms."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from statistics import median
from typing import Literal

from ..core.report import Finding, Report
from .words import (
    CONDITIONS,
    METRICS,
    SUBJECTS,
    Metric,
    decimals,
    fixed,
    is_language,
    label_of,
    metric_of,
    percent,
    si,
    words,
)

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
    language = is_language(report.findings)
    stages = {s.name: s for s in report.stages if s.kind == "Train" or s.steps is not None}
    measured = [f.subject for f in report.findings]
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
    wanted = "nll" if is_language(report.findings) or "accuracy" not in names else "accuracy"
    return wanted if wanted in names or not names else names[0]


def ours(report: Report) -> str:
    """The distilled student: stage `train`, else the first subject that was compared with another."""
    compared = [f.subject for f in report.findings if f.versus]
    return "train" if "train" in compared or not compared else compared[0]


def value_of(report: Report, subject: str, name: str, split: str | None = None) -> Finding | None:
    """The last finding of a number about a subject, on the deciding split unless another is asked for."""
    split = (splits(report) or [""])[0] if split is None else split
    same = [f for f in report.findings if f.subject == subject and f.name == name and not f.versus and f.split in ("", split)]
    return same[-1] if same and math.isfinite(same[-1].value) else None


def splits(report: Report) -> list[str]:
    """The data that was measured on, the test split first."""
    return sorted(dict.fromkeys(f.split for f in report.findings if f.split), key=lambda s: s != "test")


# -- verdict -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """The distilled student against one other, as a sentence; `gain` is positive where it is the better one."""

    finding: Finding
    subject: Subject
    outcome: Literal["better", "worse", "undecided"]
    baseline: bool  # a student trained without the teacher, rather than a reference
    text: str
    gain: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Verdict:
    """The top of the page."""

    outcome: Literal["better", "worse", "undecided"]
    headline: str
    comparisons: tuple[Comparison, ...]
    basis: str  # what the intervals are over


def verdict(report: Report) -> Verdict:
    """Whether the teacher was worth it, decided by the paired differences alone."""
    name, winner, who, language = primary(report), ours(report), subjects(report), is_language(report.findings)
    split = (splits(report) or [""])[0]
    paired = {f.versus: f for f in report.findings if f.versus and (f.name, f.subject) == (name, winner) and f.split in ("", split)}
    done = tuple(_compare(f, who, language) for v in who if (f := paired.get(v)))
    baselines = [c for c in done if c.baseline]
    by = {o: [_condition(c, language) for c in baselines if c.outcome == o] for o in ("better", "worse", "undecided")}
    phrases = {"better": "Distilling paid off", "worse": "it did not pay off", "undecided": "undecided"}
    said = [f"{phrases[o]} {_and(names)}" for o, names in by.items() if names]
    outcome = next((o for o, names in by.items() if names and len(names) == len(baselines)), "undecided")
    if said:
        headline = "; ".join(said).replace("undecided at", "it is undecided at") + "."
        headline = headline[0].upper() + headline[1:]
        headline = headline.replace("It did", "Distilling did").replace("It is undecided", "Undecided whether distilling paid off")
    elif missing := [s.label for s in report.stages if s.state != "done"]:
        headline = f"No verdict yet: the run is unfinished ({', '.join(missing)} still to come)."
    else:
        headline = "No verdict: this run trained no student without the teacher to compare with."
    return Verdict(outcome, headline, done, _basis([c.finding for c in done]))  # type: ignore[arg-type]


def _compare(finding: Finding, who: dict[str, Subject], language: bool) -> Comparison:
    metric, outcome = metric_of(finding), finding.decided
    sign = -1.0 if finding.better == "lower" else 1.0
    bounds = None if finding.low is None or finding.high is None else sorted((sign * finding.low, sign * finding.high))
    gain, (low, high) = sign * finding.value, bounds or (None, None)
    digits = decimals([gain], [(high - low) / 2] if low is not None and high is not None else [], metric.scale)
    shown = [metric.scale * abs(b) for b in bounds or ()]
    while outcome != "undecided" and digits < 6 and any(round(b, digits) == 0 for b in shown):
        digits += 1  # a bound that excludes zero must not be written as zero
    unit = metric.difference or metric.unit or metric.label.lower()
    near = sorted(shown) if outcome != "undecided" else [metric.scale * b for b in bounds or ()]
    amount = f"{fixed(abs(metric.scale * gain), digits)} {unit}"
    interval = f" [{fixed(near[0], digits)}, {fixed(near[1], digits)}]" if near else ""
    us, them = (_phrase(who[n], language) for n in (finding.subject, str(finding.versus)))
    if outcome == "undecided":
        why = f"the interval{interval} includes zero" if near else "there is no interval to tell it from chance"
        text = f"No difference can be shown between {us} and {them}: {amount} {'in favour of' if gain > 0 else 'against'} the former, but {why}."
    else:
        verb = "beats" if outcome == "better" else "loses to"
        text = f"{us[0].upper()}{us[1:]} {verb} {them}, by {amount}{interval}{_perplexity(finding, language)}."
    return Comparison(
        finding, who[str(finding.versus)], outcome, finding.versus != "start" and who[str(finding.versus)].student, text, gain, low, high
    )


def _perplexity(finding: Finding, language: bool) -> str:
    if finding.name != "nll" or not language:
        return ""
    change = math.expm1(finding.value)
    return f", which is {percent(abs(change), 0)} {'less' if change < 0 else 'more'} perplexity"


def _phrase(subject: Subject, language: bool) -> str:
    usual = SUBJECTS.get(subject.name)
    if usual is None or subject.label != words(usual[0], language):
        return f"\N{LEFT DOUBLE QUOTATION MARK}{subject.label}\N{RIGHT DOUBLE QUOTATION MARK}"
    return words(usual[1], language)


def _condition(comparison: Comparison, language: bool) -> str:
    name = comparison.subject.name
    return words(CONDITIONS[name], language) if name in CONDITIONS else f"against {comparison.subject.label}"


def _and(names: list[str]) -> str:
    return " and ".join(names) if len(names) < 3 else f"{', '.join(names[:-1])} and {names[-1]}"


def _basis(findings: list[Finding]) -> str:
    """What the brackets bound, and what they do not."""
    over = sorted({f"{f.n:,} {f.over}" if f.n else f.over for f in findings if f.over and f.low is not None})
    if not over:
        return ""
    text = f"Brackets are 95 % intervals over {_and(over)}."
    if all("seed" not in name for name in over):
        text += " They do not cover the luck of another training seed, since each student was trained once."
    return text


def key_figures(report: Report) -> list[tuple[str, str]]:
    """(figure, what it is): the few numbers to remember."""
    name, winner, tiles = primary(report), ours(report), list[tuple[str, str]]()
    mine, start, teacher = (value_of(report, s, name) for s in (winner, "start", "teacher"))
    if mine and start and teacher and (teacher.value - start.value) * (1 if teacher.better == "higher" else -1) > 0:
        closed = (mine.value - start.value) / (teacher.value - start.value)
        tiles.append((percent(closed, 0), f"of the gap between untrained student and teacher closed ({METRICS[name].label.lower() if name in METRICS else name})"))
    small, large = (value_of(report, s, "parameters") for s in (winner, "teacher"))
    if small and large:
        tiles.append((percent(small.value / large.value, 0), f"of the teacher's size: {si(small.value)} of {si(large.value)} parameters"))
    for rate, item in (("tokens_per_second", "tokens"), ("items_per_second", "items")):
        fast, slow = (value_of(report, s, rate) for s in (winner, "teacher"))
        if fast and slow:
            tiles.append((f"{fast.value / slow.value:.1f}×", f"the teacher's speed: {si(fast.value)} instead of {si(slow.value)} {item} a second"))
    seconds = sum(c.seconds for c in report.costs)
    if seconds:
        tiles.append((METRICS["train_seconds"].show(seconds, 0), "for the whole run, every comparison included"))
    return tiles


# -- the table of arms -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """One number, its interval, and whether it is the best of the students."""

    text: str = "–"
    interval: str = ""
    best: bool = False


@dataclass(frozen=True)
class Table:
    """Subjects down, metrics across."""

    split: str
    columns: tuple[Metric, ...]
    rows: tuple[tuple[Subject, tuple[Cell, ...]], ...]


def arms(report: Report) -> list[Table]:
    """One table per split; what does not depend on the data stands in the first."""
    who = subjects(report)
    paid = {c.stage: c for c in report.costs}
    extra: list[Finding] = []
    for stage in report.stages:
        if stage.name in who and stage.state == "done":
            facts = {"train_seconds": stage.seconds, "train_tokens": paid[stage.name].tokens if stage.name in paid else 0}
            facts |= {} if facts["train_tokens"] else {"train_items": stage.items}
            extra += [Finding(name=n, value=v, subject=stage.name) for n, v in facts.items() if v]
    whole = replace(report, findings=report.findings + tuple(extra))
    tables: list[Table] = []
    for index, split in enumerate(splits(report) or [""]):
        names = {f.name for f in whole.findings if not f.versus and (f.split == split or not (f.split or index))}
        order = sorted(names, key=lambda n: ([*METRICS].index(n) if n in METRICS else -1, n))
        order.sort(key=lambda n: n != primary(report))
        columns = [_column(whole, name, split, who.values()) for name in order]
        rows = [(s, tuple(cells[s.name] for _, cells in columns)) for s in who.values()]
        rows = [row for row in rows if any(cell.text != "–" for cell in row[1])]
        tables.append(Table(split, tuple(metric for metric, _ in columns), tuple(rows)))
    return [table for table in tables if table.rows]


def _column(report: Report, name: str, split: str, who: Iterable[Subject]) -> tuple[Metric, dict[str, Cell]]:
    found = {s.name: f for s in who if (f := value_of(report, s.name, name, split))}
    if not found:
        metric = METRICS.get(name) or metric_of(next(f for f in report.findings if f.name == name))
        return metric, {s.name: Cell() for s in who}
    metric = metric_of(next(iter(found.values())))
    bounded = {n: (f.low, f.high) for n, f in found.items() if f.low is not None and f.high is not None}
    digits = column_decimals(list(found.values()))
    rivals = [f.value for s in who if s.student and (f := found.get(s.name))]
    best = (max if metric.better == "higher" else min)(rivals, default=math.nan)
    ranked = metric.better != "neither" and len(rivals) > 1 and best != median(rivals)
    cells = {s.name: Cell() for s in who}
    for n, finding in found.items():
        low_high = [metric.show(b, digits).replace("\N{NO-BREAK SPACE}%", "") for b in bounded.get(n, ())]
        is_rival = next(s.student for s in who if s.name == n)
        cells[n] = Cell(metric.show(finding.value, digits), " – ".join(low_high), ranked and is_rival and finding.value == best)
    return metric, cells


def column_decimals(findings: list[Finding]) -> int:
    """How many digits after the point findings of one metric are shown with, beside each other."""
    halves = [(f.high - f.low) / 2 for f in findings if f.low is not None and f.high is not None]
    return decimals([f.value for f in findings], halves, metric_of(findings[0]).scale)
