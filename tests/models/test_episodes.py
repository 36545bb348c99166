"""Conversations: whose tokens count, when they end, and that they do not depend on each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from chains import SPEC
from language import run_of
from stillhouse.data.tasks import Chain
from stillhouse.models.episodes import Episode, as_batch, by_turn, play
from stillhouse.models.generate import Sampling

torch.set_num_threads(1)
SAMPLING = Sampling(temperature=1.2, max_new=4)


def student_of(folder: Path) -> Any:
    torch.manual_seed(0)
    return SPEC.build(run_of(folder, SPEC, data=Chain(train=4, valid=1, test=1)))


def test_only_the_students_own_tokens_count() -> None:
    long = Episode(()).then([1, 2, 3], own=False).then([4, 5], own=True).then([6], own=False).then([7, 8, 9], own=True)
    short = Episode(()).then([1], own=False).then([2], own=True)
    assert long.own == [(4, 5), (7, 8, 9)] and long.tokens == list(range(1, 10))
    batch = as_batch([long, short])
    assert batch["inputs"]["tokens"].tolist() == [long.tokens, [1, 2] + [0] * 7]
    assert batch["weight"].tolist() == [[0, 0, 1, 1, 0, 1, 1, 1, 0], [1] + [0] * 8]
    assert batch["labels"][batch["weight"] > 0].tolist() == [4, 5, 7, 8, 9, 2]
    spans = by_turn([long, short])
    assert spans == [[(2, 4), (5, 8)], [(0, 1)]]
    for row, turns in zip(batch["labels"].tolist(), spans, strict=True):
        assert [tuple(row[a:b]) for a, b in turns] == (long if len(turns) > 1 else short).own
    assert as_batch([])["labels"].shape == (0, 0)


def test_an_episode_ends_when_nobody_replies_or_all_turns_are_used(tmp_path: Path) -> None:
    student = student_of(tmp_path)
    heard: list[list[int]] = []

    def reply(going: Sequence[tuple[int, Episode]]) -> list[list[int] | None]:
        heard.append([i for i, _ in going])
        return [None if i == 1 else [10 + i, len(e.own)] for i, e in going]

    prompts = [[1, 2], [3], [4, 5, 6]]
    episodes = play(student, prompts, reply, SAMPLING, turns=3, seed=1, keys=range(3), ends=frozenset({0}))
    assert heard == [[0, 1, 2], [0, 2]]  # not after the last turn
    assert [len(e.own) for e in episodes] == [3, 1, 3]
    for i, episode in enumerate(episodes):
        assert list(episode.turns[0].tokens) == prompts[i] and not episode.turns[0].own
        said = [list(t.tokens) for t in episode.turns[1:] if not t.own]
        assert said == ([] if i == 1 else [[10 + i, 1], [10 + i, 2]])
        assert all(0 not in own[:-1] and 1 <= len(own) <= 4 for own in episode.own)
    assert play(student, [], reply, SAMPLING, turns=2, seed=1, keys=[]) == []


def test_what_is_drawn_depends_on_the_key_and_the_turn_alone(tmp_path: Path) -> None:
    student = student_of(tmp_path)

    def reply(going: Sequence[tuple[int, Episode]]) -> list[list[int]]:
        return [[5, 6] for _ in going]

    prompts, keys = [[1, 2], [1, 2], [3, 4, 5]], [(0, 0), (0, 1), (7, 0)]
    whole = play(student, prompts, reply, SAMPLING, turns=2, seed=3, keys=keys)
    alone = [play(student, [p], reply, SAMPLING, turns=2, seed=3, keys=[k])[0] for p, k in zip(prompts, keys, strict=True)]
    assert whole == alone and whole[0] != whole[1]
    assert play(student, prompts, reply, SAMPLING, turns=2, seed=4, keys=keys) != whole
