"""Questions with a passage that answers them: from a user's file, or a made-up table of facts.

Both specs give `items` (the splits as questions, answers and passages), `prompt` (a question behind passages, or closed-book
without), and `load`: the questions without passages, to learn facts by heart from.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..core.run import Run, RunError, seed_of
from .tables import content_key, read_rows, split_rows
from .tasks import Bytes, Characters, Coder, Tokenized
from .tokens import Document, Packed, pack


@dataclass(frozen=True, slots=True)
class Item:
    """One question; its answer is a span of its passage."""

    question: str
    answer: str
    passage: str
    topic: str  # passages of one topic are the harder ones to tell apart; "" is none
    fake: str | None = None  # a plausible wrong answer, if the file has one
    known: bool = True  # of made-up facts: whether the base is taught it


class Knowledge:
    """What the two have in common."""

    length: int

    def items(self, run: Run) -> dict[str, list[Item]]:
        """The splits; none has a question of another."""
        raise NotImplementedError

    def coder(self, run: Run) -> Coder:
        """The student's tokenizer, or bytes if it has none."""
        tokenizer = getattr(run.recipe.student, "tokenizer", None)
        return Bytes() if tokenizer is None else Tokenized(tokenizer(run))

    def prompt(self, question: str, passages: Sequence[str]) -> str:
        """What the model is asked."""
        raise NotImplementedError

    def closed(self, item: Item) -> str:
        """What is learned by heart."""
        return item.answer

    def load(self, run: Run) -> Mapping[str, Packed]:
        """The questions without passages, and their answers."""
        coder, splits = self.coder(run), dict[str, Packed]()
        for name, items in self.items(run).items():
            documents: list[Document] = []
            for number, item in enumerate(items):
                question = self.prompt(item.question, ())
                prompt, answer = coder.prompt(question), coder.answer(question, self.closed(item))
                documents.append(Document([*prompt, *answer], [False] * len(prompt) + [True] * len(answer), number))
            splits[name] = pack(documents, self.length, coder.classes)
        return splits


@dataclass(frozen=True, kw_only=True)
class Passages(Knowledge):
    """A user's file of questions, answers and passages; JSONL, JSON, CSV or Parquet. Splits are by question.

    The answer must occur in the passage. A column of topics (titles) finds passages that are hard to tell apart, one of
    plausible wrong answers is used in place of other questions' answers; both may be missing.
    """

    path: str
    question: str = "question"  # columns
    answer: str = "answer"
    passage: str = "context"
    topic: str = "title"
    fake: str = "counterfactual"
    length: int = 1024  # tokens of a prompt with its answer, at most
    valid: float = 0.1  # share of the questions held out to choose
    test: float = 0.1  # share of the questions held out to judge
    limit: int | None = None  # use at most so many rows
    classes: ClassVar[int | None] = None  # the tokenizer's

    def items(self, run: Run) -> dict[str, list[Item]]:
        """The splits; RunError if no row has what is needed."""
        found: dict[str, Item] = {}
        for row in read_rows(self.path, run)[: self.limit]:
            question, answer, passage = (str(row.get(c) or "").strip() for c in (self.question, self.answer, self.passage))
            missing = [c for c in (self.question, self.answer, self.passage) if not str(row.get(c) or "").strip()]
            why = f"no {missing[0]!r}" if missing else "the same question again" if question in found else None
            if why is None and answer not in passage:
                why = "the answer does not occur in the passage"
            if why is not None:
                run.reject(row, why)
                continue
            fake = str(row.get(self.fake) or "").strip()
            if fake and (fake == answer or fake in passage):
                run.reject(row, "the wrong answer is the right one, or occurs in the passage: another is taken")
                fake = ""
            found[question] = Item(question, answer, passage, str(row.get(self.topic) or ""), fake or None)
        if len(found) < 12:
            columns = ", ".join(map(repr, (self.question, self.answer, self.passage)))
            why = "; ".join(list(dict.fromkeys(r["why"] for r in run.read("rejects.jsonl")))[:3]) or "there are no more"
            raise RunError(
                f"{len(found)} rows of {self.path} have {columns} with the answer in the passage; 12 are needed: {why}"
            )
        rows = [{"question": question} for question in found]
        splits = split_rows(rows, valid=self.valid, test=self.test)
        return {name: [found[row["question"]] for row in part] for name, part in splits.items()}

    def prompt(self, question: str, passages: Sequence[str]) -> str:
        """Numbered passages, then the question; without passages a request to say so if the answer is not known."""
        if not passages:
            return f"Answer the question briefly. If you are unsure, say that you do not know.\n\nQuestion: {question}"
        shown = "\n\n".join(f"[{i + 1}] {passage}" for i, passage in enumerate(passages))
        return f"Supplied knowledge:\n\n{shown}\n\nAnswer the question briefly.\n\nQuestion: {question}"


