"""The page: one HTML file that needs no network and no script, and the same as JSON."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jinja2 import FileSystemLoader, StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ..core.report import Finding, Report
from . import figures, tables
from . import verdict as verdicts
from .read import read, walk
from .words import METRICS, Metric, duration, fixed, label_of, metric_of, si, size

COUNTED = ("rows_made", "rows_lost", "teacher_calls")  # what the table of steps says already
LARGEST = 2**20  # bytes of a picture that the page takes in
SHOWN = 3  # samples on the page before the rest is folded away


def write(folder: Path | str) -> Path:
    """Write `report.html` and `report.json` into a run folder; returns the path of the page.

    Both depend on the folder alone: the same folder gives the same bytes. `report.json` is `Report.plain()` with the
    verdict beside it (keys `outcome`, `headline`, `comparisons`, `basis`); numbers that are not finite are null.
    """
    folder = Path(folder)
    report = read(folder)
    verdict = verdicts.verdict(report)
    whole = finite({"schema": "stillhouse.report/1", "verdict": asdict(verdict), **report.plain()})
    (folder / "report.json").write_text(json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8")
    page = folder / "report.html"
    page.write_text(render(report, list(_pictures(folder, report))), encoding="utf-8")
    return page


def render(report: Report, pictures: Sequence[tuple[str, str]] = ()) -> str:
    """The page as text, with `pictures`: (caption, a PNG file in base64)."""
    who, verdict, arms = tables.subjects(report), verdicts.verdict(report), tables.arms(report)
    curves = [(c, (f"{c.title}, by {c.x}", figures.lines(c, who, smooth=True))) for c in report.curves]
    return template("page.html.j2").render(
        report=report,
        who=who,
        verdict=verdict,
        figures_to_remember=verdicts.key_figures(report),
        arms=arms,
        primary_figures=list(_primary(report, who, verdict)),
        drawn=[(f.title, figures.lines(f, who)) for f in report.figures],
        pictures=pictures,
        made=list(_made(report)),
        loss=[drawn for curve, drawn in curves if curve.y.endswith("/loss") or curve.y.startswith("nats")],
        other=[drawn for curve, drawn in curves if not (curve.y.endswith("/loss") or curve.y.startswith("nats"))],
        glossary=_glossary(report, arms),
        facts=list(facts(report)),
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


def _pictures(folder: Path, report: Report) -> Iterator[tuple[str, str]]:
    for path in report.pictures:
        if (folder / path).stat().st_size <= LARGEST:
            _, stage, _, name = path.split("/")
            caption = f"{label_of(stage, report.language)}: {Path(name).stem}"
            yield caption, base64.b64encode((folder / path).read_bytes()).decode()


def _made(report: Report) -> Iterator[dict[str, Any]]:
    """What every stage that made data did, as lines: a row for each step, and a sentence for each teacher."""
    for stage, account in report.made.items():
        paid = [
            f"{role}: {told['calls']:,.0f} calls and {told['tokens']:,.0f} tokens"
            + (f", {told['money']:,.2f} in money" if told["money"] else "")
            + (f"; {told['borrowed']:,.0f} answers were there from runs beside this one" if told["borrowed"] else "")
            for role, told in account["teachers"].items()
        ]
        label = label_of(stage, report.language)
        found = [(metric_of(f), f) for f in report.findings if f.subject == stage and f.name not in COUNTED]
        yield {"label": label, "steps": account["steps"], "paid": paid, "found": [(m.label, _shown(m, f)) for m, f in found]}


def _shown(metric: Metric, finding: Finding) -> str:
    """`85.2 % (82.9 to 87.4)`"""
    digits = tables.column_decimals([finding])
    bounds = [metric.show(b, digits) for b in (finding.low, finding.high) if b is not None]
    return metric.show(finding.value, digits) + (f" ({' to '.join(bounds)})" if bounds else "")


def _primary(report: Report, who: Mapping[str, tables.Subject], verdict: verdicts.Verdict) -> Iterator[tuple[str, str]]:
    """The deciding metric of every subject, and the paired differences: (caption, SVG)."""
    name = tables.primary(report)
    found = {n: f for n in who if (f := tables.value_of(report, n, name))}
    if found:
        metric, digits = metric_of(next(iter(found.values()))), tables.column_decimals(list(found.values()))
        rows = [figures.Dot(who[n], f.value, f.low, f.high, metric.show(f.value, digits)) for n, f in found.items()]
        better = {"lower": "less is better", "higher": "more is better"}.get(metric.better, "")
        axis = ", ".join(part for part in ("%" if metric.scale > 1 else metric.unit, better) if part)
        yield f"{metric.label} of every model", figures.dots(rows, axis, scale=metric.scale)
    if verdict.comparisons:
        metric, us = metric_of(verdict.comparisons[0].finding), who[tables.ours(report)].label
        digits = tables.column_decimals([c.finding for c in verdict.comparisons])
        ordered = sorted(verdict.comparisons, key=lambda c: list(who).index(c.subject.name))
        rows = [figures.Dot(c.subject, c.gain, c.low, c.high, fixed(c.gain, digits)) for c in ordered]
        axis = f"advantage in {metric.difference or metric.unit or metric.label.lower()}; right of zero is a win"
        yield f"{us}: how much better than …", figures.dots(rows, axis, zero=True)


def _glossary(report: Report, arms: list[tables.Table]) -> list[tuple[Any, str]]:
    """Every metric that the tables show, once, and what the audit noted about how it was measured."""
    notes = {metric_of(f).label: f.note for f in report.findings if f.note and f.name in METRICS}
    shown = [m for table in arms for m in table.columns]
    shown += [metric_of(f) for f in report.findings if f.subject in report.made and f.name not in COUNTED]
    return [(m, notes.get(m.label, "")) for m in {m.label: m for m in shown}.values()]


def facts(report: Report) -> Iterator[tuple[str, str]]:
    """Who learned from whom, on what and how, in one line each."""
    recipe, name = report.recipe, tables.ours(report)
    for teacher, spec in (recipe.get("teachers") or {}).items():
        yield ("Teacher" if teacher == "teacher" else f"Teacher {teacher}"), describe(spec)
    yield from ((part.capitalize(), describe(recipe[part])) for part in ("student", "data") if recipe.get(part))
    use = str((((recipe.get("stages") or {}).get(name) or {}).get("method") or {}).get("use", ""))
    if use:
        own = next((p for p in report.papers if p["id"] == recipe.get("id")), None)
        paper = next((p for p in report.papers if f".{p['id']}." in use), own)
        method = use.rpartition(".")[2]
        if own is not None and own is not paper:  # a paper on data: something else learns from them
            yield "Method", f"{own['title']} ({own['year']}), then {method}"
        else:
            yield "Method", method + (f": {paper['title']} ({paper['year']})" if paper else "")
    if "id" in recipe:
        yield "Recipe", f"{recipe['id']}, seed {recipe.get('seed', 0)}"


def describe(spec: Any) -> str:
    """A spec of a recipe in one line: the file or model at its heart, what is made of it, and the numbers set."""
    if not isinstance(spec, Mapping):
        return str(spec)
    kind = str(spec.get("use", "")).rpartition(".")[2]
    numbers = [f"{k} {v:g}" for k, v in spec.items() if isinstance(v, (int, float)) and not isinstance(v, bool) and v]
    rest = ", ".join([kind, *numbers] if kind else numbers)
    return f"{name} ({rest})" if (name := heart(spec)) else rest


def heart(spec: Any) -> str:
    """The model or file that a spec begins with, without the folders of this machine; empty if it names none."""
    name = next((str(part[key]) for part in walk(spec) for key in ("path", "stage") if part.get(key)), "")
    return Path(name).name if Path(name).is_absolute() else name


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, child in value.items():
            yield from _flat(child, f"{name}.{key}" if name else str(key))
    elif value is not None:
        text = size(value) if name == "memory" and isinstance(value, int) else value
        yield name, ", ".join(map(str, value)) if isinstance(value, list) else str(text)


def finite(value: Any) -> Any:
    """The value as JSON can hold it: numbers that are not finite are null."""
    if isinstance(value, dict):
        return {key: finite(child) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(child) for child in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
