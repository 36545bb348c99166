"""Programs as data for a tagger, pieces of long texts, and a tagger that padding does not reach."""

from __future__ import annotations

import random

import torch

from stillhouse.core.run import Run
from stillhouse.data.noisy import NoisyLibrary
from stillhouse.models.tagger import CharacterTagger, Tagger, tagged
from stillhouse.synth.deletions import execute, is_subsequence
from stillhouse.synth.refining import Tagged, pieces_of, refine


def test_pieces_make_up_the_text_again() -> None:
    rng = random.Random(0)
    for _ in range(500):
        text = "".join(rng.choice("ab \n") for _ in range(rng.randrange(40)))
        pieces = list(pieces_of(text, 7))
        assert "".join(piece for piece, _ in pieces) == text
        assert all(len(piece) <= 8 for piece, _ in pieces)
        assert all(len(seen) >= piece.count("\n") + 1 - piece.endswith("\n") for piece, seen in pieces)


def test_lines_that_were_there_before_are_known_over_pieces() -> None:
    text = "first line\nother\nfirst  line\n\n\nother"
    ((whole, seen),) = pieces_of(text, 100)
    assert whole == text and seen == [False, False, True, False, False, True]
    flags = [flag for piece, seen in pieces_of(text, 12) for flag in seen[: len(piece.rstrip("\n").split("\n"))]]
    assert flags.count(True) == 2


def test_padding_and_neighbours_change_nothing() -> None:
    torch.manual_seed(0)
    net = CharacterTagger(8, 3).eval()
    texts = ["short", "a longer text\nof two lines", "x"]
    seen = [[False], [False, True], [False]]
    together = net(**tagged(texts, seen))
    for row, (text, known) in enumerate(zip(texts, seen, strict=True)):
        alone = net(**tagged([text], [known]))
        assert torch.allclose(together[row, : len(text)], alone[0], atol=1e-5)
    assert torch.isfinite(together).all() and torch.isfinite(net(**tagged(["", "ü\0日"], [[False], [False]]))).all()


def test_labels_are_what_the_program_takes_away() -> None:
    text = "keep ## this\nClick here"
    kept = execute(text, 'remove_str(1, " ##")\nremove_lines(2, 2)').kept
    source = Tagged(((text, [False, False]),), (tuple(not keep for keep in kept),))
    batch = source.batch([0], 0)
    gone = "".join(c for c, label in zip(text, batch["labels"][0].tolist(), strict=True) if label)
    assert gone == " ##\nClick here"
    assert all((w == 0) == c.isspace() for c, w in zip(text, batch["weight"][0].tolist(), strict=True))


def test_an_untrained_refiner_adds_nothing(tmp_path) -> None:
    run = Run(tmp_path / "run", device=torch.device("cpu"))
    torch.manual_seed(0)
    texts = ["a b\nc", "", "\n", "word " * 300, "naïve\n\n日本 語"]
    programs = refine(Tagger(width=8).build(run).eval(), texts, run, length=64)
    assert len(programs) == 5
    for text, program in zip(texts, programs, strict=True):
        done = execute(text, program)
        assert done.invalid == 0 and is_subsequence(done.text, text)


def test_the_noise_is_known(tmp_path) -> None:
    run = Run(tmp_path / "run")
    data = NoisyLibrary(train=80, valid=10, test=20)
    splits = data.rows(run)
    assert splits == data.rows(run)
    rows = splits["train"]
    assert all(is_subsequence(row["clean"], row["text"]) for row in rows)
    noisy = sum(row["text"] != row["clean"] for row in rows) / len(rows)
    assert 0.6 < noisy < 1.0
    sources = data.load(run)
    assert sources["train"].tokens > NoisyLibrary(train=80, clean=True).load(run)["train"].tokens
    assert sources["test"].tokens == sum(len(row["clean"]) + 1 for row in splits["test"])  # judged by clean text


def test_rows_without_a_program_are_refused(tmp_path) -> None:
    import pytest

    from stillhouse.core.run import RunError
    from stillhouse.synth.refining import Deletions
    from stillhouse.synth.select import Top

    from .lab import go
    from .talk import plan

    run = go(plan({"some": Top(total=2)}, [{"text": "a\nb"}, {"text": "c"}]), tmp_path / "run")
    with pytest.raises(RunError, match="without 'program'"):
        Deletions(stage="make").load(run)
    with pytest.raises(RunError, match="without 'body'"):
        Deletions(stage="make", column="body").load(run)
