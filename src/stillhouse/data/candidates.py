"""Several answers to one prompt, each with a score: from a user's file, or what a model of this run wrote.

A score may be a reward, a vote, or a teacher's log-probability; a method decides what to make of it. A set whose answers
all have the same score says nothing about which is better, and is rejected.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from ..core.engine import to_device
from ..core.files import read_lines
from ..core.run import Run, RunError, seed_of
from ..core.signal import Batch
from ..models.call import logits_of, weight_of
from ..models.generate import answered
from ..objectives.preference import sequence_logp
from .tables import Row, content_key, read_rows, split_rows
from .tokens import Document, Packed, encode, pack
from .traces import Trace, Traces

Set = tuple[tuple[Document, ...], tuple[float, ...]]  # answers behind one prompt, and their scores


@dataclass(frozen=True)
class CandidateSource:
    """Sets of documents that begin with the same prompt. One item is one set; sets may differ in size."""

    sets: tuple[Set, ...]
    length: int
    classes: int | None = None  # size of the vocabulary, for models that are made to measure

    def __len__(self) -> int:
        return len(self.sets)

    @property
    def tokens(self) -> int:
        """Tokens in all answers and as many copies of their prompts, padding left out."""
        return sum(len(document.tokens) for documents, _ in self.sets for document in documents)

    def batch(self, items: Sequence[int], epoch: int) -> Batch:
        """A language batch of one answer a row, set by set, as `Packed.batch`; `sizes` are the numbers of answers of the
        sets, `scores` [rows] float32."""
        chosen = [self.sets[i] for i in items]
        rows = tuple((document,) for documents, _ in chosen for document in documents)
        scores = torch.tensor([score for _, scores in chosen for score in scores], dtype=torch.float32)
        sizes = [len(documents) for documents, _ in chosen]
        return {**Packed(rows, self.length).batch(range(len(rows)), 0), "scores": scores, "sizes": sizes}

    def best(self) -> Packed:
        """The answers with the highest scores alone, the first of equal ones, packed, to be learned from as text."""
        best = (documents[scores.index(max(scores))] for documents, scores in self.sets)
        return pack(best, self.length, self.classes)


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """A user's file of sets: a prompt, a list of answers and a list of as many scores; splits are by prompt.

    Prompts are text or turns of a conversation, answers are text. A set with an answer that is too long is rejected.
    """

    path: str
    prompt: str = "prompt"  # columns
    answers: str = "answers"
    scores: str = "scores"
    length: int = 1024  # tokens of prompt and answer, at most
    valid: float = 0.05  # share of the prompts held out to choose
    test: float = 0.05  # share of the prompts held out to judge
    limit: int | None = None  # use at most so many rows
    classes: ClassVar[int | None] = None  # the tokenizer's

    def load(self, run: Run) -> Mapping[str, CandidateSource]:
        """The splits; RunError if one that was asked for has no set."""
        found: dict[str, Row] = {}
        for row in read_rows(self.path, run)[: self.limit]:
            made = self._set(row)
            if isinstance(made, str) or content_key({"prompt": made["prompt"]}) in found:
                run.reject(row, made if isinstance(made, str) else "the same prompt again")
            else:
                found[content_key({"prompt": made["prompt"]})] = made
        if not found:
            raise RunError(f"no set of {self.path} can be learned from: {_reasons(run)}")
        splits = split_rows(list(found.values()), valid=self.valid, test=self.test)
        tokenizer, sources = run.recipe.student.tokenizer(run), dict[str, CandidateSource]()
        for name, share in (("train", 1.0), ("valid", self.valid), ("test", self.test)):
            coded = [(row, self._encode(row, tokenizer, number)) for number, row in enumerate(splits[name])]
            for row, made in coded:
                if isinstance(made, str):
                    run.reject(row, made)
            sets = tuple((made, tuple(row["scores"])) for row, made in coded if not isinstance(made, str))
            if share and not sets:
                raise RunError(f"no {name} set of {self.path} can be learned from: {_reasons(run)}")
            sources[name] = CandidateSource(sets, self.length)
        return sources

    def _set(self, row: Row) -> Row | str:
        """A user's row as `prompt`, `answers` and `scores`; or why it is no set."""
        prompt, answers, scores = row.get(self.prompt), _list(row.get(self.answers)), _list(row.get(self.scores))
        if not prompt:
            return f"column {self.prompt!r} is empty" if self.prompt in row else f"no column {self.prompt!r}"
        for column, value in ((self.answers, answers), (self.scores, scores)):
            if value is None:
                return f"column {column!r} is no list" if column in row else f"no column {column!r}"
        assert answers is not None and scores is not None
        if len(answers) != len(scores) or len(answers) < 2:
            return f"{len(answers)} answers and {len(scores)} scores; a set has two or more, and as many scores"
        if not all(isinstance(answer, str) and answer.strip() for answer in answers):
            return "an answer is empty or no text"
        numbers = [float(s) if isinstance(s, (int, float)) else math.nan for s in scores]
        if not all(map(math.isfinite, numbers)):
            return "a score is no finite number"
        return {"prompt": prompt, "answers": answers, "scores": numbers} if len(set(numbers)) > 1 else _alike(len(numbers))

    def _encode(self, row: Row, tokenizer: Any, example: int) -> tuple[Document, ...] | str:
        documents: list[Document] = []
        for answer in row["answers"]:
            if isinstance(row["prompt"], str):
                made = encode({"prompt": row["prompt"], "completion": answer}, tokenizer)
            else:
                made = encode({"messages": [*row["prompt"], {"role": "assistant", "content": answer}]}, tokenizer)
            if isinstance(made, str):
                return made
            tokens, counts = made
            if len(tokens) > self.length:
                return f"an answer with its prompt of {len(tokens)} tokens; at most {self.length} are read (data.length)"
            end = max((i for i, counted in enumerate(counts) if counted and i), default=0)
            begin = end
            while begin > 1 and counts[begin - 1]:  # of a conversation, the last turn alone
                begin -= 1
            if not end:
                return "no token of an answer is left to learn"
            counts = [begin <= i <= end for i in range(len(tokens))]
            documents.append(Document(tokens, counts, example))
        return tuple(documents)


