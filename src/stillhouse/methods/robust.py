"""What methods share that make networks hard to fool: the loss of a robust teacher, and that of a robust student."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..core.method import State, Update
from ..core.run import Run, RunError
from ..core.signal import Batch, Kind
from ..models.attacks import Attack, Light, evaluating, light_of, noise_by_item
from ..models.call import weight_of
from ..models.elastic import logits_by
from ..objectives.divergences import ForwardKL, cross_entropy


@dataclass(frozen=True, kw_only=True)
class Trades:
    """TRADES (Zhang et al. 2019, arXiv 1901.08573): CE(y, p(x)) + beta KL(p(x) ‖ p(x')), x' where that KL is large.

    The gradient goes through both sides. The attack is made in evaluation mode.
    """

    beta: float = 6.0
    attack: Attack = Attack()
    needs: ClassVar[frozenset[Kind]] = frozenset()

    @property
    def equation(self) -> str:
        """The objective with its live weights."""
        return f"CE(y, p(x)) + {self.beta:g} KL(p(x) ‖ p(x'))"

    def setup(self, student: nn.Module, run: Run) -> State:
        """The student alone; RunError if the data are no images."""
        images_light(run)
        return State(student=student)

    def step(self, s: State, batch: Batch, run: Run) -> Iterator[Update]:
        """One update over all items; those without a label have the second term alone."""
        weight = weight_of(batch)
        with evaluating(s.student), torch.no_grad():
            clean = logits_by(s.student, batch, 0)
        attacked = fooled(s.student, 0, batch, clean, self.attack, images_light(run), run)
        plain, other = logits_by(s.student, batch, 0), logits_by(s.student, {**batch, "inputs": attacked}, 0)
        apart = two_sided_kl(plain, other) * weight
        nll = cross_entropy(plain, batch["labels"], weight=weight)
        logs = {"cross_entropy": nll.sum().detach(), "kl": apart.sum().detach()}
        yield Update((nll + self.beta * apart).sum(), count=weight.sum(), logs=logs)


def two_sided_kl(first: Tensor, second: Tensor) -> Tensor:
    """KL(softmax first ‖ softmax second) of each item [*N], with a gradient to both."""
    log_p, log_q = (z.to(torch.promote_types(z.dtype, torch.float32)).log_softmax(-1) for z in (first, second))
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def images_light(run: Run) -> Light:
    """What a pixel of the training images can be, on the run's device; RunError if they are no images."""
    if not hasattr(run.source, "light"):
        raise RunError("an attack changes pixels: give data of images (data.images.Folder, Npz, Table, Standard or Digits)")
    return light_of(run.source).to(run.device)


def fooled(module: nn.Module, member: int, batch: Batch, told: Tensor, attack: Attack, light: Light, run: Run) -> Tensor:
    """Images near those of the batch where KL(softmax told ‖ softmax of the member's logits) is large."""

    def value(images: Tensor) -> Tensor:
        return ForwardKL()(logits_by(module, {**batch, "inputs": images}, member), told)

    items = batch["items"].tolist() if "items" in batch else range(len(batch["inputs"]))
    noise = noise_by_item(batch["inputs"], items, run.seed, "attack", run.step)
    with evaluating(module):
        return attack(value, batch["inputs"], light, noise=noise)
