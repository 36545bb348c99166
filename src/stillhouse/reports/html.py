"""The page: one HTML file that needs no network and no script, and the same as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jinja2 import FileSystemLoader, StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ..core.report import Report
from . import figures, tables
from .read import read
from .words import duration, fixed, is_language, metric_of, si, size

SHOWN = 3  # samples on the page before the rest is folded away


def write(folder: Path | str) -> Path:
    """Write `report.html` and `report.json` into a run folder; returns the path of the page.

    Both depend on the folder alone: the same folder gives the same bytes. `report.json` is `Report.plain()` with the
    verdict beside it (keys `outcome`, `headline`, `comparisons`, `basis`); numbers that are not finite are null.
    """
    folder = Path(folder)
    report = read(folder)
    verdict = tables.verdict(report)
    whole = _finite({"schema": "stillhouse.report/1", "verdict": asdict(verdict), **report.plain()})
    (folder / "report.json").write_text(json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8")
    page = folder / "report.html"
    page.write_text(render(report), encoding="utf-8")
    return page


def render(report: Report) -> str:
    """The page as text."""
    who, verdict, arms = tables.subjects(report), tables.verdict(report), tables.arms(report)
    loss, other = _curves(report, who)
    return template("page.html.j2").render(
        report=report,
        who=who,
        verdict=verdict,
        figures_to_remember=tables.key_figures(report),
        arms=arms,
        primary_figures=list(_primary(report, who, verdict)),
        drawn=[(f.title, figures.lines(f, who)) for f in report.figures],
        loss=loss,
        other=other,
        glossary=_glossary(report, arms),
        facts=list(_facts(report.recipe)),
        language=is_language(report.findings),
        costs={c.stage: c for c in report.costs},
        shown=SHOWN,
        environment=list(_flat(report.environment)),
    )


def template(name: str) -> Any:
    """A template of this folder: sandboxed, strict about missing names, and escaping whatever it is given in HTML."""
    environment = ImmutableSandboxedEnvironment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        autoescape=name.endswith(".html.j2"),
    )  # fmt: skip
    environment.filters |= {"si": si, "size": size, "duration": duration}
    return environment.get_template(name)


def _primary(report: Report, who: Mapping[str, tables.Subject], verdict: tables.Verdict) -> Iterator[tuple[str, str]]:
    """The deciding metric of every subject, and the paired differences: (caption, SVG)."""
    name = tables.primary(report)
    found = {s.name: f for s in who.values() if (f := tables.value_of(report, s.name, name))}
    if found:
        metric = metric_of(next(iter(found.values())))
        k, unit = metric.scale, "%" if metric.scale == 100 else metric.unit
        digits = tables.column_decimals(list(found.values()))
        rows = [figures.Dot(who[n], k * f.value, _times(k, f.low), _times(k, f.high), metric.show(f.value, digits)) for n, f in found.items()]
        better = {"lower": "less is better", "higher": "more is better"}.get(metric.better, "")
        axis = ", ".join(part for part in (unit, better) if part)
        yield f"{metric.label} of every model", figures.dots(rows, axis)
    if verdict.comparisons:
        metric = metric_of(verdict.comparisons[0].finding)
        k, unit = metric.scale, metric.difference or metric.unit
        digits = tables.column_decimals([c.finding for c in verdict.comparisons])
        rows = [figures.Dot(c.subject, k * c.gain, _times(k, c.low), _times(k, c.high), fixed(k * c.gain, digits)) for c in verdict.comparisons]
        us = who[tables.ours(report)].label.lower()
        yield f"How much better the {us} is than …", figures.dots(rows, f"advantage in {unit or metric.label.lower()}; right of zero is a win", zero=True)


def _times(scale: float, value: float | None) -> float | None:
    return None if value is None else scale * value


def _curves(report: Report, who: Mapping[str, tables.Subject]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """The curves of losses, and those of everything else that was logged."""
    drawn: tuple[list[tuple[str, str]], ...] = ([], [])
    for figure in report.curves:
        drawn[not figure.y.endswith("/loss")].append((f"{figure.title}, by {figure.x}", figures.lines(figure, who, smooth=True)))
    return drawn[0], drawn[1]


def _glossary(report: Report, arms: list[tables.Table]) -> list[Any]:
    """Every metric that the page shows, once."""
    return list({metric.label: metric for table in arms for metric in table.columns}.values())


def _facts(recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Who learned from whom on what, in one line each."""
    for name, spec in (recipe.get("teachers") or {}).items():
        yield ("Teacher" if name == "teacher" else f"Teacher {name}"), describe(spec)
    for name in ("student", "data"):
        if recipe.get(name) is not None:
            yield name.capitalize(), describe(recipe[name])
    if "seed" in recipe:
        yield "Seed", str(recipe["seed"])


def describe(spec: Any) -> str:
    """A spec of a recipe in one line: what it is, then its settings."""
    if not isinstance(spec, Mapping):
        return str(spec)
    kind = str(spec.get("use", "")).rpartition(".")[2]
    settings = [f"{k} {v}" for k, v in spec.items() if k != "use" and isinstance(v, (str, int, float)) and v not in ("", False)]
    return f"{kind}: {', '.join(settings)}" if kind and settings else kind or ", ".join(settings)


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, child in value.items():
            yield from _flat(child, f"{name}.{key}" if name else str(key))
    else:
        yield name, ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(child) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(child) for child in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
