"""Texts with questions about them as training data: what is asked, and what is there, tag by tag or turn by turn."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..core.run import Run, RunError
from ..core.signal import Batch
from ..data.tables import Row
from ..data.tokens import Packed, pack_rows
from ..models.typed import tags_of
from .synthesize import made_rows

GIVEN, READ, ASKED = "Text: {text}", "I have read it.", "Which names of this kind does the text hold: {type}?"


@dataclass(frozen=True)
class Queries:
    """One question about one text an item."""

    items: tuple[tuple[str, str, tuple[str, ...]], ...]  # (text, type, names)
    reader: Any  # the student's spec

    def __len__(self) -> int:
        return len(self.items)

    def batch(self, items: Sequence[int], epoch: int) -> Batch:
        """inputs as the student reads them, labels and weight `[B, T]`: a tag for every word, 0 weight on padding."""
        rows = [self.items[i] for i in items]
        tags = [tags_of(text, names) for text, _, names in rows]
        width = max(1, max(map(len, tags), default=1))
        labels, weight = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width)
        for row, found in enumerate(tags):
            labels[row, : len(found)] = torch.tensor(found, dtype=torch.long)
            weight[row, : len(found)] = 1.0
        inputs = self.reader.read([text for text, _, _ in rows], [kind for _, kind, _ in rows])
        return {"inputs": inputs, "labels": labels, "weight": weight}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What stage `stage` has made: each question of a row's `queries` for a tagger, its `messages` for a language model."""

    stage: str
    length: int = 1024  # tokens in a row, for a language model

    def load(self, run: Run) -> Mapping[str, Any]:
        """`train` alone: what is held out is judged by the recipe's own data."""
        student, rows = run.recipe.student, made_rows(run, self.stage)
        if hasattr(student, "read"):
            items = [(r["text"], each["type"], tuple(each["names"])) for r in rows for each in r["queries"]]
            return {"train": Queries(tuple(items), student)}
        if not hasattr(student, "tokenizer"):
            raise RunError(
                f"the student {type(student).__name__} reads no questions about texts; take models.typed.TypedTagger, or "
                "models.hub.HubLM for a language model from Hugging Face"
            )
        packed: Packed = pack_rows([{"messages": r["messages"]} for r in rows], student.tokenizer(run), self.length, run)
        if not packed.rows:
            why = "; ".join(dict.fromkeys(line["why"] for line in run.read("rejects.jsonl"))) or "all are empty"
            raise RunError(f"no conversation that stage {self.stage!r} made can be learned from: {why}")
        return {"train": packed}


def conversation(
    text: str, queries: Sequence[Row], *, given: str = GIVEN, read: str = READ, asked: str = ASKED
) -> list[Row]:
    """A text, that it was read, and then every question with its answer, a JSON list, as turns of a chat."""
    turns = [{"role": "user", "content": put(given, text=text)}, {"role": "assistant", "content": read}]
    for each in queries:
        turns.append({"role": "user", "content": put(asked, type=each["type"])})
        if "names" in each:
            turns.append({"role": "assistant", "content": json.dumps(list(each["names"]), ensure_ascii=False)})
    return turns


def put(words: str, **facts: str) -> str:
    """Words with what stands in braces replaced, and nothing else: a text may hold braces of its own."""
    for name, value in facts.items():
        words = words.replace("{" + name + "}", value)
    return words
