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

from ..core.files import read_lines
from ..core.paper import catalogue
from ..core.recipe import RecipeError
from ..core.report import Cost, Figure, Finding, Report, StageState
from .words import label_of, words

SHARED = ("/nll", "/gradient_norm", "/count")  # logged numbers that mean the same whatever the method
RARE = 0.005  # a confidence that is stated less often than this is not drawn: its success is mostly chance
POINTS = 400  # a curve is thinned to at most this many; each is the mean of the steps it stands for


class ReportError(RuntimeError):
    """The folder is not a run; the message says what to do."""


def read(folder: Path | str) -> Report:
    """Everything that the folder of a run, finished or not, can tell.

    Errors: ReportError if there is no run in it, RecipeError if its `recipe.yaml` is not YAML.
    """
    folder = Path(folder)
    if not (folder / "artifacts").is_dir():
        raise ReportError(f"{folder} is not a run folder: it has no artifacts/; give one that `stillhouse run` made")
    text, recipe = _recipe(folder / "recipe.yaml")
    found = sorted(mark.parent.name for mark in (folder / "artifacts").glob("*/done.json"))
    planned = list(recipe.get("stages") or {})
    values = {n: _json(folder / "artifacts" / n / "data" / "value.json") for n in dict.fromkeys([*planned, *found])}
    rows = [row for value in values.values() if isinstance(value, list) for row in value if isinstance(row, dict)]
    findings = tuple(_build(Finding, row) for row in rows if {"name", "value", "subject"} <= row.keys())
    events, metrics = read_lines(folder / "events.jsonl"), read_lines(folder / "metrics.jsonl")
    language = _language(recipe, findings)
    stages = tuple(_stage(folder, name, recipe, events, metrics, language) for name in planned or found)
    reasons = Counter(str(row.get("why", "no reason given")) for row in read_lines(folder / "rejects.jsonl"))
    made = {n: account for n in found if (account := _json(folder / "artifacts" / n / "data" / "account.json"))}
    for step in (step for account in made.values() for step in account["steps"]):
        reasons.update(step["lost"])
    drawn = [_build(Figure, row) for row in rows if {"title", "x", "y", "series"} <= row.keys()]
    return Report(
        recipe=recipe,
        recipe_yaml=text,
        language=language,
        stages=stages,
        findings=findings,
        figures=_merged([*drawn, *_reliability(events)]),
        curves=tuple(_curves(metrics, stages, language)),
        costs=tuple(_costs(folder, events, stages)),
        samples=tuple(row for row in rows if "prompt" in row),
        rejects=dict(reasons.most_common()),
        pictures=tuple(p.relative_to(folder).as_posix() for p in sorted((folder / "artifacts").glob("*/data/*.png"))),
        made=made,
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
    if not path.exists():
        return None
    return json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None)


def _language(recipe: Mapping[str, Any], findings: tuple[Finding, ...]) -> bool:
    """Known from what was measured, or, as long as nothing was, from the audit that is planned."""
    planned = any(str(part.get("use", "")).startswith("audits.language.") for part in walk(recipe))
    return planned or any(f.name == "perplexity" or (f.name == "nll" and "token" in f.unit) for f in findings)


def _build(kind: type, row: Mapping[str, Any]) -> Any:
    known = {f.name: row[f.name] for f in fields(kind) if f.name in row}
    return kind(**known | ({"value": math.nan} if known.get("value", 0) is None else {}))


def _mark(folder: Path, name: str) -> dict[str, Any] | None:
    return _json(folder / "artifacts" / name / "done.json")


def _stage(
    folder: Path,
    name: str,
    recipe: Mapping[str, Any],
    events: list[dict[str, Any]],
    metrics: list[dict[str, Any]],
    language: bool,
) -> StageState:
    spec = (recipe.get("stages") or {}).get(name) or {}
    done = _mark(folder, name)
    begun = any(e.get("stage") == name and e.get("event") == "stage" for e in events)
    steps = max((m["step"] + 1 for m in metrics if m.get("stage") == name), default=None)
    counted = sum(m.get("student/count", 0) for m in metrics if m.get("stage") == name)
    mark = done or {}
    return StageState(
        name=name,
        label=spec.get("label") or label_of(name, language),
        kind=str(spec.get("use", "")).rpartition(".")[2],
        state="done" if done else "stopped" if begun else "not started",
        method=str((spec.get("method") or {}).get("use", "")).rpartition(".")[2],
        steps=mark.get("steps") or steps,
        seconds=mark.get("seconds"),
        items=round(counted) or (None if language else mark.get("items")),
    )


