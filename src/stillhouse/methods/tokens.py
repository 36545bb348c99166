"""What papers share that teach a vision transformer by a distillation token, as DeiT does (Touvron et al. 2020, arXiv
2012.12877): one head learns the labels, the other's the class that a teacher would choose."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..core.method import Update
from ..core.run import RunError
from ..core.signal import Batch
from ..core.teacher import Teacher
from ..models.call import answers, dense, weight_of
from ..objectives.divergences import cross_entropy
from .outputs import added


def two_tokens(
    student: nn.Module,
    batch: Batch,
    teacher: Teacher,
    share: float = 0.5,
    *,
    counts: Callable[[Tensor], Tensor | float] = lambda choice: 1.0,
    filled: bool = False,
) -> Update:
    """(1 - share) CE(y, q_class) + share CE(argmax p_T, q_distilled), over all items; RunError without such a token.

    counts: choice [B] -> what the second term of an item counts beside its weight. An item
    without a label has the second term alone; both, with the teacher's choice for its label, if `filled`.
    """
    said = student(batch["inputs"], each=True)
    if "distilled" not in said:
        raise RunError("the student has no distillation token: set `distilled` to true on its models.vision.ViT")
    choice = dense(teacher(batch, frozenset({"logits"})).need("logits")).argmax(-1)
    if int(choice.max()) >= said["distilled"].shape[-1]:
        raise RunError("the teacher tells more classes apart than the student: they must be those of the same data")
    weight = weight_of(batch)
    known = [(labels.where(labels >= 0, choice) if filled else labels, part) for labels, part in answers(batch)]
    own = torch.stack([cross_entropy(said["class"], labels, weight=part).sum() for labels, part in known]).sum()
    heard = cross_entropy(said["distilled"], choice, weight=weight * counts(choice)).sum()
    return added({"cross_entropy": (1 - share, own), "heard": (share, heard)}, weight.sum())
