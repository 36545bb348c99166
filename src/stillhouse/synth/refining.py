"""Deletion programs as data for a small refiner, the refiner at work on a whole corpus, and its texts as data again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from ..core.engine import to_device
from ..core.run import Run, RunError
from ..core.signal import Batch
from ..data.noisy import bytes_packed
from ..data.tables import Row
from ..data.tokens import Packed, pack_rows
from ..models.call import dense, logits_of
from ..models.tagger import tagged
from .deletions import execute, line_spans, program_of
from .synthesize import ROWS, made_rows
from .table import Writing
from .tidy import kept_of

Piece = tuple[str, list[bool]]  # some lines of a text, and of each whether it stood further up in the text


@dataclass(frozen=True)
class Tagged:
    """Pieces of texts whose characters stay (0) or go (1)."""

    pieces: tuple[Piece, ...]
    gone: tuple[tuple[bool, ...], ...]
    classes: int = 2

    def __len__(self) -> int:
        return len(self.pieces)

    def batch(self, items: Sequence[int], epoch: int) -> Batch:
        """inputs as `models.tagger.tagged`; labels [B, T]; weight [B, T], 0 for blanks and padding."""
        inputs = tagged([self.pieces[i][0] for i in items], [self.pieces[i][1] for i in items])
        labels, weight = torch.zeros_like(inputs["letters"]), torch.zeros(inputs["letters"].shape)
        for row, i in enumerate(items):
            text = self.pieces[i][0]
            labels[row, : len(text)] = torch.tensor(self.gone[i], dtype=torch.long)
            weight[row, : len(text)] = torch.tensor([not c.isspace() for c in text], dtype=torch.float32)
        return {"inputs": inputs, "labels": labels, "weight": weight, "items": torch.tensor(list(items))}


@dataclass(frozen=True, kw_only=True)
class Deletions:
    """Rows of a stage, texts with their `program`, as characters that stay or go; the data of a stage for a tagger."""

    stage: str
    length: int = 512  # characters of a piece, where lines allow
    column: str = "text"  # that the programs are about
    classes: ClassVar[int | None] = 2

    def load(self, run: Run) -> Mapping[str, Tagged]:
        """The training split alone; RunError if no row has a program."""
        found, gone = list[Piece](), list[tuple[bool, ...]]()
        for row in made_rows(run, self.stage):
            lacking = [name for name in (self.column, "program") if name not in row]
            if lacking:
                raise RunError(
                    f"stage {self.stage!r} made rows without {lacking[0]!r}: a refiner learns from text and program"
                )
            text, at = str(row[self.column]), 0
            kept = execute(text, row["program"]).kept
            for piece in pieces_of(text, self.length):
                end = at + len(piece[0])
                if piece[0].strip():
                    found.append(piece)
                    gone.append(tuple(not keep for keep in kept[at:end]))
                at = end
        return {"train": Tagged(tuple(found), tuple(gone))}


def pieces_of(text: str, length: int) -> Iterator[Piece]:
    """A text in runs of whole lines of at most so many characters and a line end; a longer line is cut."""
    seen, before = list[bool](), set[str]()
    for line in text.split("\n"):
        words = " ".join(line.split())
        seen.append(bool(words) and words in before)
        before.add(words)
    start, first = 0, 0
    spans = line_spans(text)
    for number, (begin, end) in enumerate(spans):
        if end + 1 - start > length and begin > start:
            yield text[start:begin], seen[first : number + 1]
            start, first = begin, number
        while end - start > length:
            yield text[start : start + length], seen[number : number + 1]
            start += length
    if start < len(text):
        yield text[start:], seen[first:]


@torch.no_grad()
def refine(module: nn.Module, texts: Sequence[str], run: Run, *, length: int = 512, batch: int = 64) -> list[str]:
    """The program of every text, as a tagger sees it. What stays says `tidy.kept_of`."""
    pieces = [(number, piece) for number, text in enumerate(texts) for piece in pieces_of(text, length)]
    odds: list[list[float]] = [[] for _ in texts]
    for begin in range(0, len(pieces), batch):
        some = pieces[begin : begin + batch]
        inputs = tagged([piece[0] for _, piece in some], [piece[1] for _, piece in some])
        logits = dense(logits_of(module, to_device({"inputs": inputs}, run.device))).float()
        for (number, piece), said in zip(some, (logits[..., 1] - logits[..., 0]).cpu(), strict=True):
            odds[number] += said[: len(piece[0])].tolist()
    return [program_of(text, kept_of(text, said)) or "keep_all()" for text, said in zip(texts, odds, strict=True)]


@dataclass(frozen=True, kw_only=True)
class Refine:
    """Let a trained refiner go over a split of the recipe's data: the artifact is `rows.parquet` with `text`, refined, its
    `program`, and the text as it `was`. Rows of which nothing is left are among the run's rejects."""

    refiner: str = "refiner"  # the stage that trained it
    data: Any = None  # None: the recipe's
    split: str = "train"
    length: int = 512  # characters of a piece
    batch: int = 256  # texts at a time

    def __call__(self, run: Run) -> None:
        """Text after text; RunError if nothing is left of any."""
        stage = run.recipe.stages.get(self.refiner)
        if not hasattr(stage, "student"):
            raise RunError(f"no training stage {self.refiner!r} whose model could refine")
        module = (stage.student or run.recipe.student).load(run.path(self.refiner), run).to(run.device).eval()
        rows: list[Row] = (self.data or run.recipe.data).rows(run)[self.split]
        with run.artifact(run.stage, kind="rows", rows=len(rows)) as folder:
            out = Writing(folder / ROWS)
            for begin in range(0, len(rows), self.batch):
                self._some(rows[begin : begin + self.batch], module, out, run)
            if not out.count:
                raise RunError(f"the refiner of stage {self.refiner!r} leaves nothing of any text; give it more examples")
            out.close()

    def _some(self, rows: Sequence[Row], module: nn.Module, out: Writing, run: Run) -> None:
        if any("text" not in row for row in rows):
            raise RunError("a refiner reads rows with a `text`; name the column (data.column)")
        programs = refine(module, [row["text"] for row in rows], run, length=self.length)
        for row, program in zip(rows, programs, strict=True):
            left = execute(row["text"], program).text
            if left.strip():
                out.add({"text": left, "program": program, "was": row["text"]})
            else:
                run.reject({"text": row["text"]}, "nothing is left of it")


@dataclass(frozen=True, kw_only=True)
class Texts:
    """The texts that a stage has made or refined as the training split of a language model, in the recipe's splits."""

    stage: str
    column: str = "text"

    def load(self, run: Run) -> Mapping[str, Packed]:
        """Packed as the recipe's data are: bytes, or the student's tokens."""
        base = run.recipe.data
        texts = [str(row[self.column]) for row in made_rows(run, self.stage)]
        if hasattr(run.recipe.student, "tokenizer"):
            coder = run.recipe.student.tokenizer(run)
            train = pack_rows([{"text": text} for text in texts], coder, base.length, run)
        else:
            train = bytes_packed(texts, base.length)
        return {**run.sources(base), "train": train}
