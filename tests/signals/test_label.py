"""Capturing a teacher: stored signals teach what the live teacher does, and nothing but the data they were made for."""

from __future__ import annotations

import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from language import Folders, chats, run_of, write_jsonl
from stillhouse.core.files import content_hash
from stillhouse.core.method import Method
from stillhouse.core.optim import Optim
from stillhouse.core.recipe import Recipe
from stillhouse.core.run import Interrupted, Run, RunError
from stillhouse.core.stage import Train, execute
from stillhouse.core.teacher import TeacherMismatch
from stillhouse.data.images import Augment, Digits, Split
from stillhouse.data.tokens import Text
from stillhouse.data.toys import Clusters, Sentences
from stillhouse.methods.classics.gkd import GKD
from stillhouse.methods.classics.hinton import Hinton
from stillhouse.methods.classics.minillm import MiniLLM
from stillhouse.methods.language.taid import TAID
from stillhouse.models.hub import HubLM
from stillhouse.models.toys import MLP, TinyLM
from stillhouse.objectives.divergences import ForwardKL, ReverseKL
from stillhouse.signals.hidden import Hidden
from stillhouse.signals.label import Label
from stillhouse.signals.raw import Raw
from stillhouse.signals.sampled import Sampled
from stillhouse.signals.store import SignalError, Store
from stillhouse.signals.topk import KeptTopK
from stillhouse.teachers.cached import Cached
from stillhouse.teachers.local import LocalLM
from stillhouse.teachers.module import ModuleTeacher

OFF_POLICY = GKD(on_policy=0.0, divergence=ForwardKL())


def recipe_of(folders: Folders, data: Any, method: Method, form: Any = None, **changes: Any) -> Recipe:
    """Training from the live teacher, or from its stored signals if a format is given."""
    live = LocalLM(model=HubLM(path=str(folders.teacher)))
    stages: dict[str, Any] = {"label": Label(format=form, teacher=live)} if form is not None else {}
    stages["train"] = Train(method=method, steps=4, batch=3, accumulate=2, optim=Optim(lr=1e-3), **changes)
    return Recipe(
        id="x", student=HubLM(path=str(folders.student)), data=data, stages=stages,
        teachers={"teacher": live if form is None else Cached(stage="label")},
    )  # fmt: skip


@pytest.fixture
def text(tmp_path: Path) -> Text:
    return Text(path=str(write_jsonl(tmp_path / "my.jsonl", chats(40))), length=100)


def trained(recipe: Recipe, folder: Path) -> dict[str, torch.Tensor]:
    run = Run(folder, seed=recipe.seed, device=torch.device("cpu"))
    execute(recipe, run)
    return recipe.student.load(run.path("train"), run).state_dict()


