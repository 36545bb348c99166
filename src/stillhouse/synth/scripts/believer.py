"""Scripts that write triples of a made world: one that is wrong at times and knows when, and one that judges."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from ...core.run import Run, RunError
from ...core.signal import Completion, Kind
from ...data.factworld import all_heads, all_tails, holds, true_tails
from ...teachers.scripted import Answers
from ...teachers.text import Ask

REACHED = ("(I am not sure)", "because it", "and so on and")  # what a rambling answer begins with


@dataclass(frozen=True, kw_only=True)
class Believer:
    """Writes a new head, or a tail to a head and relation, and says how likely each word of it was.

    Wrong tails are half those of another kind of head, half those of another relation. Odd heads (words in another order)
    and, less so, wrong tails are less likely than others. `truth` says whether a triple holds.
    """

    wrong: float = 0.35  # share of its tails that do not hold
    odd: float = 0.15  # share of its heads that are no sentence
    stranger: float = 0.05  # share of its heads that are of somebody else than PersonX
    cut: float = 0.08  # share of its answers that are cut off
    short: float = 0.03  # share of its tails that are of two letters or less
    gives: ClassVar[frozenset[Kind]] = frozenset({"logprobs"})

    def build(self, run: Run) -> Answers:
        """What answers."""
        heads = all_heads()

        def answer(ask: Ask, rng: random.Random) -> Completion:
            about = ask.about
            if "relation" in about:
                return self._tail(str(about["head"]), str(about["relation"]), str(about.get("name", "PersonX")), ask, rng)
            if "shown" not in about:
                raise RunError("this script writes heads, and tails to a head and relation, and was asked something else")
            words = rng.choice(heads).split()
            odd = rng.random() < self.odd
            if odd:
                words = [words[0], *rng.sample(words[1:], 4)]
            if rng.random() < self.stranger:
                words[0] = "Somebody"
            return self._said(" ".join(words), -2.5 if odd else -1.0, None, ask, rng)

        return answer

    def _tail(self, head: str, relation: str, name: str, ask: Ask, rng: random.Random) -> Completion:
        right = true_tails(head, relation)
        others = [tail for tail in all_tails(relation) if tail not in right]
        if right and rng.random() >= self.wrong:
            tail = rng.choice(right)
        elif rng.random() < 0.5:
            tail = rng.choice(others)
        else:
            kinds = [kind for kind in ("xReact", "xWant", "xNeed", "xEffect") if kind != relation]
            tail = rng.choice(all_tails(rng.choice(kinds)))
        if rng.random() < self.short:
            tail = "it"
        true = holds(head, relation, tail)
        return self._said(tail.replace("PersonX", name), -0.8 if true else -1.1, true, ask, rng)

    def _said(self, text: str, likely: float, true: bool | None, ask: Ask, rng: random.Random) -> Completion:
        logprobs = [min(-0.01, rng.gauss(likely, 0.4)) for _ in text.split()]
        finished = rng.random() >= self.cut
        text = text if finished else f"{text} {rng.choice(REACHED)}"
        truth = None if true is None else {"holds": true and finished}
        told = logprobs if ask.decoding.logprobs else None
        return Completion(text, logprobs=told, finished=finished, read=ask.size, wrote=len(logprobs), truth=truth)


@dataclass(frozen=True, kw_only=True)
class Knows:
    """Says yes if a triple holds, and no if not; wrong by chance as people are."""

    wrong: float = 0.0

    def build(self, run: Run) -> Answers:
        """What answers."""

        def answer(ask: Ask, rng: random.Random) -> str:
            about = ask.about
            if not {"head", "relation", "tail"} <= set(about):
                raise RunError("this script judges triples, and was asked something else")
            said = holds(str(about["head"]), str(about["relation"]), str(about["tail"])) != (rng.random() < self.wrong)
            return "yes" if said else "no"

        return answer
