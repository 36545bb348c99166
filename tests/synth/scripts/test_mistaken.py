"""The scripted model errs as often as it is told to, always in the same way, and is blind to its own errors."""

from __future__ import annotations

import random
import re
from itertools import product
from typing import Any

import pytest

from stillhouse.core.run import RunError
from stillhouse.data.tasks import Chain
from stillhouse.synth.scripts.mistaken import Mistaken
from stillhouse.teachers.text import Ask, Decoding

DATA = Chain(ops=(3,), base=6)


def by_hand(question: str) -> str:
    value, *rest = re.findall(r"\d+|[+*-]", question)
    steps, result = [], int(value)
    for sign, number in zip(rest[::2], rest[1::2], strict=True):
        new = {"+": result + int(number), "-": result - int(number), "*": result * int(number)}[sign] % 6
        steps.append(f"{result}{sign}{number}={new}")
        result = new
    return f"{';'.join(steps)}#{result}"


def questions(count: int) -> list[str]:
    rng = random.Random(0)
    return [
        "".join(f"{rng.randrange(6)}{rng.choice('+-*')}" for _ in range(3)) + f"{rng.randrange(6)}=" for _ in range(count)
    ]


def said(script: Mistaken, reads: tuple[str, ...] = (), drawn: int = 0, **about: Any) -> Any:
    told = {**about, **({"reads": reads} if reads else {})}
    return script.answer(Ask((("user", str(about)),), Decoding(), drawn, told), random.Random(drawn))


def test_without_errors_it_is_right() -> None:
    for question in questions(50):
        answer = said(Mistaken(data=DATA, wrong=0.0), ("answer",), question=question)
        assert answer.text == by_hand(question) and answer.truth == {"right": True}


def test_it_knows_exactly_so_many_steps_wrongly() -> None:
    script = Mistaken(data=DATA, wrong=0.25)
    assert len(script.beliefs) == 27  # of 6 * 3 * 6 steps
    for a, sign, b in product(range(6), "+-*", range(6)):
        step = f"{a}{sign}{b}"
        right = int(by_hand(f"{step}=").rpartition("#")[2])
        assert (script.beliefs.get(step, right) == right) == (step not in script.beliefs)
    assert Mistaken(data=DATA, wrong=0.25) is not script and Mistaken(data=DATA, wrong=0.25).beliefs == script.beliefs


def test_answers_are_wrong_as_often_as_steps_are() -> None:
    """1 - (1 - w)^3, over models that believe different things."""
    asked = questions(60)
    truths = [
        said(Mistaken(data=DATA, name=str(i), wrong=0.112), ("answer",), question=q).truth["right"]
        for i in range(60)
        for q in asked
    ]
    assert 1 - sum(truths) / len(truths) == pytest.approx(1 - (1 - 12 / 108) ** 3, abs=0.03)


def test_families_agree_and_others_are_independent() -> None:
    one, two = (Mistaken(data=DATA, name=name, family="f", wrong=0.2) for name in "ab")
    assert one.beliefs == two.beliefs
    shared = [len(set(Mistaken(data=DATA, name=f"{i}", wrong=0.25).beliefs) & set(one.beliefs)) for i in range(80)]
    assert sum(shared) / len(shared) == pytest.approx(27 * 22 / 108, abs=0.7)  # as two draws without regard to each other


def test_it_finds_its_own_answers_right_and_judges_others_as_it_answers() -> None:
    me, others = Mistaken(data=DATA, name="me", wrong=0.112), Mistaken(data=DATA, wrong=0.0)
    asked = questions(300)
    assert all(me.finds_right(q, me.solved(q)) for q in asked)
    assert any(me.solved(q) != by_hand(q) for q in asked)
    for q in asked:  # right answers, which it finds wrong exactly where it would have answered otherwise
        assert me.finds_right(q, others.solved(q)) == (me.solved(q) == others.solved(q))


def test_marks_are_high_or_low_and_rulings_follow() -> None:
    script = Mistaken(data=DATA, wrong=0.0, mends=1.0)
    question = questions(1)[0]
    right, wrong = by_hand(question), by_hand(question)[:-1] + "x"
    names = ["correct", "difficulty"]
    good, bad = (said(script, question=question, answer=each, marks=names).text for each in (right, wrong))
    assert re.fullmatch(r"correct: (8|9|10)\ndifficulty: 8\nCritique: none", good)
    assert re.fullmatch(r"correct: [123]\ndifficulty: 8\nCritique: one of the steps is wrong", bad)
    reads = ("ruling", "correction", "reason")
    accepted, corrected = (said(script, reads, question=question, answer=each) for each in (right, wrong))
    assert (accepted.text, accepted.truth) == ("Ruling: accept", None)
    assert corrected.text == f"Ruling: correct\nAnswer: {right}" and corrected.truth == {"right": True}
    stubborn = said(Mistaken(data=DATA, wrong=0.0, mends=0.0), reads, question=question, answer=wrong)
    assert stubborn.text.startswith("Ruling: reject\nCritique:") and stubborn.truth is None


def test_told_of_a_mistake_it_thinks_again() -> None:
    script = Mistaken(data=DATA, wrong=0.3, mends=1.0)
    question = next(q for q in questions(50) if script.solved(q) != by_hand(q))
    assert said(script, ("answer",), question=question, returned="no").text == by_hand(question)
    never = Mistaken(data=DATA, wrong=0.3, mends=0.0)
    assert said(never, ("answer",), question=question, returned="no").text == script.solved(question)


def test_two_models_draw_different_things() -> None:
    about: dict[str, Any] = {"seed": "3+4*2-1="}
    texts = {said(Mistaken(data=DATA, name=n), ("domain", "keywords", "question"), **about).text for n in "abcdefgh"}
    assert len(texts) > 5
    assert all(re.fullmatch(r"Domain: .*\nKeywords: .*\nQuestion: [0-5]([+*-][0-5]){3}=", text) for text in texts)


def test_what_it_does_not_know() -> None:
    with pytest.raises(RunError, match="knows chains"):
        said(Mistaken(), ("answer",), question="Who?")
    with pytest.raises(RunError, match="asked something else"):
        said(Mistaken(), question="1+1=")
    with pytest.raises(ValueError, match="shares"):
        Mistaken(wrong=2)
