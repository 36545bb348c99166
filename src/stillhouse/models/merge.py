"""Stages that make a model out of models: a weighted sum of stages of this run and of folders."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.run import Run, RunError
from .hub import loading, resolve
from .weights import Stored, Summed, Weights, check_alike, write_like

# What makes the same numbers another function: with another value of these, weights must not be mixed.
MEANING = (
    "model_type", "hidden_act", "num_attention_heads", "num_key_value_heads", "head_dim", "num_hidden_layers",
    "tie_word_embeddings",
)  # fmt: skip
# With another value they can be, but should not without a thought.
DOUBTFUL = ("rope_theta", "rope_scaling", "rope_parameters", "rms_norm_eps", "layer_norm_eps", "sliding_window")


@dataclass(frozen=True, kw_only=True)
class Part:
    """A model and how much of it."""

    model: str  # a stage of this run, a Hugging Face folder, or a hub id in the local cache
    weight: float


@dataclass(frozen=True, kw_only=True)
class Merge:
    """The weighted sum of models of one architecture; the artifact is a model, as a training stage leaves one.

    The weights add up to 1. Configuration, tokenizer, types and files are those of the first part. One tensor is in
    memory at a time. Optimizer states are not merged: training goes on from it with fresh ones
    (`models.earlier.Continued`, `models.hub.StageLM`).
    """

    parts: Mapping[str, Part]
    student: Any = None  # ModelSpec that loads the result; None: the recipe's
    label: str = ""  # what the report calls it; empty: from the stage's name

    def __call__(self, run: Run) -> None:
        """Check, sum and write."""
        total = math.fsum(part.weight for part in self.parts.values())
        if not self.parts or abs(total - 1) > 1e-6:
            raise RunError(f"the weights of stage {run.stage!r} have to add up to 1, not {total:g}")
        models = stored({name: part.model for name, part in self.parts.items()}, run)
        keep(run, models, Summed(models, {name: part.weight for name, part in self.parts.items()}))


def keep(run: Run, models: Mapping[str, Stored], values: Weights) -> None:
    """Write `values` as the model of the current stage, in the form of the first of `models`."""
    began, first = time.monotonic(), next(iter(models.values()))
    sources = {name: str(model.folder) for name, model in models.items()}
    with run.artifact(run.stage, kind="model", steps=0, items=0, tokens=0) as folder:
        write_like(folder, first, values)
    run.event("merged", seconds=time.monotonic() - began, sources=sources)


def stored(models: Mapping[str, str], run: Run) -> dict[str, Stored]:
    """The files behind stages of this run, folders and hub ids; RunError unless all are of one architecture."""
    found = {name: Stored(_folder(model, run)) for name, model in models.items()}
    check_alike(found)
    said = {name: _config(model.folder) for name, model in found.items()}
    (first, ours), *others = said.items()
    for name, theirs in others:
        for key in (*MEANING, *DOUBTFUL):
            a, b = ours.get(key), theirs.get(key)
            if a == b or None in (a, b):
                continue
            text = f"{first} has {key}={a} in its configuration and {name} has {b}"
            if key in MEANING:
                raise RunError(f"{text}: the same weights would mean something else")
            run.event("warning", text=f"{text}: the merged model has the first one's, and may be worse for it")
    return found


def _folder(model: str, run: Run) -> Path:
    if model in run.recipe.stages:
        return run.path(model)
    folder = Path(resolve(model))
    if folder.is_dir():
        return folder
    with loading(model):
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(model, local_files_only=True))


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
