"""A toy student, a batch of pairs of characters, and scores by loops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from language import run_of
from stillhouse.data.pairs import PairSource
from stillhouse.data.tokens import Document
from stillhouse.data.toys import ALPHABET, Sentences, encode
from stillhouse.models.toys import TinyLM

STUDENT = TinyLM(width=16, depth=1)
TEXTS = (
    ("the cat", " sees the moon.\n", " likes.\n"),
    ("nobody", " paints.\n", " sings about warm bread.\n"),
    ("her sister", " has lost an apple.\n", " looks for two birds.\n"),
    ("the baker", " likes the river.\n", " x.\n"),
)


def pairs() -> PairSource:
    """Four ragged pairs."""

    def document(prompt: str, answer: str, number: int) -> Document:
        return Document(encode(prompt + answer), [False] * len(prompt) + [True] * len(answer), number)

    found = tuple((document(p, w, i), document(p, l, i)) for i, (p, w, l) in enumerate(TEXTS))  # noqa: E741
    return PairSource(found, 64, len(ALPHABET))


def toy(folder: Path) -> tuple[Any, Any, Any]:
    """(run, student, batch of four pairs)."""
    run = run_of(folder, STUDENT, data=Sentences())
    torch.manual_seed(0)
    student = STUDENT.build(run)
    with torch.no_grad():
        student.norm.weight.mul_(2.0)
    return run, student, pairs().batch(range(4), 0)


def scores(student: Any, *, mean: bool) -> tuple[Tensor, Tensor]:
    """The log-probabilities of the chosen and of the rejected answers, one document at a time; dense, double."""
    sides: tuple[list[Tensor], list[Tensor]] = ([], [])
    for pair in pairs().pairs:
        for side, document in zip(sides, pair, strict=True):
            logp = student(torch.tensor([document.tokens])).dense()[0].double().log_softmax(-1)
            found = [logp[t - 1, document.tokens[t]] for t in range(len(document.tokens)) if document.counts[t]]
            side.append(torch.stack(found).mean() if mean else torch.stack(found).sum())
    return torch.stack(sides[0]), torch.stack(sides[1])


def gradient(loss: Tensor, student: Any) -> Tensor:
    """All parameters in one vector."""
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(student.parameters()))])
