"""A local teacher: its logits are its model's, and a teacher that does not fit is refused before the first step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from language import Folders, chats, run_of, tokenizer_of, write_jsonl
from stillhouse.core.recipe import Recipe
from stillhouse.core.stage import Train, execute
from stillhouse.core.teacher import Teacher, TeacherMismatch, check_gives
from stillhouse.data.tokens import Text
from stillhouse.methods.classics.gkd import GKD
from stillhouse.models.hub import HubLM, load_model
from stillhouse.teachers.local import LocalLM, check_tokenizers
from stillhouse.teachers.module import ModuleTeacher

WANT = frozenset({"logits"})


def spec_of(folder: Path) -> HubLM:
    return HubLM(path=str(folder))


def test_a_teacher_gives_its_models_logits(folders: Folders, tmp_path: Path) -> None:
    teacher = LocalLM(model=spec_of(folders.teacher)).build(run_of(tmp_path, spec_of(folders.student)))
    assert isinstance(teacher, Teacher)
    assert not teacher.module.training and not any(p.requires_grad for p in teacher.module.parameters())
    tokens = torch.arange(3, 15).view(2, 6)
    said = teacher({"inputs": {"tokens": tokens}}, WANT).need("logits")
    torch.testing.assert_close(said.dense(), load_model(str(folders.teacher))(tokens).logits, rtol=1e-5, atol=1e-5)
    assert not said.hidden.requires_grad


def test_another_tokenizer_is_refused_before_the_first_step(folders: Folders, tmp_path: Path) -> None:
    data = Text(path=str(write_jsonl(tmp_path / "a.jsonl", chats(12))))
    recipe = Recipe(
        id="x", student=spec_of(folders.student), data=data,
        teachers={"teacher": LocalLM(model=spec_of(folders.foreign))},
        stages={"train": Train(method=GKD(on_policy=0.0), steps=2, batch=2)},
    )  # fmt: skip
    run = run_of(tmp_path / "run", None)
    with pytest.raises(TeacherMismatch) as caught:
        execute(recipe, run)
    text = str(caught.value)
    assert "300" in text and "270" in text and "shrink:layers=N" in text and "\n" not in text
    assert run.read("metrics.jsonl") == []


def test_tokenizers_are_compared_by_their_ids() -> None:
    check_tokenizers(tokenizer_of(), tokenizer_of(template=None))
    with pytest.raises(TeacherMismatch):
        check_tokenizers(tokenizer_of(), tokenizer_of(["zebra quartz jukebox vex"], size=270))


def test_a_padded_vocabulary_is_accepted(folders: Folders, tmp_path: Path) -> None:
    """The padded teacher is the same model with 20 more rows in its head: it teaches exactly the same."""
    data = Text(path=str(write_jsonl(tmp_path / "a.jsonl", chats(12))), valid=0.0, test=0.0)
    ends: list[dict[str, Any]] = []
    for name in ("teacher", "padded"):
        recipe = Recipe(
            id="x", student=spec_of(folders.student), data=data,
            teachers={"teacher": LocalLM(model=spec_of(getattr(folders, name)))},
            stages={"train": Train(method=GKD(on_policy=0.0, labels=0.3), steps=2, batch=2)},
        )  # fmt: skip
        run = run_of(tmp_path / name, None)
        execute(recipe, run)
        ends.append(load_model(str(run.path("train"))).state_dict())
    for key, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][key], rtol=1e-6, atol=1e-6)


def test_what_a_teacher_does_not_give(folders: Folders, tmp_path: Path) -> None:
    teacher = LocalLM(model=spec_of(folders.teacher)).build(run_of(tmp_path, spec_of(folders.student)))
    with pytest.raises(TeacherMismatch, match="reward"):
        check_gives("teacher", teacher, frozenset({"reward"}))


def test_a_module_teacher_depends_on_the_seed_alone(tmp_path: Path) -> None:
    from stillhouse.data.toys import Sentences
    from stillhouse.models.toys import TinyLM

    def weights(name: str, seed: int, noise: int) -> torch.Tensor:
        torch.manual_seed(noise)
        run = run_of(tmp_path / name, None, data=Sentences(), seed=seed)
        return next(ModuleTeacher(spec=TinyLM(width=8)).build(run).module.parameters())

    assert torch.equal(weights("a", 0, 1), weights("b", 0, 2))
    assert not torch.equal(weights("c", 0, 1), weights("d", 1, 1))
