"""Conversations of several turns: the student speaks, somebody answers, the student speaks again.

Only the student's own tokens count in what is made of them; questions, feedback and whatever else an environment says are
read and not learned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from ..core.signal import Batch
from ..data.tokens import Document, Packed
from .generate import Sampling, generate


@dataclass(frozen=True, slots=True)
class Turn:
    """Tokens that one side wrote."""

    tokens: tuple[int, ...]
    own: bool  # the student's


@dataclass(frozen=True, slots=True)
class Episode:
    """The turns of one conversation so far; the first is what the student was asked."""

    turns: tuple[Turn, ...]

    @property
    def tokens(self) -> list[int]:
        """All of them in a row."""
        return [token for turn in self.turns for token in turn.tokens]

    @property
    def counts(self) -> list[bool]:
        """Which of them the student wrote."""
        return [turn.own for turn in self.turns for _ in turn.tokens]

    @property
    def own(self) -> list[tuple[int, ...]]:
        """What the student said, turn by turn."""
        return [turn.tokens for turn in self.turns if turn.own]

    def then(self, tokens: Sequence[int], *, own: bool) -> Episode:
        """With one more turn."""
        return Episode((*self.turns, Turn(tuple(tokens), own)))


Reply = Callable[[Sequence[tuple[int, Episode]]], Sequence[Sequence[int] | None]]


def play(
    student: nn.Module,
    prompts: Sequence[Sequence[int]],
    reply: Reply,
    sampling: Sampling,
    *,
    turns: int,
    seed: int,
    keys: Sequence[object],
    ends: frozenset[int] | None = None,
) -> list[Episode]:
    """One conversation for every prompt, in which the student speaks at most `turns` times.

    `reply` is told the conversations that may go on, each with its number, and says for each what the student reads next,
    or None where it is over. What is drawn depends on `seed`, the prompt, its key and the turn alone.
    """
    episodes = [Episode(()).then(prompt, own=False) for prompt in prompts]
    going = list(range(len(prompts)))
    for turn in range(turns):
        asked = [episodes[i].tokens for i in going]
        answers = generate(student, asked, sampling, seed=seed, keys=[(keys[i], turn) for i in going], ends=ends)
        for i, answer in zip(going, answers, strict=True):
            episodes[i] = episodes[i].then(answer, own=True)
        if turn + 1 == turns or not going:
            break
        said = reply([(i, episodes[i]) for i in going])
        heard = [(i, tokens) for i, tokens in zip(going, said, strict=True) if tokens is not None]
        for i, tokens in heard:
            episodes[i] = episodes[i].then(tokens, own=False)
        going = [i for i, _ in heard]
    return episodes


def as_batch(episodes: Sequence[Episode]) -> Batch:
    """A language batch, one conversation a row, in which the student's own tokens count (`weight` 1)."""
    rows = tuple((Document(e.tokens, e.counts, number),) for number, e in enumerate(episodes))
    return Packed(rows, max((len(e.tokens) for e in episodes), default=0)).batch(range(len(rows)), 0)


def by_turn(episodes: Sequence[Episode]) -> list[list[tuple[int, int]]]:
    """Where the student's turns are in `as_batch`: for every episode, (first, behind the last) label of each turn."""
    found: list[list[tuple[int, int]]] = []
    for episode in episodes:
        at, spans = 0, []
        for turn in episode.turns:
            if turn.own:
                spans.append((at - 1, at - 1 + len(turn.tokens)))
            at += len(turn.tokens)
        found.append(spans)
    return found
