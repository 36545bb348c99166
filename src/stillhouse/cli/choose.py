"""`stillhouse choose`: which methods fit a teacher, a student and data, why, and the command. Imports no torch."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.paper import catalogue, find
from ..core.recipe import RecipeError
from . import show

TEXT, IMAGES = (".jsonl", ".json", ".csv", ".parquet", ".txt", ".md"), (".npz",)
RANK = {"holds": 0, "undecided": 1, None: 2, "does not hold": 3}
EVERYTHING = ("logits", "features", "text")  # what a model on disk can be asked for


@dataclass(frozen=True)
class Situation:
    """What somebody has; `known` says how each was found out."""

    modality: str
    gives: tuple[str, ...]  # by the teacher
    stored: bool = False  # the teacher is a folder of signals
    drawn: bool = False  # those signals are drawn classes
    known: tuple[str, ...] = ()


def situation(
    teacher: str | None, data: str | None, modality: str | None, gives: Sequence[str] | None, ask: Callable[[str, str], str]
) -> Situation:
    """Looked up where something was given, asked for where not."""
    known: list[str] = []
    found = modality or _modality(data)
    if found is None:
        found = ask("What are your data? (text, image, graph, table)", "text")
    elif data:
        known.append(f"{data} holds {found}")
    given = None if gives is None else tuple(gives)
    if given is None:
        given, why = _gives(teacher)
        known += [why] if why else []
    if given is None:
        said = ask("What can you get from your teacher? (weights, topk, text, nothing)", "weights")
        given = {"weights": EVERYTHING, "topk": ("topk", "text"), "text": ("text",), "nothing": ()}.get(said, (said,))
    if found == "text" and data is not None and not _has_answers(Path(data)):
        known.append(f"{data} holds prompts without answers: the teacher writes them first")
    form = _stored(teacher)
    return Situation(found, given, form is not None, form is not None and form["name"] == "sampled", tuple(known))


def _modality(data: str | None) -> str | None:
    if data is None:
        return None
    path = Path(data)
    if not path.exists():
        raise RecipeError(f"there is no file or folder {data}")
    endings = {p.suffix.lower() for p in path.rglob("*") if p.is_file()} if path.is_dir() else {_ending(path)}
    if endings & set(IMAGES) or endings & {".png", ".jpg", ".jpeg", ".webp", ".bmp"}:
        return "image"
    return "text" if endings & set(TEXT) else None


def _ending(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def _gives(teacher: str | None) -> tuple[tuple[str, ...] | None, str]:
    """What a teacher can be asked for, and how that is known."""
    if teacher is None:
        return None, ""
    if teacher.startswith(("http://", "https://")):
        return ("topk", "text"), f"{teacher} is a server: it gives text and, if it is vLLM or SGLang, the likeliest tokens"
    form = _stored(teacher)
    if form is not None:
        kind: str = {"topk": "topk", "sampled": "topk", "hidden": "logits"}.get(form["name"]) or str(
            form.get("kind", "logits")
        )
        return (kind,), f"{teacher} holds stored signals ({form['name']}): {kind} for the data they were made from"
    return EVERYTHING, f"{teacher} is a model: it gives {', '.join(EVERYTHING)}"


def _stored(teacher: str | None) -> dict[str, Any] | None:
    """The format of a folder of signals; None if the teacher is something else."""
    header = Path(teacher or "") / "signals.json"
    return json.loads(header.read_text(encoding="utf-8"))["format"] if teacher and header.is_file() else None


def _has_answers(path: Path) -> bool:
    """Whether the first row of a JSONL file has more than a prompt; other files are taken to."""
    if _ending(path) != ".jsonl":
        return True
    opened: Any = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8-sig") as file:
        try:
            row = json.loads(next((line for line in file if line.strip()), "{}"))
        except ValueError:
            return True
    turns = row.get("messages") or []
    answered = any(isinstance(t, dict) and t.get("role") == "assistant" for t in turns) if isinstance(turns, list) else True
    return answered or bool(row.get("completion") or row.get("text")) or not (row.get("prompt") or turns)


def fitting(found: Situation) -> list[dict[str, Any]]:
    """The methods that fit, those whose claim held first, each with `why`."""
    kinds = {kind for entry in catalogue().values() for kind in entry.paper.modality}
    methods = show.rows(modality=found.modality if found.modality in kinds else "any", needs=found.gives)
    if found.stored:  # nobody knows beforehand what a student will make
        methods = [m for m in methods if not find(m["id"]).asks_about_own]
    for method in methods:
        needs = " and ".join(method["needs"])
        verdict = method["verdict"] or "not proven here yet"
        method["why"] = f"{'needs ' + needs if needs else 'needs no teacher while training'}; its claim: {verdict}"
    return sorted(methods, key=lambda m: (RANK.get(m["verdict"], 2), not m["needs"], m["id"]))


def command(method: dict[str, Any], teacher: str | None, student: str | None, data: str | None, found: Situation) -> str:
    """What to type to run it on what was given."""
    if found.modality == "text" and method["id"] != "supervised":
        fields = find(method["id"]).fields
        offline = {"on_policy": found.stored, "temperature": "topk" in found.gives}  # what stored and cut signals need
        extra = [
            f" --set train.method.{name}={int(name == 'temperature')}"
            for name in offline
            if offline[name] and name in fields
        ]
        if found.drawn and "divergence" in fields:  # what is drawn says nothing about any other
            extra.append(" --set 'train.method.divergence={use: objectives.divergences.ForwardKL}'")
        parts = {"--teacher": teacher or "TEACHER", "--student": student or "shrink:layers=N", "--data": data or "my.jsonl"}
        told = " ".join(f"{option} {value}" for option, value in parts.items())
        return f"stillhouse distil {told} --method {method['id']} --out student/" + "".join(extra)
    if found.modality == "image" and data is not None:
        spec = "Folder" if Path(data).is_dir() else "Npz"
        return f"stillhouse run {method['id']} --set 'data={{use: data.images.{spec}, path: {data}}}'"
    return f"stillhouse run {method['id']}"
