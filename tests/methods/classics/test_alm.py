"""ALM: the loss against loops over both readings of a text, and with one tokenizer for both sides."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from language import Folders, run_of
from stillhouse.core.run import RunError
from stillhouse.data.stdlib import StandardLibrary
from stillhouse.data.twofold import ByteSpelling, PairSpelling, Twofold
from stillhouse.methods.classics.alm import ALM
from stillhouse.models.call import logits_of
from stillhouse.models.hub import HubLM
from stillhouse.models.toys import TinyLM
from stillhouse.teachers.local import LocalLM
from stillhouse.teachers.module import Frozen

BASE = StandardLibrary(train=12, valid=2, test=2)
PAIRS = PairSpelling(base=BASE, pairs=60)


def setting(tmp_path: Path, teacher: Any = PAIRS, classes: int = 316) -> Any:
    data = Twofold(base=BASE, teacher=teacher, length=40)
    run = run_of(tmp_path, TinyLM(width=16, depth=1), data=data)
    torch.manual_seed(0)
    run.source, student = run.sources()["train"], TinyLM(width=16, depth=1).build(run)
    torch.manual_seed(1)
    run.teachers = {"teacher": Frozen(TinyLM(width=16, depth=1, vocabulary=classes).build(run))}
    return run, student, run.source.batch(range(3), 0)


def likelihoods(module: Any, side: Any) -> dict[int, float]:
    found: dict[int, float] = {}
    with torch.no_grad():
        z = logits_of(module, side).dense().double().log_softmax(-1)  # type: ignore[union-attr]
    for row, place in (side["chunk"] >= 0).nonzero().tolist():
        number = int(side["chunk"][row, place])
        found[number] = found.get(number, 0.0) + float(z[row, place, side["labels"][row, place]])
    return found


def test_the_loss_against_loops(tmp_path: Path) -> None:
    run, student, batch = setting(tmp_path)
    (made,) = ALM(tau=20.0).step(ALM().setup(student, run), batch, run)
    mine, theirs = likelihoods(student, batch), likelihoods(run.teacher.module, batch["teacher"])
    assert mine.keys() == theirs.keys() and len(mine) == float(made.count)
    total = 0.0
    for number in mine:
        p, q = math.exp(theirs[number] / 20), math.exp(mine[number] / 20)
        total += 20 * (p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)))
    assert made.loss.item() == pytest.approx(total, rel=1e-4)
    (mixed,) = ALM(tau=20.0, labels=0.5).step(ALM().setup(student, run), batch, run)
    assert mixed.loss.item() == pytest.approx(total - 0.5 * sum(mine.values()), rel=1e-4)


def test_a_student_that_is_the_teacher_has_nothing_to_learn(tmp_path: Path) -> None:
    run, student, batch = setting(tmp_path, ByteSpelling(), 256)
    run.teachers = {"teacher": Frozen(student)}
    student.requires_grad_()
    (made,) = ALM().step(ALM().setup(student, run), batch, run)
    assert made.loss.item() == pytest.approx(0.0, abs=1e-4)
    assert max(g.abs().max() for g in torch.autograd.grad(made.loss, list(student.parameters()))) < 1e-3


def test_it_wants_both_readings(tmp_path: Path) -> None:
    run = run_of(tmp_path, TinyLM(), data=BASE)
    run.source = run.sources()["train"]
    with pytest.raises(RunError, match=r"data\.twofold\.Twofold"):
        ALM().setup(TinyLM().build(run), run)
    for wrong in ({"tau": 0.0}, {"labels": -1.0}):
        with pytest.raises(ValueError, match="tau is above 0"):
            ALM(**wrong)


def test_a_hub_teacher_of_another_tokenizer(folders: Folders, tmp_path: Path) -> None:
    spec = HubLM(path=str(folders.teacher))
    data = Twofold(base=BASE, teacher=spec, length=60)
    run = run_of(tmp_path, TinyLM(width=16, depth=1), data=data, teacher=LocalLM(model=spec, same_tokenizer=False))
    run.source, student = run.sources()["train"], TinyLM(width=16, depth=1).build(run)
    (made,) = ALM().step(ALM().setup(student, run), run.source.batch(range(2), 0), run)
    assert made.loss.isfinite() and made.loss.item() > 0
