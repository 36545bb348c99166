"""What does a refiner take out of held-out texts: the noise, all of it, and nothing else? And does it add anything?"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.report import Finding
from ..core.run import Run
from ..core.stage import Subjects
from ..synth.deletions import execute, is_subsequence, settled
from ..synth.refining import refine
from ..synth.shortest import aligned, parts_of
from .significance import bootstrap, bootstrap_mean


@dataclass(frozen=True, kw_only=True)
class RefinedTexts:
    """Before and after. Characters that are no blanks are counted; intervals are over texts.

    `deletion_precision`: of what goes, the share that is noise; `deletion_recall`: of the noise, the share that goes;
    `noise_before` and `noise_after`: the shares of the text that are noise. These need rows that say under `clean` what is
    to stay; without them the rest is told: words that the text did not have, texts that stay as they are, texts of which
    nothing stays.
    """

    split: str = "test"
    clean: str = "clean"  # the column with the truth, a subsequence of the text
    length: int = 512  # characters of a piece
    draws: int = 2000

    def __call__(self, run: Run, subjects: Subjects) -> Iterator[Finding]:
        """The findings about every subject."""
        rows = run.recipe.data.rows(run)[self.split]
        texts = [str(row["text"]) for row in rows]
        known = [str(row[self.clean]) for row in rows if row.get(self.clean) is not None]
        truths = [truth_of(text, clean) for text, clean in zip(texts, known, strict=True)] if len(known) == len(rows) else []
        for name in subjects.names:
            programs = refine(subjects.load(name), texts, run, length=self.length)
            done = [execute(text, program) for text, program in zip(texts, programs, strict=True)]
            assert all(is_subsequence(each.text, text) for each, text in zip(done, texts, strict=True))
            common: Any = {"subject": name, "split": self.split, "n": len(texts), "over": "texts"}
            for quantity, better, sums in self._shares(texts, done):
                found = bootstrap_mean(*sums, draws=self.draws, seed=run.seed)
                yield Finding(name=quantity, value=found.value, low=found.low, high=found.high, better=better, **common)
            if truths:
                yield from self._against(texts, [each.kept for each in done], truths, common, run)

    def _shares(self, texts: list[str], done: list[Any]) -> Iterator[tuple[str, Any, tuple[Tensor, Tensor]]]:
        words = [(set(_words(text)), _words(each.text)) for text, each in zip(texts, done, strict=True)]
        new = torch.tensor([[sum(w not in old for w in said), len(said)] for old, said in words]).double()
        yield "new_word_rate", "lower", (new[:, 0], new[:, 1])
        ones = torch.ones(len(texts), dtype=torch.float64)
        same = torch.tensor([each.text == text for text, each in zip(texts, done, strict=True)]).double()
        yield "untouched", "neither", (same, ones)
        yield "emptied", "neither", (torch.tensor([not each.text.strip() for each in done]).double(), ones)

    def _against(self, texts: Any, kept: Any, truths: Any, common: Any, run: Run) -> Iterator[Finding]:
        counts = torch.zeros(len(texts), 4, dtype=torch.float64)  # noise gone, noise left, text gone, text left
        for row, (text, stays, truth) in enumerate(zip(texts, kept, truths, strict=True)):
            for c, stay, true in zip(text, stays, truth, strict=True):
                if not c.isspace():
                    counts[row, 2 * true + stay] += 1

        def share(over: tuple[int, ...], of: tuple[int, ...]) -> Any:
            return lambda sums: sums[:, over].sum(1) / sums[:, of].sum(1).clamp(min=1)

        quantities: tuple[tuple[str, tuple[int, ...], tuple[int, ...], Any], ...] = (
            ("deletion_precision", (0,), (0, 2), "higher"), ("deletion_recall", (0,), (0, 1), "higher"),
            ("noise_before", (0, 1), (0, 1, 2, 3), "neither"), ("noise_after", (1,), (1, 3), "lower"),
            ("deletion_f1", (0, 0), (0, 0, 1, 2), "higher"),
        )  # fmt: skip
        for name, over, of, better in quantities:
            found = bootstrap(counts, share(over, of), draws=self.draws, seed=run.seed)
            yield Finding(name=name, value=found.value, low=found.low, high=found.high, better=better, **common)


def truth_of(text: str, clean: str) -> list[bool]:
    """Which characters of a text are in its clean version: whole words where that can be, and of equal lines the first."""
    parts = parts_of(text, "words")
    found = aligned(parts, parts_of(clean, "words"))
    if found.inserted or found.replaced:
        return settled(text, aligned(text, clean).kept)
    return settled(text, [keep for part, keep in zip(parts, found.kept, strict=True) for _ in part])


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())
