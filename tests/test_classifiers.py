"""`distil` for classifiers: two modules of any kind on the user's own images or texts."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import nn

import stillhouse
from stillhouse.cli.results import findings
from stillhouse.core.run import RunError

Still = Callable[..., Any]

NETS = """
from dataclasses import dataclass
import torch
from torch import nn

@dataclass
class Out:
    features: torch.Tensor
    logits: torch.Tensor

class Big(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.Linear(32, 3)
    def forward(self, x):
        f = self.b(self.a(x).relu()).relu()
        return Out(f, self.fc(f.mean((2, 3))))

class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.out = nn.Conv2d(1, 6, 3, stride=2, padding=1), nn.Linear(6, 3)
    def forward(self, x):
        f = self.conv(x).relu()
        return {"maps": f, "logits": self.out(f.amax((2, 3)))}

def big(): return Big()
def small(): return Small()
"""


def stripes(n: int = 150) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Three kinds of stripes with noise, 8 x 8 pixels."""
    draw = numpy.random.default_rng(0)
    labels = numpy.arange(n) % 3
    rows, columns = numpy.mgrid[0:8, 0:8]
    waves = (rows, columns, rows + columns)
    clean = numpy.stack([numpy.sin(1.5 * waves[k] + draw.uniform(0, 6)) for k in labels])
    return (127 + 80 * clean + draw.normal(0, 20, clean.shape)).clip(0, 255).astype("uint8"), labels


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a file of networks and an NPZ of images, which is where we are."""
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(NETS)
    images, labels = stripes()
    numpy.savez("stripes.npz", images=images, labels=labels)
    return tmp_path


def accuracy(run: Any) -> dict[str, float]:
    found = run.load_json("audit")
    return {f["subject"]: f["value"] for f in found if f.get("name") == "accuracy" and not f["versus"]}


MODELS = ("--teacher", "nets.py:big", "--student", "nets.py:small")


@pytest.mark.parametrize("method", ["auto", "fitnet"])
def test_two_functions_and_an_npz(here: Path, still: Still, method: str):
    options = ("--data", "stripes.npz", "--adapt", "60", "--steps", "60", "--method", method, "--out", "small", "--yes")
    result = still("distil", *MODELS, *options, "--set", "teacher.optim.lr=0.01", "--set", "train.optim.lr=0.01")
    assert result.exit_code == 0, result.stderr
    assert "% of the teacher" in result.stdout
    assert "90 items of 3 classes" in result.stdout and "about" in result.stdout
    assert (here / "small" / "model.safetensors").is_file() and (here / "small" / "README.md").is_file()
    (folder,) = Path("runs").iterdir()
    right = {f.subject: f.value for f in findings(folder) if f.name == "accuracy" and f.versus is None}
    assert set(right) == {"start", "teacher", "alone", "train"}
    assert right["train"] > right["start"] + 0.1 and right["teacher"] > right["start"] + 0.1


def test_two_modules_from_python_are_left_as_they_are(here: Path):
    space: dict[str, Any] = {"__name__": "nets"}
    exec(NETS, space)  # noqa: S102
    teacher, student = space["Big"](), space["Small"]()
    before = [p.clone() for module in (teacher, student) for p in module.parameters()]
    run = stillhouse.distil(teacher, student, "stripes.npz", steps=5, batch=16)
    assert set(accuracy(run)) == {"start", "teacher", "alone", "train"}
    after = [p for module in (teacher, student) for p in module.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert not any(m._forward_hooks for module in (teacher, student) for m in module.modules())
    lines = run.read("metrics.jsonl")
    again = stillhouse.distil(teacher, student, "stripes.npz", steps=5, batch=16, folder=run.folder)
    assert again.read("metrics.jsonl") == lines  # nothing was trained again


def test_a_table_of_paths_and_a_folder_of_pictures(here: Path):
    pillow = pytest.importorskip("PIL.Image")
    images, labels = stripes(60)
    with Path("mine.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label"])
        for i, (pixels, label) in enumerate(zip(images, labels, strict=True)):
            path = Path("pictures") / f"kind{label}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pillow.fromarray(pixels).save(path)
            rows.writerow([path, f"kind{label}"])
    for data in ("mine.csv", "pictures"):
        settings = ("data.colour=false", "data.size=8")
        run = stillhouse.distil("nets.py:big", "nets.py:small", data, steps=3, batch=16, settings=settings)
        assert run.sources()["train"].classes == 3


def test_models_of_ours_by_name(here: Path, still: Still):
    names = ("--teacher", "models.vision.ResNet", "--student", "models.vision.ResNet")
    result = still("distil", *names, "--data", "stripes.npz", "--steps", "2", "--yes", "--set", "student.depth=8")
    assert result.exit_code == 0, result.stderr


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--data", "nothing.npz"), "no file or folder nothing.npz"),
        (("--data", "nowhere/"), "no file or folder nowhere/"),
        (("--data", "nets.py"), "nets.py is no data for classifiers"),
        (("--data", "stripes.npz", "--method", "gkd"), "gkd is not for classifiers as it stands"),
        (("--data", "stripes.npz", "--length", "64"), "--length is for language models"),
        (("--data", "stripes.npz", "--teacher", "nets.py:none"), "has no function 'none'"),
    ],
)
def test_one_line_for_what_goes_wrong(here: Path, still: Still, options: tuple[str, ...], line: str):
    result = still("distil", *MODELS, *options, "--steps", "2", "--yes")
    assert result.exit_code != 0
    assert re.search(line, result.stderr), result.stderr
    assert not Path("runs").exists()


def test_classes_that_differ_are_refused_before_the_first_step(here: Path):
    class Ten(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(64, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x.flatten(1))

    with pytest.raises((RunError, ValueError), match="classes"):
        stillhouse.distil(Ten(), "nets.py:small", "stripes.npz", steps=2)


@pytest.mark.parametrize("name", ["datadam", "fedmd"])
def test_mixed_images_are_refused_where_a_method_learns_one_label(here: Path, still: Still, name: str):
    held = "data.source" if name == "fedmd" else "data"
    data = f"{held}={{use: data.images.Digits, augment: {{mixup: 0.2}}}}"
    result = still("run", name, "--scale", "smoke", "--set", data)
    assert result.exit_code != 0 and "mix images" in result.stderr, result.stderr
