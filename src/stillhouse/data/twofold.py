"""One text in the tokens of two tokenizers, cut where both have a boundary: what cross-tokenizer methods compare.

A `Spelling` turns a row into tokens and says which bytes a token stands for. Where the bytes that count are the same in
both, the text falls into chunks: the shortest runs of tokens of both sides that end at the same byte.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Protocol

import torch

from ..core.run import Run, RunError
from ..core.signal import Batch
from .tables import Row
from .tokens import Document, Packed, encode, pack

STOP = b"\xff"  # what any token that ends or frames a text stands for; no byte of UTF-8


class Spelling(Protocol):
    """Between rows and tokens."""

    @property
    def classes(self) -> int | None:
        """How many tokens there are; None: the model knows."""
        ...

    def encode(self, row: Row) -> tuple[list[int], list[bool]] | str:
        """Tokens and which of them count, or why the row cannot be learned from."""
        ...

    def spell(self, token: int) -> bytes:
        """The bytes that a token stands for."""
        ...


@dataclass(frozen=True, kw_only=True)
class ByteSpelling:
    """UTF-8, a token a byte; 0 ends a text."""

    classes: int = 256

    def encode(self, row: Row) -> tuple[list[int], list[bool]] | str:
        """Bytes; those of a prompt do not count."""
        return _of_bytes(row, lambda text: [byte or 32 for byte in text.encode()])

    def spell(self, token: int) -> bytes:
        """The byte."""
        return bytes([token]) if token else STOP


@dataclass(frozen=True, kw_only=True)
class PairSpelling:
    """UTF-8 in which the commonest `pairs` pairs of bytes of `base`'s training rows are tokens of their own; 0 ends a text.

    A tokenizer small enough to train a model for in seconds, and unlike bytes.
    """

    base: Any  # DataSpec with rows
    pairs: int = 120

    def build(self, run: Run) -> _Pairs:
        """The spelling, from the training rows."""
        seen = Counter[tuple[int, int]]()
        for row in self.base.rows(run)["train"]:
            text = list("".join(str(value) for value in row.values()).encode())
            seen.update(zip(text[::2], text[1::2], strict=False))
        return _Pairs(tuple(pair for pair, _ in seen.most_common(self.pairs)))


class _Pairs:
    def __init__(self, pairs: tuple[tuple[int, int], ...]):
        self.pairs = pairs
        self.ids = {pair: 256 + number for number, pair in enumerate(pairs)}

    @property
    def classes(self) -> int:
        return 256 + len(self.pairs)

    def encode(self, row: Row) -> tuple[list[int], list[bool]] | str:
        return _of_bytes(row, self._tokens)

    def _tokens(self, text: str) -> list[int]:
        data, tokens, at = [byte or 32 for byte in text.encode()], list[int](), 0
        while at < len(data):
            pair = self.ids.get((data[at], data[at + 1])) if at + 1 < len(data) else None
            tokens.append(data[at] if pair is None else pair)
            at += 1 if pair is None else 2
        return tokens

    def spell(self, token: int) -> bytes:
        if token >= 256:
            return bytes(self.pairs[token - 256])
        return bytes([token]) if token else STOP


def _of_bytes(row: Row, tokens: Any) -> tuple[list[int], list[bool]] | str:
    if "messages" in row:
        return "a conversation, but a model of bytes has no chat template; give prompt + completion columns instead"
    prompt = tokens(row["prompt"]) if row.get("prompt") else []
    text = row.get("completion", row.get("text"))
    if not text:
        return "a prompt without a completion: let the teacher write the answers (--method seqkd)"
    body = [*tokens(text), 0]
    return prompt + body, [False] * len(prompt) + [True] * len(body)


class HubSpelling:
    """A Hugging Face tokenizer, byte-level or of SentencePiece's kind."""

    classes = None

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.special = set(tokenizer.all_special_ids)
        self.byte_level = "ByteLevel" in str(getattr(tokenizer.backend_tokenizer, "decoder", ""))

    def encode(self, row: Row) -> tuple[list[int], list[bool]] | str:
        """As the tokenizer and its chat template do."""
        return encode(row, self.tokenizer)

    def spell(self, token: int) -> bytes:
        """The bytes of the token's piece; a special token ends or frames."""
        if token in self.special:
            return STOP
        piece = self.tokenizer.convert_ids_to_tokens(token)
        if self.byte_level:
            table = _byte_table()
            return bytes(table[c] for c in piece) if all(c in table for c in piece) else piece.encode()
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return bytes([int(piece[3:5], 16)])
        return piece.replace("\u2581", " ").encode()