@dataclass(frozen=True, kw_only=True)
class Facts(Knowledge):
    """A made-up table: an entity is two small letters and has one of ten capitals, and a model can learn half by heart.

    A passage is `anX`, a question `?an`, one token a character. Closed-book, the answer to half of the questions is `-`:
    not known. The table and its splits are the same for every seed of the run, and an entity's letters are those of others.
    First letters are never second ones: where a letter stands need not be learned before reading.
    """

    train: int = 80  # entities; there are 169
    valid: int = 29
    test: int = 60
    read: int = 6000  # rows to learn reading from, see `load`
    again: int = 40  # how often every fact is there to be learned by heart
    shown: int = 3  # passages in a row to learn reading from
    length: int = 32  # tokens in a packed row
    first: ClassVar[str] = "abcdefghijklm"
    second: ClassVar[str] = "nopqrstuvwxyz"
    capitals: ClassVar[str] = "ABCDEFGHIJ"
    unknown: ClassVar[str] = "-"
    alphabet: ClassVar[str] = f"\n?=~-{capitals}{first}{second}"  # the first character ends an answer
    classes: ClassVar[int | None] = len(alphabet)

    def __post_init__(self) -> None:
        if self.train + self.valid + self.test > len(self.first) * len(self.second):
            raise ValueError(f"there are {len(self.first) * len(self.second)} entities; ask for fewer")

    def coder(self, run: Run) -> Characters:
        """Characters."""
        return Characters(self.alphabet)

    def items(self, run: Run) -> dict[str, list[Item]]:
        """The splits; about half of the entities of each are known."""
        draw, splits = random.Random(seed_of("facts")), dict[str, list[Item]]()
        names = [a + b for a in self.first for b in self.second]
        draw.shuffle(names)
        for name, size in (("test", self.test), ("valid", self.valid), ("train", self.train)):
            mine, names = names[:size], names[size:]
            known = [i < size // 2 for i in range(size)]
            draw.shuffle(known)
            capitals = [draw.choice(self.capitals) for _ in mine]
            splits[name] = [Item(f"?{e}", o, f"{e}{o}", "", known=k) for e, o, k in zip(mine, capitals, known, strict=True)]
        return {name: splits[name] for name in ("train", "valid", "test")}

    def prompt(self, question: str, passages: Sequence[str]) -> str:
        """The passages, then the question."""
        return f"{''.join(passages)}{question}"

    def closed(self, item: Item) -> str:
        """The letter, or that it is not known."""
        return item.answer if item.known else self.unknown

    def load(self, run: Run) -> Mapping[str, Packed]:
        """In the training split, every fact of every split `again` times, and `read` rows of passages with questions.

        These passages say random things about random entities, and no two rows the same, so that their questions can be
        answered from them alone: reading is learned, and nothing else. The held-out splits are closed-book.
        """
        splits = super().load(run)
        facts = [d for packed in splits.values() for row in packed.rows for d in row]
        draw, coder = random.Random(seed_of("facts", "read")), self.coder(run)
        reading = [self._row(draw, coder, -1 - number) for number in range(self.read)]
        return {**splits, "train": pack([*facts * self.again, *reading], self.length, self.classes)}

    def _row(self, draw: random.Random, coder: Characters, number: int) -> Document:
        """`anXboYcpZ?boY` and three more questions; the letters that answer count."""
        names: dict[str, str] = {}
        while len(names) < self.shown:
            names[draw.choice(self.first) + draw.choice(self.second)] = draw.choice(self.capitals)
        tokens = coder.prompt("".join(f"{e}{o}" for e, o in names.items()))
        counts = [False] * len(tokens)
        for entity in draw.choices(list(names), k=4):
            question, answer = coder.prompt(f"?{entity}"), coder.answer("", names[entity])
            tokens += [*question, *answer]
            counts += [False] * len(question) + [True] + [False] * (len(answer) - 1)
        counts[-1] = True  # one end is enough: the easy part of a loss holds up the hard one
        return Document(tokens, counts, number)


def content_draw(*key: object) -> random.Random:
    """A generator for this content alone."""
    return random.Random(seed_of("knowledge", content_key({"key": [str(k) for k in key]})))
