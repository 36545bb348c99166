"""HarmAug: what a prefix yields, what becomes of every answer, and the loss by hand. The rare class is harmless."""

from __future__ import annotations

import math
import random
import shutil
import sqlite3
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from language import write_jsonl
from stillhouse.audits.accepted import PerCall
from stillhouse.core.run import Run, RunError
from stillhouse.core.signal import Completion
from stillhouse.core.stage import Subjects, execute
from stillhouse.data.labelled import Labelled, LibraryTopics
from stillhouse.data.rare import Rare
from stillhouse.methods.synthesis.harmaug import HarmAug, Wanted, guarded, proof, recipe
from stillhouse.synth.pseudo import PseudoLabelled
from stillhouse.synth.scripts.reluctant import Reluctant
from stillhouse.synth.synthesize import Synthesize, account_of, lost_rows, made_rows
from stillhouse.teachers.scripted import Scripted
from stillhouse.teachers.text import Ask, Decoding

WORDS = "when where who which how much many long far old is are was were the a dog cat house tree river bird".split()


def texts(question: bool, count: int, seed: int = 0) -> list[str]:
    rng = random.Random(f"{question} {seed}")
    some = WORDS[:10] if question else WORDS[10:]
    return [f"{' '.join(rng.choice(some) for _ in range(6))} {i}{'?' if question else '.'}" for i in range(count)]


ROWS = [{"text": t, "label": "question"} for t in texts(True, 30)] + [
    {"text": t, "label": "other"} for t in texts(False, 90)
]


@dataclass(frozen=True, kw_only=True)
class Says:
    """Answers about the class asked for with one of these, in turns by the seed."""

    answers: tuple[str, ...]
    finished: bool = True
    goes_on: bool = True

    @property
    def gives(self) -> frozenset[Any]:
        return frozenset({"continuation"} if self.goes_on else ())

    def build(self, run: Run) -> Any:
        def answer(ask: Ask, rng: random.Random) -> Completion:
            text = rng.choice(self.answers).format(n=rng.randrange(10**6), label=ask.about["label"])
            return Completion(text, finished=self.finished, read=5, wrote=5)

        return answer


def made(tmp_path: Path, write: Wanted, script: Any, keep: int | None = 5, folder: str = "run") -> Run:
    data = Labelled(path=str(write_jsonl(tmp_path / "own.jsonl", ROWS)))
    base = recipe("smoke")
    stages = {"make": Synthesize(steps={"write": write})}
    run = Run(tmp_path / folder)
    teachers = {"generator": Scripted(script=script)}
    execute(replace(base, data=Rare(base=data, label="question", keep=keep), teachers=teachers, stages=stages), run)
    return run


def new(run: Run) -> list[Any]:
    return [row for row in made_rows(run, "make") if row.get("asked")]


def why(run: Run) -> Counter[str]:
    return Counter(row["_why"] for row in lost_rows(run, "make"))


# -- writing -------------------------------------------------------------------------------------------------------------


def test_quotas_of_every_class(tmp_path: Path) -> None:
    run = made(tmp_path, Wanted(quotas={"question": 12, "other": 5}), Says(answers=("new {label} {n}",)))
    assert Counter(row["label"] for row in new(run)) == {"question": 12, "other": 5}
    given = [row for row in made_rows(run, "make") if not row.get("asked")]
    others = sum(row["label"] == "other" for row in run.recipe.data.rows(run)["train"])
    assert Counter(row["label"] for row in given) == {"question": 5, "other": others}
    names = {row["_id"]: row for row in given}
    for row in new(run):
        assert len(row["_from"]) == 3 and {names[parent]["label"] for parent in row["_from"]} == {row["label"]}


def test_the_yield_with_and_without_the_prefix(tmp_path: Path) -> None:
    """Without it a share of the calls is refused, with it none; as many rows then cost 1 / (1 - r) as many calls."""
    data = Rare(base=Labelled(path=str(write_jsonl(tmp_path / "own.jsonl", ROWS))), label="question")
    script = Reluctant(data=data, refuses=0.6)
    rates: dict[str, float] = {}
    for name, write in {
        "prefix": Wanted(quotas={"question": 200}, tries=1.0),
        "none": Wanted(quotas={"question": 200}, tries=1.0, begin=""),
        "patient": Wanted(quotas={"question": 200}, tries=6.0, begin=""),
    }.items():
        run = made(tmp_path, write, script, folder=f"{name}/run")
        (found,) = PerCall()(run, Subjects(run, ()))
        rates[name] = found.value
        lost = why(run)
        twins = lost["the same text was there before"]
        assert len(new(run)) == (200 if name == "patient" else 200 - lost["a refusal"] - twins)
        assert set(lost) <= {"a refusal", "the same text was there before"}
        assert (lost["a refusal"] == 0) == (name == "prefix")
        refused = lost["a refusal"] / account_of(run, "make")["teachers"]["generator"]["calls"]
        assert refused == pytest.approx(0.0 if name == "prefix" else 0.6, abs=0.14)
        assert all(row["_truth"] == "question" for row in new(run))
    assert rates["prefix"] > 2 * rates["none"] and rates["patient"] == pytest.approx(rates["none"], abs=0.12)


