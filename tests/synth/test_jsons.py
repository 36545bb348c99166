"""JSON out of answers: what is whole is read as it is, what models slip on is mended, and nothing is made up."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from stillhouse.synth.jsons import json_in

values = some.recursive(
    some.none() | some.booleans() | some.integers(-99, 99) | some.text(max_size=8),
    lambda inner: some.lists(inner, max_size=4) | some.dictionaries(some.text(max_size=5), inner, max_size=3),
    max_leaves=12,
).filter(lambda value: isinstance(value, list | dict))


@settings(max_examples=150, deadline=None)
@given(values)
def test_what_is_json_is_read_as_json_wherever_it_stands(value: Any) -> None:
    said = json.dumps(value, ensure_ascii=False)
    for answer in (said, f"Here it is: {said}", f"```json\n{said}\n```", f"{said}\nThat is all."):
        assert json_in(answer) == value


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ('[["Oslo", "city"],]', [["Oslo", "city"]]),
        ('{"city": ["Oslo",],}', {"city": ["Oslo"]}),
        ("[['Oslo', 'city'], ('Anna', 'person')]", [["Oslo", "city"], ("Anna", "person")]),
        ('[\n ["Oslo", "city"], // in Norway\n ["Anna", "person"]\n]', [["Oslo", "city"], ["Anna", "person"]]),
        ('[["Oslo", "city"], ["Anna", "per', [["Oslo", "city"], ["Anna"]]),
        ('[{"name": "Oslo", "type": "city"}, {"na', [{"name": "Oslo", "type": "city"}]),
        ('["O\'Neill", "a ] b", "c \\" d"]', ["O'Neill", "a ] b", 'c " d']),
        ("[see above] and then [1, 2]", [1, 2]),
        ("nothing", None),
        ("", None),
        ("[" * 3000, None),
        ("[]", []),
    ],
)
def test_slips_are_mended(answer: str, value: Any) -> None:
    assert json_in(answer) == value