def _costs(folder: Path, events: list[dict[str, Any]], stages: tuple[StageState, ...]) -> Iterator[Cost]:
    for stage in stages:
        own = [e for e in events if e.get("stage") == stage.name]
        paid = _mark(folder, stage.name) or {}
        timed = sum(e.get("seconds", 0.0) for e in own if e.get("event") == "stage")
        if own or stage.seconds:
            yield Cost(
                stage=stage.name,
                seconds=max(timed, stage.seconds or 0.0),  # a killed part has no end; its steps are in `stage.seconds`
                tokens=paid.get("tokens") or stage.items or 0,
                memory=paid.get("memory", 0),
                teacher_tokens=paid.get("teacher_tokens", 0),
            )


def _curves(metrics: list[dict[str, Any]], stages: tuple[StageState, ...], language: bool) -> Iterator[Figure]:
    """One figure per logged number; those that methods define for themselves, such as the loss, one per method too.

    The loss of plain supervised training is the negative log-likelihood, which others log as `nll`: they share a
    figure, by step and by seconds of training.
    """
    by_name = {s.name: s for s in stages}
    table: dict[tuple[str, str], dict[str, list[tuple[float, float]]]] = {}
    for line in metrics:
        name = line.get("stage", "")
        method = by_name[name].method if name in by_name else ""
        for key, value in line.items():
            if key in ("stage", "step") or not isinstance(value, (int, float)) or not math.isfinite(value):
                continue
            group, _, last = key.rpartition("/")
            key = f"{group}/nll" if method == "Supervised" and last == "loss" else key
            shared = key.endswith(SHARED)
            table.setdefault((key, "" if shared else method), {}).setdefault(name, []).append((line["step"] + 1, value))
    for (key, method), series in sorted(table.items(), key=lambda item: (not item[0][0].endswith("/nll"), item[0])):
        thin = {name: _thinned(points) for name, points in series.items()}
        if not key.endswith("/nll"):
            title = f"What {method} minimises" if key == "student/loss" else f"{key} of {method}" if method else key
            yield Figure(title=title, x="step", y=key, series=thin)
            continue
        title = words("Loss on the training {data}", language)
        unit = "nats per token" if language else "nats per example"
        yield Figure(title=title, x="step", y=unit, series=thin)
        pace = {n: s.seconds / s.steps for n in thin if (s := by_name.get(n)) and s.seconds and s.steps}
        if len(pace) == len(thin):
            timed = {n: [(x * pace[n], y) for x, y in points] for n, points in thin.items()}
            yield Figure(title=title, x="seconds", y=unit, series=timed)


def _reliability(events: list[dict[str, Any]]) -> Iterator[Figure]:
    """How far success is from confidence, from the last `reliability` event of each subject."""
    bins = {str(e["subject"]): e["bins"] for e in events if e.get("event") == "reliability"}
    for name, rows in bins.items():
        points = [(confidence, right - confidence) for share, confidence, right in rows if share >= RARE]
        series = {"as sure as right": [(0.0, 0.0), (1.0, 0.0)], name: points}
        yield Figure(title="Calibration", x="stated confidence", y="share right minus confidence", series=series)


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    size = math.ceil(len(points) / POINTS)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(group[-1][0], sum(y for _, y in group) / len(group)) for group in groups]


def _merged(figures: list[Figure]) -> tuple[Figure, ...]:
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
        yield {
            "id": p.id,
            "title": p.title,
            "authors": list(p.authors),
            "year": p.year,
            "link": p.link,
            "bibtex": p.bibtex(),
        }
