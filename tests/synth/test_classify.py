"""Labels with confidences: what is read out of answers, what is lost, and a script that knows how far to trust itself."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest

from language import write_jsonl
from stillhouse.core.recipe import Recipe
from stillhouse.core.run import Run, RunError
from stillhouse.core.signal import Completion
from stillhouse.data.labelled import Labelled, LibraryTopics
from stillhouse.data.rest import Rest
from stillhouse.models.text import NGrams
from stillhouse.synth.classify import Classify
from stillhouse.synth.pseudo import Pseudo, PseudoLabelled
from stillhouse.synth.scripts.unsure import Judge, Unsure
from stillhouse.synth.synthesize import Synthesize, account_of
from stillhouse.teachers.scripted import Scripted
from stillhouse.teachers.text import Ask, Decoding

from .lab import go
from .talk import Follow, Seen, stands, teacher

NAMES = ("card lost", "fees", "travel")
ROWS = [{"text": f"{name} question {i}", "label": name} for name in NAMES for i in range(10)]


def recipe(folder: Path, script: Any, step: Classify, texts: list[str] | None = None, shots: int | None = 2) -> Recipe:
    folder.mkdir(parents=True, exist_ok=True)
    path = str(write_jsonl(folder / "rows.jsonl", ROWS))
    rest = Rest() if texts is None else Rest(path=str(write_jsonl(folder / "rest.jsonl", [{"text": t} for t in texts])))
    stage = Synthesize(steps={"classify": step}, data=rest)
    data = Labelled(path=path, shots=shots)
    made = script if isinstance(script, Scripted) else teacher(script)
    return Recipe(id="mine", student=NGrams(), data=data, teachers={"teacher": made}, stages={"label": stage})


def labelled(folder: Path, script: Any, step: Classify = Classify(), texts: list[str] | None = None) -> Any:
    from stillhouse.synth.synthesize import lost_rows, made_rows

    run = go(recipe(folder, script, step, texts), folder / "run")
    return list(made_rows(run, "label")), list(lost_rows(run, "label")), run


@pytest.mark.parametrize(
    ("answer", "label", "confidence"),
    [
        ("fees: 85%", "fees", 0.85), ("Fees (85 %)", "fees", 0.85), ("**fees**: 90%", "fees", 0.9),
        ("travel, 0.7", "travel", 0.7),
        ("card lost - 100%", "card lost", 1.0),
        ("fees: 85 per cent.", "fees", 0.85), ("\n travel: 62.5%\nas it says", "travel", 0.625),
        ("travel = 1", "travel", 1.0), ("Class: fees, confidence: 70%", "fees", 0.7), ("fees: 0%", "fees", 0.0),
    ],
)  # fmt: skip
def test_what_an_answer_says(answer: str, label: str, confidence: float) -> None:
    assert Classify()._read(Completion(answer), NAMES) == (label, pytest.approx(confidence))


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("fees", "does not say how sure"), ("", "does not say how sure"), ("fees: very sure", "does not say how sure"),
        ("fees: 140%", "surer than 100"), ("no idea about that: 50%", "no class's name"), (": 50%", "no class's name"),
    ],
)  # fmt: skip
def test_what_cannot_be_used(answer: str, why: str) -> None:
    found = Classify()._read(Completion(answer), NAMES)
    assert isinstance(found, str) and why in found


def test_rows_keep_what_they_say_and_lose_what_cannot_be_read(tmp_path: Path) -> None:
    def says(ask: Ask, rng: random.Random) -> str:
        text = ask.messages[0][1].rsplit("Text: ", 1)[1].split("\n")[0]
        return "who knows?" if text == "strange" else f"{'fees' if 'money' in text else 'travel'}: {60 + len(text)}%"

    texts = ["my money", "going är", "strange", "more money"]
    rows, lost, run = labelled(tmp_path, says, texts=texts)
    assert {r["text"]: (r["label"], r["confidence"]) for r in rows} == {
        "my money": ("fees", 0.68), "going är": ("travel", 0.68), "more money": ("fees", 0.7),
    }  # fmt: skip
    gone = [row for row in lost if row["_step"] == "classify"]
    assert [(row["row"]["text"], row["_why"]) for row in gone] == [("strange", "the answer does not say how sure it is")]
    assert not any("_truth" in row for row in rows)


def test_a_prompt_shows_the_examples_that_may_be_learned_from_and_no_others(tmp_path: Path) -> None:
    seen = Seen(lambda ask, rng: "fees: 50%")
    _, _, run = labelled(tmp_path, seen, Classify(examples=1, descriptions={"fees": "what things cost"}))
    given = run.recipe.data.rows(run)
    for ask in seen.asked:
        words = ask.messages[0][1].split("Which of these")[0]
        shown = {row["text"] for row in ROWS if f"- {row['text']}\n" in words + "\n"}
        assert len(shown) == 3 and shown <= {row["text"] for row in given["train"]}
        assert "Class: fees - what things cost" in words
    judged = {row["text"] for name in ("valid", "test") for row in given[name]}
    asked = {ask.about["text"] for ask in seen.asked}
    assert asked and not asked & judged and not asked & {row["text"] for row in given["train"]}
    assert len(asked) + len(judged) + len(given["train"]) == len(ROWS)


def test_votes_and_tokens(tmp_path: Path) -> None:
    def votes(ask: Ask, rng: random.Random) -> str:
        return ("fees", "travel", "fees", "nothing like it at all")[ask.seed % 4]

    step = Classify(confidence="votes", each=8, decoding=Decoding(temperature=1.0, max_new=8))
    seen = Seen(votes)
    rows, _, _ = labelled(tmp_path / "votes", seen, step, texts=["a text"])
    said = [votes(ask, random.Random()) for ask in seen.asked]
    counts = {name: said.count(name) for name in ("fees", "travel")}
    most = max(counts.values())
    assert len(set(ask.seed for ask in seen.asked)) == 8
    assert rows[0]["label"] == min(name for name in counts if counts[name] == most)
    assert rows[0]["confidence"] == pytest.approx(most / sum(counts.values()))  # of the answers that can be used
    step = Classify(confidence="tokens", decoding=Decoding(temperature=0.0, max_new=8, logprobs=True))
    assert step.needs == {"text", "logprobs"}
    twice = Completion("travel", logprobs=[math.log(0.9), math.log(0.5)])
    assert step._read(twice, NAMES) == ("travel", pytest.approx(0.7))
    assert step._read(Completion("travel"), NAMES) == "the answer came without the probabilities of its tokens"
    with pytest.raises(RunError, match="needs logprobs of the teacher"):
        labelled(tmp_path / "tokens", lambda ask, rng: "fees", step, texts=["a text"])
    made = Scripted(script=Unsure(data=Labelled(path=str(tmp_path / "votes" / "rows.jsonl"))))
    rows, _, _ = labelled(tmp_path / "script", made, step)
    stated, _, _ = labelled(tmp_path / "stated", made)
    assert {r["text"]: r["label"] for r in rows} == {r["text"]: r["label"] for r in stated}
    by = {r["text"]: r["confidence"] for r in stated}
    assert all(r["confidence"] == pytest.approx(by[r["text"]], abs=6e-4) for r in rows)


def test_votes_by_hand() -> None:
    step = Classify(confidence="votes", each=3, decoding=Decoding(temperature=1.0))
    assert step._decided([("b", 1.0), ("a", 1.0), ("b", 1.0)]) == ("b", pytest.approx(2 / 3))
    assert step._decided([("b", 1.0), ("a", 1.0)]) == ("a", 0.5)


@pytest.mark.parametrize(
    "settings",
    [
        {"confidence": "votes"}, {"each": 3}, {"each": 2, "decoding": Decoding(temperature=1.0)},
        {"confidence": "tokens"}, {"decoding": Decoding(logprobs=True)}, {"column": "_x"},
    ],
)  # fmt: skip
def test_settings_that_cannot_be(settings: Any) -> None:
    with pytest.raises(ValueError):
        Classify(**settings)


def test_order_and_planning(tmp_path: Path) -> None:
    path = str(write_jsonl(tmp_path / "rows.jsonl", ROWS))
    rows = [{"text": f"text {i} ä"} for i in range(5)]
    found = stands(Classify(data=Labelled(path=path, shots=1)), rows, tmp_path, teacher=lambda ask, rng: "fees: 40%")
    assert len(found.rows) == 5 and set(found.column("confidence")) == {0.4}
    with pytest.raises(RunError, match="a column 'text'.*'txt'"):
        stands(Classify(data=Labelled(path=path)), [{"txt": "x"}], tmp_path / "b", teacher=lambda ask, rng: "fees: 40%")


# -- the script ------------------------------------------------------------------------------------------------------


def test_the_script_is_right_as_often_as_it_says(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    rows = LibraryTopics(each=60).rows(run)["train"]
    judge, names = Judge(rows), sorted({row["label"] for row in rows})
    said = [(judge.probabilities(row["text"], names), row["label"]) for row in rows]
    right = [names[p.index(max(p))] == label for p, label in said]
    sure = [max(p) for p, _ in said]
    accuracy = sum(right) / len(right)
    assert sum(sure) / len(sure) == pytest.approx(accuracy, abs=1e-3) and 0.4 < accuracy < 0.95
    order = sorted(range(len(sure)), key=lambda i: sure[i])
    low, high = order[: len(order) // 2], order[len(order) // 2 :]
    assert sum(right[i] for i in high) / len(high) > sum(right[i] for i in low) / len(low) + 0.15  # noise lies at borders
    assert all(sum(p) == pytest.approx(1.0) for p, _ in said[:20])


# -- the data --------------------------------------------------------------------------------------------------------


def test_the_rest_is_what_nobody_judges_by_or_knows(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", ROWS)
    data = Labelled(path=str(tmp_path / "rows.jsonl"), shots=2)
    run = Run(tmp_path / "run")
    run.recipe = Recipe(id="mine", student=NGrams(), data=data, stages={})
    given = data.rows(run)
    known = [given["train"][0]["text"], given["test"][0]["text"]]
    write_jsonl(tmp_path / "new.jsonl", [{"t": t} for t in (*known, "new", "new", " ", "newer")])
    assert Rest(path=str(tmp_path / "new.jsonl"), column="t").rows(run) == {"train": [{"text": "new"}, {"text": "newer"}]}
    assert len(Rest(limit=3).rows(run)["train"]) == 3
    whys = {reject["why"] for reject in run.read("rejects.jsonl")}
    assert whys == {"a text that the labelled data hold too", "nothing in column 't'"}
    run.recipe = Recipe(id="mine", student=NGrams(), data=Labelled(path=data.path), stages={})
    with pytest.raises(RunError, match="shots leaves no row"):
        Rest().rows(run)


def test_labelled_rows_as_data(tmp_path: Path) -> None:
    script = Scripted(script=Unsure(data=Labelled(path=str(tmp_path / "rows.jsonl"))))
    rows, _, run = labelled(tmp_path, script)
    source = Pseudo(stage="label").load(run)["train"]
    assert isinstance(source, PseudoLabelled)
    assert len(source) == len(rows) + 6 and source.confidence[:6].tolist() == [1.0] * 6
    batch = source.batch([0, 7], 0)
    assert float(batch["confidence"][1]) == pytest.approx(rows[1]["confidence"])
    assert batch["truth"].tolist()[0] == batch["labels"].tolist()[0] >= 0
    alone = Pseudo(stage="label", given=False).load(run)["train"]
    assert len(alone) == len(rows)
    part = Pseudo(stage="label", given=False, share=0.5).load(run)["train"]
    assert 0 < len(part) < len(rows) and set(part.texts) < set(alone.texts)
    assert account_of(run, "label")["teachers"]["teacher"]["calls"] == len(rows)
    with pytest.raises(ValueError, match="share"):
        Pseudo(stage="label", share=0.0)


def test_rows_without_a_confidence_are_refused(tmp_path: Path) -> None:
    from stillhouse.synth.generate import Generate

    made = recipe(tmp_path, lambda ask, rng: "fees", Classify())
    stage = Synthesize(steps={"say": Generate(prompt="{{ text }}", into="label")}, data=Rest())
    run = go(
        Recipe(id="m", student=NGrams(), data=made.data, teachers=made.teachers, stages={"label": stage}), tmp_path / "r"
    )
    with pytest.raises(RunError, match="without a confidence"):
        Pseudo(stage="label").load(run)
    assert isinstance(made.teachers["teacher"].script, Follow)