def test_what_is_lost_has_a_reason(tmp_path: Path) -> None:
    answers = ("I'm sorry, I cannot.", "...", "As an AI model, no", "same old text")
    run = made(tmp_path, Wanted(quotas={"question": 10}, tries=4.0), Says(answers=answers))
    assert len(new(run)) == 1 and set(why(run)) == {"a refusal", "no words", "the same text was there before"}
    assert sum(why(run).values()) == 39
    cut = made(
        tmp_path, Wanted(quotas={"question": 2}), Says(answers=("a {n}", "b {n}\n\nmore"), finished=False), folder="cut"
    )
    assert why(cut).keys() <= {"the answer was cut off"} and all(row["text"].startswith("b") for row in new(cut))
    quoted = made(
        tmp_path, Wanted(quotas={"question": 1}), Says(answers=(' "A  line\nof {n}" \n\nThat is it.',)), folder="q"
    )
    assert new(quoted)[0]["text"].startswith("A line of") and not new(quoted)[0]["text"].endswith('"')
    copies = made(tmp_path, Wanted(quotas={"question": 1}), Says(answers=(ROWS[40]["text"].upper(), "n {n}")), folder="copy")
    assert [row["text"][0] for row in new(copies)] == ["n"]


def test_the_prefix_is_asked_for_and_the_examples_are_of_the_class(tmp_path: Path) -> None:
    run = made(tmp_path, Wanted(quotas={"question": 3}, descriptions={"question": "it asks"}), Says(answers=("x {n}",)))
    asked = [row[0] for row in sqlite3.connect(run.folder / "requests.sqlite").execute("select asked from calls")]
    rare = {row["text"] for row in run.recipe.data.rows(run)["train"] if row["label"] == "question"}
    for each in asked:
        assert 'Here is a new text of the class \\"question\\":' in each and "(it asks)" in each
        assert sum(row["text"] in each for row in ROWS) == 3 == sum(text in each for text in rare)


def test_a_teacher_that_cannot_go_on_is_told_before_the_first_call(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="needs continuation of the teacher 'generator', which gives text"):
        made(tmp_path, Wanted(quotas={"question": 1}), Says(answers=("x",), goes_on=False))
    with pytest.raises(RunError, match="the class 'qestion', but the classes are other, question"):
        made(tmp_path, Wanted(quotas={"qestion": 1}), Says(answers=("x",)))
    assert new(made(tmp_path, Wanted(quotas={"question": 1}, begin=""), Says(answers=("x {n}",), goes_on=False), folder="w"))
    bad: list[dict[str, Any]] = [dict(tries=0.5), dict(quotas={"a": -1})]
    for wrong in bad:
        with pytest.raises(ValueError):
            Wanted(**wrong)


# -- the script and the data ---------------------------------------------------------------------------------------------


def test_the_script_refuses_as_often_as_it_is_told(tmp_path: Path) -> None:
    data = Labelled(path=str(write_jsonl(tmp_path / "own.jsonl", ROWS)))
    base = replace(recipe("smoke"), data=data)
    run = Run(tmp_path / "run")
    run.recipe = base
    answer: Any = Reluctant(data=data, refuses=0.3, begun=0.1).build(run)
    for begin, share in (("", 0.3), ("Here:", 0.1)):
        found = [
            answer(Ask((("user", "x"),), Decoding(), n, {"label": "question"}, begin), random.Random(n)) for n in range(600)
        ]
        refused = [each for each in found if each.truth is None]
        assert len(refused) / 600 == pytest.approx(share, abs=0.06)
        assert all(each.text.startswith("I am sorry") for each in refused)
        assert all(each.truth == {"label": "question"} and each.text[0] != "1" for each in found if each.truth)
    with pytest.raises(RunError, match="asked something else"):
        answer(Ask((), Decoding()), random.Random(0))


