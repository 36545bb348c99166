"""Two answers to one prompt, one better than the other: from a user's file, or from an earlier stage of this run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ..core.files import read_lines
from ..core.run import Run, RunError
from ..core.signal import Batch
from .tables import Row, content_key, read_rows, split_rows
from .tokens import Document, Packed, encode, encode_prompt, pack

Turns = list[dict[str, Any]]


@dataclass(frozen=True)
class PairSource:
    """Pairs of documents, chosen and rejected, that begin with the same prompt. One item is one pair."""

    pairs: tuple[tuple[Document, Document], ...]
    length: int
    classes: int | None = None  # size of the vocabulary, for models that are made to measure

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def tokens(self) -> int:
        """Tokens in all pairs, padding left out."""
        return sum(len(document.tokens) for pair in self.pairs for document in pair)

    def batch(self, items: Sequence[int], epoch: int) -> Batch:
        """A language batch of 2 n rows for n pairs, one document a row: first all chosen ones, then all rejected ones.

        As `Packed.batch`, and `pairs` = n. `example` [2 n, T] is the pair's, -1 on padding. One document a row
        needs no attention mask, which for long answers would be larger than everything else.
        """
        chosen = [self.pairs[i] for i in items]
        rows = tuple((pair[side],) for side in (0, 1) for pair in chosen)
        return {**Packed(rows, self.length).batch(range(len(rows)), 0), "pairs": len(chosen)}

    def chosen(self) -> Packed:
        """The chosen answers alone, packed, to be learned from as text."""
        return pack((pair[0] for pair in self.pairs), self.length, self.classes)


def pairs_in(batch: Batch) -> int:
    """How many pairs the batch holds; RunError if it holds plain text."""
    if "pairs" not in batch:
        raise RunError("this method learns from pairs of answers: give it pairs, as in "
                       "--set 'train.data={use: data.pairs.Pairs, path: pairs.jsonl}'")  # fmt: skip
    return batch["pairs"]


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """A user's file of pairs: a prompt and two answers, as text or as turns of a conversation; splits are by prompt.

    Both answers may be text, turns that go on after the prompt, or whole conversations with a common beginning, which
    then is the prompt. Only the assistant's words after the prompt count. A pair that is too long is rejected, not cut.
    """

    path: str
    prompt: str = "prompt"  # columns
    chosen: str = "chosen"
    rejected: str = "rejected"
    length: int = 1024  # tokens of prompt and answer, at most
    valid: float = 0.05  # share of the prompts held out to choose
    test: float = 0.05  # share of the prompts held out to judge
    limit: int | None = None  # use at most so many rows
    classes: ClassVar[int | None] = None  # the tokenizer's

    def load(self, run: Run) -> Mapping[str, PairSource]:
        """The splits; RunError if one that was asked for has no pair."""
        tokenizer = run.recipe.student.tokenizer(run)
        sources: dict[str, PairSource] = {}
        for name, pairs in self.pairs(run).items():
            coded = [(pair, encode_pair(pair, tokenizer, number, self.length)) for number, pair in enumerate(pairs)]
            for pair, made in coded:
                if isinstance(made, str):
                    run.reject(pair, made)
            sources[name] = PairSource(tuple(made for _, made in coded if not isinstance(made, str)), self.length)
        for name, share in (("train", 1.0), ("valid", self.valid), ("test", self.test)):
            if share and not len(sources[name]):
                raise RunError(f"no {name} pair of {self.path} can be learned from: {_reasons(run)}")
        return sources

    def pairs(self, run: Run) -> dict[str, list[Row]]:
        """The splits as rows of `prompt`, `chosen` and `rejected`: all text, or all turns. No two are equal."""
        rows: dict[str, Row] = {}
        for row in read_rows(self.path, run)[: self.limit]:
            pair = pair_of(row, self.prompt, self.chosen, self.rejected)
            if isinstance(pair, str):
                run.reject(row, pair)
            elif (key := content_key(pair)) in rows:
                run.reject(row, "duplicate of an earlier pair")
            else:
                rows[key] = pair
        if not rows:
            raise RunError(f"no pair of {self.path} can be learned from: {_reasons(run)}")
        of_prompt: dict[str, list[Row]] = {}
        for pair in rows.values():
            of_prompt.setdefault(content_key({"prompt": pair["prompt"]}), []).append(pair)
        prompts = [{"prompt": pairs[0]["prompt"]} for pairs in of_prompt.values()]
        splits = split_rows(prompts, valid=self.valid, test=self.test)
        return {name: [p for row in rows for p in of_prompt[content_key(row)]] for name, rows in splits.items()}

    def rows(self, run: Run) -> dict[str, list[Row]]:
        """The chosen answers as rows of text: what a prompt is, for people and for prompts."""
        return {name: [_row(pair["prompt"], pair["chosen"]) for pair in pairs] for name, pairs in self.pairs(run).items()}

    def prompts(self, run: Run) -> dict[str, list[list[int]]]:
        """The prompt of every pair as tokens."""
        tokenizer = run.recipe.student.tokenizer(run)
        return {name: [encode_prompt(row, tokenizer) for row in rows] for name, rows in self.rows(run).items()}


@dataclass(frozen=True, kw_only=True)
class StagePairs:
    """The pairs that stage `stage` of this run made: token ids in `pairs/SPLIT.jsonl` of its artifact.

    A line is `{"example", "prompt", "chosen", "rejected"}`. Splits without such a file are those of `base`, as they are.
    """

    stage: str
    base: Any  # DataSpec the prompts came from
    length: int | None = None  # tokens of prompt and answer, at most; None: as in `base`

    def load(self, run: Run) -> Mapping[str, Any]:
        """The splits; RunError if no pair is left to learn from."""
        length = self.length or self.base.length
        splits: dict[str, Any] = {}
        for path in sorted((run.path(self.stage) / "pairs").glob("*.jsonl")):
            pairs: list[tuple[Document, Document]] = []
            for line in read_lines(path):
                longest = max(len(line[side]) for side in ("chosen", "rejected")) + len(line["prompt"])
                if longest > length:
                    run.reject(line, _too_long(longest, length))
                else:
                    pairs.append((_document(line, "chosen"), _document(line, "rejected")))
            splits[path.stem] = PairSource(tuple(pairs), length, self.base.classes)
        if not len(splits.get("train", ())):
            raise RunError(f"stage {self.stage!r} made no pair: no question has a right and a wrong answer; {_reasons(run)}")
        rest = {} if {"train", "valid", "test"} <= splits.keys() else self.base.load(run)
        return {**rest, **splits}


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The chosen answers of pairs as plain text to learn from; the splits are those of the pairs."""

    pairs: Any = None  # DataSpec of pairs; None: the recipe's data

    def load(self, run: Run) -> Mapping[str, Packed]:
        """The packed splits."""
        sources = run.sources(self.pairs)
        return {name: s.chosen() if isinstance(s, PairSource) else s for name, s in sources.items()}


