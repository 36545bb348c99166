"""What models write as lists and labels is read as people would read it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from stillhouse.core.run import RunError
from stillhouse.synth.parse import items_of, nearest_label, plain
from stillhouse.synth.prompts import fill


@pytest.mark.parametrize(
    ("answer", "items"),
    [
        ("1. one\n2. two\n3. three", ["one", "two", "three"]),
        ("Sure! Here are three texts:\n\n1) one\n2) two", ["one", "two"]),
        ("- one\n* two\n• three", ["one", "two", "three"]),
        ("one\ntwo", ["one", "two"]),
        ("just one", ["just one"]),
        ("1. \"quoted text\"\n2. “curly”\n3. 'single'", ["quoted text", "curly", "single"]),
        ("1. **bold** words\n2. it's 5 o'clock", ["bold words", "it's 5 o'clock"]),
        ("1. a card was lost (85% lost card, 15% fees)\n2. fees [70% fees]", ["a card was lost", "fees"]),
        ("Example 1: one\nExample 2: two", ["one", "two"]),
        ("1. Text: one", ["one"]),
        ("1.\n2. two", ["two"]),
        ("1. 3 cards (two of them mine) are gone", ["3 cards (two of them mine) are gone"]),
        ("", []),
        ("  \n\n ", []),
        ("1. spread   over\tblanks", ["spread over blanks"]),
        ("10. ten\n11. eleven", ["ten", "eleven"]),
        ("3.5 percent is too much", ["3.5 percent is too much"]),
        ("50 - 60 people came", ["50 - 60 people came"]),
    ],
)
def test_lists(answer: str, items: list[str]) -> None:
    assert items_of(answer) == items


@given(some.text())
def test_any_answer_can_be_read(answer: str) -> None:
    assert all(item == " ".join(item.split()) and item for item in items_of(answer))
    name, alike = nearest_label(answer, ["lost card", "fees"])
    assert name in ("lost card", "fees") and 0.0 <= alike <= 1.0 + 1e-9


@pytest.mark.parametrize(
    ("answer", "label", "sure"),
    [
        ("lost_card", "lost_card", True),
        ("Lost card.", "lost_card", True),
        ("The text belongs to the class 'lost card'.", "lost_card", True),
        ("card", "card", True),
        ("lost card", "lost_card", True),  # the longer name, though "card" is a name as well
        ("fee", "fees", False),
        ("Class: fees\n\nBecause it is about money", "fees", True),
        ("either fees or lost card", "lost_card", False),  # two names: the one that is more alike
        ("lost crad", "lost_card", False),
    ],
)
def test_labels(answer: str, label: str, sure: bool) -> None:
    found, alike = nearest_label(answer, ["card", "fees", "lost_card"])
    assert found == label and (alike == 1.0) == sure


def test_plain_texts_compare_by_their_words() -> None:
    assert plain("  Hello,\nWORLD! ") == plain("hello world") == "hello world"
    assert plain("ﬁne") == "fine" and plain("...") == "" and plain("Straße") == plain("STRASSE")


def test_prompts_name_what_is_missing_and_run_nothing() -> None:
    assert fill("{% for t in texts %}\n- {{ t }}\n{% endfor %}", texts=["a <b>", "c"]) == "- a <b>\n- c"
    assert fill("{{ text }}", text="{{ secret }}") == "{{ secret }}"
    with pytest.raises(RunError, match="'nmae' is undefined; it may use name, text"):
        fill("{{ nmae }}", name="x", text="y")
    with pytest.raises(RunError, match="the prompt's line 2"):
        fill("a\n{% for %}", text="y")
    with pytest.raises(RunError, match="cannot be filled in"):
        fill("{{ text.__class__.__mro__ }}", text="y")
