"""Steps and thoughts of a trace: nothing of it is lost, and cuts are where they are by hand."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from stillhouse.synth.segment import Segment, Thoughts

from .onestep import through, whys

WORDS = Thoughts()
CHAINS = Thoughts(separator=";", turns=("~",))


def test_words_by_hand() -> None:
    text = "So x is 3.\nAnd y?\n\nWait, no.\n \n\nx is 4.\n\nbut then y is 5.\n\nButter is no turn.\n\nHold on: x?"
    steps = WORDS.steps(text)
    assert [step.strip() for step in steps] == [
        "So x is 3.\nAnd y?", "Wait, no.", "x is 4.", "but then y is 5.", "Butter is no turn.", "Hold on: x?",
    ]  # fmt: skip
    assert "".join(steps) == text and WORDS.switches(steps) == [1, 3, 5]


def test_chains_by_hand() -> None:
    steps = CHAINS.steps("3+4=8;8*2=6;~3+4=7;7*2=4;~7*2=4#4")
    assert steps == ["3+4=8;", "8*2=6;", "~3+4=7;", "7*2=4;", "~7*2=4#4"] and CHAINS.switches(steps) == [2, 4]
    assert CHAINS.switches(CHAINS.steps("~3+4=7;7*2=4#4")) == []  # nothing was there to turn from
    assert CHAINS.unled(";;3+4=7;") == "3+4=7;" and WORDS.unled("\n\n\n\nWait") == "Wait" and CHAINS.unled(" ; x;") == "x;"


def reference(text: str) -> list[str]:
    """Steps of a chain: a letter begins one if a separator stands between it and the letter before."""
    letters = [i for i, letter in enumerate(text) if letter not in "; "]
    cuts = [text.rindex(";", 0, b) + 1 for a, b in zip(letters, letters[1:], strict=False) if ";" in text[a:b]]
    edges = [0, *cuts, len(text)]
    return [text[a:b] for a, b in zip(edges, edges[1:], strict=False)] if letters else []


@pytest.mark.parametrize("seed", range(200))
def test_nothing_is_lost_and_no_step_is_empty(seed: int) -> None:
    rng = random.Random(seed)
    text = "".join(rng.choices(";;ab~ ", k=rng.randrange(30)))
    steps = CHAINS.steps(text)
    assert steps == reference(text)
    assert "".join(steps) == (text if steps else "") and all(step.strip("; ") for step in steps)
    words = "".join(rng.choices(["\n", "\n\n", " ", "wait", "ñ", "a"], k=rng.randrange(30)))
    assert "".join(WORDS.steps(words)) == (words if words.strip() else "") and all(map(str.strip, WORDS.steps(words)))


def test_rows_are_told_how_many(tmp_path: Path) -> None:
    rows = [{"trace": t} for t in ("a\n\nWait, b\n\nc", "", "ñ", "Wait")] + [{"trace": None}]
    kept, gone = through(Segment(into="number"), rows, tmp_path)
    assert not gone and [(r["number"], r["number_thoughts"]) for r in kept] == [(3, 2), (0, 0), (1, 1), (1, 1), (0, 0)]
    assert whys(gone, "trace") == {}


@pytest.mark.parametrize("wrong", [{"separator": ""}, {"separator": ";*"}, {"separator": "("}, {"turns": ("Wait", " ")}])
def test_what_cuts_nothing_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        Thoughts(**wrong)  # type: ignore[arg-type]
