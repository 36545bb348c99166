"""Runs side by side: one table and one picture of quality against compute, for any set of methods.

Runs of one recipe that differ in nothing but the seed are one row. What is compared is one number of one subject (the
distilled student) on the test split; differences are paired by seed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..core.proof import interval
from ..core.report import Finding, Report
from . import figures, tables
from .html import finite, template
from .read import ReportError, read, walk
from .words import duration, metric_of, si, size

SPLIT = "test"


@dataclass(frozen=True)
class Bounds:
    """A mean over seeds with its 95 % interval; without bounds where one seed cannot tell."""

    mean: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Row:
    """One recipe over its seeds."""

    label: str
    method: str
    values: dict[int, float]  # seed -> the number
    quality: Bounds
    gain: Bounds | None  # how much better than `versus`, over the seeds that both have; positive is better
    seconds: float  # of training and of making data, on average; the teacher's training and the judging left out
    steps: int | None
    items: int | None
    teacher_tokens: int
    memory: int  # peak bytes
    folders: tuple[str, ...]

    @property
    def decided(self) -> Literal["better", "worse", "undecided", ""]:
        """Whether the gain's interval leaves zero out."""
        if self.gain is None:
            return ""
        if self.gain.low is None or self.gain.high is None or self.gain.low <= 0 <= self.gain.high:
            return "undecided"
        return "better" if self.gain.low > 0 else "worse"


@dataclass(frozen=True)
class Comparison:
    """Everything that the page shows."""

    metric: str
    better: Literal["higher", "lower", "neither"]
    subject: str
    versus: str  # label of the row that the others are compared with
    rows: tuple[Row, ...]  # the best first
    references: dict[str, Bounds]  # the teacher and the student before training, over all runs
    warnings: tuple[str, ...] = ()


@dataclass
class _Group:
    recipe: dict[str, Any]  # without the seed
    runs: dict[int, tuple[Path, Report]] = field(default_factory=dict[int, tuple[Path, Report]])
    label: str = ""


def compare(
    folders: Iterable[Path], *, metric: str | None = None, subject: str | None = None, versus: str | None = None
) -> Comparison:
    """Read the runs and put them side by side; ReportError if they have nothing in common to be compared by.

    `metric` is the one that decides in the first run if it is left out, `subject` that run's distilled student, `versus`
    the label of the row to compare with: that of supervised learning if there is one, else the last.
    """
    groups, warnings = _groups(_runs(folders))
    reports = [report for group in groups for _, report in group.runs.values()]
    who = subject or tables.ours(reports[0])
    name = metric or tables.primary(reports[0])
    found = {id(g): {seed: f for seed, (_, r) in g.runs.items() if (f := _finding(r, who, name))} for g in groups}
    for group in groups:
        missing = [path.name for seed, (path, _) in group.runs.items() if seed not in found[id(group)]]
        warnings += [f"{path} has no {name} of {who} on the {SPLIT} split and is left out" for path in missing]
    groups = [g for g in groups if found[id(g)]]
    if not groups:
        known = sorted({f.name for r in reports for f in r.findings if f.subject == who and not f.versus})
        raise ReportError(f"no run has {name!r} of {who!r}; there is {', '.join(known) or 'nothing about it'} (--metric)")
    _labelled(groups)
    better = next(iter(found[id(groups[0])].values())).better
    base = _base(groups, versus)
    rows = [_row(g, found[id(g)], found[id(base)] if g is not base else None, who, better) for g in groups]
    rows.sort(key=lambda row: -row.quality.mean if better == "higher" else row.quality.mean)
    warnings += _unlike(groups, who)
    if any(_borrowed(report, who) for report in reports):
        warnings.append("some runs took data over from another (those of proofs do): the time of making them is not counted")
    references = {n: b for n in ("teacher", "start") if n != who and (b := _reference(reports, n, name))}
    return Comparison(name, better, who, base.label, tuple(rows), references, tuple(warnings))


def write(comparison: Comparison, path: Path) -> Path:
    """The page, and the same as JSON beside it."""
    plain = finite({"schema": "stillhouse.comparison/1", **asdict(comparison)})
    path.with_suffix(".json").write_text(json.dumps(plain, indent=1, ensure_ascii=False), encoding="utf-8")
    path.write_text(render(comparison), encoding="utf-8")
    return path


