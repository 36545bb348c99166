"""A made world of everyday triples whose hidden rules say which are true."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..core.run import Run, seed_of
from .tables import Row
from .tasks import Coder, Task
from .triples import Graph

_VERBS = (("fixes", "cleans"), ("sells", "donates"), ("finds", "buys"), ("drops", "loses"))
_NOUNS = (("bicycle", "truck"), ("guitar", "piano"), ("kettle", "oven"), ("hammer", "drill"))
ADJECTIVES = ("old", "red", "big", "new", "odd", "wet")
# relation -> (which word of the head decides: 1 the verb, 4 the noun; the true tails for each of its four groups)
_RULES: Mapping[str, tuple[int, tuple[tuple[str, str], ...]]] = {
    "xReact": (1, (("proud", "handy"), ("generous", "relieved"), ("lucky", "excited"), ("sorry", "clumsy"))),
    "xWant": (1, (("to rest awhile", "to wash hands"), ("to count money", "to make room"),
                  ("to show friends", "to try it"), ("to look around", "to call help"))),
    "xNeed": (4, (("a helmet", "an empty road"), ("sheet music", "a good ear"),
                  ("hot water", "some recipes"), ("a workbench", "thick gloves"))),
    "xEffect": (4, (("moves about faster", "gets wet outside"), ("hears applause", "has sore fingers"),
                    ("eats warm meals", "burns a thumb"), ("has dusty clothes", "wakes the neighbours"))),
}  # fmt: skip
_WORDS = tuple(
    sorted(
        {"PersonX", "the", *ADJECTIVES, *(w for group in (*_VERBS, *_NOUNS) for w in group)}
        | {word for _, groups in _RULES.values() for group in groups for tail in group for word in tail.split()}
        | {"<head>", "</head>", "<relation>", "</relation>", "[GEN]", *_RULES}
    )
)


@dataclass(frozen=True)
class Words:
    """Every word of a list is a token; a further first one ends an answer."""

    words: tuple[str, ...]

    @property
    def classes(self) -> int:
        """How many tokens there are."""
        return len(self.words) + 1

    def prompt(self, question: str) -> list[int]:
        """ValueError for a word that is not in the list."""
        return [self.words.index(word) + 1 for word in question.split()]

    def answer(self, question: str, text: str) -> list[int]:
        return [*self.prompt(text), 0]

    def text(self, tokens: Sequence[int]) -> str | None:
        *body, last = tokens or [-1]
        if last != 0 or not all(0 < token <= len(self.words) for token in body):
            return None
        return " ".join(self.words[token - 1] for token in body)

    def ends(self) -> frozenset[int]:
        return frozenset({0})


@dataclass(frozen=True, kw_only=True)
class FactWorld(Graph):
    """384 heads ("PersonX drops the old piano"), four relations, and two true tails out of eight for each head with each.

    Of `seeds` heads all true triples are known; held-out splits are of other heads. The same splits for every run's seed.
    """

    seeds: int = 24
    valid: int = 40
    test: int = 80
    length: int = 24  # tokens
    relations: ClassVar[Mapping[str, str]] = {
        "xReact": "then feels", "xWant": "then wants", "xNeed": "first needs", "xEffect": "as a result",
    }  # fmt: skip
    classes: ClassVar[int | None] = len(_WORDS) + 1

    def __post_init__(self) -> None:
        if min(self.seeds, self.valid, self.test) < 1 or self.seeds + self.valid + self.test > len(all_heads()):
            raise ValueError(f"seeds, valid and test are 1 or more each, and {len(all_heads())} together at most")

    def coder(self, run: Run) -> Coder:
        """Words, or the student's tokenizer if it has one."""
        return super().coder(run) if hasattr(run.recipe.student, "tokenizer") else Words(_WORDS)

    def triples(self, run: Run) -> dict[str, list[Row]]:
        """True triples of the seeds; held-out splits are heads with one true tail for each relation."""
        heads = all_heads()
        random.Random(seed_of("fact world")).shuffle(heads)
        parts = {"test": heads[: self.test], "valid": heads[self.test : self.test + self.valid]}
        parts["train"] = heads[self.test + self.valid : self.test + self.valid + self.seeds]
        return {
            name: [
                {"head": head, "relation": relation, "tail": tail}
                for head in parts[name]
                for relation in self.relations
                for tail in true_tails(head, relation)[: 2 if name == "train" else 1]
            ]
            for name in ("train", "valid", "test")
        }

    def score(self, task: Task, text: str) -> float:
        """1 if the rules say so."""
        head, relation, _ = task.entry
        return float(holds(head, relation, text))


def all_heads() -> list[str]:
    """Every head of the world."""
    verbs, nouns = ([word for group in groups for word in group] for groups in (_VERBS, _NOUNS))
    return [f"PersonX {verb} the {adjective} {noun}" for verb in verbs for adjective in ADJECTIVES for noun in nouns]


def true_tails(head: str, relation: str) -> tuple[str, ...]:
    """What is true of a head; nothing of one that is no sentence of this world."""
    words = head.split()
    if relation not in _RULES or len(words) != 5 or words[0] != "PersonX" or words[2] != "the" or words[3] not in ADJECTIVES:
        return ()
    place, tails = _RULES[relation]
    verb = next((i for i, group in enumerate(_VERBS) if words[1] in group), None)
    noun = next((i for i, group in enumerate(_NOUNS) if words[4] in group), None)
    if verb is None or noun is None:
        return ()
    return tails[verb if place == 1 else noun]


def holds(head: str, relation: str, tail: str) -> bool:
    """Whether a triple is true."""
    return " ".join(tail.split()) in true_tails(head, relation)


def all_tails(relation: str) -> list[str]:
    """Every tail that is true of some head."""
    return [tail for group in _RULES[relation][1] for tail in group]
