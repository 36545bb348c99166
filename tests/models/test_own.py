"""A user's own modules: from a function in a file, from Python, whatever they return, and what is refused."""

from __future__ import annotations

import os
import sys
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn
from torch.nn import functional as F

from language import run_of
from stillhouse.cli import door
from stillhouse.core.recipe import Recipe, RecipeError
from stillhouse.core.run import Run, RunError
from stillhouse.core.stage import Train, execute
from stillhouse.data.images import Digits
from stillhouse.data.labelled import LibraryTopics
from stillhouse.methods.classics.hinton import Hinton
from stillhouse.models.call import logits_of, pick_logits
from stillhouse.models.own import Given, OwnModule
from stillhouse.models.taps import layers
from stillhouse.teachers.module import ModuleTeacher

FILE = """
from dataclasses import dataclass
import torch
from torch import nn
import shapes

@dataclass
class Answer:
    cls: torch.Tensor
    extra: dict

class Net(nn.Module):
    def __init__(self, width, answer="tensor"):
        super().__init__()
        self.body, self.head, self.answer = nn.Linear(shapes.INPUTS, width), nn.Linear(width, 10), answer

    def forward(self, x):
        hidden = self.body(x.flatten(1)).relu()
        logits = self.head(hidden)
        if self.answer == "dataclass":
            return Answer(logits, {"hidden": hidden, "deep": [hidden, logits]})
        return {"tensor": logits, "tuple": (logits, hidden), "dict": {"scores": logits}}[self.answer]

class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.EmbeddingBag(100, 8), nn.Linear(8, 9)

    def forward(self, words):
        return self.head(self.table(words))

def make(width=16, **settings):
    return Net(width, **settings)

def words():
    return Words()

def encode(texts):
    return {"words": torch.tensor([[len(text) % 100, text.count(" ") % 100] for text in texts])}

def no_module():
    return 3

def no_tensors(texts):
    return texts

def lazy():
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(10))

def broken():
    raise KeyError("a\\nb")
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "shapes.py").write_text("INPUTS = 64\n")
    path = tmp_path / "my_models.py"
    path.write_text(FILE)
    return path


def built(spec: Any, folder: Path, data: Any = None, seed: int = 0) -> tuple[Any, Any, Any]:
    """(module, batch, run)."""
    run = run_of(folder / "run", spec, data=data or Digits())
    torch.manual_seed(seed)
    return spec.build(run), run.sources()["train"].batch(range(4), 0), run


def test_a_function_of_yours_makes_a_student_that_learns_and_is_kept(file: Path, tmp_path: Path) -> None:
    spec = OwnModule(function=f"{file}:make", kwargs={"width": 24})
    net, batch, run = built(spec, tmp_path)
    twin, other = built(spec, tmp_path)[0], built(spec, tmp_path, seed=1)[0]
    assert torch.equal(net.body.weight, twin.body.weight) and not torch.equal(net.body.weight, other.body.weight)
    assert net.body.weight.shape == (24, 64) and type(net) is type(twin)
    F.cross_entropy(logits_of(net, batch), batch["labels"]).backward()
    assert all(p.grad.any() for p in net.parameters())
    spec.save(net, tmp_path, run)
    assert [p.suffix for p in tmp_path.glob("*.safetensors")] == [".safetensors"] and not list(tmp_path.glob("*.pt"))
    assert torch.equal(logits_of(spec.load(tmp_path, run), batch), logits_of(net, batch))
    assert [layer.name for layer in layers(net, batch)] == ["body", "head"]


def test_it_goes_into_yaml_and_out_again(file: Path) -> None:
    spec = OwnModule(function=f"{file}:make", kwargs={"width": 24}, logits="cls")
    recipe = Recipe(id="own", student=spec, data=Digits(), teachers={"teacher": ModuleTeacher(spec=spec)}, stages={})
    assert door.build(door.read_yaml(door.dump(recipe))) == recipe


@pytest.mark.parametrize(("answer", "logits"), [
    ("tensor", None), ("tuple", None), ("tuple", "0"), ("dict", None), ("dict", "scores"), ("dataclass", None),
    ("dataclass", "cls"), ("dataclass", "extra.deep.1"),
])  # fmt: skip
def test_whatever_it_returns(file: Path, tmp_path: Path, answer: str, logits: str | None) -> None:
    plain, batch, _ = built(OwnModule(function=f"{file}:make"), tmp_path)
    spec = OwnModule(function=f"{file}:make", kwargs={"answer": answer}, logits=logits)
    net, _, run = built(spec, tmp_path)
    assert torch.equal(logits_of(net, batch), logits_of(plain, batch))
    spec.save(net, tmp_path, run)
    assert torch.equal(logits_of(spec.load(tmp_path, run), batch), logits_of(plain, batch))


def test_which_of_several_tensors() -> None:
    x, y = torch.ones(2, 3), torch.zeros(2, 3)
    Pair = namedtuple("Pair", ["features", "logits"])

    @dataclass
    class Two:
        box: torch.Tensor
        cls: torch.Tensor

    class Slots:
        __slots__ = ("scores",)

        def __init__(self) -> None:
            self.scores = x

    class Derived:
        logits = property(lambda self: x)

    for output in (x, (x, y), [x], {"logits": x, "box": y}, Pair(y, x), OrderedDict(only=x, none=None), Slots(), Derived()):
        assert pick_logits(output) is x
    assert pick_logits({"out": Two(y, x)}, path="out.cls") is x and pick_logits({"a": [y, (x,)]}, path="a.1") is x
    with pytest.raises(RunError, match="Net returned Two with box, cls: say which are the logits"):
        pick_logits(Two(y, x), "Net")
    with pytest.raises(RunError, match="Net returned dict without 'out' .of 'out.cls'.; did you mean 'outs'"):
        pick_logits({"outs": x}, "Net", "out.cls")
    for nothing in (None, 3, "text", {}, ()):
        with pytest.raises(RunError, match="the module returned .* without a tensor"):
            pick_logits(nothing)


@pytest.mark.parametrize("ending", ["safetensors", "pt", "nested.pt"])
def test_weights_of_yours(file: Path, tmp_path: Path, ending: str) -> None:
    source, batch, _ = built(OwnModule(function=f"{file}:make"), tmp_path, seed=5)
    path = tmp_path / f"w.{ending}"
    if ending == "safetensors":
        save_model(source, str(path))
    else:
        state = source.state_dict()
        torch.save({"epoch": 3, "state_dict": state} if "nested" in ending else state, path)
    spec = OwnModule(function=f"{file}:make", weights=str(path))
    net, _, run = built(spec, tmp_path)
    assert torch.equal(logits_of(net, batch), logits_of(source, batch))
    teacher = ModuleTeacher(spec=spec).build(run)
    assert torch.equal(teacher(batch, frozenset({"logits"})).logits, logits_of(source, batch))
    path.unlink()  # what was trained is loaded without it
    spec.save(net, tmp_path, run)
    assert torch.equal(logits_of(spec.load(tmp_path, run), batch), logits_of(source, batch))


def test_tied_weights_are_stored_once_and_found(tmp_path: Path) -> None:
    (tmp_path / "tied.py").write_text(
        "from torch import nn\nclass Tied(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n"
        "        self.a, self.b = nn.Linear(10, 10), nn.Linear(10, 10)\n        self.b.weight = self.a.weight\n"
        "    def forward(self, x):\n        return self.b(self.a(x.flatten(1)[:, :10]))\n"
    )
    spec = OwnModule(function=f"{tmp_path}/tied.py:Tied")
    net, batch, run = built(spec, tmp_path)
    spec.save(net, tmp_path, run)
    again, _, _ = built(OwnModule(function=spec.function, weights=str(tmp_path / "model.safetensors")), tmp_path, seed=1)
    assert torch.equal(net(batch["inputs"]), again(batch["inputs"])) and again.b.weight is again.a.weight


def test_weights_that_do_not_fit_are_refused_in_one_line(file: Path, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    extra = {f"layer{i}.weight": torch.zeros(2) for i in range(5)}
    save_file(extra | {"head.weight": torch.zeros(10, 7), "head.bias": torch.zeros(10)}, path)
    spec = OwnModule(function=f"{file}:make", weights=str(path))
    with pytest.raises(RunError) as caught:
        built(spec, tmp_path)
    text = str(caught.value)
    assert "it lacks body.bias, body.weight;" in text or "it lacks body.weight, body.bias;" in text
    assert "it has besides layer0.weight, layer1.weight, layer2.weight and 2 more" in text
    assert "head.weight is [10, 7] there and [10, 16] here" in text and "\n" not in text
    run = built(OwnModule(function=f"{file}:make"), tmp_path)[2]
    wide = OwnModule(function=f"{file}:make", kwargs={"width": 17})
    wide.save(wide.made(), tmp_path, run)
    with pytest.raises(RunError, match="do not fit OwnModule") as caught:
        OwnModule(function=f"{file}:make").load(tmp_path, run)
    assert "\n" not in str(caught.value)


class Evil:
    def __reduce__(self) -> Any:
        return open, (str(Path(__file__).parent / "never"), "w")


def test_code_in_a_file_of_weights_is_never_run(file: Path, tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    spec = OwnModule(function=f"{file}:make", weights=str(path))
    faults = (({"a": Evil()}, "holds more than tensors.*save_file"), ({"a": 1}, "no mapping of names to tensors"))
    for content, why in faults:
        torch.save(content, path)
        with pytest.raises(RunError, match=why):
            built(spec, tmp_path)
    assert not (Path(__file__).parent / "never").exists()
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(RunError, match="w.pt"):
        built(spec, tmp_path)
    with pytest.raises(RunError, match="no file"):
        built(OwnModule(function=f"{file}:make", weights=str(tmp_path / "none.pt")), tmp_path)
    (tmp_path / "w.safetensors").write_bytes(b"short")
    with pytest.raises(RunError, match="as safetensors"):
        built(OwnModule(function=f"{file}:make", weights=str(tmp_path / "w.safetensors")), tmp_path)


def test_what_is_wrong_with_the_file_is_one_line(file: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("import nothing_of_that_name\n")
    (tmp_path / "leaves.py").write_text("raise SystemExit(3)\n")
    for function, why in [
        (f"{file}:mak", "has no function 'mak'; did you mean 'make'"),
        (f"{file}:no_module", "gave int; it has to return a torch.nn.Module"),
        (f"{file}:lazy", "has no size for '1.weight' yet"),
        (f"{file}:broken", "broken failed: KeyError"),
        (f"{tmp_path}/none.py:make", "no file"),
        (f"{tmp_path}/bad.py:make", "cannot be loaded: ModuleNotFoundError"),
        (f"{tmp_path}/leaves.py:make", "cannot be loaded: SystemExit"),
    ]:
        with pytest.raises(RunError, match=why) as caught:
            built(OwnModule(function=function), tmp_path)
        assert "\n" not in str(caught.value)
    with pytest.raises(RunError, match="make failed: TypeError.*unexpected keyword argument 'wide'"):
        built(OwnModule(function=f"{file}:make", kwargs={"wide": 3}), tmp_path)
    with pytest.raises(ValueError, match="a function is FILE.py:NAME, not 'my_models.make'"):
        OwnModule(function="my_models.make")


def test_files_of_the_same_name_do_not_disturb_each_other(file: Path, tmp_path: Path) -> None:
    """Nor do the files beside them, and an edited file is read again."""
    there = tmp_path / "there"
    there.mkdir()
    (there / "my_models.py").write_text(FILE)
    (there / "shapes.py").write_text("INPUTS = 64  # as there\nTHERE = True\n")
    first = built(OwnModule(function=f"{file}:make"), tmp_path)[0]
    second = built(OwnModule(function=f"{there / 'my_models.py'}:make"), tmp_path)[0]
    third = built(OwnModule(function=f"{file}:make"), tmp_path)[0]
    assert type(first) is type(third) and type(first) is not type(second)
    of = {net: vars(sys.modules[type(net).__module__])["shapes"].__file__ for net in (first, second)}
    assert of == {first: str(tmp_path / "shapes.py"), second: str(there / "shapes.py")}
    assert str(tmp_path) not in sys.path
    before = first.head.weight.clone()
    with torch.no_grad():
        second.head.weight.zero_()
        third.head.weight.zero_()
    assert torch.equal(first.head.weight, before)
    text = FILE.replace("width=16", "width=11")
    (there / "my_models.py").write_text(text)
    os.utime(there / "my_models.py", ns=(1, 1))
    assert built(OwnModule(function=f"{there / 'my_models.py'}:make"), tmp_path)[0].body.out_features == 11


def test_a_module_that_reads_texts(file: Path, tmp_path: Path) -> None:
    data = LibraryTopics(each=20)
    spec = OwnModule(function=f"{file}:words", encode=f"{file}:encode")
    net, batch, _ = built(spec, tmp_path, data)
    assert set(batch["inputs"]) == {"words"} and logits_of(net, batch).shape == (4, 9)
    with pytest.raises(RunError, match="to read texts .*encode=FILE.py:NAME"):
        built(OwnModule(function=f"{file}:words"), tmp_path, data)
    with pytest.raises(RunError, match="no_tensors gave list; it has to return a tensor"):
        built(OwnModule(function=f"{file}:words", encode=f"{file}:no_tensors"), tmp_path, data)


def test_a_module_from_python_is_copied_and_never_changed(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).train()
    spec = Given(module)
    before = module[1].weight.clone()
    student, batch, run = built(spec, tmp_path)
    teacher = ModuleTeacher(spec=spec).build(run)
    F.cross_entropy(logits_of(student, batch), batch["labels"]).backward()
    torch.optim.SGD(student.parameters(), 1.0).step()
    assert torch.equal(module[1].weight, before) and module[1].weight.requires_grad and module.training
    assert not torch.equal(student[1].weight, before) and torch.equal(teacher.module[1].weight, before)
    spec.save(student, tmp_path, run)
    assert torch.equal(logits_of(spec.load(tmp_path, run), batch), logits_of(student, batch))
    recipe = Recipe(id="given", student=spec, data=Digits(), stages={})
    assert recipe.plain()["student"]["module"] == "Sequential of 650 parameters"  # a run's file says what it was
    with pytest.raises(RecipeError, match="a module that Python code handed over is not in the file"):
        door.build(recipe.plain())


def test_a_module_from_python_with_a_field_or_texts(tmp_path: Path) -> None:
    class Answers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(1, 9)

        def forward(self, lengths: torch.Tensor) -> dict[str, Any]:
            return {"said": {"cls": self.head(lengths)}, "n": lengths}

    def encode(texts: Any) -> Any:
        return {"lengths": torch.tensor([[float(len(text))] for text in texts])}

    spec = Given(Answers(), logits="said.cls", encode=encode)
    net, batch, _ = built(spec, tmp_path, LibraryTopics(each=20))
    assert logits_of(net, batch).shape == (4, 9)
    with pytest.raises(RunError, match="encode=..."):
        built(Given(Answers()), tmp_path, LibraryTopics(each=20))
    stuck = Answers()
    stuck.loaded = (n for n in range(3))  # type: ignore[assignment]
    with pytest.raises(RunError, match=r"Given\(Answers\) cannot be copied"):
        Given(stuck).build(run_of(tmp_path / "run", None))


def test_two_modules_of_yours_go_through_a_whole_run(file: Path, tmp_path: Path) -> None:
    small = OwnModule(function=f"{file}:make", kwargs={"width": 8, "answer": "dict"}, logits="scores")
    big = OwnModule(function=f"{file}:make", kwargs={"width": 32, "answer": "tuple"})
    recipe = Recipe(
        id="own", student=small, data=Digits(), teachers={"teacher": ModuleTeacher(spec=big)},
        stages={"train": Train(method=Hinton(), steps=3, batch=8)},
    )  # fmt: skip
    run = Run(tmp_path / "run", device=torch.device("cpu"))
    execute(recipe, run)
    trained = small.load(run.path("train"), run)
    torch.manual_seed(run.seed)
    start = small.build(run)
    moved = [not torch.equal(a, b) for a, b in zip(trained.parameters(), start.parameters(), strict=True)]
    assert all(moved) and (run.path("train") / "model.safetensors").is_file()
