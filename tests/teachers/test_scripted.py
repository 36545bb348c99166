"""Teachers without a model, and a model of one's own that writes."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from language import Folders, run_of
from stillhouse.core.run import Run
from stillhouse.core.signal import Completion
from stillhouse.models.generate import Sampling, generate
from stillhouse.models.hub import HubLM
from stillhouse.teachers.scripted import Scripted, Spy
from stillhouse.teachers.text import Ask, Decoding, Lost, fingerprint
from stillhouse.teachers.writer import LocalChat


@dataclass(frozen=True, kw_only=True)
class Dice:
    """Says what it was asked and a number that is drawn; refuses `no`."""

    sides: int = 1000

    def build(self, run: Run) -> Callable[[Ask, random.Random], str | Completion | Lost]:
        def answer(ask: Ask, rng: random.Random) -> str | Completion | Lost:
            words = ask.messages[-1][1]
            return Lost("it does not like to") if words == "no" else f"{words} {rng.randrange(self.sides)}"

        return answer


def ask(words: str, seed: int = 0, **how: Any) -> Ask:
    return Ask((("user", words),), Decoding(**{"max_new": 12, **how}), seed)


def answers(teacher: Any, asks: list[Ask]) -> list[Completion | Lost]:
    found = dict(teacher.write(asks, threading.Event()))
    return [found[i] for i in range(len(asks))]


def test_a_script_answers_by_the_ask_alone(tmp_path: Path) -> None:
    teacher = Scripted(script=Dice()).build(Run(tmp_path / "run"))
    one, other, again = answers(teacher, [ask("a"), ask("a", seed=1), ask("a")])
    assert one == again != other
    assert answers(teacher, [ask("b"), ask("a")])[1] == one
    assert answers(teacher, [ask("no")]) == [Lost("it does not like to")]
    assert fingerprint(teacher) != fingerprint(Scripted(script=Dice(sides=6)).build(Run(tmp_path / "run")))


def test_it_is_a_teacher_like_any_other(tmp_path: Path) -> None:
    teacher = Scripted(script=Dice()).build(Run(tmp_path / "run"))
    said = teacher({"asks": [ask("a"), ask("no")]}, frozenset({"text"})).need("text")
    assert [len(each) for each in said] == [1, 0] and said[0][0].text.startswith("a ")


def test_a_spy_remembers(tmp_path: Path) -> None:
    spy = Spy(Scripted(script=Dice()).build(Run(tmp_path / "run")))
    answers(spy, [ask("a"), ask("b")])
    assert [a.messages[0][1] for a in spy.asked] == ["a", "b"] and fingerprint(spy) == fingerprint(spy.writer)
    assert spy({"asks": [ask("a")]}, frozenset({"text"})).need("text")[0][0].text.startswith("a ")


def local(folders: Folders, tmp_path: Path, **settings: Any) -> Any:
    model = HubLM(path=str(folders.teacher))
    return LocalChat(model=model, **settings).build(run_of(tmp_path / "run", model))


def test_a_model_of_ones_own_answers_in_batches(folders: Folders, tmp_path: Path) -> None:
    asks = [ask(f"the cat sees {'the moon ' * (i % 3)}", seed=i // 2, temperature=0.8) for i in range(7)]
    one, many = (answers(local(folders, tmp_path, batch=batch), asks) for batch in (1, 4))
    assert [a.text for a in one if isinstance(a, Completion)] == [a.text for a in many if isinstance(a, Completion)]
    assert all(0 < a.wrote <= 12 and a.read > 4 for a in one if isinstance(a, Completion))
    assert all(a.finished == (a.wrote < 12) or a.finished for a in one if isinstance(a, Completion))


def test_it_answers_as_the_model_does(folders: Folders, tmp_path: Path) -> None:
    teacher = local(folders, tmp_path)
    (said,) = answers(teacher, [ask("the cat", temperature=0.0)])
    tokenizer = teacher.tokenizer
    turns = [{"role": "user", "content": "the cat"}]
    prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    (answer,) = generate(teacher.module, [ids], Sampling(temperature=0.0, max_new=12), seed=0)
    assert isinstance(said, Completion)
    assert said.text == tokenizer.decode(answer, skip_special_tokens=True) and said.read == len(ids)


def test_what_does_not_fit_into_the_context_is_lost(folders: Folders, tmp_path: Path) -> None:
    found = answers(local(folders, tmp_path), [ask("moon " * 400), ask("short")])
    assert isinstance(found[0], Lost) and "more than the model's 256" in found[0].why
    assert isinstance(found[1], Completion)


def test_a_model_without_a_chat_template_continues_the_words(folders: Folders, tmp_path: Path) -> None:
    model = HubLM(path=str(folders.plain))
    teacher = LocalChat(model=model).build(run_of(tmp_path / "run", model))
    assert isinstance(answers(teacher, [ask("the cat")])[0], Completion)


def test_the_same_weights_have_the_same_name(folders: Folders, tmp_path: Path) -> None:
    one, other = local(folders, tmp_path), local(folders, tmp_path, batch=2)
    assert fingerprint(one) == fingerprint(other)
