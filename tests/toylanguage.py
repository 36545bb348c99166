"""A toy student, its toy teacher and a batch of characters, and one update of a method without an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from language import run_of
from stillhouse.core.method import Update
from stillhouse.data.toys import Sentences
from stillhouse.models.toys import TinyLM
from stillhouse.teachers.module import ModuleTeacher

STUDENT, TEACHER = TinyLM(width=16, depth=1), TinyLM(width=32, depth=1)


def toy(folder: Path, rows: int = 3) -> tuple[Any, Any, Any]:
    """(run, student, batch of `rows` rows); student and teacher are far from each other and from flat."""
    run = run_of(folder, STUDENT, data=Sentences(), teacher=ModuleTeacher(spec=TEACHER))
    torch.manual_seed(0)
    student = STUDENT.build(run)
    with torch.no_grad():
        student.norm.weight.mul_(2.0)
        run.teacher.module.norm.weight.mul_(3.0)
    return run, student, run.sources()["train"].batch(range(rows), 0)


def update(method: Any, student: Any, batch: Any, run: Any) -> Update:
    """The method's only update for this batch."""
    (made,) = method.step(method.setup(student, run), batch, run)
    return made


def gradient(method: Any, student: Any, batch: Any, run: Any) -> torch.Tensor:
    """The gradient of the method's only update, all parameters in one vector."""
    made = update(method, student, batch, run)
    return torch.cat([g.flatten() for g in torch.autograd.grad(made.loss, list(student.parameters()))])
