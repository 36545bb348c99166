"""Logits that nobody computes, and the inputs of the reference values, for the tests of methods that compare logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stillhouse.core.method import Update
from stillhouse.core.run import Run
from stillhouse.core.signal import HeadLogits
from stillhouse.teachers.module import Frozen


def inp(shape: tuple[int, ...], k: float, scale: float = 1.0) -> Tensor:
    """scale sin(k (i + 1)) in float64, the inputs of the reference values."""
    n = torch.Size(shape).numel()
    return scale * torch.sin(k * (torch.arange(n, dtype=torch.float64) + 1)).reshape(shape)


STUDENT, TEACHER = inp((8, 100), 0.7310, 3), inp((8, 100), 1.2345, 3)
LABELS = (7 * torch.arange(8) + 3) % 100
BATCH: dict[str, Any] = {"inputs": torch.arange(8), "labels": LABELS}
CE = 6.270976396173148  # torch's, of those


class Said(nn.Module):
    """Logits as parameters."""

    def __init__(self, logits: Tensor):
        super().__init__()
        self.logits = nn.Parameter(logits.clone())

    def forward(self, inputs: Tensor) -> Tensor:
        return self.logits[inputs]


class Headed(nn.Module):
    """The same logits, left unprojected."""

    def __init__(self, logits: Tensor):
        super().__init__()
        self.hidden, self.head = nn.Parameter(logits.clone()), nn.Parameter(torch.eye(logits.shape[-1], dtype=logits.dtype))

    def forward(self, inputs: Tensor) -> HeadLogits:
        return HeadLogits(self.hidden[inputs], self.head)


def taught(folder: Path, teacher: Tensor | nn.Module = TEACHER) -> Run:
    """A run whose teacher says these logits."""
    run = Run(folder / "run", device=torch.device("cpu"))
    run.teachers = {"teacher": Frozen(teacher if isinstance(teacher, nn.Module) else Said(teacher))}
    run.horizon = 10
    return run


def only(method: Any, run: Run, student: Tensor | nn.Module = STUDENT, batch: Any = None) -> tuple[Update, nn.Module]:
    """The one update of a method for these logits, and the student."""
    module = student if isinstance(student, nn.Module) else Said(student)
    (made,) = method.step(method.setup(module, run), BATCH if batch is None else batch, run)
    return made, module


def mean(made: Update) -> float:
    """What the engine minimises."""
    return float(made.loss.detach() / torch.as_tensor(made.count))