def test_one_class_against_the_others(tmp_path: Path) -> None:
    run, base = Run(tmp_path / "run", seed=3), LibraryTopics(each=30)
    data = Rare(base=base, label="mail", keep=4)
    whole, few = data.all_rows(run), data.rows(run)
    assert data.names(run) == ("mail", "other")
    for split, rows in base.all_rows(run).items():
        assert [row["text"] for row in rows] == [row["text"] for row in whole[split]]
        assert [row["label"] == "mail" for row in rows] == [row["label"] == "mail" for row in whole[split]]
    assert Counter(row["label"] for row in few["train"])["mail"] == 4 and few["test"] == whole["test"]
    assert [r for r in few["train"] if r["label"] == "other"] == [r for r in whole["train"] if r["label"] == "other"]
    other = {row["text"] for row in data.rows(Run(tmp_path / "other", seed=4))["train"] if row["label"] == "mail"}
    assert other != {row["text"] for row in few["train"] if row["label"] == "mail"}
    with pytest.raises(RunError, match="and 10000 were asked for"):
        replace(data, keep=10_000).rows(run)
    with pytest.raises(RunError, match="is one of .* not 'post'"):
        replace(data, label="post").rows(run)


# -- the loss ------------------------------------------------------------------------------------------------------------


class Fixed(torch.nn.Module):
    def __init__(self, logits: torch.Tensor):
        super().__init__()
        self.logits = torch.nn.Parameter(logits)

    def forward(self, n: torch.Tensor) -> torch.Tensor:
        return self.logits[n]


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("hard", [0.0, 0.5, 1.0])
def test_the_loss_by_hand(tmp_path: Path, classes: int, hard: float) -> None:
    draw = torch.Generator().manual_seed(classes)
    logits = 3 * torch.randn(5, classes, generator=draw)
    labels, sure = torch.arange(5) % classes, torch.tensor([0.55, 0.9, 1.0, 0.7, 0.99])
    state = HarmAug(hard=hard).setup(Fixed(logits), Run(tmp_path))
    batch = {"inputs": {"n": torch.arange(5)}, "labels": labels, "confidence": sure}
    (update,) = HarmAug(hard=hard).step(state, batch, Run(tmp_path))
    total = 0.0
    for i in range(5):
        z = [math.exp(v) for v in logits[i].tolist()]
        q = [v / sum(z) for v in z]
        c = min(max(float(sure[i]), 1e-6), 1 - 1e-6)
        p = [c if k == int(labels[i]) else (1 - c) / (classes - 1) for k in range(classes)]
        kl = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        total += hard * -math.log(q[int(labels[i])]) + (1 - hard) * kl
    assert update.loss.item() == pytest.approx(total, rel=1e-4) and update.count == 5
    (gradient,) = torch.autograd.grad(update.loss, state.student.logits)  # hard (q - y) + (1 - hard) (q - p)
    q = logits.softmax(-1)
    y = torch.nn.functional.one_hot(labels, classes)
    assert torch.allclose(gradient, hard * (q - y) + (1 - hard) * (q - guarded(labels, sure, classes)), atol=1e-5)


def test_large_logits_and_certainty_stay_finite(tmp_path: Path) -> None:
    state = HarmAug().setup(Fixed(torch.tensor([[1e4, -1e4], [-1e4, 1e4]])), Run(tmp_path))
    batch = {"inputs": {"n": torch.arange(2)}, "labels": torch.tensor([1, 1]), "confidence": torch.tensor([1.0, 0.0])}
    (update,) = HarmAug().step(state, batch, Run(tmp_path))
    assert update.loss.isfinite()
    assert guarded(torch.tensor([1]), torch.tensor([0.75]), 2).tolist() == [[0.25, 0.75]]


def test_data_without_a_guard(tmp_path: Path) -> None:
    made_ = recipe("smoke").set("train.data", None)
    with pytest.raises(RunError, match="learns a guard's probabilities, which its data do not hold"):
        execute(replace(made_, stages={"train": made_.stages["train"]}), Run(tmp_path / "run"))
    with pytest.raises(ValueError, match="hard"):
        HarmAug(hard=1.5)


# -- the whole plan ------------------------------------------------------------------------------------------------------


def test_every_text_has_the_guards_word_on_it(tmp_path: Path) -> None:
    base, run = recipe("smoke"), Run(tmp_path / "run")
    execute(replace(base, stages={"make": base.stages["make"]}), run)
    rows = list(made_rows(run, "make"))
    given = base.data.rows(run)["train"]
    assert len(rows) == len(given) + 20 and all(0.5 <= row["confidence"] <= 1 for row in rows)
    source: Any = base.stages["train"].data.load(run)["train"]
    assert isinstance(source, PseudoLabelled) and len(source) == len(rows)
    asked = [row for row in rows if row.get("asked")]
    assert len(asked) == 20 and sum(row["label"] == "mail" for row in asked) > 10


