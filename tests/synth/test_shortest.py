"""Shortest edits against the table that every textbook fills in, and against what an alignment must be."""

from __future__ import annotations

import difflib
import random

import pytest

from stillhouse.synth.shortest import aligned, parts_of


def distance(one, other) -> int:
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


def follows(one, other) -> None:
    found = aligned(one, other)
    assert found.distance == distance(one, other)
    assert len(other) == sum(found.kept) + found.inserted + found.replaced
    assert len(one) == sum(found.kept) + sum(found.deleted) + found.replaced
    assert not any(keep and gone for keep, gone in zip(found.kept, found.deleted, strict=True))
    rest = iter(other)
    assert all(any(part == each for each in rest) for part, keep in zip(one, found.kept, strict=True) if keep)


@pytest.mark.parametrize("letters", ["ab", "abcd"])
def test_against_the_table(letters: str) -> None:
    rng = random.Random(letters)
    for _ in range(1500):
        one, other = ("".join(rng.choice(letters) for _ in range(rng.randrange(12))) for _ in range(2))
        follows(one, other)


def test_words_and_long_texts_over_the_width_of_a_machine_word() -> None:
    rng = random.Random(0)
    one = [rng.choice("the a cat dog sees moon".split()) for _ in range(300)]
    other = [rng.choice("the a cat".split()) if rng.random() < 0.1 else w for w in one if rng.random() < 0.8]
    follows(one, other)


def test_taking_away_alone_is_found_as_that() -> None:
    rng = random.Random(1)
    for _ in range(300):
        one = "".join(rng.choice("abc \n") for _ in range(40))
        other = "".join(c for c in one if rng.random() < 0.7)
        found = aligned(one, other)
        assert (found.inserted, found.replaced, sum(found.deleted)) == (0, 0, len(one) - len(other))
        assert "".join(c for c, keep in zip(one, found.kept, strict=True) if keep) == other


def test_difflib_is_not_minimal_which_is_why_this_is_here() -> None:
    one, other = "aabbbccaba", "bbbaacabcc"
    rng = random.Random(2)
    longer = 0
    for _ in range(200):
        one, other = ("".join(rng.choice("abc") for _ in range(12)) for _ in range(2))
        codes = difflib.SequenceMatcher(None, one, other, autojunk=False).get_opcodes()
        theirs = sum(max(b - a, d - c) for tag, a, b, c, d in codes if tag != "equal")
        assert aligned(one, other).distance <= theirs
        longer += aligned(one, other).distance < theirs
    assert longer > 20


def test_nothing_and_the_same() -> None:
    assert aligned("", "").distance == 0
    assert aligned("", "ab").inserted == 2
    assert aligned("ab", "").deleted == (True, True)
    assert aligned("aß\u3042", "aß\u3042").kept == (True, True, True)
    assert aligned("one cat", "one cat").distance == 0
    assert aligned("kitten", "sitting").distance == 3


@pytest.mark.parametrize("text", ["", "a b", " two  blanks\n\n\tand tabs", "naïve café, 3.5 %\r\n日本語 ok", "a_b-c'd"])
def test_parts_make_up_the_text_again(text: str) -> None:
    for unit in ("characters", "words"):
        assert "".join(parts_of(text, unit)) == text
    assert all("\n" not in part or part == "\n" for part in parts_of(text, "words"))