def render(comparison: Comparison) -> str:
    """The page as text."""
    rows, metric = (
        comparison.rows,
        metric_of(Finding(name=comparison.metric, value=0.0, subject="", better=comparison.better)),
    )
    digits = tables.column_decimals(
        [Finding(name=comparison.metric, value=b.mean, low=b.low, high=b.high, subject="") for b in _all(comparison)]
    )
    who = {row.label: tables.Subject(row.label, row.label, 2 + i % (tables.COLOURS - 2)) for i, row in enumerate(rows)}
    points = [
        figures.Point(who[r.label], r.seconds, r.quality.mean, r.quality.low, r.quality.high) for r in rows if r.seconds > 0
    ]
    gains = [
        figures.Dot(who[r.label], r.gain.mean, r.gain.low, r.gain.high, metric.show(r.gain.mean, digits))
        for r in rows
        if r.gain is not None
    ]
    axis = ", ".join(p for p in ("%" if metric.scale > 1 else metric.unit, f"{comparison.better} is better") if p)
    drawn = [(f"{metric.label} against compute", figures.scatter(points, "seconds of training", axis, metric.scale))]
    if gains:
        axis = f"advantage in {metric.difference or metric.unit or metric.label.lower()}; right of zero is a win"
        drawn.append((f"How much better than {comparison.versus}", figures.dots(gains, axis, scale=metric.scale, zero=True)))
    return template("compare.html.j2").render(
        c=comparison, metric=metric, who=who, drawn=drawn, show=lambda value: metric.show(value, digits), si=si, size=size,
        duration=duration,
    )  # fmt: skip


# -- reading -----------------------------------------------------------------------------------------------------------


def _runs(folders: Iterable[Path]) -> list[Path]:
    """The run folders among these and directly below them."""
    found: list[Path] = []
    for folder in folders:
        if not folder.is_dir():
            raise ReportError(f"there is no folder {folder}")
        inside = [folder] if (folder / "recipe.yaml").is_file() else sorted(p.parent for p in folder.glob("*/recipe.yaml"))
        if not inside:
            raise ReportError(f"{folder} is no run, and holds none")
        found += inside
    return list(dict.fromkeys(path.resolve() for path in found))


def _groups(paths: Sequence[Path]) -> tuple[list[_Group], list[str]]:
    groups: dict[str, _Group] = {}
    warnings: list[str] = []
    for path in paths:
        report = read(path)
        if any(stage.state != "done" for stage in report.stages):
            warnings.append(f"{path.name} is not finished and is left out")
            continue
        seed = int(report.recipe.get("seed", 0))
        recipe = {key: value for key, value in report.recipe.items() if key not in ("seed", "expect")}
        group = groups.setdefault(json.dumps(recipe, sort_keys=True), _Group(recipe))
        if seed in group.runs:
            warnings.append(f"{path.name} has the recipe and the seed of {group.runs[seed][0].name} and is left out")
            continue
        group.runs[seed] = path, report
    if not groups:
        raise ReportError("; ".join(warnings) or "no run to compare")
    return list(groups.values()), warnings


def _finding(report: Report, subject: str, name: str) -> Finding | None:
    return tables.value_of(report, subject, name, SPLIT)


def _labelled(groups: Sequence[_Group]) -> None:
    """A recipe's id; its method too where several have the same id, and then the settings in which they still differ."""
    for group in groups:
        twins = [g for g in groups if g.recipe.get("id") == group.recipe.get("id")]
        alike = [g for g in twins if _method(g) == _method(group)]
        parts = [str(group.recipe.get("id", "run"))]
        if len(alike) < len(twins):
            parts.append(_method(group) or "no training")
        group.label = ", ".join([*parts, *_differing(group, alike)])
    seen: dict[str, int] = {}
    for group in groups:  # what is cut short may be alike
        seen[group.label] = seen.get(group.label, 0) + 1
        group.label += f" #{seen[group.label]}" if seen[group.label] > 1 else ""


def _differing(group: _Group, twins: Sequence[_Group], most: int = 3) -> list[str]:
    """The group's own values of the settings in which the twins differ, by the last part of their names."""
    flat = [_flat(twin.recipe) for twin in twins]
    names = [name for name in dict.fromkeys(n for f in flat for n in f) if len({repr(f.get(name)) for f in flat}) > 1]
    own = _flat(group.recipe)
    told = [f"{name.removesuffix('.use').rpartition('.')[2]} {own[name]}" for name in names if own.get(name) is not None]
    return [*told[:most], *(["…"] if len(told) > most else [])]


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {k: v for key, child in value.items() for k, v in _flat(child, f"{path}.{key}" if path else str(key)).items()}
    if isinstance(value, list):
        return {k: v for i, child in enumerate(value) for k, v in _flat(child, f"{path}.{i}").items()}
    return {path: value.rpartition(".")[2] if path.endswith("use") and isinstance(value, str) else value}


