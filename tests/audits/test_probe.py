"""The probe warns when the teacher does not know the text, and is silent when it does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from language import run_of
from stillhouse.audits.probe import Probe, advice, nll
from stillhouse.core.optim import Optim
from stillhouse.core.recipe import Recipe
from stillhouse.core.stage import Train, execute
from stillhouse.data.toys import Sentences
from stillhouse.methods.classics.supervised import Supervised
from stillhouse.models.call import logits_of
from stillhouse.models.toys import TinyLM
from stillhouse.teachers.module import ModuleTeacher

BIG = TinyLM(width=32)
LEARN = Train(method=Supervised(), student=BIG, steps=60, batch=16, optim=Optim(lr=2e-2))


def probed(folder: Path, of: ModuleTeacher, **stages: Any) -> tuple[Any, dict[str, Any]]:
    recipe = Recipe(
        id="probe", student=TinyLM(width=16, depth=1), data=Sentences(), teachers={"teacher": of},
        stages={**stages, "probe": Probe(method=Supervised(), lr=1e-2)},
    )  # fmt: skip
    run = run_of(folder, None)
    execute(recipe, run)
    return run, run.load_json("probe")


def test_it_warns_of_a_teacher_that_does_not_know_the_text(tmp_path: Path) -> None:
    run, found = probed(tmp_path, ModuleTeacher(spec=BIG))
    assert found["teacher"] > found["tuned"] < found["start"]
    (warning,) = [e["text"] for e in run.read("events.jsonl") if e["event"] == "warning"]
    assert warning == found["warning"] and "\n" not in warning
    for remedy in ("--adapt", "--method seqkd", "--set"):
        assert remedy in warning


def test_it_is_silent_about_a_good_teacher(tmp_path: Path) -> None:
    run, found = probed(tmp_path, ModuleTeacher(spec=BIG, stage="teacher"), teacher=LEARN)
    assert found["teacher"] < found["tuned"] and found["warning"] is None
    assert not [e for e in run.read("events.jsonl") if e["event"] == "warning"]


def test_what_is_reached_is_extrapolated() -> None:
    fair = {"teacher": 2.0, "start": 4.0, "tuned": 2.4, "reached": 2.1}
    assert advice(fair) is None
    assert advice(fair | {"reached": 1.9}) is not None


def test_the_loss_is_the_mean_over_counted_tokens(tmp_path: Path) -> None:
    run = run_of(tmp_path, None, data=Sentences())
    source = run.sources()["valid"]
    module = TinyLM(width=16).build(run)
    module.train()
    batch = source.batch(range(3), 0)
    with torch.no_grad():
        log_q = logits_of(module, batch).dense().log_softmax(-1)
    chosen = -log_q.gather(-1, batch["labels"][..., None])[..., 0]
    expected = float((chosen * batch["weight"]).sum() / batch["weight"].sum())
    assert nll(module, source, 3, run) == pytest.approx(expected, rel=1e-5)
    assert module.training
    assert not nll(module.eval(), source, 3, run) > 99 and not module.training  # a teacher stays as it is