@lru_cache(maxsize=1)
def _byte_table() -> dict[str, int]:
    """The printable character that stands for each byte in byte-level vocabularies (GPT-2's), the other way round."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + number): byte for number, byte in enumerate(moved)}


def spelling_of(spec: Any, run: Run) -> Spelling:
    """The spelling of a model spec with a tokenizer, of a spec that builds one, or bytes."""
    if hasattr(spec, "tokenizer"):
        return HubSpelling(spec.tokenizer(run))
    return spec.build(run) if isinstance(spec, PairSpelling) else ByteSpelling() if spec is None else spec


Coded = tuple[list[int], list[bool]]


def aligned(mine: Coded, theirs: Coded, ours: Spelling, other: Spelling) -> tuple[list[int], list[int]] | str:
    """The chunk of every token of both sides, -1 for those that do not count; or why they cannot be aligned.

    A blank that only one side has at the very beginning, as SentencePiece adds one, is overlooked.
    """
    ends = [_ends(coded, spelling) for coded, spelling in ((mine, ours), (theirs, other))]
    texts = [b"".join(piece for piece, _ in side) for side in ends]
    lead = [len(text) - len(text.lstrip(b" ")) for text in texts]
    if texts[0].lstrip(b" ") != texts[1].lstrip(b" "):
        return "the two tokenizers do not spell its counted part with the same bytes"
    shift = lead[0] - lead[1]
    places = [{}, {}]
    for side, pieces in enumerate(ends):
        at = -(shift if side == 0 else 0)
        for piece, index in pieces:
            at += len(piece)
            places[side][index] = at
    common = sorted(set(places[0].values()) & set(places[1].values()))
    chunks = []
    for side, coded in enumerate((mine, theirs)):
        number, found = 0, [-1] * len(coded[0])
        for index, end in places[side].items():
            while number < len(common) and end > common[number]:
                number += 1
            found[index] = number
        chunks.append(found)
    return chunks[0], chunks[1]


def _ends(coded: Coded, spelling: Spelling) -> list[tuple[bytes, int]]:
    """(bytes, index) of the counted tokens, without framing at the beginning, a run of it at the end taken as one."""
    found = [(spelling.spell(token), i) for i, (token, counts) in enumerate(zip(*coded, strict=True)) if counts]
    while found and found[0][0] == STOP:
        found.pop(0)
    while len(found) > 1 and found[-1][0] == found[-2][0] == STOP:
        found.pop()
    return found


@dataclass(frozen=True)
class TwofoldRows:
    """One document a row, in both spellings. `rows` are (student's document, teacher's, chunks of both)."""

    rows: tuple[tuple[Document, Document, list[int], list[int]], ...]
    length: int
    classes: int | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def tokens(self) -> int:
        """The student's tokens in all rows."""
        return sum(len(row[0].tokens) for row in self.rows)

    @property
    def targets(self) -> int:
        """The student's tokens whose loss counts."""
        return sum(chunk >= 0 for row in self.rows for chunk in row[2][1:])

    def batch(self, items: Sequence[int], epoch: int) -> Batch:
        """A language batch with `chunk` [B, T] (of the token that a label is; -1: of none) and `chunks`, their number.

        `teacher` is the same in the teacher's tokens. A chunk that a row has on one side it has on both.
        """
        rows = [self.rows[i] for i in items]
        mine, theirs = tuple((row[0],) for row in rows), tuple((row[1],) for row in rows)
        sides = [Packed(each, self.length).batch(range(len(rows)), 0) for each in (mine, theirs)]
        starts, total = [0], 0
        for row in rows:
            total += 1 + max(row[2], default=-1)
            starts.append(total)
        made: list[dict[str, Any]] = []
        for side, batch in enumerate(sides):
            chunk = torch.full_like(batch["labels"], -1)
            for r, row in enumerate(rows):
                found = torch.tensor((row[2], row[3])[side][1:], dtype=torch.long)
                chunk[r, : len(found)] = torch.where(found >= 0, found + starts[r], -1)
            made.append({**batch, "chunk": chunk, "weight": batch["weight"] * (chunk >= 0), "chunks": total})
        return {**made[0], "teacher": made[1]}


