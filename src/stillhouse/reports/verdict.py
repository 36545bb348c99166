"""Was the teacher worth it? The answer in plain words, and the few numbers to remember."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ..core.report import Finding, Report
from .tables import Subject, column_decimals, ours, primary, splits, subjects, value_of
from .words import CONDITIONS, SUBJECTS, duration, fixed, metric_of, percent, rate, si, words

Outcome = Literal["better", "worse", "undecided"]
OUTCOMES: tuple[Outcome, ...] = ("better", "worse", "undecided")
NEAR = ",\N{NO-BREAK SPACE}"  # the two ends of an interval stay on one line


@dataclass(frozen=True)
class Comparison:
    """The distilled student against one other, as a sentence; `gain` is positive where it is the better one."""

    finding: Finding
    subject: Subject
    outcome: Outcome
    baseline: bool  # a student trained without the teacher, rather than a reference
    text: str
    gain: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Verdict:
    """The top of the page."""

    outcome: Outcome
    headline: str
    comparisons: tuple[Comparison, ...]  # with the baselines first
    basis: str  # what the intervals are over


def verdict(report: Report) -> Verdict:
    """Whether the teacher was worth it, decided by the paired differences alone."""
    name, winner, who, language = primary(report), ours(report), subjects(report), report.language
    split = (splits(report) or [""])[0]
    paired = {
        f.versus: f for f in report.findings if f.versus and (f.name, f.subject) == (name, winner) and f.split in ("", split)
    }
    # teachers last: being behind one is the rule
    done = sorted(
        (_compare(f, who, language) for v in who if (f := paired.get(v))),
        key=lambda c: (not c.baseline, not c.subject.student),
    )
    baselines = [c for c in done if c.baseline]
    by: dict[Outcome, str] = {o: _and([_condition(c, language) for c in baselines if c.outcome == o]) for o in OUTCOMES}
    decided: set[Outcome] = {c.outcome for c in baselines}
    outcome = decided.pop() if len(decided) == 1 else "undecided"
    return Verdict(outcome, _headline(report, by), tuple(done), _basis([c.finding for c in done]))


def _headline(report: Report, by: dict[Outcome, str]) -> str:
    said = [f"Distilling paid off {by['better']}"] if by["better"] else []
    if by["worse"]:
        said.append(f"it did not {by['worse']}" if said else f"Distilling did not pay off {by['worse']}")
    if by["undecided"]:
        said.append(f"{'undecided' if said else 'Undecided whether distilling pays off'} {by['undecided']}")
    if said:
        return "; ".join(said) + "."
    if not _done(report):
        return "No verdict yet: the run is unfinished."
    return "No verdict: this run compared its student with none that was trained without the teacher."


def _done(report: Report) -> bool:
    return all(s.state == "done" for s in report.stages)


def _compare(finding: Finding, who: dict[str, Subject], language: bool) -> Comparison:
    metric, outcome, other = metric_of(finding), finding.decided, who[str(finding.versus)]
    baseline = other.student and other.name != "start"
    sign = metric.scale * (-1 if finding.better == "lower" else 1)
    gain = sign * finding.value
    bounds = [] if finding.low is None or finding.high is None else sorted((sign * finding.low, sign * finding.high))
    digits = column_decimals([finding])
    while outcome != "undecided" and digits < 6 and any(round(b, digits) == 0 for b in bounds):
        digits += 1  # a bound that excludes zero must not be written as zero
    amount = f"{fixed(abs(gain), digits)} {metric.difference or metric.unit or metric.label.lower()}"
    shown = bounds if outcome == "undecided" else sorted(map(abs, bounds))
    interval = f" [{NEAR.join(fixed(b, digits) for b in shown)}]" if shown else ""
    us, them = _phrase(who[finding.subject], language), _phrase(other, language)
    if outcome == "undecided":
        why = f"the interval{interval} includes zero" if interval else "without an interval that may be chance"
        side = "in favour of" if gain > 0 else "against"
        text = f"no difference can be shown between {us} and {them}: {amount} {side} the former, but {why}."
    else:
        verbs = ("beats", "loses to") if baseline else ("is ahead of", "stays behind")
        text = f"{us} {verbs[outcome == 'worse']} {them}, by {amount}{interval}{_perplexity(finding, language)}."
    low, high = bounds or (None, None)
    return Comparison(finding, other, outcome, baseline, text[0].upper() + text[1:], gain, low, high)


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
    text = f"Brackets are 95 % intervals over {_and(over)}{_of(findings[0].split)}."
    if all("seed" not in name for name in over):
        text += " Each student was trained once, so they do not cover the luck of another seed."
    return text


def _of(split: str) -> str:
    return f" of the {split} split" if split else ""


def key_figures(report: Report) -> list[tuple[str, str]]:
    """(figure, what it is): the few numbers to remember."""
    name, winner, tiles = primary(report), ours(report), list[tuple[str, str]]()
    mine, start, teacher = (value_of(report, s, name) for s in (winner, "start", "teacher"))
    if mine and start and teacher and (teacher.value > start.value) == (teacher.better == "higher"):
        closed = (mine.value - start.value) / (teacher.value - start.value)
        label = metric_of(mine).label.lower()
        tiles.append((percent(closed, 0), f"of the way from the untrained student to the teacher ({label})"))
    small, large = (value_of(report, s, "parameters") for s in (winner, "teacher"))
    if small and large:
        text = f"of the teacher's size: {si(small.value)} of {si(large.value)} parameters"
        tiles.append((percent(small.value / large.value, 0), text))
    for name, item in (("tokens_per_second", "tokens"), ("items_per_second", "examples")):
        fast, slow = (value_of(report, s, name) for s in (winner, "teacher"))
        if fast and slow:
            text = f"the teacher's speed: {rate(fast.value)} instead of {rate(slow.value)} {item} a second"
            tiles.append((f"{fast.value / slow.value:.1f}×", text))
    if seconds := sum(c.seconds for c in report.costs):
        tiles.append((duration(seconds), "for the whole run, every comparison included" if _done(report) else "so far"))
    return tiles
