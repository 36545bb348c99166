"""Two masked autoencoders and a few images, for the tests of methods that distil them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stillhouse.core.engine import micro_batches
from stillhouse.core.run import Run
from stillhouse.data.images import Images
from stillhouse.models.masked import Masked
from stillhouse.models.vision import ViT
from stillhouse.teachers.module import Frozen

SMALL = Masked(encoder=ViT(patch=2, width=8, depth=4, heads=2, shape=(1, 8, 8), classes=4), width=12, depth=1, heads=2)
BIG = Masked(encoder=replace(SMALL.encoder, width=16, depth=8), width=20, depth=4, heads=2)


def few_images(items: int = 6, side: int = 8) -> Images:
    """Random pictures of four classes."""
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (items, 1, side, side), generator=draw, dtype=torch.uint8)
    names = tuple(str(i) for i in range(4))
    return Images(pixels, torch.arange(items) % 4, names, torch.full((1, 1, 1), 128.0), torch.full((1, 1, 1), 74.0))


def stood(
    folder: Path, method: Any, *, student: Any = SMALL, teacher: Any = BIG, same: bool = False
) -> tuple[Any, Run, Any]:
    """(the method's state, a run with a teacher, a batch); `same`: student and teacher are equal networks."""
    run = Run(folder, device=torch.device("cpu"))
    run.source = few_images()
    torch.manual_seed(1)
    theirs = _shaken(student.build(run) if same else teacher.build(run))
    torch.manual_seed(1 if same else 2)
    own = _shaken(student.build(run))
    run.teachers = {"teacher": Frozen(theirs)}
    return method.setup(own, run), run, run.source.batch(range(6), 0)


def _shaken(module: nn.Module) -> nn.Module:
    """Norms away from 1 and 0, so that it shows where one is left out."""
    for value in module.parameters():
        if value.ndim == 1:
            with torch.no_grad():
                value.add_(torch.randn_like(value) * 0.3)
    return module


def total(method: Any, s: Any, run: Run, parts: int) -> tuple[float, float, list[torch.Tensor]]:
    """Loss, count and gradients of the six images in so many parts."""
    s.zero_grad(set_to_none=True)
    loss = count = 0.0
    for batch in micro_batches(run.source, step=0, size=6, accumulate=parts, seed=0):
        (update,) = method.step(s, batch, run)
        update.loss.backward()
        loss, count = loss + float(update.loss.detach()), count + float(update.count)
    return loss, count, [p.grad.clone() for p in s.parameters() if p.grad is not None]
