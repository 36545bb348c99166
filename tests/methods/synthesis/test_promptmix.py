"""PromptMix: the shares that are asked for, what becomes of every answer, and that each half does what it is for."""

from __future__ import annotations

import math
import random
import re
import sqlite3
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from language import write_jsonl
from stillhouse.core.recipe import Recipe
from stillhouse.core.run import Run, RunError
from stillhouse.core.signal import Completion
from stillhouse.core.stage import execute
from stillhouse.data.labelled import Labelled
from stillhouse.methods.synthesis.promptmix import Mix, Relabel, recipe
from stillhouse.models.text import NGrams
from stillhouse.synth.scripts.imitator import Imitator, NaiveBayes
from stillhouse.synth.synthesize import DataPlan, Synthesize, account_of, made_rows
from stillhouse.teachers.scripted import Scripted
from stillhouse.teachers.text import Ask

NAMES = ("card", "fees", "travel")
ROWS = [{"text": f"{name} question number {i}.", "label": name} for name in NAMES for i in range(20)]


@dataclass(frozen=True, kw_only=True)
class Bank:
    """Reads its prompt as a model would; `says` is what it answers about a text's class."""

    answer: str = "1. {name} and {other} {number}\n2. second {number}\n3. third {number}"
    says: str = "Class: {last}."

    def build(self, run: Run) -> Callable[[Ask, random.Random], str | Completion]:
        def answer(ask: Ask, rng: random.Random) -> str | Completion:
            words = ask.messages[0][1]
            about = re.search(r'(\d+)% to the class "(\w+)" and (\d+)% to the class "(\w+)"', words)
            only = re.search(r'Each must belong to the class "(\w+)"', words)
            if about or only:
                name, other = (about[2], about[4]) if about else (only[1], "")  # type: ignore[index]
                assert not about or int(about[1]) + int(about[3]) == 100
                return self.answer.format(name=name, other=other, number=rng.randrange(10**9))
            text = re.search(r"Text: (.*)\nClass:", words)
            assert text, words
            return self.says.format(last=next((n for n in reversed(text[1].split()) if n in NAMES), "travel"))

        return answer


def synthesized(tmp_path: Path, mix: Mix, relabel: Relabel | None = None, bank: Bank = Bank(), shots: int = 2) -> Run:
    tmp_path.mkdir(exist_ok=True)
    data = Labelled(path=str(write_jsonl(tmp_path / "rows.jsonl", ROWS)), shots=shots)
    steps = {"mix": mix} | ({"relabel": relabel} if relabel else {})
    made = Recipe(
        id="mine", student=NGrams(), data=data, teachers={"teacher": Scripted(script=bank)},
        stages={"make": Synthesize(steps=steps)},
    )  # fmt: skip
    run = Run(tmp_path / "run")
    execute(made, run)
    return run


def test_the_shares_are_those_of_the_paper(tmp_path: Path) -> None:
    rows = made_rows(synthesized(tmp_path, Mix(each=300)), "make")
    shares = Counter(row["share"] for row in rows)
    assert set(shares) <= set(range(50, 101, 5))
    mean = sum(share * n for share, n in shares.items()) / sum(shares.values())
    assert mean == pytest.approx(50 + 50 * 5 / 7, abs=1.0)  # the mean of Beta(5, 2) is 5/7
    assert all(row["other"] in NAMES and row["other"] != row["label"] for row in rows)
    assert max(Counter(row["other"] for row in rows if row["label"] == "card").values()) < 0.6 * 300


def test_without_mixing_one_class_is_asked_for(tmp_path: Path) -> None:
    rows = made_rows(synthesized(tmp_path, Mix(each=5, mixing=False)), "make")
    assert {row["share"] for row in rows} == {100} and len(rows) == 15


def test_one_of_the_listed_texts_is_kept(tmp_path: Path) -> None:
    rows = made_rows(synthesized(tmp_path, Mix(each=60)), "make")
    kinds = Counter(row["text"].split()[0] in ("second", "third") for row in rows)
    assert 0.5 < kinds[True] / len(rows) < 0.8  # two of three


