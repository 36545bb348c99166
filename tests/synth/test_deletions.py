"""Deletion programs: they say exactly what is gone, can only take away, and run nothing; and what tidy deletions are."""

from __future__ import annotations

import random
import re

import pytest

from stillhouse.synth.deletions import execute, expressible, is_subsequence, program_of, settled
from stillhouse.synth.tidy import kept_of

TEXT = "Title\nClick here! Some words, ha ha ha.\n\nShare this\nShare this\nThe end"


def left(text: str, kept) -> str:
    return "".join(c for c, keep in zip(text, kept, strict=True) if keep)


def test_calls_by_hand() -> None:
    assert execute(TEXT, "remove_lines(4, 5)").text == "Title\nClick here! Some words, ha ha ha.\n\nThe end"
    assert execute(TEXT, 'remove_str(2, "Click here! ")').text == TEXT.replace("Click here! ", "")
    assert execute(TEXT, 'remove_str(2, " ha", 1)').text == TEXT.replace("ha ha ha", "ha ha")
    assert execute(TEXT, "remove_lines(6, 6)\nremove_lines(1, 1)").text == "\n".join(TEXT.split("\n")[1:-1])
    assert execute(TEXT, "keep_all()") == execute(TEXT, "")
    assert execute(TEXT, "remove_lines(1, 6)").text == ""
    both = execute(TEXT, 'remove_str(2, "words,")\nremove_lines(1, 3)')  # what goes twice goes once
    assert both.text == "Share this\nShare this\nThe end" and both.invalid == 0


@pytest.mark.parametrize(
    "call",
    [
        "remove_lines(0, 1)", "remove_lines(5, 4)", "remove_lines(1, 7)", "remove_lines('1', 2)", "remove_lines(True, 2)",
        'remove_str(2, "nowhere")', 'remove_str(2, "ha")', 'remove_str(2, "ha", 3)', 'remove_str(2, "ha", -1)',
        'remove_str(2, "")',        'remove_str(9, "a")', "keep_all(1)", "remove_lines(1, end=2)", "nothing like it",
        "remove_lines(1, 1", "1 + 1",
        "__import__('os').system('echo')",
        "remove_lines(*[1, 1])", "remove_str(1, f'{1}')", "(" * 500,
        'remove_str(1, "Ti\ntle")',
    ],
)  # fmt: skip
def test_what_does_not_fit_takes_nothing_away(call: str) -> None:
    done = execute(TEXT, call)
    assert done.text == TEXT and done.invalid >= 1 and all(done.kept)
    assert execute(TEXT, f"{call}\nremove_lines(1, 1)").text == TEXT.removeprefix("Title\n")


def test_programs_say_exactly_what_is_gone() -> None:
    rng, unsaid = random.Random(0), 0
    for _ in range(4000):
        text = "".join(rng.choice('aß "\\\n\n') for _ in range(rng.randrange(14)))
        kept = [rng.random() < 0.6 for _ in text]
        program = program_of(text, kept)
        if program is None:
            unsaid += 1
            assert any(c == "\n" and not keep for c, keep in zip(text, kept, strict=True))  # two lines would be joined
        else:
            done = execute(text, program)
            assert (done.text, done.invalid) == (left(text, kept), 0)
            assert left(text, done.kept) == done.text and is_subsequence(done.text, text)
        mended = expressible(text, kept)
        program = program_of(text, mended)
        assert program is not None and execute(text, program).text == left(text, mended)
        assert all(keep <= more for keep, more in zip(kept, mended, strict=True))
        assert left(text, settled(text, kept)) == left(text, kept)
    assert 0 < unsaid < 2000


def test_programs_are_short() -> None:
    gone = TEXT.replace("Click here! ", "").replace("Share this\n", "", 1)
    kept = [True] * len(TEXT)
    for part in ("Click here! ", "Share this\n"):
        at = TEXT.index(part)
        kept[at : at + len(part)] = [False] * len(part)
    program = program_of(TEXT, kept)
    assert program == 'remove_str(2, "Click here! ")\nremove_lines(5, 5)'  # of equal lines the last
    assert execute(TEXT, program).text == gone
    assert program_of("a b\na c", [True, True, False, False, False, False, True]) == "remove_lines(1, 1)"
    assert program_of("ab", [True, True]) == "keep_all()" and program_of("a\nb", [False] * 3) == "remove_lines(1, 2)"
    assert program_of("", []) == "keep_all()"
    assert program_of("ab\ncd", [True, True, False, True, True]) is None


def test_anything_as_a_program_leaves_a_subsequence() -> None:
    rng = random.Random(3)
    words = ["remove_lines", "remove_str", "keep_all", "(", ")", ",", "1", "2", "99", '"e"', '" "', "\n", "-", "x"]
    for _ in range(2000):
        program = "".join(rng.choice(words) for _ in range(rng.randrange(20)))
        assert is_subsequence(execute(TEXT, program).text, TEXT)
    assert not is_subsequence("ba", "ab") and is_subsequence("", "") and is_subsequence("ac", "abc")


# -- tidy deletions ----------------------------------------------------------------------------------------------------


def tidied(text: str, *junk: str) -> str:
    odds = [-1.0] * len(text)
    for part in junk:
        at = text.index(part)
        odds[at : at + len(part)] = [1.0] * len(part)
    return left(text, kept_of(text, odds))


@pytest.mark.parametrize(
    ("text", "junk", "found"),
    [
        ("foo ### bar", ("###",), "foo bar"), ("foo ###", ("###",), "foo"), ("### foo", ("###",), "foo"),
        ("foo###bar", ("###",), "foo###bar"),  # it would make a new word
        ("foo (click here) bar", ("(click here)",), "foo bar"), ("a\nClick here\nb", ("Click here",), "a\nb"),
        ("Click here\nb", ("Click here",), "b"), ("b\nClick here", ("Click here",), "b"),
        ("Click here", ("Click here",), ""),
        ("    indented ## code", ("##",), "    indented code"), ("end ##.", ("##",), "end ."),
        ("a\n\nb c", ("b",), "a\n\nc"),
        ("one two three", ("n",), "one two three"),  # a word goes as a whole or not at all
    ],
)  # fmt: skip
def test_words_go_as_a_whole_and_blanks_with_them(text: str, junk: tuple[str, ...], found: str) -> None:
    assert tidied(text, *junk) == found


def test_no_word_is_ever_new_and_a_program_says_it() -> None:
    rng = random.Random(4)
    for _ in range(4000):
        text = "".join(rng.choice(["a", "bc", "d_", " ", "  ", "\n", "#", ".", "é"]) for _ in range(rng.randrange(14)))
        kept = kept_of(text, [rng.choice([-1.0, 1.0]) for _ in text])
        program = program_of(text, kept)
        assert program is not None and execute(text, program).text == left(text, kept)
        assert set(re.findall(r"\w+", left(text, kept))) <= set(re.findall(r"\w+", text)), text
        assert all(kept_of(text, [-1.0] * len(text)))
