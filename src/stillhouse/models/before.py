"""The student as it was before a stage: what DPO, GRPO and their kin measure it against."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from ..core.run import Run
from ..core.teacher import freeze
from .call import cast


def before(student: nn.Module, run: Run) -> nn.Module:
    """A frozen copy of the student, rounded as its parameters will be, or they would not agree at the first step.

    A student with fresh adapters is not copied: with them off it is what it was.
    """
    if has_adapters(student):
        return AdaptersOff(student)
    frozen = freeze(copy.deepcopy(student))
    stage: Any = run.recipe.stages.get(run.stage) if run.recipe is not None else None
    if getattr(stage, "precision", "float32") == "bfloat16":
        cast(frozen, torch.bfloat16)
    return frozen


def has_adapters(student: nn.Module) -> bool:
    """Whether low-rank adapters are trained in place of the weights."""
    return hasattr(getattr(student, "model", None), "disable_adapter")


class AdaptersOff(nn.Module):
    """A student read with its adapters off, without gradient. It has no parameters of its own: nothing is saved twice."""

    def __init__(self, student: nn.Module):
        super().__init__()
        self._held = (student,)  # in a tuple, so that it is no child

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the student said before its adapters learned anything."""
        student: Any = self._held[0]
        training = student.training
        try:
            with student.model.disable_adapter():
                return student.eval()(*args, **kwargs)
        finally:
            student.train(training)