def test_the_new_label_replaces_the_one_that_was_asked_for(tmp_path: Path) -> None:
    bank = Bank(answer="1. {name} and {other} {number}")
    rows = made_rows(synthesized(tmp_path, Mix(each=8), Relabel(), bank), "make")
    mixed = [row for row in rows if row["share"] < 100]
    assert mixed and all(row["label"] != row["asked"] and row["alike"] == 1.0 for row in mixed)


def test_what_is_lost_has_a_reason(tmp_path: Path) -> None:
    bank = Bank(answer='1. "Card question NUMBER 1"\n2. new {number}')
    copies = synthesized(tmp_path / "a", Mix(each=8), bank=bank, shots=14)
    _, told = account_of(copies, "make")["steps"]
    assert told["lost"]["the same text was there before"] + told["made"] == 24
    with pytest.raises(RunError, match="no row is left .* no text in the answer"):
        synthesized(tmp_path / "b", Mix(each=2), bank=Bank(answer=" \n "))
    run = synthesized(tmp_path / "c", Mix(each=4), Relabel(), Bank(says="{last}"))
    assert len(made_rows(run, "make")) == 12
    with pytest.raises(RunError, match="an answer without words in place of a class"):
        synthesized(tmp_path / "d", Mix(each=2), Relabel(), Bank(says="..."))


def test_prompts_show_the_examples_and_nothing_else(tmp_path: Path) -> None:
    run = synthesized(tmp_path, Mix(each=3, shown=2, descriptions={"card": "about cards"}), Relabel())
    given = {row["text"] for row in ROWS}
    train = {row["text"] for row in run.recipe.data.rows(run)["train"]}
    for (asked,) in sqlite3.connect(run.folder / "requests.sqlite").execute("select asked from calls"):
        shown = {text for text in given if text in asked}
        assert shown and shown <= train  # no held-out text is ever sent
        if "Write 3 new texts" in asked:
            assert asked.count("Class: ") == 2
            assert "Class: card - about cards" in asked or "Class: card" not in asked


def test_one_class_cannot_be_mixed(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds one label only"):
        data = Labelled(path=str(write_jsonl(tmp_path / "one.jsonl", ROWS[:20])), shots=2)
        made = Recipe(
            id="mine", student=NGrams(), data=data, teachers={"teacher": Scripted(script=Bank())},
            stages={"make": Synthesize(steps={"mix": Mix()})},
        )  # fmt: skip
        execute(made, Run(tmp_path / "run"))


def test_the_estimate_counts_every_call(tmp_path: Path) -> None:
    plan = DataPlan.of(recipe("smoke"))
    run = Run(tmp_path / "run")
    execute(replace(recipe("smoke"), stages={"make": recipe("smoke").stages["make"]}), run)
    paid = account_of(run, "make")["teachers"]["teacher"]
    need = plan.needs["teacher"]
    assert need.calls == paid["calls"] == 9 * 6 * 2
    assert 0.7 < (need.read + need.wrote) / paid["tokens"] < 2.0


def test_the_imitator_knows_the_truth_about_its_texts(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    base = recipe("smoke")
    script: Imitator = base.teachers["teacher"].script
    answers: Any = replace(script, wrong=0.0).build(run)
    rng, share = random.Random(0), []
    for _ in range(200):
        text, truth = answers._text("mail", "numbers", 0.8, rng)
        share.append(truth == "mail")
    assert 0.8 < sum(share) / 200 < 1.0
    assert all(answers._text("mail", "numbers", 1.0, rng)[1] == "mail" for _ in range(20))


def test_naive_bayes_is_bayes() -> None:
    judge = NaiveBayes({"a": ["x x x", "x"], "b": ["yy"]}, smoothing=1.0)
    assert judge("x", ["a", "b"]) == "a" and judge("yy", ["a", "b"]) == "b"
    assert judge("unheard of", ["a", "b"]) in ("a", "b")
    # by hand: "x" four times and "x x" twice in a; "yy" once in b; known n-grams: x, "x x", yy
    prior, logs, unseen = judge.logs["a"]
    assert prior == pytest.approx(math.log(2 / 3))
    assert logs["x"] == pytest.approx(math.log(5 / 10)) and unseen == pytest.approx(math.log(1 / 10))
