"""The run folder as a Report. What a killed run did not write is simply missing from it."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from ..core.paper import catalogue
from ..core.recipe import RecipeError
from ..core.report import Cost, Figure, Finding, Report, StageState
from .words import is_language, label_of

POINTS = 400  # a curve is thinned to at most this many; each is the mean of the steps it stands for


class ReportError(RuntimeError):
    """The folder is not a run; the message says what to do."""


def read(folder: Path | str) -> Report:
    """Everything that the folder of a run, finished or not, can tell.

    Errors: ReportError if there is no run in it, RecipeError if its `recipe.yaml` is not YAML.
    """
    folder = Path(folder)
    if not (folder / "artifacts").is_dir():
        raise ReportError(f"{folder} is not a run folder: it has no artifacts/; give the folder that `stillhouse run` made")
    text, recipe = _recipe(folder / "recipe.yaml")
    values = {name: _json(folder / "artifacts" / name / "data" / "value.json") for name in _order(folder, recipe)}
    rows = [row for value in values.values() if isinstance(value, list) for row in value if isinstance(row, dict)]
    findings = tuple(_build(Finding, row) for row in rows if {"name", "value", "subject"} <= row.keys())
    events, language = _lines(folder / "events.jsonl"), is_language(findings)
    stages = tuple(_stage(folder, name, recipe, events, language) for name in values)
    return Report(
        recipe=recipe,
        recipe_yaml=text,
        stages=stages,
        findings=findings,
        figures=_merged(_build(Figure, row) for row in rows if {"title", "x", "y", "series"} <= row.keys()),
        curves=tuple(_curves(_lines(folder / "metrics.jsonl"), stages)),
        costs=tuple(_costs(events, stages)),
        samples=tuple(row for row in rows if "prompt" in row),
        rejects=dict(Counter(str(r.get("why", "no reason given")) for r in _lines(folder / "rejects.jsonl")).most_common()),
        environment=_json(folder / "environment.json") or {},
        papers=tuple(_papers(recipe)),
        warnings=tuple(str(e.get("text", "")) for e in events if e.get("event") == "warning"),
    )


def walk(value: Any) -> Iterator[Mapping[str, Any]]:
    """Every mapping inside a plain recipe, outermost first."""
    if isinstance(value, Mapping):
        yield value
    children = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    for child in children:
        yield from walk(child)


def _recipe(path: Path) -> tuple[str, dict[str, Any]]:
    if not path.exists():
        return "", {}
    text = path.read_text(encoding="utf-8")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{path} is not readable YAML: {' '.join(str(error).split())}") from error
    return text, value if isinstance(value, dict) else {}


def _json(path: Path) -> Any:
    """The finite JSON value of a file (NaN and infinities become None), or None without a file."""
    none = {"parse_constant": lambda _: None}
    return json.loads(path.read_text(encoding="utf-8"), **none) if path.exists() else None


def _lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file; a last line that a kill cut short is left out."""
    rows: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def _order(folder: Path, recipe: Mapping[str, Any]) -> list[str]:
    found = sorted(p.parent.name for p in (folder / "artifacts").glob("*/done.json"))
    return list(dict.fromkeys([*(recipe.get("stages") or {}), *found]))


def _build(kind: type, row: Mapping[str, Any]) -> Any:
    known = {f.name: row[f.name] for f in fields(kind) if f.name in row}
    return kind(**known | ({"value": math.nan} if known.get("value", 0) is None else {}))


def _stage(folder: Path, name: str, recipe: Mapping[str, Any], events: list[dict[str, Any]], language: bool) -> StageState:
    spec = (recipe.get("stages") or {}).get(name) or {}
    done = _json(folder / "artifacts" / name / "done.json")
    begun = any(e.get("stage") == name and e.get("event") == "stage" for e in events)
    method = str((spec.get("method") or {}).get("use", "")).rpartition(".")[2]
    return StageState(
        name=name,
        label=spec.get("label") or label_of(name, language),
        kind=str(spec.get("use", "")).rpartition(".")[2],
        state="done" if done else "stopped" if begun else "not started",
        method=method,
        **{key: (done or {}).get(key) for key in ("steps", "seconds", "items")},
    )


def _costs(events: list[dict[str, Any]], stages: tuple[StageState, ...]) -> Iterator[Cost]:
    for stage in stages:
        own = [e for e in events if e.get("stage") == stage.name]
        paid = [e for e in own if e.get("event") == "cost"]
        timed = [e for e in own if e.get("event") == "stage" and "seconds" in e] or paid
        if timed:
            yield Cost(
                stage=stage.name,
                seconds=sum(e.get("seconds", 0.0) for e in timed),
                tokens=sum(e.get("tokens", 0) for e in paid),
                memory=max((e.get("memory", 0) for e in paid), default=0),
                teacher_tokens=sum(e.get("teacher_tokens", 0) for e in paid),
            )


def _curves(metrics: list[dict[str, Any]], stages: tuple[StageState, ...]) -> Iterator[Figure]:
    """One figure per logged number and method, by step and, once a stage is done, by seconds.

    Stages share a figure only if they minimise the same loss: those of different methods cannot be compared.
    """
    table: dict[tuple[str, str], dict[str, list[tuple[float, float]]]] = {}
    by_name = {s.name: s for s in stages}
    for line in metrics:
        name = line.get("stage", "")
        method = by_name[name].method if name in by_name else ""
        for key, value in line.items():
            if key not in ("stage", "step") and isinstance(value, (int, float)) and math.isfinite(value):
                table.setdefault((key, method), {}).setdefault(name, []).append((line["step"] + 1, value))
    for (key, method), series in table.items():
        thin = {name: _thinned(points) for name, points in series.items()}
        title = f"{method}: {key}" if method else key
        yield Figure(title=title, x="step", y=key, series=thin)
        pace = {n: s.seconds / s.steps for n in thin if (s := by_name.get(n)) and s.seconds and s.steps}
        if key.endswith("/loss") and len(pace) == len(thin):
            timed = {n: [(x * pace[n], y) for x, y in points] for n, points in thin.items()}
            yield Figure(title=title, x="seconds", y=key, series=timed)


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    size = math.ceil(len(points) / POINTS)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(group[-1][0], sum(y for _, y in group) / len(group)) for group in groups]


def _merged(figures: Iterator[Figure]) -> tuple[Figure, ...]:
    """Figures of the same title as one."""
    found: dict[str, Figure] = {}
    for figure in figures:
        found.setdefault(figure.title, figure).series.update(figure.series)
    return tuple(found.values())


def _papers(recipe: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The papers of the methods that the recipe uses; those of a user's own code are not in the catalogue."""
    uses = [str(part.get("use", "")) for part in walk(recipe)]
    ids = dict.fromkeys(m[1] for use in uses if (m := re.match(r"methods\.\w+\.(\w+)\.", use)))
    for entry in (catalogue()[name] for name in ids if name in catalogue()):
        p = entry.paper
        yield {"id": p.id, "title": p.title, "authors": list(p.authors), "year": p.year, "link": p.link, "bibtex": p.bibtex()}