def _base(groups: Sequence[_Group], versus: str | None) -> _Group:
    if versus is not None:
        found = next((g for g in groups if g.label == versus or g.recipe.get("id") == versus), None)
        if found is None:
            raise ReportError(f"no run is called {versus!r}; there are {', '.join(g.label for g in groups)} (--versus)")
        return found
    return next((g for g in groups if _method(g) == "Supervised"), groups[-1])


def _method(group: _Group) -> str:
    stage = (group.recipe.get("stages") or {}).get("train") or {}
    return str((stage.get("method") or {}).get("use", "")).rpartition(".")[2]


def _row(group: _Group, found: Mapping[int, Finding], base: Mapping[int, Finding] | None, who: str, better: str) -> Row:
    values = {seed: f.value for seed, f in sorted(found.items())}
    sign = 1.0 if better == "higher" else -1.0
    shared = [] if base is None else [sign * (values[s] - base[s].value) for s in values if s in base]
    runs = [report for _, report in group.runs.values()]
    judged = [next((s for s in r.stages if s.name == who), None) for r in runs]
    costs = [[c for c in r.costs if c.stage == who or _makes(r, c.stage)] for r in runs]
    count = max(1, len(runs))
    return Row(
        label=group.label, method=_method(group), values=values, quality=_bounds(list(values.values())),
        gain=_bounds(shared) if shared else None,
        seconds=sum(c.seconds for each in costs for c in each) / count,
        steps=next((s.steps for s in judged if s and s.steps), None),
        items=next((s.items for s in judged if s and s.items), None),
        teacher_tokens=round(sum(c.teacher_tokens for each in costs for c in each) / count),
        memory=max((c.memory for each in costs for c in each), default=0),
        folders=tuple(str(path) for path, _ in group.runs.values()),
    )  # fmt: skip


def _makes(report: Report, stage: str) -> bool:
    """Whether a stage makes what is learned from: it neither trains nor judges."""
    return any(s.name == stage and s.kind not in ("Train", "Followed", "Audit", "Samples") for s in report.stages)


def _borrowed(report: Report, who: str) -> bool:
    """Whether a stage that makes data is done, but not by this run."""
    paid = {cost.stage for cost in report.costs}
    return any(_makes(report, s.name) and s.state == "done" and s.name not in paid for s in report.stages if s.name != who)


def _bounds(values: Sequence[float]) -> Bounds:
    found = interval(values)
    known = math.isfinite(found.low) and math.isfinite(found.high)
    return Bounds(found.mean, found.low if known else None, found.high if known else None, found.n)


def _reference(reports: Sequence[Report], subject: str, name: str) -> Bounds | None:
    values = [f.value for report in reports if (f := _finding(report, subject, name))]
    return _bounds(values) if values else None


def _unlike(groups: Sequence[_Group], who: str) -> list[str]:
    """What should be alike in a fair comparison, and is not."""
    found: list[str] = []
    for part in ("data", "student"):
        kinds = {json.dumps(g.recipe.get(part), sort_keys=True) for g in groups}
        if len(kinds) > 1:
            found.append(f"the runs do not have the same {part}: the numbers may not be comparable")
    budgets = {(s.get("steps"), s.get("batch")) for g in groups if (s := (g.recipe.get("stages") or {}).get(who))}
    if len(budgets) > 1:
        told = ", ".join(f"{steps} x {batch}" for steps, batch in sorted(budgets, key=str))
        found.append(f"the runs do not take equally many steps of equally many items ({told})")
    seeds = {tuple(sorted(g.runs)) for g in groups}
    if len(seeds) > 1:
        found.append("the runs do not have the same seeds: differences are over those that both have")
    teachers = {
        json.dumps([p.get("path") for p in walk(g.recipe.get("teachers"))]) for g in groups if g.recipe.get("teachers")
    }
    if len(teachers) > 1:
        found.append("the runs do not have the same teacher")
    return found


def _all(comparison: Comparison) -> list[Bounds]:
    return [*(row.quality for row in comparison.rows), *comparison.references.values()]
