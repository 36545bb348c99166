"""The script's programs are what its truth says, and its shares are those that were set."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from stillhouse.core.run import Run, RunError
from stillhouse.data.problems import Problems
from stillhouse.synth.part import Part
from stillhouse.synth.scripts.programmer import FAULTS, Programmer
from stillhouse.teachers.text import Ask, Decoding

from ..onestep import through, whys

QUESTION = " 3 bags of 12,  5 more?"


def said(script: Programmer, seed: int, temperature: float = 0.0, **about: Any) -> Any:
    ask = Ask((("user", QUESTION),), Decoding(temperature=temperature), seed, {"question": QUESTION, **about})
    return script.answer(ask, random.Random(seed))


def test_the_truth_is_what_the_program_says() -> None:
    found = [said(Programmer(), seed, 0.5) for seed in range(1000)]
    assert sum(not answer.truth["right"] for answer in found) / 1000 == pytest.approx(0.5, abs=0.05)
    assert all((answer.text == "return  3*12+ 5") == answer.truth["right"] for answer in found)
    faults = Counter(answer.truth["fault"] for answer in found if not answer.truth["right"])
    assert set(faults) == set(FAULTS) and min(faults.values()) > 80
    for answer in found:
        if answer.truth["fault"] in ("another sign", "another number"):
            assert eval(answer.text.removeprefix("return").strip()) != 41  # noqa: S307  here no fault hits by chance
        if answer.truth["fault"] == "no program":
            assert "return" not in answer.text
        if answer.truth["fault"] == "no Python":
            with pytest.raises(SyntaxError):
                compile(answer.text.removeprefix("return"), "", "eval")
    greedy = [said(Programmer(), seed) for seed in range(1000)]
    assert sum(not answer.truth["right"] for answer in greedy) / 1000 == pytest.approx(0.3, abs=0.05)


def test_shown_alone_it_needs_an_example_of_the_same_kind() -> None:
    script = Programmer(shown_alone=True)
    same, other = [{"question": " 9 bags of  9, 9 more?"}], [{"question": " 9 bags of  9,  9 gone?"}]
    assert said(script, 0, shown=[*other, *same]).truth["right"]
    assert not any(said(script, seed, shown=shown).truth["right"] for seed in range(9) for shown in (other, [], None))


def test_it_knows_these_problems_only(tmp_path: Path) -> None:
    script = Programmer(wrong_greedy=0.0)
    answer = script.build(Run(tmp_path / "run"))
    for task in Problems(train=20).tasks(Run(tmp_path / "run"))["train"]:
        told: Any = answer(Ask((), Decoding(temperature=0.0), 0, {"question": task.question}), random.Random(0))
        assert told.text == f"return {task.entry}"
    with pytest.raises(RunError, match="was asked 'three cats'"):
        answer(Ask((), Decoding(), 0, {"question": "three cats"}), random.Random(0))
    with pytest.raises(ValueError, match="shares"):
        Programmer(wrong=1.5)


def test_a_part_of_a_text_in_a_column_of_its_own(tmp_path: Path) -> None:
    rows = [{"answer": text} for text in ("a <x>é\n1</x> <x> 2 </x>", "a", "<x> </x>", "")]
    kept, gone = through(Part(pattern="<x>(.*?)</x>"), rows, tmp_path)
    assert [row["part"] for row in kept] == ["2"]
    assert whys(gone, "answer") == {
        "a": "there is no such part", "<x> </x>": "the part is empty", "": "there is no such part",
    }  # fmt: skip
    with pytest.raises(ValueError, match="no regular expression"):
        Part(pattern="(")