@dataclass(frozen=True, kw_only=True)
class Twofold:
    """The rows of `base` in the student's tokens and in the teacher's.

    `teacher` is the teacher's model spec (its tokenizer is taken) or a spelling. A student without a tokenizer reads bytes.
    A row that is too long is cut behind the last common boundary within `length` of the student's tokens.
    """

    base: Any  # data with `rows`: data.tokens.Text, data.stdlib.StandardLibrary
    teacher: Any
    length: int = 256  # the student's tokens in a row
    teacher_length: int = 512  # the teacher's, at most: longer rows are rejected
    classes: ClassVar[int | None] = None  # those of the rows

    def load(self, run: Run) -> Mapping[str, TwofoldRows]:
        """The splits; RunError if none of the rows can be aligned."""
        student = run.recipe.student
        ours = spelling_of(student if hasattr(student, "tokenizer") else None, run)
        other = spelling_of(self.teacher, run)
        splits = {name: self._rows(rows, ours, other, run) for name, rows in self.base.rows(run).items()}
        if not len(splits["train"]):
            raise RunError("no row can be read by both tokenizers: see rejects.jsonl in the run's folder")
        return splits

    def rows(self, run: Run) -> dict[str, list[Row]]:
        """The rows as they are."""
        return self.base.rows(run)

    def _rows(self, rows: Sequence[Row], ours: Spelling, other: Spelling, run: Run) -> TwofoldRows:
        kept: list[tuple[Document, Document, list[int], list[int]]] = []
        for number, row in enumerate(rows):
            made = self._row(row, number, ours, other)
            if isinstance(made, str):
                run.reject(row, made)
            else:
                kept.append(made)
        return TwofoldRows(tuple(kept), max(self.length, self.teacher_length), ours.classes)

    def _row(self, row: Row, number: int, ours: Spelling, other: Spelling) -> Any:
        mine, theirs = ours.encode(row), other.encode(row)
        if isinstance(mine, str) or isinstance(theirs, str):
            return mine if isinstance(mine, str) else theirs
        chunks = aligned(mine, theirs, ours, other)
        if isinstance(chunks, str):
            return chunks
        blind = {chunk[0] for chunk in chunks} - {-1}  # nobody predicts the first token, so its chunks are no whole ones
        chunks = tuple([-1 if c in blind else c for c in chunk] for chunk in chunks)
        whole = 1 + max(chunks[0], default=-1)
        last = next((c for c in chunks[0][self.length :] if c >= 0), whole) if len(mine[0]) > self.length else whole
        sides = []
        for (tokens, counts), chunk in zip((mine, theirs), chunks, strict=True):
            end = next((i for i, c in enumerate(chunk) if c >= last), len(tokens))
            sides.append((tokens[:end], [a and c >= 0 for a, c in zip(counts, chunk, strict=True)][:end], chunk[:end]))
        if len(sides[1][0]) > self.teacher_length or not any(c >= 0 for c in sides[0][2][1:]):
            return f"{len(theirs[0])} of the teacher's tokens, or none that counts (data.length, data.teacher_length)"
        documents = [Document(tokens, counts, number) for tokens, counts, _ in sides]
        return documents[0], documents[1], sides[0][2], sides[1][2]


@dataclass(frozen=True, kw_only=True)
class Spelled:
    """The rows of `base` in one spelling: what a teacher of its own tokenizer is trained on."""

    base: Any
    spelling: Any
    length: int = 256  # tokens in a packed row

    def load(self, run: Run) -> Mapping[str, Packed]:
        """The packed splits."""
        spelling = spelling_of(self.spelling, run)
        found: dict[str, Packed] = {}
        for name, rows in self.base.rows(run).items():
            coded = [(number, spelling.encode(row)) for number, row in enumerate(rows)]
            documents = [Document(*made, number) for number, made in coded if not isinstance(made, str)]
            found[name] = pack(documents, self.length, spelling.classes)
        return found
