"""The model card of an exported student: what it is, how good it is, and what is not known about it."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ..core.report import Report
from . import tables
from . import verdict as verdicts
from .html import facts, heart, template
from .read import read, walk


def write(folder: Path | str, out: Path | str) -> Path:
    """Write `README.md` into the folder of an exported student, from the run that made it; returns its path."""
    report = read(folder)
    front = yaml.safe_dump(front_matter(report), sort_keys=False, allow_unicode=True)
    arms = tables.arms(report)
    text = template("card.md.j2").render(
        front=front,
        report=report,
        facts=[(name, markdown(text)) for name, text in facts(report)],
        verdict=verdicts.verdict(report),
        table=arms[0] if arms else None,
        student=next((s for s in report.stages if s.name == tables.ours(report)), None),
        markdown=markdown,
    )
    card = Path(out) / "README.md"
    card.write_text(text, encoding="utf-8")
    return card


def front_matter(report: Report) -> dict[str, Any]:
    """The machine-readable head in the model hubs' usual keys; what the run does not know is left out."""
    recipe: Mapping[str, Any] = report.recipe
    teachers = [name for spec in (recipe.get("teachers") or {}).values() if (name := heart(spec))]
    licences = [str(part["license"]) for part in walk(recipe) if part.get("license")]
    head: dict[str, Any] = {
        "license": licences[0] if licences else None,
        "base_model": heart(recipe.get("student")),
        "teacher": teachers[0] if len(teachers) == 1 else teachers,
        "library_name": "transformers" if report.language else None,
        "pipeline_tag": "text-generation" if report.language else None,
        "tags": ["distillation", "stillhouse", *(p["id"] for p in report.papers)],
    }
    return {key: value for key, value in head.items() if value}


def markdown(text: str) -> str:
    """Text inside a line or a table cell of Markdown, where it cannot become markup."""
    return html.escape(" ".join(text.split()), quote=False).replace("|", "\\|").replace("`", "\\`")
