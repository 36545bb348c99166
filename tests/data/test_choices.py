"""Questions whose odds are known: the answers come as often as the odds say."""

from __future__ import annotations

from pathlib import Path

import torch

from language import run_of
from stillhouse.data.choices import Choices
from stillhouse.models.toys import TinyLM


def test_answers_come_as_often_as_the_odds_say(tmp_path: Path) -> None:
    data = Choices(test=20_000, train=10, valid=10)
    run = run_of(tmp_path, TinyLM())
    splits = data.load(run)
    batch = splits["test"].batch(range(20_000), 0)
    questions = batch["inputs"]["tokens"][:, : data.words]
    odds, answers = data.odds(questions), batch["labels"][:, data.words - 1] - data.symbols
    assert batch["weight"].sum(0).tolist() == [0.0] * (data.words - 1) + [20_000.0, 0.0]  # the answer alone counts
    assert int(answers.min()) == 0 and int(answers.max()) == data.answers - 1
    for low, high in ((0.0, 0.1), (0.1, 0.4), (0.4, 0.7), (0.7, 1.0)):
        inside = (odds >= low) & (odds < high)
        hit = torch.nn.functional.one_hot(answers, data.answers)[inside].double().mean()
        assert abs(float(hit) - float(odds[inside].mean())) < 0.015
    best = float(odds.max(-1).values.mean())
    assert 0.5 < best < 0.9  # worth learning, and never certain


def test_held_out_questions_are_the_same_for_every_run(tmp_path: Path) -> None:
    a, b = (Choices(train=5, valid=5, test=5).load(run_of(tmp_path / str(s), TinyLM(), seed=s)) for s in (0, 1))
    assert a["test"].rows == b["test"].rows and a["valid"].rows == b["valid"].rows and a["train"].rows != b["train"].rows
    assert (
        a["valid"].rows != a["test"].rows
        and a["train"].classes == 20
        and Choices(train=0).load(run_of(tmp_path / "x", TinyLM()))["train"].rows == ()
    )