Scorer = Literal["verifier", "teacher"]


@dataclass(frozen=True, kw_only=True)
class Drafts(Traces):
    """Let the teacher answer every prompt of a task several times, and score every answer; goes on where it was stopped.

    The artifact holds `SPLIT.jsonl` with a set a line, `{"example", "prompt", "answers", "scores"}` in tokens (what
    `StageCandidates` reads), and `pairs/SPLIT.jsonl` with every pair of a set of which one answer has the higher score
    (what `data.pairs.StagePairs` reads). Scores are the verifier's, or the teacher's log-probabilities of its answers.

    With `mistaken` that share of the verifier's verdicts (of 0 or 1, in the training split) is turned round, by chance and
    the same for every method: to see how a method bears a judge that errs.
    """

    scored: Scorer = "verifier"
    mistaken: float = 0.0

    def __post_init__(self) -> None:
        if self.each < 2 or not 0 <= self.mistaken <= 1:
            raise ValueError("a set needs at least two answers, and `mistaken` is a share")

    def _keep(self, traces: Mapping[str, list[Trace]], run: Run) -> None:
        counts = dict.fromkeys(("questions", "asked", "sets", "pairs", "turned", "teacher_tokens"), 0)
        texts: dict[str, list[str]] = {}
        for split, found in traces.items():
            set_lines, pair_lines = texts.setdefault(split, []), texts.setdefault(f"pairs/{split}", [])
            for trace in sorted(found, key=lambda trace: trace["example"]):
                prompt, answers = trace["prompt"], trace["answers"]
                begin = {"example": trace["example"], "prompt": prompt}
                scores, turned = self._scores(trace, split, run)
                counts["questions"] += 1
                counts["asked"] += len(answers)
                counts["turned"] += turned
                counts["teacher_tokens"] += sum(len(prompt) + len(answer) for answer in answers)
                if len(set(scores)) == 1:
                    run.reject({"split": split, **begin}, _alike(len(scores)))
                    continue
                pairs = [
                    json.dumps({**begin, "chosen": answers[i], "rejected": answers[j]})
                    for i, better in enumerate(scores)
                    for j, worse in enumerate(scores)
                    if better > worse and answers[i] != answers[j]
                ]
                counts["sets"] += 1
                counts["pairs"] += len(pairs)
                set_lines.append(json.dumps({**begin, "answers": answers, "scores": scores}))
                pair_lines += pairs
        if not counts["sets"]:
            raise RunError(f"no set of {self.each} answers has different scores; draw more, or take harder or easier tasks")
        with run.artifact(run.stage, kind="text", **counts) as folder:
            (folder / "pairs").mkdir()
            for name, lines in texts.items():
                (folder / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    @torch.no_grad()
    def _scores(self, trace: Trace, split: str, run: Run) -> tuple[list[float], int]:
        """The scores of a set, and how many verdicts were turned round."""
        if self.scored == "teacher":
            teacher: Any = run.teacher
            batch = to_device(answered([trace["prompt"]] * len(trace["answers"]), trace["answers"]), run.device)
            logp = sequence_logp(logits_of(teacher.module, batch), batch["labels"], weight=weight_of(batch))
            return logp.tolist(), 0
        scores: list[float] = list(trace["scores"])
        if not self.mistaken or split != "train":
            return scores, 0
        draw = random.Random(seed_of(run.seed, "mistaken", trace["example"]))
        wrong = [draw.random() < self.mistaken for _ in scores]
        return [1.0 - s if turn else s for s, turn in zip(scores, wrong, strict=True)], sum(wrong)


@dataclass(frozen=True, kw_only=True)
class StageCandidates:
    """The sets that stage `stage` (`Drafts`) wrote; splits without a file are those of `base`, as they are."""

    stage: str
    base: Any  # DataSpec the prompts came from

    def load(self, run: Run) -> Mapping[str, Any]:
        """The splits; RunError if no set is left to learn from."""
        splits: dict[str, Any] = {}
        for path in sorted(run.path(self.stage).glob("*.jsonl")):
            sets: list[Set] = []
            for line in read_lines(path):
                head = line["prompt"]
                counts = [[False] * len(head) + [True] * len(answer) for answer in line["answers"]]
                documents = (
                    Document([*head, *answer], counted, line["example"])
                    for answer, counted in zip(line["answers"], counts, strict=True)
                )
                sets.append((tuple(documents), tuple(line["scores"])))
            length = max((len(d.tokens) for documents, _ in sets for d in documents), default=0)
            splits[path.stem] = CandidateSource(tuple(sets), length, self.base.classes)
        if not len(splits.get("train", ())):
            raise RunError(f"stage {self.stage!r} left no set to learn from: {_reasons(run)}")
        rest = {} if {"train", "valid", "test"} <= splits.keys() else self.base.load(run)
        return {**rest, **splits}


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best answer of every set as plain text to learn from; the splits are those of the sets."""

    sets: Any = None  # DataSpec of sets; None: the recipe's data

    def load(self, run: Run) -> Mapping[str, Packed]:
        """The packed splits."""
        sources = run.sources(self.sets)
        return {name: s.best() if isinstance(s, CandidateSource) else s for name, s in sources.items()}


def _list(value: Any) -> list[Any] | None:
    """A list; in a CSV it is JSON."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    return list(value) if isinstance(value, (list, tuple)) else None


def _alike(count: int) -> str:
    return f"all {count} answers have the same score"


def _reasons(run: Run) -> str:
    """Why rows were lost: the first three reasons."""
    reasons = dict.fromkeys(reject["why"] for reject in run.read("rejects.jsonl"))
    return "; ".join(list(reasons)[:3]) or "there is none"
