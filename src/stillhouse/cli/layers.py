"""What can be tapped in a model: its layers in the order in which they run, found by one pass over two items."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..core.recipe import Recipe, RecipeError
from ..core.run import Run, RunError
from ..core.signal import Batch
from ..data.images import Folder, Images, Npz
from ..data.labelled import LabelledTexts
from ..models.call import logits_of
from ..models.hub import load_config
from ..models.taps import Layer, ends_of_stages, layers, penultimate
from . import door

SHAPE = (3, 32, 32)  # of an image, where nothing says otherwise
TEXTS = ("A short sentence.", "And one that is a little longer than the first.")
KINDS = {
    "ForImageClassification": "models.hubvision.HubVision",
    "ForSequenceClassification": "models.text.HubClassifier",
    "ForCausalLM": "models.hub.HubLM",
}


@dataclass(frozen=True)
class Two:
    """Two items for the model to read: images of a shape, or texts."""

    shape: tuple[int, ...]
    classes: int

    def load(self, run: Run) -> Mapping[str, Any]:
        """One split. Texts are only read by those that can, when the batch is made."""
        names = tuple(map(str, range(self.classes)))
        pixels = torch.rand(2, *self.shape, generator=torch.Generator().manual_seed(0))
        flat = torch.zeros(self.shape[0], 1, 1)
        return {"train": Images(pixels, torch.zeros(2, dtype=torch.long), names, flat, flat + 1)}


def listed(
    model: str, settings: Sequence[str], *, shape: str | None, data: Path | None, classes: int | None
) -> tuple[list[Layer], dict[str, str], int]:
    """(the layers, what is to be said of some of them by name, all parameters); RunError if the model cannot be run."""
    spec, config = _spec(model, settings)
    sizes = _shape(shape) if shape else _of_config(config)
    source = _data(data) if data is not None else Two(sizes, classes or getattr(config, "num_labels", None) or 10)
    with TemporaryDirectory() as folder:
        run = Run(Path(folder) / "dry", device=torch.device("cpu"))
        run.recipe = Recipe(id="layers", student=None, data=source, stages={})
        torch.manual_seed(0)
        module = spec.build(run)
        batch = _batch(spec, run)
    try:
        found = layers(module, batch)
        with torch.no_grad():
            wide = logits_of(module.eval(), batch).shape[-1]
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        if isinstance(error, RunError):
            raise
        held = {name: list(x.shape) for name, x in _named(batch["inputs"]).items()}
        why = " ".join(str(error).split())
        raise RunError(f"{model} cannot read {held}: {why}; say what it reads with --shape CxHxW or --data") from error
    return found, _marks(found, wide), sum(p.numel() for p in module.parameters())


def show(model: str, found: tuple[list[Layer], dict[str, str], int], out: Console) -> None:
    """Print the layers as a table."""
    grid = Table(box=None, pad_edge=False, header_style="bold")
    rows, marks, total = found
    grid.add_column("layer", no_wrap=True, min_width=max((len(layer.name) for layer in rows), default=0))  # to be copied
    for name in ("class", "output", "parameters", ""):
        grid.add_column(name, justify="right" if name == "parameters" else "left", no_wrap=True)
    for layer in rows:
        size = f"{layer.parameters:,}" if layer.parameters else ""
        shape = " x ".join(map(str, layer.shape))
        mark = marks.get(layer.name, "")
        grid.add_row(Text(layer.name, "bold" if mark else ""), Text(layer.kind), shape, size, Text(mark, "green"))
    out.print(grid)
    out.print(
        f"\n{model}: {total:,} parameters. A name stands for what a layer gives, NAME:in for what it gets; no batch axis."
    )


def _spec(model: str, settings: Sequence[str]) -> tuple[Any, Any]:
    """(the model's spec, its Hugging Face configuration if there is one)."""
    config = None
    if re.fullmatch(r".+\.py:\w+", model):
        plain: dict[str, Any] = {"use": "models.own.OwnModule", "function": model}
    elif not Path(model).expanduser().exists() and re.fullmatch(r"(stillhouse\.)?[a-z_]+(\.\w+)*\.[A-Z]\w*", model):
        plain = {"use": model}
    else:
        config = load_config(model)
        names = getattr(config, "architectures", None) or ["nothing"]
        kind = next((use for end, use in KINDS.items() if names[0].endswith(end)), None)
        if kind is None:
            raise RunError(f"{model} is {names[0]}; its layers can be listed if it is one of {', '.join(KINDS)}")
        plain = {"use": kind, "path": model}
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals or not path:
            raise RecipeError(f"--set {setting}: write it as key=value, as in --set depth=8")
        name, _, key = path.partition(".")  # kwargs.width: a field of a spec is at most a mapping
        value = door.read_yaml(text, f"--set {path}")
        plain[name] = {**plain.get(name, {}), key: value} if key else value
    return door.spec(plain), config


def _shape(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d+(x\d+){2}", text):
        raise RunError(f"--shape {text}: write it as channels x height x width, 3x32x32")
    return tuple(map(int, text.split("x")))


def _of_config(config: Any) -> tuple[int, ...]:
    """The image that a Hugging Face configuration is made for."""
    size = getattr(config, "image_size", None)
    if not isinstance(size, int):
        return (getattr(config, "num_channels", None) or SHAPE[0], *SHAPE[1:])
    return (getattr(config, "num_channels", None) or SHAPE[0], size, size)


def _data(path: Path) -> Any:
    return Npz(path=str(path)) if path.suffix == ".npz" else Folder(path=str(path))


def _batch(spec: Any, run: Run) -> Batch:
    """Two items, as the model reads them: tokens, texts or images."""
    labels = torch.zeros(2, dtype=torch.long)
    if hasattr(spec, "tokenizer") or (hasattr(spec, "vocabulary") and not hasattr(spec, "encoder")):
        return {"inputs": {"tokens": (torch.arange(16) % 8).reshape(2, 8)}, "labels": labels}
    if getattr(spec, "encode", "") is not None and hasattr(spec, "encoder"):
        return LabelledTexts(TEXTS, labels, ("no", "yes"), spec.encoder(run)).batch((0, 1), 0)
    return run.sources()["train"].batch((0, 1), 0)


def _named(inputs: Any) -> Mapping[str, Any]:
    return inputs if isinstance(inputs, Mapping) else {"images": inputs}


def _marks(found: Sequence[Layer], classes: int) -> dict[str, str]:
    marks = dict.fromkeys(ends_of_stages(found), "end of a stage")
    try:
        tap = penultimate(found, classes)
    except RunError:
        return marks
    return {**marks, tap.removesuffix(":in"): "head; with :in, the penultimate"}
