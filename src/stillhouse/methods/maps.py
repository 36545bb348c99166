"""What methods that compare maps share."""

from __future__ import annotations

from ..core.run import RunError
from .layers import Compared


def with_cells(s: Compared, what: str) -> Compared:
    """`s` as it is; RunError if a map has one cell only, where `what`, which is scaled to length 1, says nothing."""
    for taps, shapes in zip(s.taps, s.shapes, strict=True):
        for tap, shape, owner in zip(taps, shapes, ("student", "teacher"), strict=True):
            if shape[1] * shape[2] < 2:
                raise RunError(
                    f"{what} needs maps of two cells or more, and the {owner}'s {tap!r} has one: name earlier layers"
                    f" (method.layers.student and .teacher), or take a method that compares vectors (rkd, pkt, cc)"
                )
    return s
