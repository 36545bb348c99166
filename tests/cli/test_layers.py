"""`stillhouse layers`: what can be tapped, for every kind of model that a user may name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from language import Folders, run_of
from stillhouse.data.images import Digits
from stillhouse.models.hubvision import FromConfig

Still = Callable[..., Any]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def table(result: Any) -> dict[str, str]:
    """The printed line of each layer."""
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["layer", "class", "output", "parameters"]
    return {line.split()[0]: " ".join(line.split()[1:]) for line in lines[1:] if line.strip()}


def test_a_spec_by_name(still: Still) -> None:
    found = table(still("layers", "models.vision.ResNet", "--set", "depth=8", "--shape", "3x16x16", "--classes", "7"))
    assert found["stem.0"] == "Conv2d 16 x 16 x 16 432"
    assert found["stages.2"].startswith("Sequential 64 x 4 x 4 57,728")
    assert found["head"] == "Linear 7 455 head; with :in, the penultimate"
    ends = [name for name, line in found.items() if line.endswith("end of a stage")]
    assert [name[:8] for name in ends] == ["stages.0", "stages.1", "stages.2"]
    assert "parameters" in found["models.vision.ResNet:"]


def test_the_names_can_be_copied_however_narrow_the_window(still: Still, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    found = table(still("layers", "models.vision.ResNet", "--set", "depth=8"))
    assert {"stages.1.0.shortcut.1", "stages.2.0.relu2"} <= set(found)


def test_a_function_in_a_file(still: Still, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\ndef small(width=4):\n"
        "    return nn.Sequential(nn.Conv2d(1, width, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36 * width, 5))\n"
        "def words():\n    return nn.Sequential(nn.EmbeddingBag(50, 6), nn.Linear(6, 3))\n"
        "def encode(texts):\n    import torch\n    return torch.tensor([[len(t)] for t in texts])\n"
    )
    found = table(still("layers", "mine.py:small", "--shape", "1x8x8", "--set", "kwargs.width=6"))
    assert found["0"] == "Conv2d 6 x 6 x 6 60" and found["3"].startswith("Linear 5 1,085 head")
    found = table(still("layers", "mine.py:words", "--set", "encode=mine.py:encode"))
    assert found["0"] == "EmbeddingBag 6 300"


def test_hugging_face_folders(still: Still, tmp_path: Path, folders: Folders) -> None:
    run = run_of(tmp_path / "run", None, data=Digits())
    spec = FromConfig(architecture="vit", sizes={"hidden_size": 16, "num_hidden_layers": 2})
    spec.save(spec.build(run), tmp_path, run)
    found = table(still("layers", tmp_path))
    assert found["model.vit.layers.1"].startswith("ViTLayer 5 x 16")
    assert found["model.classifier"] == "Linear 10 170 head; with :in, the penultimate"
    found = table(still("layers", folders.teacher))
    assert any("Decoder" in line for line in found.values())


def test_shape_and_classes_of_ones_own_images(still: Still, tmp_path: Path) -> None:
    numpy.savez(tmp_path / "mine.npz", images=numpy.zeros((40, 12, 12), "uint8"), labels=numpy.arange(40) % 3)
    found = table(still("layers", "models.toys.ConvNet", "--set", "width=4", "--data", tmp_path / "mine.npz"))
    assert found["stages.0.0"] == "Conv2d 4 x 12 x 12 36" and found["head"].startswith("Linear 3")


@pytest.mark.parametrize(
    "model", ["models.text.NGrams", "models.encoder.TinyEncoder", "models.toys.TinyLM", "models.vision.ViT"]
)
def test_models_that_read_something_else(still: Still, model: str) -> None:
    assert table(still("layers", model))


@pytest.mark.parametrize(("args", "why"), [
    (("models.vision.ResNet", "--shape", "3x32"), "--shape 3x32: write it as channels x height x width"),
    (("models.vision.ResNet", "--set", "depht=8"), "no 'depht' in .*; did you mean 'depth'"),
    (("models.vision.ResNet", "--set", "depth"), "write it as key=value"),
    (("models.vision.ResNet", "--set", "depth=9"), "a network of 3 stages has depth 8"),
    (("models.vision.ResNext",), "no 'ResNext' in stillhouse.models.vision; did you mean 'ResNet'"),
    (("models.vision.ResNet", "--set", "channels=1"), r"cannot read \{'images': \[2, 3, 32, 32\]\}.*--shape"),
    (("there/is/none",), "none"),
    (("mine.py:make",), "no file mine.py"),
])  # fmt: skip
def test_what_it_refuses(still: Still, args: tuple[str, ...], why: str) -> None:
    import re

    result = still("layers", *args)
    assert result.exit_code == 1 and len(result.stderr.strip().splitlines()) == 1
    assert re.search(why, result.stderr), result.stderr
