"""A frozen language model as teacher, with the checks that fail before the first step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..core.run import Run
from ..core.signal import Batch, HeadLogits, Kind, Signal, TopK
from ..core.teacher import TeacherMismatch, freeze
from ..models.call import logits_of, weights_hash
from ..models.hub import CausalLM, HubLM, StageLM


class LocalTeacher:
    """Gives the logits of every position, unprojected."""

    gives: frozenset[Kind] = frozenset({"logits"})

    def __init__(self, module: CausalLM, name: str = ""):
        self.module, self.name = freeze(module), name

    @torch.no_grad()
    def __call__(self, batch: Batch, want: frozenset[Kind]) -> Signal:
        """`HeadLogits` `[B, T, V]` for a language batch."""
        return Signal(logits=logits_of(self.module, batch))

    def identity(self) -> dict[str, Any]:
        """What makes its answers what they are: kept with stored signals."""
        return {"name": self.name, "weights": weights_hash(self.module), "temperature": self.module.temperature}


@dataclass(frozen=True, kw_only=True)
class LocalLM:
    """A teacher from a model spec. It must share the student's tokenizer, which is checked when it is built, unless its
    method compares texts and not tokens (`same_tokenizer=False`: alm).

    `temperature` divides its logits for good: at 0.7 the teacher is the model as people sample it, and what it writes,
    what it is asked for and what the student is compared with are all that distribution.
    """

    model: HubLM | StageLM
    temperature: float = 1.0
    same_tokenizer: bool = True

    def build(self, run: Run) -> LocalTeacher:
        """The frozen teacher on the run's device."""
        if self.same_tokenizer:
            check_tokenizers(run.recipe.student.tokenizer(run), self.model.tokenizer(run))
        module: Any = self.model.build(run)
        module.temperature = self.temperature
        return LocalTeacher(module.to(run.device), getattr(self.model, "path", ""))


def check_tokenizers(student: Any, teacher: Any) -> None:
    """Refuse two tokenizers that do not give the same ids for the same text."""
    if student is teacher:
        return
    mine, theirs = student.get_vocab(), teacher.get_vocab()
    if mine == theirs:
        return
    shared = sum(theirs.get(token) == index for token, index in mine.items())
    raise TeacherMismatch(
        f"student and teacher use different tokenizers ({len(mine):,} and {len(theirs):,} tokens, {shared:,} with the "
        "same id), so their logits cannot be compared: take a student of the teacher's family, or cut one from the "
        "teacher (--student shrink:layers=N)"
    )


def same_classes(student: Any, teacher: Any) -> tuple[Any, Any]:
    """Trim both sides to their common classes: rows beyond them only pad the vocabulary of one of the two.

    The tokenizers are the same (`check_tokenizers`), so the classes that both heads have are all the tokens there are.
    """
    if isinstance(teacher, TopK) and teacher.classes is not None and student.shape[-1] > teacher.classes:
        return (
            student.trim(teacher.classes) if isinstance(student, HeadLogits) else student[..., : teacher.classes]
        ), teacher
    if isinstance(student, HeadLogits) and isinstance(teacher, HeadLogits):
        common = min(student.vocabulary, teacher.vocabulary)
        if student.vocabulary != teacher.vocabulary:
            return student.trim(common), teacher.trim(common)
    return student, teacher