def apart(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.mark.parametrize("method", [Hinton(temperature=2.0), OFF_POLICY, GKD(on_policy=0.0, labels=0.3), TAID()])
def test_states_in_float32_train_to_the_same_bits_as_the_live_teacher(
    method: Any, folders: Folders, text: Text, tmp_path: Path
):
    """Row by row: how a matrix product rounds depends on the rows beside, for a live teacher too."""
    whole = recipe_of(folders, text, method, Hidden(dtype="float32")).set("train.accumulate", 3)
    live = trained(recipe_of(folders, text, method).set("train.accumulate", 3), tmp_path / "live")
    stored = trained(whole.set("label.batch", 1), tmp_path / "stored")
    assert all(torch.equal(live[name], stored[name]) for name in live)


STATES = {"float32": 1e-4, "float16": 0.02, "bfloat16": 0.1, "int8": 0.4}  # and what they may be off by


@pytest.mark.parametrize(
    ("method", "form", "most"),
    [(method, Hidden(dtype=dtype), most) for method in (Hinton(temperature=1.0), OFF_POLICY, TAID())  # type: ignore[arg-type]
     for dtype, most in STATES.items()]
    + [(method, KeptTopK(k=300), 0.1) for method in (Hinton(temperature=1.0), OFF_POLICY)],  # TAID needs all logits
)  # fmt: skip
def test_other_formats_train_to_nearly_the_same(
    method: Any, form: Any, most: float, folders: Folders, text: Text, tmp_path: Path
):
    """The largest difference of a weight, in shares of the largest distance that the training moved one.

    Plain gradient descent: Adam would turn the smallest difference of a tiny gradient into one of its sign.
    """
    still = {"optim": Optim(name="sgd", lr=0.1, momentum=0.0)}

    def of(name: str, form: Any, steps: int = 4) -> dict[str, torch.Tensor]:
        made = recipe_of(folders, text, method, form)
        return trained(made.set("stages", made.stages | {"train": replace(made.stages["train"], **still)}), tmp_path / name)

    live, stored = of("live", None), of("stored", form)
    start = HubLM(path=str(folders.student)).build(run_of(tmp_path / "s", None)).state_dict()
    assert apart(live, stored) < most * apart(live, start)


def test_drawn_classes_train(folders: Folders, text: Text, tmp_path: Path):
    weights = trained(recipe_of(folders, text, OFF_POLICY, Sampled(draws=20)), tmp_path / "run")
    assert all(bool(value.isfinite().all()) for value in weights.values())


def test_the_teacher_is_not_loaded_for_training(folders: Folders, text: Text, tmp_path: Path):
    """Its weights are gone by then; only the tokenizer of the student is read."""
    recipe = recipe_of(folders, text, OFF_POLICY, KeptTopK(k=16))
    run = Run(tmp_path / "run", device=torch.device("cpu"))
    execute(recipe.set("stages", {"label": recipe.stages["label"]}), run)
    stored = run.path("label")
    gone = Cached(path=str(stored), live=LocalLM(model=HubLM(path="/nonexistent")))
    later = replace(recipe, teachers={"teacher": gone}, stages={"train": recipe.stages["train"]})
    assert trained(later, tmp_path / "later")


def test_a_fidelity_report_comes_with_the_signals(folders: Folders, text: Text, tmp_path: Path):
    run = Run(tmp_path / "run", device=torch.device("cpu"))
    recipe = recipe_of(folders, text, OFF_POLICY, KeptTopK(k=300))
    execute(recipe.set("stages", {"label": recipe.stages["label"]}), run)
    store = Store(run.path("label"))
    found = store.done["fidelity"]  # type: ignore[index]
    assert found["mass"] == pytest.approx(1.0) and found["codec_kl"] < 1e-4 and found["tv"] < 0.01
    sources = text.load(run)
    assert store.items == sum(source.targets for source in sources.values())
    assert store.header["teacher"]["temperature"] == 1.0 and len(store.header["teacher"]["weights"]) == 64


def test_a_changed_head_is_noticed(folders: Folders, text: Text, tmp_path: Path):
    run = Run(tmp_path / "run", device=torch.device("cpu"))
    recipe = recipe_of(folders, text, OFF_POLICY, Hidden())
    execute(recipe.set("stages", {"label": recipe.stages["label"]}), run)
    head = run.path("label") / "head.safetensors"
    data = bytearray(head.read_bytes())
    data[-1] ^= 1
    head.write_bytes(data)
    with pytest.raises(SignalError, match="head.safetensors is missing or was altered"):
        Store(run.path("label"))


# -- refused ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def stored(folders: Folders, text: Text, tmp_path: Path) -> Path:
    recipe = recipe_of(folders, text, OFF_POLICY, KeptTopK(k=16))
    run = Run(tmp_path / "labelling", device=torch.device("cpu"))
    execute(recipe.set("stages", {"label": recipe.stages["label"]}), run)
    return run.path("label")


def refused(recipe: Recipe, folder: Path) -> str:
    run = Run(folder, device=torch.device("cpu"))
    with pytest.raises((RunError, TeacherMismatch)) as caught:
        execute(recipe, run)
    assert run.read("metrics.jsonl") == [] and "\n" not in str(caught.value)
    return str(caught.value)


def with_signals(folders: Folders, data: Any, method: Any, stored: Path, *, student: Path | None = None) -> Recipe:
    recipe = recipe_of(folders, data, method)
    return replace(
        recipe, teachers={"teacher": Cached(path=str(stored))}, student=HubLM(path=str(student or folders.student))
    )


def test_other_data_are_refused_before_the_first_step(folders: Folders, stored: Path, tmp_path: Path):
    other = Text(path=str(write_jsonl(tmp_path / "other.jsonl", chats(41)[3:])), length=100)
    assert "hold no answer for" in refused(with_signals(folders, other, OFF_POLICY, stored), tmp_path / "run")


def test_another_length_that_cuts_documents_is_refused(folders: Folders, text: Text, stored: Path, tmp_path: Path):
    shorter = replace(text, length=12)
    assert "--length" in refused(with_signals(folders, shorter, OFF_POLICY, stored), tmp_path / "run")


def test_another_packing_is_not(folders: Folders, text: Text, stored: Path, tmp_path: Path):
    assert trained(with_signals(folders, replace(text, length=200), OFF_POLICY, stored), tmp_path / "run")


def test_another_tokenizer_is_refused(folders: Folders, text: Text, stored: Path, tmp_path: Path):
    said = refused(with_signals(folders, text, OFF_POLICY, stored, student=folders.foreign), tmp_path / "run")
    assert "another tokenizer" in said


def test_a_top_k_at_another_temperature_is_refused_with_the_number(
    folders: Folders, text: Text, stored: Path, tmp_path: Path
):
    said = refused(with_signals(folders, text, Hinton(temperature=4.0), stored), tmp_path / "run")
    mass = Store(stored).done["fidelity"]["mass_at"]  # type: ignore[index]
    assert f"{mass['1']:.0%}" in said and f"{mass['4']:.0%}" in said and "hidden:float16" in said


@pytest.mark.parametrize("method", [GKD(on_policy=0.5), MiniLLM()])
def test_methods_that_ask_about_their_own_text_are_refused(
    method: Any, folders: Folders, text: Text, stored: Path, tmp_path: Path
):
    said = refused(with_signals(folders, text, method, stored), tmp_path / "run")
    assert "student makes" in said or "needs logits" in said


def test_a_method_that_needs_all_logits_is_refused(folders: Folders, text: Text, stored: Path, tmp_path: Path):
    assert "needs logits" in refused(with_signals(folders, text, TAID(), stored), tmp_path / "run")


def test_a_divergence_that_drawn_classes_bias_is_refused(folders: Folders, text: Text, tmp_path: Path):
    method = GKD(on_policy=0.0, divergence=ReverseKL())
    with pytest.raises(ValueError, match="unbiased for forward KL alone"):
        trained(recipe_of(folders, text, method, Sampled()), tmp_path / "run")


@pytest.mark.parametrize("change", ["teacher", "temperature", "format", "data", "rows"])
def test_a_capture_does_not_go_on_with_something_else(change: str, folders: Folders, text: Text, tmp_path: Path):
    def label(into: str, **changes: Any) -> Recipe:
        live = LocalLM(model=HubLM(path=str(changes.get("teacher", folders.teacher))), temperature=changes.get("t", 1.0))
        stage = Label(format=changes.get("form", KeptTopK(k=16)), teacher=live, to=str(tmp_path / "signals"))
        data = changes.get("data", text)
        return Recipe(id="x", student=HubLM(path=str(folders.student)), data=data, stages={"label": stage})

    execute(label("a"), Run(tmp_path / "a", device=torch.device("cpu")))
    before = content_hash(tmp_path / "signals")
    if change == "rows":
        with open(text.path, "a") as file:
            file.write('{"text": "one more row"}\n')
    changed = {
        "teacher": {"teacher": folders.plain}, "temperature": {"t": 0.5}, "format": {"form": KeptTopK(k=8)},
        "data": {"data": replace(text, length=12)}, "rows": {},
    }[change]  # fmt: skip
    what = {"temperature": "teacher", "rows": "data"}.get(change, change)
    with pytest.raises(SignalError, match=f"another {what}"):
        execute(label("b", **changed), Run(tmp_path / "b", device=torch.device("cpu")))
    assert content_hash(tmp_path / "signals") == before


# -- killed ----------------------------------------------------------------------------------------------------------


def toy(folder: Path, *, batch: int = 1) -> tuple[Recipe, Run]:
    stage = Label(format=KeptTopK(k=8), batch=batch, splits=("train",), to=str(folder / "signals"))
    teacher = ModuleTeacher(spec=TinyLM(width=16, depth=1))
    recipe = Recipe(
        id="toy", student=TinyLM(width=16, depth=1), data=Sentences(), stages={"label": stage}, teachers={"teacher": teacher}
    )
    return recipe, Run(folder / "run", device=torch.device("cpu"))


def test_a_hundred_kills_lose_nothing(tmp_path: Path):
    """SIGKILL at random points of a capture, a hundred times; the last one is left alone."""
    execute(*toy(tmp_path / "straight"))
    dice = random.Random(0)
    for _ in range(100):
        child = os.fork()
        if child == 0:
            try:
                execute(*toy(tmp_path / "killed"))
            finally:
                os._exit(0)
        time.sleep(dice.random() * 0.03)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    recipe, run = toy(tmp_path / "killed")
    (run.folder / "artifacts" / "label" / "done.json").unlink(missing_ok=True)
    execute(recipe, run)
    assert content_hash(tmp_path / "killed" / "signals") == content_hash(tmp_path / "straight" / "signals")
    Store(tmp_path / "killed" / "signals")


class StopAt:
    def __init__(self, step: int):
        self.step = step

    def update(self, stage: str, done: int, total: int, logs: object, seconds: float) -> None:
        if done == self.step:
            signal.raise_signal(signal.SIGINT)


def test_ctrl_c_leaves_a_capture_that_goes_on(tmp_path: Path):
    execute(*toy(tmp_path / "straight"))
    recipe, run = toy(tmp_path / "stopped")
    run.progress = StopAt(5)
    with pytest.raises(Interrupted, match="go on with"):
        execute(recipe, run)
    with pytest.raises(SignalError, match="not finished"):
        Store(tmp_path / "stopped" / "signals")
    execute(*toy(tmp_path / "stopped"))
    assert content_hash(tmp_path / "stopped" / "signals") == content_hash(tmp_path / "straight" / "signals")


# -- images ----------------------------------------------------------------------------------------------------------


def images(data: Any, form: Any = None, *, draws: int = 1, steps: int = 12, alpha: float = 0.9) -> Recipe:
    live = ModuleTeacher(spec=MLP(width=32))
    stages: dict[str, Any] = {}
    if form is not None:
        stages["label"] = Label(format=form, teacher=live, batch=64, draws=draws)
    stages["train"] = Train(method=Hinton(alpha=alpha), steps=steps, batch=64, optim=Optim(lr=1e-3))
    return Recipe(
        id="i", student=MLP(width=8), data=data, stages=stages,
        teachers={"teacher": live if form is None else Cached(stage="label")},
    )  # fmt: skip


@pytest.mark.parametrize("data", [Clusters(), Digits(split=Split(labels=4))], ids=["points", "digits"])
def test_stored_logits_of_images_train_to_the_same_bits(data: Any, tmp_path: Path):
    live, stored = (trained(images(data, form), tmp_path / str(form is None)) for form in (None, Raw(kind="logits")))
    assert all(torch.equal(live[name], stored[name]) for name in live)


def test_every_augmentation_draw_has_its_own_signal(tmp_path: Path):
    """1,078 digits, 40 steps of 64: three epochs, of which two are drawn and then come again."""
    data = Digits(augment=Augment(shift=1, flip=True, draws=2))
    live = trained(images(data, steps=40), tmp_path / "live")
    stored = trained(images(data, Raw(kind="logits"), draws=2, steps=40), tmp_path / "stored")
    assert all(torch.equal(live[name], stored[name]) for name in live)


def test_a_draw_that_was_not_labelled_is_refused(tmp_path: Path):
    data = Digits(augment=Augment(shift=1))
    recipe = images(data, Raw(kind="logits"), draws=2, steps=40)
    run = Run(tmp_path / "run", device=torch.device("cpu"))
    with pytest.raises(TeacherMismatch, match=r"hold 2 augmentation draws.*asks for 3: label as many"):
        execute(recipe, run)
    assert run.read("metrics.jsonl") == []
