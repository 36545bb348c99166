"""`stillhouse choose`: which methods fit a teacher, a student and data, why, and the command. Imports no torch."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.paper import DATA, catalogue, find
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
    data: tuple[str, ...] | None = None  # words of `core.paper.DATA`; None: not known
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
    holds = None
    if found == "text" and data is not None:
        holds = _holds(Path(data))
        known.append(f"{data} holds {' and '.join(f'{word} ({DATA[word]})' for word in holds)}")
    elif found == "image" and data is not None:
        holds = ("labels", "unlabelled")
    form = _stored(teacher)
    drawn = form is not None and form["name"] == "sampled"
    return Situation(found, given, form is not None, drawn, holds, tuple(known))


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


def _holds(path: Path) -> tuple[str, ...]:
    """What the rows of a file of text can be used as, by the columns of the first that can be read."""
    row = _first_row(path)
    prompt, turns = row.get("prompt") or row.get("question"), row.get("messages")
    if isinstance(turns, str):  # a CSV holds them as JSON
        try:
            turns = json.loads(turns)
        except ValueError:
            turns = None
    answered = isinstance(turns, list) and any(isinstance(t, dict) and t.get("role") == "assistant" for t in turns)
    found: list[str] = []
    if row.get("chosen") and row.get("rejected"):
        found += ["pairs", "prompts"]
    if row.get("question") and row.get("answer"):
        found += ["tasks", "prompts"]
    if row.get("text") or row.get("completion") or answered:
        found += ["documents", *(["prompts"] if prompt or answered else [])]
    if row.get("text") and row.get("label") is not None:
        found.append("labels")
    if not found and (prompt or turns):
        found.append("prompts")
    return tuple(dict.fromkeys(found)) or ("documents",)


def _first_row(path: Path) -> dict[str, Any]:
    """The first row of a file of rows; of a text file one with a `text`; empty if none can be read."""
    opened: Any = gzip.open if path.suffix == ".gz" else open
    ending = _ending(path)
    try:
        if ending == ".parquet":
            import pyarrow.parquet as pq

            batch = next(pq.ParquetFile(path).iter_batches(batch_size=1), None)
            return batch.to_pylist()[0] if batch is not None and batch.num_rows else {}
        if ending not in (".jsonl", ".json", ".csv"):
            return {"text": "blocks"}
        with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
            if ending == ".csv":
                return next(csv.DictReader(file), {})
            said = json.load(file)[0] if ending == ".json" else json.loads(next((x for x in file if x.strip()), "{}"))
            return said if isinstance(said, dict) else {}
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def fitting(found: Situation) -> list[dict[str, Any]]:
    """The methods that fit, those whose claim held first, each with `why`."""
    kinds = {kind for entry in catalogue().values() for kind in entry.paper.modality}
    methods = show.rows(modality=found.modality if found.modality in kinds else "any", data=found.data, needs=found.gives)
    if found.stored:  # nobody knows beforehand what a student will make
        methods = [m for m in methods if not find(m["id"]).asks_about_own]
    for method in methods:
        needs = " and ".join(method["needs"])
        verdict = method["verdict"] or "not proven here yet"
        page = f"; docs/methods/{method['id']}.md" if (show.PAGES / f"{method['id']}.md").is_file() else ""
        method["why"] = f"{'needs ' + needs if needs else 'needs no teacher while training'}; its claim: {verdict}{page}"
    return sorted(methods, key=lambda m: (RANK.get(m["verdict"], 2), not m["needs"], m["id"]))


def command(method: dict[str, Any], teacher: str | None, student: str | None, data: str | None, found: Situation) -> str:
    """What to type to run it on what was given."""
    labels = found.data is not None and "labels" in found.data and "labels" in method["data"]
    if found.modality == "text" and labels and "any" in method["modality"] and not method["needs"]:
        spec = f"{{use: data.labelled.Labelled, path: {data}}}"
        return f"stillhouse run {method['id']} --set 'data={spec}' --set 'student={{use: models.text.NGrams}}'"
    documents = "documents" in method["data"] and (found.data is None or {"documents", "prompts"} & set(found.data))
    if found.modality == "text" and documents and method["id"] != "supervised":
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
    if found.modality == "text" and data is not None:
        return f"stillhouse run {method['id']} --scale paper --set data.path={data}"
    return f"stillhouse run {method['id']}"
