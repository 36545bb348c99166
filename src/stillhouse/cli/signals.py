"""`stillhouse signals`: what is in a folder of stored signals, and how exact it is."""

from __future__ import annotations

import json as js
from pathlib import Path
from typing import Any

from ..core.teacher import TeacherMismatch
from ..signals.store import Store
from .machine import size


def describe(folder: Path, *, teacher: str | None = None, json: bool = False) -> str:
    """The text that the command prints. Reads and checks every byte; with `teacher`, measures against that model."""
    store = Store(folder)
    assert store.done is not None
    found = {**store.header, **store.done}
    if teacher is not None:
        found["fidelity"] = _again(store, teacher)
    if json:
        return js.dumps(found, indent=1)
    form = ", ".join(f"{k} {v}" if k != "name" else str(v) for k, v in store.header["format"].items())
    data = store.header["data"]
    exact = found.get("fidelity") or {}
    lines = [
        f"format     {form}",
        f"teacher    {store.header.get('name') or '(no name)'}, weights {_short(store.header['teacher'].get('weights'))}"
        + _tempered(store.header["teacher"]),
        f"tokenizer  {_short(store.header.get('tokenizer'))}",
        f"data       {data['spec'].get('path') or data['spec'].get('use')}, file {_short(data.get('sha256'))}, "
        f"splits {', '.join(data['splits'])}",
        f"holds      {store.items:,} positions of {len(store):,} documents or images",
        f"bytes      {size(store.bytes)}, {store.bytes / max(1, store.items):.1f} a position; every checksum is right",
        *(
            ["rest       unknown: the set was renormalised to its kept classes"]
            if store.header["facts"].get("renormalised")
            else []
        ),
        *_exactness(exact),
    ]
    return "\n".join(lines)


def _exactness(found: dict[str, Any]) -> list[str]:
    if not found:
        return ["exactness  not measured: these signals are no distributions"]
    lines = [f"exactness  measured against {found.get('against', 'the live teacher')} on {found['items']:,} positions:"]
    words = {
        "codec_kl": "KL from what was kept to what is read back, nats",
        "codec_kl_p99": "  its 99th percentile",
        "codec_kl_max": "  its largest value",
        "tv": "total variation from the whole distribution to what a student learns from",
        "tv_renormalised": "  the same if the rest were left out, as others do",
        "mass": "mass of the kept classes",
        "classes_kept": "different classes a position",
    }
    lines += [f"  {found[name]:<12.3g} {text}" for name, text in words.items() if name in found]
    at = found.get("mass_at")
    if at and len(at) > 1:
        lines.append("  mass of the kept classes by temperature: " + ", ".join(f"{v:.3f} at T={t}" for t, v in at.items()))
        lines.append("  so these signals serve temperature 1 only; hidden:float16 serves every temperature")
    return lines


def _tempered(teacher: dict[str, Any]) -> str:
    t = teacher.get("temperature", 1.0)
    return "" if t == 1.0 else f", at temperature {t:g}"


def _short(digest: str | None) -> str:
    return digest[:12] if digest else "(none)"


def _again(store: Store, teacher: str) -> dict[str, Any]:
    """Measure against a model by path; TeacherMismatch if it is not the one that was asked."""
    from tempfile import TemporaryDirectory

    from ..core.recipe import Recipe
    from ..core.run import Run
    from ..models.hub import HubLM
    from ..signals.fidelity import measure
    from ..signals.label import sample
    from ..signals.reader import StoredTeacher
    from ..teachers.local import LocalLM
    from . import door

    told = store.header["teacher"]
    if not told.get("weights"):
        raise TeacherMismatch(
            f"these signals are from {told.get('from') or 'a server'}, which does not say what weights it had: they "
            "cannot be measured again"
        )
    for dtype in ("float32", "bfloat16"):
        model = HubLM(path=teacher, dtype=dtype)
        spec = LocalLM(model=model, temperature=told.get("temperature", 1.0))
        with TemporaryDirectory() as folder:
            run = Run(Path(folder) / "check")
            data = door.spec(store.header["data"]["spec"])
            run.recipe = Recipe(id="check", student=model, data=data, stages={}, teachers={"teacher": spec})
            live = spec.build(run)
            if live.identity()["weights"] != told.get("weights"):
                continue
            source = run.sources()[store.header["data"]["splits"][0]]
            starts = list(range(0, len(source), 4))
            some = (starts[i] for i in sample(len(starts)))
            batches = (source.batch(range(b, min(b + 4, len(source))), 0) for b in some)
            return measure(StoredTeacher(store), live, batches, run.device)
    raise TeacherMismatch(f"{teacher} is not the model that these signals are from: its weights differ")