def _document(line: Mapping[str, Any], side: str) -> Document:
    counts = [False] * len(line["prompt"]) + [True] * len(line[side])
    return Document([*line["prompt"], *line[side]], counts, line["example"])


def pair_of(row: Row, prompt: str = "prompt", chosen: str = "chosen", rejected: str = "rejected") -> Row | str:
    """A user's row as `prompt`, `chosen` and `rejected`, all of them text or all of them turns; or why it is no pair."""
    for column in (chosen, rejected):
        if not row.get(column):
            return f"column {column!r} is empty" if column in row else f"no column {column!r}"
    asked, better, worse = (_turns_or_text(row.get(column) or "") for column in (prompt, chosen, rejected))
    if all(isinstance(x, str) for x in (asked, better, worse)):
        texts: Any = (asked, better, worse)
        for name, text in zip((prompt, chosen, rejected), texts, strict=True):
            if not text.strip():
                return f"column {name!r} is empty" if name in row else f"no column {name!r}"
        if better == worse:
            return "the chosen and the rejected answer are equal"
        return {"prompt": asked, "chosen": better, "rejected": worse}
    better, worse = (_as_turns(answer, "assistant") for answer in (better, worse))
    if better[0]["role"] == worse[0]["role"] == "assistant":
        asked = _as_turns(asked, "user")
    else:  # whole conversations: what they have in common is the prompt
        common = 0
        while common < min(len(better), len(worse)) and better[common] == worse[common]:
            common += 1
        asked, better, worse = better[:common], better[common:], worse[common:]
    if better == worse:
        return "the chosen and the rejected answer are equal"
    if not asked:
        return f"no prompt: give a column {prompt!r}, or conversations that begin alike"
    if not (better and worse and better[0]["role"] == worse[0]["role"] == "assistant"):
        return "the two conversations part before the assistant answers"
    if not all(any(t["role"] == "assistant" and t["content"] for t in answer) for answer in (better, worse)):
        return "an answer is empty"
    return {"prompt": asked, "chosen": better, "rejected": worse}


def _turns_or_text(value: Any) -> Turns | str:
    """Turns with role and content (in a CSV they are JSON), else text."""
    turns = value
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        try:
            turns = json.loads(value)
        except ValueError:
            return value
    fit = isinstance(turns, list) and turns and all(isinstance(t, dict) and t.get("role") and "content" in t for t in turns)
    return [{"role": t["role"], "content": t["content"]} for t in turns] if fit else str(value)


def _as_turns(value: Turns | str, role: str) -> Turns:
    if isinstance(value, list):
        return value
    return [{"role": role, "content": value}] if value.strip() else []


def encode_pair(pair: Row, tokenizer: Any, example: int, length: int) -> tuple[Document, Document] | str:
    """Both answers behind their prompt, only the answers' tokens counted; or why they cannot be learned from."""
    documents: list[Document] = []
    for side in ("chosen", "rejected"):
        row = _row(pair["prompt"], pair[side])
        made = encode(row, tokenizer)
        if isinstance(made, str):
            return made
        tokens, counts = made
        if "messages" in row:  # the assistant's earlier words belong to the prompt
            begin = len(encode_prompt({"messages": [*pair["prompt"], pair[side][0]]}, tokenizer))
            counts = [counted and i >= begin for i, counted in enumerate(counts)]
        if len(tokens) > length:
            return _too_long(len(tokens), length)
        if not any(counts[1:]):
            return f"no token of the {side} answer is left to learn"
        documents.append(Document(tokens, counts, example))
    if documents[0].tokens == documents[1].tokens:
        return "the chosen and the rejected answer are equal as tokens"
    return documents[0], documents[1]


def _row(prompt: Any, answer: Any) -> Row:
    return {"prompt": prompt, "completion": answer} if isinstance(prompt, str) else {"messages": [*prompt, *answer]}


def _too_long(tokens: int, length: int) -> str:
    return f"a pair of {tokens} tokens; at most {length} are read (data.length)"


def _reasons(run: Run) -> str:
    """Why rows were lost: the first three reasons."""
    reasons = dict.fromkeys(reject["why"] for reject in run.read("rejects.jsonl"))
    return "; ".join(list(reasons)[:3]) or "there is none"
