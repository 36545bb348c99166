"""A student and a teacher on a few images, for the tests of methods that look into them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from stillhouse.core.run import Run
from stillhouse.data.images import Images
from stillhouse.models.toys import Convolutional
from stillhouse.teachers.module import Frozen


def stood(folder: Path, method: Any, *, same: bool = False, items: int = 6, classes: int = 4) -> tuple[Any, Run, Any]:
    """(the method's state, a run with a teacher, a batch); `same`: student and teacher are equal networks."""
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (items, 1, 8, 8), generator=draw, dtype=torch.uint8)
    names = tuple(str(i) for i in range(classes))
    run = Run(folder, device=torch.device("cpu"))
    scale = torch.full((1, 1, 1), 255.0)
    run.source = Images(pixels, torch.arange(items) % classes, names, torch.zeros(1, 1, 1), scale)
    torch.manual_seed(1)
    teacher = Convolutional(1, classes, 8, 2)
    torch.manual_seed(1 if same else 2)
    student = Convolutional(1, classes, 8 if same else 4, 2)
    run.teachers = {"teacher": Frozen(teacher)}
    return method.setup(student, run), run, run.source.batch(range(items), 0)