def test_the_arms_add_as_many_rows(tmp_path: Path) -> None:
    arms, counts = proof().arms, dict[str, int]()
    for name in ("ours", "alone", "edited", "no_prefix"):
        smaller = arms[name]
        for step in ("write", "edit"):
            if step in smaller.stages["make"].steps:
                smaller = smaller.set(f"make.steps.{step}.quotas", {"mail": 30})
        steps = {k: v for k, v in smaller.stages["make"].steps.items() if k != "judge"} or smaller.stages["make"].steps
        run = Run(tmp_path / name / "run")
        execute(replace(smaller, stages={"make": Synthesize(steps=steps)}), run)
        counts[name] = len(made_rows(run, "make"))
    assert counts["ours"] == counts["edited"] == counts["alone"] + 30 and counts["no_prefix"] < counts["ours"] - 10


def test_own_texts_from_the_command_line(tmp_path: Path, still: Any) -> None:
    write_jsonl(tmp_path / "mine.jsonl", [{"words": row["text"], "kind": row["label"]} for row in ROWS])
    own = "{use: data.labelled.Labelled, path: mine.jsonl, text: words, label: kind}"
    script = "{{use: teachers.scripted.Scripted, script: {{use: synth.scripts.{}, data: {}}}}}".format
    sets = [
        f"data={own}", "make.steps.write.quotas={question: 8}", "audit.checks.0.label=question", "train.steps=20",
        f"teachers.generator={script('reluctant.Reluctant', own)}", f"teachers.guard={script('unsure.Unsure', own)}",
    ]  # fmt: skip
    done = still(
        "run", "harmaug", "--scale", "smoke", "--runs", "runs", *(part for each in sets for part in ("--set", each))
    )
    assert done.exit_code == 0, done.output
    (folder,) = (tmp_path / "runs").iterdir()
    run = Run(folder)
    rows, paid = list(made_rows(run, "make")), account_of(run, "make")
    assert sum(bool(row.get("asked")) for row in rows) == 8
    shutil.rmtree(folder / "artifacts" / "make")
    again = still("run", folder)  # all that was asked is in the run's own file
    assert again.exit_code == 0 and list(made_rows(run, "make")) == rows
    assert account_of(run, "make")["teachers"] == paid["teachers"]


def worded(words: str, body: Any) -> str:
    """A writer that goes on from what it is made to begin with, and a guard that knows a question by its mark."""
    if body["messages"][-1]["role"] == "assistant":
        assert words == 'Here is a new text of the class "question":'
        return f' "where is the {body["seed"] % 9973}?"\n\nI hope that this helps.'
    return "question" if words.splitlines()[-2].endswith("?") else "other"


def sure(said: Any) -> Any:
    """With the probabilities of the tokens: 0.8 for one, 0.5 for the other."""
    tokens = [{"token": token, "logprob": math.log(p)} for token, p in (("ques", 0.8), ("tion", 0.5))]
    return {**said, "choices": [{**said["choices"][0], "logprobs": {"content": tokens}}]}


def test_own_texts_with_a_server(tmp_path: Path, still: Any, chat_server: Any) -> None:
    server = chat_server(worded)
    server.change = sure
    changes = {
        "data.path": write_jsonl(tmp_path / "texts.jsonl", ROWS), "make.steps.write.quotas": "{question: 9}",
        "audit.checks.0.label": "question", "student": "{use: models.text.NGrams, width: 8}",
        "train.steps": 5, "train.batch": 8,
        **{f"teachers.{name}.url": server.url for name in ("generator", "guard")},
        **{f"teachers.{name}.model": "tiny" for name in ("generator", "guard")},
    }  # fmt: skip
    settings = [part for k, v in changes.items() for part in ("--set", f"{k}={v}")]
    done = still("--debug", "run", "harmaug", "--scale", "paper", *settings, "--runs", tmp_path / "runs", "--device", "cpu")
    assert done.exit_code == 0, done.stdout + done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    rows = list(made_rows(Run(folder), "make"))
    asked = [row for row in rows if row.get("asked")]
    assert len(asked) == 9 and all(row["text"].startswith("where is the") and row["text"].endswith("?") for row in asked)
    assert all((row["label"] == "question") == row["text"].endswith("?") for row in rows)
    assert all(row["confidence"] == pytest.approx(0.65) for row in rows)
