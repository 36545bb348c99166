"""Triples of head, relation and tail as questions and answers: `<head> h </head> <relation> r </relation> [GEN]`, ` t`.

Every spec gives `rows(run)`, the splits as rows of `head`, `relation`, `tail` and, where somebody has judged it, `verdict`;
and `relations`, by name what each says in words. All triples of a head are in one split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..core.run import Run, RunError
from .tables import Row, read_rows, split_rows
from .tasks import SPLITS, Task, Tasks

RELATIONS: Mapping[str, str] = {  # the seven of the paper on symbolic distillation; the words are ours
    "xAttr": "is seen as", "xReact": "then feels", "xNeed": "first needs", "xWant": "then wants",
    "xEffect": "as a result", "xIntent": "does so for", "HinderedBy": "is kept from it by",
}  # fmt: skip
YES, NO = {"true", "yes", "1"}, {"false", "no", "0"}


def question_of(head: str, relation: str) -> str:
    """What stands before a tail."""
    return f"<head> {head} </head> <relation> {relation} </relation> [GEN]"


def statement(head: str, phrase: str, tail: str, name: str = "PersonX") -> str:
    """A triple in words, with a name in place of PersonX."""
    return f"{head}. PersonX {phrase} {tail}".replace("PersonX", name)


class Graph(Tasks):
    """What specs of triples share: `triples` gives the rows, the rest follows."""

    relations: Mapping[str, str]

    def triples(self, run: Run) -> dict[str, list[Row]]:
        """The splits, all of them."""
        raise NotImplementedError

    def rows(self, run: Run) -> dict[str, list[Row]]:
        """The splits as rows to make data from."""
        return self.triples(run)

    def tasks(self, run: Run) -> dict[str, list[Task]]:
        """Every good triple to learn from; of held-out ones every head with every relation that it has."""
        found = {name: [row for row in rows if is_good(row)] for name, rows in self.triples(run).items()}
        known: dict[tuple[str, str], list[str]] = {}
        for rows in found.values():
            for row in rows:
                known.setdefault((row["head"], row["relation"]), []).append(row["tail"])
        splits: dict[str, list[Task]] = {}
        for name, rows in found.items():
            pairs = [(r["head"], r["relation"], r["tail"]) for r in rows]
            if name != "train":
                pairs = [(*pair, known[pair][0]) for pair in dict.fromkeys((h, r) for h, r, _ in pairs)]
            splits[name] = [
                Task(question_of(h, r), f" {t}", t, t, (h, r, tuple(known[h, r]))) for h, r, t in dict.fromkeys(pairs)
            ]
        return splits

    def hint(self, task: Task) -> str:
        """The question with its tail in front."""
        return f"{task.answer} {task.question}"

    def score(self, task: Task, text: str) -> float:
        """1 if it is one of the tails that the data know for this head and relation."""
        said = " ".join(text.casefold().split()).rstrip(".")
        return float(said in {" ".join(tail.casefold().split()).rstrip(".") for tail in task.entry[2]})


@dataclass(frozen=True, kw_only=True)
class Triples(Graph):
    """A user's file (.jsonl, .csv, .parquet) with a triple in every row, and, if somebody has judged it, a verdict.

    They are the examples that a teacher is shown, and the held-out ones are what a student is judged by.
    """

    path: str
    head: str = "head"  # columns
    relation: str = "relation"
    tail: str = "tail"
    verdict: str = "verdict"  # true or false, yes or no, 1 or 0; a row without one counts as good
    relations: Mapping[str, str] = field(default_factory=lambda: dict(RELATIONS))  # name -> what it says in words
    valid: float = 0.1  # share of the heads held out to choose
    test: float = 0.1  # share of the heads held out to judge
    length: int = 128  # tokens of a triple, at most

    def triples(self, run: Run) -> dict[str, list[Row]]:
        """The splits; a row that lacks a part, or has a relation without words, is rejected."""
        found: dict[str, list[Row]] = {}
        for row in read_rows(self.path, run):
            parts = [str(row.get(column) or "").strip() for column in (self.head, self.relation, self.tail)]
            said = str(row.get(self.verdict) if row.get(self.verdict) is not None else "").strip().casefold()
            missing = [c for c, part in zip((self.head, self.relation, self.tail), parts, strict=True) if not part]
            if missing:
                run.reject(row, f"nothing in column {missing[0]!r}")
            elif parts[1] not in self.relations:
                run.reject(row, f"the relation {parts[1]!r} has no words in data.relations")
            elif said and said not in YES | NO:
                run.reject(row, f"a verdict is true or false, yes or no, 1 or 0, and not {row[self.verdict]!r}")
            else:
                told = dict(zip(("head", "relation", "tail"), parts, strict=True))
                found.setdefault(parts[0], []).append({**told, **({"verdict": said in YES} if said else {})})
        if not found:
            reasons = dict.fromkeys(line["why"] for line in run.read("rejects.jsonl"))
            raise RunError(f"no row of {self.path} is a triple: {'; '.join(list(reasons)[:3])}")
        split = split_rows([{"head": head} for head in found], valid=self.valid, test=self.test, run=run)
        return {name: [row for each in split[name] for row in found[each["head"]]] for name in SPLITS}


def is_good(row: Row) -> bool:
    """Whether a row is a triple that nobody has turned down."""
    return bool(row.get("tail")) and row.get("verdict") is not False


def heads_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The different heads, as they come."""
    return list(dict.fromkeys(str(row["head"]) for row in rows))
