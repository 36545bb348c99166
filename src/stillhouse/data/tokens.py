"""Text as packed rows of tokens: chat templates, loss on the assistant's tokens, no leak between packed documents."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..core.run import Run, RunError
from ..core.signal import Batch
from .tables import Row, read_rows, split_rows


@dataclass(frozen=True, slots=True)
class Document:
    """One example as tokens; `counts[i]` says whether token i is to be predicted (its loss counts)."""

    tokens: list[int]
    counts: list[bool]
    example: int  # the row it came from; the pieces of a long document share it


@dataclass(frozen=True)
class Packed:
    """Rows of up to `length` tokens, each holding one or more documents that do not see each other."""

    rows: tuple[tuple[Document, ...], ...]
    length: int
    classes: int | None = None  # size of the vocabulary, for models that are made to measure

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def tokens(self) -> int:
        """Tokens in all rows, padding left out."""
        return sum(len(d.tokens) for row in self.rows for d in row)

    @property
    def targets(self) -> int:
        """Tokens whose loss counts."""
        return sum(sum(d.counts[1:]) for row in self.rows for d in row)

    def prompts(self) -> list[list[int]]:
        """The prompt of every document, see `prompts_of`."""
        return prompts_of(self.batch(range(len(self)), 0))

    def batch(self, items: Sequence[int], epoch: int) -> Batch:
        """inputs tokens/position/document [B, T], labels and weight [B, T], example [B, T] (-1 is padding).

        `labels[b, t]` follows `tokens[b, t]`; the last token of a document predicts nothing (weight 0).
        """
        rows = [self.rows[i] for i in items]
        width = max((sum(len(d.tokens) for d in row) for row in rows), default=0)
        names = ("tokens", "position", "document", "labels", "example")
        tables = {name: torch.full((len(rows), width), -1 if name in ("document", "example") else 0) for name in names}
        weight = torch.zeros(len(rows), width)
        for r, row in enumerate(rows):
            at = 0
            for number, document in enumerate(row):
                n = len(document.tokens)
                span = slice(at, at + n)
                ids = torch.tensor(document.tokens)
                tables["tokens"][r, span] = ids
                tables["position"][r, span] = torch.arange(n)
                tables["document"][r, span] = number
                tables["example"][r, span] = document.example
                tables["labels"][r, at : at + n - 1] = ids[1:]
                weight[r, at : at + n - 1] = torch.tensor(document.counts[1:], dtype=torch.float32)
                at += n
        inputs: dict[str, Tensor] = {k: tables[k] for k in ("tokens", "position", "document")}
        return {"inputs": inputs, "labels": tables["labels"], "weight": weight, "example": tables["example"]}


def prompts_of(batch: Batch, *, opening: int = 8) -> list[list[int]]:
    """The prompts of a packed language batch: each document up to where its counted tokens begin.

    A document in which all tokens count has no prompt; its first `opening` tokens serve as one.
    """
    found: list[list[int]] = []
    tokens, number, weight = batch["inputs"]["tokens"], batch["inputs"]["document"], batch["weight"]
    for row in range(len(tokens)):
        for document in range(int(number[row].max()) + 1):
            here = number[row] == document
            ids, counts = tokens[row][here].tolist(), (weight[row][here] > 0).tolist()
            begin = counts.index(True) + 1 if True in counts else len(ids)
            found.append(ids[: opening if begin == 1 else begin])
    return found


def pack(documents: Iterable[Document], length: int, classes: int | None = None, *, together: bool = True) -> Packed:
    """Best-fit-decreasing packing. A document longer than `length` is cut into pieces that count as documents.

    If not `together`, every piece has a row of its own, in the order given.
    """
    pieces: list[Document] = []
    for d in documents:
        for at in range(0, len(d.tokens), length):
            piece = Document(d.tokens[at : at + length], d.counts[at : at + length], d.example)
            if len(piece.tokens) > 1 and any(piece.counts[1:]):
                pieces.append(piece)
    if not together:
        return Packed(tuple((piece,) for piece in pieces), length, classes)
    pieces.sort(key=lambda d: -len(d.tokens))
    room: dict[int, list[int]] = {}  # free tokens -> rows with that much room
    rows: list[list[Document]] = []
    for piece in pieces:
        need = len(piece.tokens)
        fit = min((free for free, found in room.items() if free >= need and found), default=None)
        if fit is None:
            rows.append([piece])
            index, fit = len(rows) - 1, length
        else:
            index = room[fit].pop()
            rows[index].append(piece)
        room.setdefault(fit - need, []).append(index)
    return Packed(tuple(tuple(row) for row in rows), length, classes)


@dataclass(frozen=True, kw_only=True)
class Text:
    """A user's text file for language models: `text`, `prompt` + `completion` or `messages` columns, found or named.

    With a prompt or messages only the completion's or the assistant's tokens count, unless `prompts_count`. Several
    documents share a row and do not see each other, unless `packed` is false: then a step's batch is so many documents.
    Splits are by row content.
    """

    path: str
    column: str | None = None  # the column to use; None: the first of messages, prompt + completion, text
    length: int = 512  # tokens in a packed row
    valid: float = 0.05  # share of the rows held out to choose
    test: float = 0.05  # share of the rows held out to judge
    limit: int | None = None  # use at most so many rows
    prompts_count: bool = False  # learn prompts and users' turns too
    packed: bool = True  # False: one document a row
    classes: ClassVar[int | None] = None  # the tokenizer's

    def load(self, run: Run) -> Mapping[str, Packed]:
        """The packed splits."""
        splits = self.rows(run)
        tokenizer = run.recipe.student.tokenizer(run)
        packed = {
            name: pack_rows(rows, tokenizer, self.length, run, everything=self.prompts_count, together=self.packed)
            for name, rows in splits.items()
        }
        for name, share in (("train", 1.0), ("valid", self.valid), ("test", self.test)):
            if share and not packed[name].rows:  # better now than after the training
                raise RunError(f"no {name} row of {self.path} can be learned from: {_reasons(run)}")
        return packed

    def rows(self, run: Run) -> dict[str, list[Row]]:
        """The splits as rows: what each row teaches, see `example_of`."""
        rows: list[Row] = []
        for row in read_rows(self.path, run)[: self.limit]:
            example = example_of(row, self.column)
            if isinstance(example, str):
                run.reject(row, example)
            else:
                rows.append(example)
        if not rows:
            raise RunError(f"no row of {self.path} can be learned from: {_reasons(run)}")
        return split_rows(rows, valid=self.valid, test=self.test, run=run)

    def prompts(self, run: Run) -> dict[str, list[list[int]]]:
        """The prompt of every row as tokens: what a teacher is asked to answer."""
        tokenizer = run.recipe.student.tokenizer(run)
        found: dict[str, list[list[int]]] = {}
        for name, rows in self.rows(run).items():
            coded = [(row, encode_prompt(row, tokenizer)) for row in rows]
            found[name] = [tokens for _, tokens in coded if 0 < len(tokens) < self.length]
            for row, tokens in coded:
                if not 0 < len(tokens) < self.length:
                    run.reject(row, f"a prompt of {len(tokens)} tokens; rows have {self.length} (--length)")
        if not found["train"]:
            raise RunError(f"no prompt of {self.path} can be answered: {_reasons(run)}")
        return found


def pack_rows(
    rows: Sequence[Row], tokenizer: Any, length: int, run: Run, *, everything: bool = False, together: bool = True
) -> Packed:
    """Rows of text, packed; those that cannot be learned from are rejected with the reason.

    `everything`: prompts count too; `together`: documents share rows (see `pack`).
    """
    documents: list[Document] = []
    for number, row in enumerate(rows):
        made = encode(row, tokenizer)
        if isinstance(made, str):
            run.reject(row, made)
        else:
            tokens, counts = made
            documents.append(Document(tokens, [True] * len(tokens) if everything else counts, number))
    return pack(documents, length, together=together)


def _reasons(run: Run) -> str:
    reasons = dict.fromkeys(reject["why"] for reject in run.read("rejects.jsonl"))
    return "; ".join(list(reasons)[:3]) or "all are empty"


def example_of(row: Row, column: str | None = None) -> Row | str:
    """What a row teaches: {"messages"}, {"prompt", "completion"}, {"text"} or {"prompt"} alone; or why it cannot.

    Other columns (ids, sources) are left out, so that the same text under two ids counts as one. A named column of
    text beside a prompt is its completion.
    """
    prompt = row.get("prompt") or row.get("question")
    kind = column or next((c for c in ("messages", "completion", "text") if row.get(c)), None)
    if kind is None:
        return {"prompt": str(prompt)} if prompt else "no text, prompt + completion or messages column; name one"
    value = row.get(kind)
    if not value:
        return f"column {kind!r} is empty" if kind in row else f"no column {kind!r}"
    if kind == "messages" or isinstance(value, list):
        turns = _turns(value)
        return f"column {kind!r} is not a list of turns with role and content" if turns is None else {"messages": turns}
    if kind == "completion" or (prompt and kind != "text"):
        return {"prompt": str(prompt or ""), "completion": str(value)}
    return {"text": str(value)}


def _turns(value: Any) -> list[dict[str, Any]] | None:
    try:
        turns = json.loads(value) if isinstance(value, str) else value  # a CSV holds them as JSON
    except ValueError:
        return None
    fit = isinstance(turns, list) and all(isinstance(t, dict) and t.get("role") and "content" in t for t in turns)
    return turns if turns and fit else None


def encode(row: Row, tokenizer: Any) -> tuple[list[int], list[bool]] | str:
    """The tokens of what a row teaches (see `example_of`) and which of them count; or why it cannot be learned from."""
    if "messages" in row:
        return _encode_chat(row["messages"], tokenizer)
    if "completion" in row:
        return _encode_pair(row["prompt"], row["completion"], tokenizer)
    if "text" not in row:
        return "a prompt without a completion: let the teacher write the answers (--method seqkd)"
    tokens = tokenizer(row["text"])["input_ids"]
    end = tokenizer.eos_token_id
    tokens = tokens if end is None else [*tokens, end]
    return tokens, [True] * len(tokens)


def _encode_pair(prompt: str, completion: str, tokenizer: Any) -> tuple[list[int], list[bool]] | str:
    """A prompt and its completion: as a chat if the tokenizer has a template, else joined as they are."""
    if tokenizer.chat_template:
        chat = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
        return _encode_chat(chat, tokenizer)
    head = tokenizer(prompt)["input_ids"]
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    tail = tokenizer(completion, add_special_tokens=False)["input_ids"] + end
    return head + tail, [False] * len(head) + [True] * len(tail)


def _encode_chat(messages: Sequence[Mapping[str, Any]], tokenizer: Any) -> tuple[list[int], list[bool]] | str:
    """A rendered conversation in which the assistant's words and the token that ends each turn count.

    Templates that rewrite earlier turns (dropping their reasoning) leave only the turns that can still be found.
    """
    if not tokenizer.chat_template:
        return "a conversation, but the tokenizer has no chat template; give prompt + completion columns instead"
    if not any(m.get("role") == "assistant" and m.get("content") for m in messages):
        return "a conversation without an assistant's answer: let the teacher write it (--method seqkd)"
    if messages[0]["role"] == "assistant":
        return "a conversation that begins with the assistant; nobody has asked it anything"
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        spans: list[tuple[int, int]] = []
        for i, message in enumerate(messages):
            if message["role"] == "assistant":
                begin = tokenizer.apply_chat_template(messages[:i], tokenize=False, add_generation_prompt=True)
                until = tokenizer.apply_chat_template(messages[: i + 1], tokenize=False)
                if text.startswith(begin) and text.startswith(until):
                    spans.append((len(begin), len(until.rstrip("\n"))))
    except Exception as error:  # a template is a program, and refuses roles or orders as it likes
        return f"the chat template refuses it: {next(iter(str(error).splitlines()), type(error).__name__)}"
    if not spans:
        return "the chat template moves the assistant's words, so they cannot be found"
    coded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    counts = [any(a <= start < b for a, b in spans) for start, _ in coded["offset_mapping"]]
    return coded["input_ids"], counts


def encode_prompt(row: Row, tokenizer: Any, opening: int = 32) -> list[int]:
    """The tokens up to where the assistant (or the completion) begins; the first `opening` tokens of a plain text."""
    if "text" in row:
        return tokenizer(row["text"])["input_ids"][:opening]
    if not tokenizer.chat_template:
        if "messages" in row:
            raise RunError("the data hold conversations, but the tokenizer has no chat template; give prompts instead")
        return tokenizer(row["prompt"])["input_ids"]
    if "messages" in row:
        last = max((i for i, m in enumerate(row["messages"]) if m["role"] == "assistant"), default=None)
        turns = row["messages"][:last]
    else:
        turns = [{"role": "user", "content": row["prompt"]}]
    if not turns:
        return []
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template is a program, and refuses roles or orders as it likes
        raise RunError(f"the chat template refuses the prompt {str(turns)[:80]}: {error}") from error
    return tokenizer(text, add_special_tokens=False)["input_ids"]
